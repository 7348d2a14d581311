"""Bilateral-branch training: two streams, two branches, one mixed logit."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from priorshift.models import Classifier


def mixing_weight(progress: float) -> float:
    r"""The weight of the conventional branch, $\alpha = 1 - (T / T_{max})^2$: from features to classifier.

    Args:
        progress: Share $T / T_{max}$ of the epochs that are over, from 0 in the first; the last epoch still
            has a little less than 1.

    Example:
        >>> [mixing_weight(progress) for progress in (0.0, 0.5, 1.0)]
        [1.0, 0.75, 0.0]

    References:
        Zhou et al., *BBN: Bilateral-Branch Network with Cumulative Learning*, CVPR 2020, Eq. 6.
    """
    return 1 - progress**2


def require_branches(model: Classifier) -> None:
    """Refuse a model that bilateral training cannot train.

    Raises:
        ValueError: If the backbone has not two branches or the head does not mix them.
    """
    if len(getattr(model.backbone, "branches", ())) != 2:
        raise ValueError("Expected a `model` of two branches for a bilateral stage, such as branches=2.")
    if "alpha" not in inspect.signature(model.head.forward).parameters:
        raise ValueError("Expected the `head` of a bilateral stage to mix two branches: use `bilateral`.")


def bilateral_loss(
    model: Classifier,
    loss_function: nn.Module,
    images: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    progress: float,
    **over: Any,
) -> Tensor:
    r"""The loss of a pair of batches on their mixed logits.

    $$\alpha\, \ell(z, y_c) + (1 - \alpha)\, \ell(z, y_r), \qquad
    z = \alpha W_c^\top f_c + (1 - \alpha) W_r^\top f_r$$

    The head mixes: `BilateralHead` does it as the released code, with a factor 2 and a bias. The conventional
    branch sees images as they come, the re-balancing branch images from the reversed
    sampler; what lies before the branches is shared.

    Args:
        model: A backbone of two branches and a bilateral head.
        loss_function: The loss $\ell$ of both parts.
        images: Batches of both streams, conventional first, of the same size.
        labels: Their labels $y_c$ and $y_r$.
        progress: Share of the epochs that are over, which sets $\alpha$.
        over: Further arguments of the loss: the `process_group` that shares the batches.

    References:
        Zhou et al., CVPR 2020, Eq. 1–4.
    """
    alpha = mixing_weight(progress)
    shared = model.backbone.shared(torch.cat(list(images)))
    features = [
        branch(part)
        for branch, part in zip(model.backbone.branches, shared.split(len(images[0])), strict=True)
    ]
    logits = model.head(torch.cat(features, dim=1), alpha=alpha)
    conventional, rebalancing = (loss_function(logits, each, **over) for each in labels)
    loss: Tensor = alpha * conventional + (1 - alpha) * rebalancing
    return loss
