"""Calibration and a target prior in the weights and the bias of a classifier, or behind one not linear."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from priorshift._inputs import ArrayLike
from priorshift.adjustment import Scaling
from priorshift.export._scorer import Scorer
from priorshift.models import Classifier
from priorshift.models.heads import (
    BilateralHead,
    LearnableScaleHead,
    LinearHead,
    PriorNormHead,
    TauNormHead,
)
from priorshift.priors import Prior, as_prior


def fold(scorer: Scorer, target: Prior | ArrayLike) -> Scorer:
    r"""The scorer for one target prior, which its logits then carry: it costs nothing at test time.

    $$W_y^\top \phi(x) + \left( b_y - \log q_y + \log t_y \right)$$

    A linear classifier without a bias gets one; to one that is not linear the offset is added at its end.
    **At test time** the argmax and the softmax of the logits are those for the target.

    Args:
        scorer: The scorer, which stays as it is.
        target: The prior $t$ of the deployed mix, `[C]`. A class of zero mass gets probability exactly 0.

    Raises:
        ValueError: If `target` is not of $C$ classes.

    Example:
        >>> from priorshift.export import Description
        >>> description = Description(
        ...     class_names=("cat", "dog"),
        ...     carried=Prior([0.9, 0.1]),
        ...     carried_by="theory",
        ...     train_counts=(90, 10),
        ...     input_shape=(2,),
        ... )
        >>> classifier = Classifier(nn.Identity(), LinearHead(2, 2))
        >>> _ = nn.init.eye_(classifier.head.weight), nn.init.zeros_(classifier.head.bias)
        >>> folded = fold(Scorer(classifier, description), [0.5, 0.5])
        >>> folded(torch.tensor([[2.0, 1.0]])).softmax(dim=1)
        tensor([[0.2320, 0.7680]])

    References:
        Hong et al., CVPR 2021, Eq. 17, of which the bias is the sum of the prior terms.
    """
    description = scorer.description
    destination = as_prior(target, "target", description.num_classes, names=description.class_names)
    carried = description.carried.require_positive("carried")
    classifier = _ending(
        scorer.classifier,
        scale=torch.ones(1, dtype=torch.float64),
        bias=torch.tensor(destination.log_probs - carried.log_probs),
        centred=False,
    )
    return Scorer(classifier, replace(description, carried=destination))


def calibrate(scorer: Scorer, scaling: Scaling) -> Scorer:
    """The scorer with a calibration inside; its logits then carry `scaling.carried`.

    Args:
        scorer: The scorer, which stays as it is.
        scaling: As `priorshift.adjustment.fit_scaling` gives it for this scorer.

    Raises:
        ValueError: If the calibration is of a scorer with another carried prior, or of other classes.
    """
    description = scorer.description
    as_prior(scaling.carried, "scaling", description.num_classes, names=description.class_names)
    source = scaling.source
    if source is not None and not source.matches(description.carried):
        raise ValueError(
            f"Expected `scaling` of a scorer whose logits carry {description.carried}, "
            f"but got one for {source}."
        )
    bias = np.zeros(description.num_classes) if scaling.bias is None else scaling.bias
    if source is not None:
        removed = source.log_probs
        if len(scaling.scale) > 1:
            removed = removed - removed.mean()
        bias = bias + scaling.carried.log_probs - scaling.scale * removed
    classifier = _ending(
        scorer.classifier,
        scale=torch.tensor(scaling.scale),
        bias=torch.tensor(bias),
        centred=len(scaling.scale) > 1,
    )
    facts = {**description.facts, "calibration": scaling.method}
    return Scorer(classifier, replace(description, carried=scaling.carried, facts=facts))


class _PerClass(nn.Module):
    r"""The end of a classifier: $a_y f_y + b_y$, where weights are per class of the centred $f$."""

    scale: Tensor
    bias: Tensor

    def __init__(self, *, scale: Tensor, bias: Tensor, centred: bool) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("bias", bias.float())
        self.centred = centred

    def forward(self, logits: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        if self.centred:
            logits = logits - logits.mean(dim=1, keepdim=True)
        return logits * self.scale + self.bias


def _ending(
    classifier: nn.Module,
    *,
    scale: Float[Tensor, " scales"],
    bias: Float[Tensor, " classes"],
    centred: bool,
) -> nn.Module:
    """The classifier, and then $a_y f_y + b_y$."""
    if not isinstance(classifier, Classifier) or (linear := _linear(classifier.head)) is None:
        return nn.Sequential(classifier, _PerClass(scale=scale, bias=bias, centred=centred))
    weight, offset = (part.detach().double() for part in linear)
    if centred:
        weight, offset = weight - weight.mean(dim=0), offset - offset.mean()
    head = LinearHead(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": scale[:, None] * weight, "bias": scale * offset + bias})
    return Classifier(classifier.backbone, head)


def _linear(head: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of a head that is linear at test time."""
    match head:
        case LinearHead() | PriorNormHead():
            return head.weight, head.bias
        case TauNormHead():
            return head.weight, torch.zeros(len(head.weight))
        case LearnableScaleHead():
            return head.scale[:, None] * head.weight, head.scale * head.bias
        case BilateralHead():
            return head.linear.weight, head.linear.bias
        case _:
            return None
