"""A trained classifier that takes what a user has: pixels between 0 and 1."""

from pathlib import Path
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priorshift.data import FeatureSet, ImageSet, StoredImages
from priorshift.export._description import Description
from priorshift.training.run import load_trained


@final
class Scorer(nn.Module):
    r"""A classifier with the normalisation of its training, in evaluation mode.

    $$f(x) = \text{classifier}\!\left(\frac{x - \text{mean}}{\text{std}}\right)$$

    **At test time** its logits carry `description.carried`: continue with
    `adjust(scorer(images), carried=scorer.description.carried, target=…)`.

    Args:
        classifier: Normalised images, or features, to logits.
        description: What it is.

    Example:
        >>> from priorshift import Prior
        >>> description = Description(
        ...     class_names=("cat", "dog"),
        ...     carried=Prior([0.9, 0.1]),
        ...     carried_by="theory",
        ...     train_counts=(90, 10),
        ...     input_shape=(2,),
        ... )
        >>> Scorer(nn.Identity(), description)(torch.tensor([[0.2, 0.8]]))
        tensor([[0.2000, 0.8000]])
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, classifier: nn.Module, description: Description) -> None:
        super().__init__()
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
            for values in (description.preparation.mean, description.preparation.std)
        )
        self.classifier = classifier
        self.description = description
        self.register_buffer("scale", (1 / std).float(), persistent=False)
        self.register_buffer("offset", (-mean / std).float(), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, inputs: Float[Tensor, "batch *input"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images with channels between 0 and 1, or of features."""
        if len(self.scale):
            inputs = inputs * self.scale + self.offset
        logits: Tensor = self.classifier(inputs)
        return logits


def load_scorer(folder: Path) -> Scorer:
    """The scorer of a trained run, on the CPU; the run's data are read for their class counts.

    Args:
        folder: The run folder.

    Raises:
        FileNotFoundError: If the folder is no run folder, or not trained yet.
        ValueError: If a file in it cannot be read, or the weights do not fit the config.
    """
    config, splits, model, carried, carried_by, progress = load_trained(folder)
    train = splits.train
    description = Description(
        class_names=train.class_names,
        carried=carried,
        carried_by=carried_by,
        train_counts=tuple(train.counts.tolist()),
        input_shape=_input_shape(train, config.preparation.size),
        preparation=config.preparation,
        white=train.white if isinstance(train, ImageSet) else 255,
        method=config.method,
        facts={
            "seed": config.seed,
            "train_fingerprint": train.fingerprint,
            **{f"chosen {name}": value for name, value in progress["chosen"].items()},
            **progress["environment"],
        },
    )
    return Scorer(model, description)


def _input_shape(data: ImageSet | StoredImages | FeatureSet, size: int) -> tuple[int, ...]:
    if isinstance(data, FeatureSet):
        return (data.channels,)
    if size or not isinstance(data, ImageSet):
        return (data.channels, size, size)
    return tuple(data.images.shape[1:])
