"""What a step of training minimises, as one module that can be shared out over processes or compiled."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from priorshift.models import Classifier
from priorshift.training.bilateral import bilateral_loss
from priorshift.training.world import World


class Objective(nn.Module):
    """The loss of a stage on the logits of a model, and what the head adds to it.

    Args:
        model: The classifier.
        loss: The loss of the stage.
        bilateral: Whether the stage mixes two streams of images.
        world: The processes that share a batch, over which the loss is taken.
    """

    def __init__(self, model: Classifier, loss: nn.Module, *, bilateral: bool, world: World) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self._bilateral = bilateral
        self._world = world

    def forward(self, inputs: Sequence[Tensor], labels: Sequence[Tensor], passed: float) -> Tensor:
        """The loss of a batch; its mean over the processes is that of the whole batch.

        Args:
            inputs: One batch of images, or in a bilateral stage one of each stream.
            labels: Their labels.
            passed: Share of the epochs of the stage that are over.
        """
        over = {} if self._world.group is None else {"process_group": self._world.group}
        if self._bilateral:
            return bilateral_loss(self.model, self.loss, inputs, labels, progress=passed, **over)
        head: Any = self.model.head
        features = self.model.backbone(inputs[0])
        loss: Tensor = self.loss(head(features), labels[0], **over)
        if hasattr(head, "regulariser"):
            loss = loss + head.regulariser(features, labels[0], **over)
        return loss
