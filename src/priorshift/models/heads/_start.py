"""What a head may look at when its stage begins."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from priorshift.priors import Prior


@dataclass(frozen=True, eq=False)
class Features:
    """Features of a split under the backbone as it is, `[N, D]`, and labels, `[N]`."""

    features: Float[Tensor, "samples features"]
    labels: Int[Tensor, " samples"]


@dataclass(frozen=True, eq=False)
class Start:
    """The state of the training when a stage begins.

    Args:
        previous: The head before this one.
        train: Features of the training images, without augmentation.
        validation: Features of the held-out images; whatever a head chooses, it chooses on them.
        source: The class mix of the training images.
        carried: The prior that the logits of the previous head carry.
    """

    previous: nn.Module
    train: Features
    validation: Features
    source: Prior
    carried: Prior
