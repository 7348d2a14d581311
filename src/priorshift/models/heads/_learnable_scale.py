"""Learnable weight scaling: the classifier of the stage before, frozen, with one factor per class."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from priorshift.models.heads._linear import linear_before
from priorshift.models.heads._start import Start
from priorshift.priors import Prior


class LearnableScaleHead(nn.Module):
    r"""LWS: the logits of a frozen linear classifier, times one learned factor per class.

    $$f_y(x) = s_y \, (w_y^\top \phi(x) + b_y), \qquad s_y = 1 \text{ at the start}$$

    For a second stage that trains this head alone with class-balanced sampling: only the $s_y$ learn. At
    test time use the logits as they are on the uniform mix; no theory says what they carry.

    The paper scales the weights, $\tilde w_y = s_y w_y$, and says nothing of a bias; its released code
    scales the whole logit, and so does this head.

    Args:
        num_features: Number of features $D$.
        num_classes: Number of classes $C$.

    Example:
        >>> head = LearnableScaleHead(2, 3)
        >>> [name for name, parameter in head.named_parameters()], head.scale.tolist()
        (['scale'], [1.0, 1.0, 1.0])

    References:
        Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020,
        Section 4, and its released code.
    """

    needs_start: ClassVar[bool] = True
    weight: Tensor
    bias: Tensor

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(num_classes, num_features))
        self.register_buffer("bias", torch.zeros(num_classes))
        self.scale = nn.Parameter(torch.ones(num_classes))

    @staticmethod
    def conventional_prior(source: Prior) -> Prior:
        """A factor per class cannot move logits by a prior; its authors use it on the uniform mix."""
        return Prior.uniform(source.num_classes)

    @torch.no_grad()
    def begin(self, start: Start) -> None:
        """Take over the weights and the bias of the head before.

        Raises:
            ValueError: If that is not a linear head.
        """
        previous = linear_before(start.previous)
        self.weight.copy_(previous.weight)
        self.bias.copy_(previous.bias)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of features."""
        return self.scale * F.linear(features, self.weight, self.bias)
