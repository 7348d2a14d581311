"""Post-hoc weight normalisation: the classifier of the stage before, divided by a power per class."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from priorshift.adjustment import best_tau
from priorshift.models.heads._linear import linear_before
from priorshift.models.heads._start import Start
from priorshift.priors import Prior

TAUS = tuple(step / 10 for step in range(21))
"""The exponents that are tried where none is given."""


class TauNormHead(nn.Module):
    r"""τ-norm: the weights of a linear classifier over a power of their norm, without a bias.

    $$f_y(x) = \frac{w_y^\top \phi(x)}{\|w_y\|^\tau}$$

    For a stage of 0 epochs after one of cross-entropy, where the norms of rare classes came out small. τ = 0
    leaves the weights as they are, τ = 1 gives all the norm 1. At test time use the logits as they are on
    the uniform mix; no theory says what they carry.

    Args:
        num_features: Number of features $D$.
        num_classes: Number of classes $C$.
        tau: Exponent $\tau \ge 0$. None tries 0, 0.1, …, 2 and takes what has the best balanced accuracy on
            the validation images, the smallest of equals; `chosen` has it.

    Raises:
        ValueError: If `tau` is negative or not finite.

    Example:
        >>> from priorshift.models.heads import LinearHead
        >>> head = TauNormHead(2, 2, tau=1.0)
        >>> head.weight.copy_(head.normalised(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), tau=1.0))
        tensor([[0.6000, 0.8000],
                [0.0000, 1.0000]])
        >>> head(torch.tensor([[1.0, 1.0]]))
        tensor([[1.4000, 1.0000]])

    References:
        Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020,
        Section 4; Menon et al., *Long-Tail Learning via Logit Adjustment*, ICLR 2021, Eq. 3.
    """

    needs_start: ClassVar[bool] = True
    weight: Tensor

    def __init__(self, num_features: int, num_classes: int, *, tau: float | None = None) -> None:
        super().__init__()
        self.tau = _checked(tau)
        self.chosen: dict[str, float] = {}
        self.register_buffer("weight", torch.zeros(num_classes, num_features))

    @staticmethod
    def conventional_prior(source: Prior) -> Prior:
        """Its authors use its logits on the uniform mix."""
        return Prior.uniform(source.num_classes)

    @staticmethod
    def normalised(
        weight: Float[Tensor, "classes features"], tau: float
    ) -> Float[Tensor, "classes features"]:
        r"""The weights $w_y / \|w_y\|^\tau$."""
        norms: Tensor = torch.linalg.vector_norm(weight, dim=1, keepdim=True)
        return weight / norms.pow(tau)

    @torch.no_grad()
    def begin(self, start: Start) -> None:
        """Normalise the weights of the head before, with an exponent chosen on the validation images.

        Raises:
            ValueError: If that is not a linear head, or there are no validation images to choose on.
        """
        weight = linear_before(start.previous).weight.to(self.weight.device)
        tau = self.tau
        if tau is None:
            tau = best_tau(
                lambda tau: F.linear(start.validation.features, self.normalised(weight, tau)),
                start.validation.labels,
                TAUS,
            )
            self.chosen = {"tau": tau}
        self.weight.copy_(self.normalised(weight, tau))

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of features."""
        return F.linear(features, self.weight)


class PriorNormHead(nn.Module):
    r"""Weight normalisation by the prior: the logits of a linear classifier over a power of the class mix.

    $$f_y(x) = \frac{w_y^\top \phi(x) + b_y}{\pi_y^\tau}$$

    For a stage of 0 epochs after one of cross-entropy. It cannot raise a class above another whose logit is
    positive while its own is negative, which is where logit adjustment differs. At test time use the logits
    as they are on the uniform mix; no theory says what they carry.

    Args:
        num_features: Number of features $D$.
        num_classes: Number of classes $C$.
        tau: Exponent $\tau \ge 0$; None as in `TauNormHead`.
        scale_bias: Whether to divide the bias too, as in the formula, or the weights alone.

    Raises:
        ValueError: If `tau` is negative or not finite.

    Example:
        >>> from priorshift.models.heads import Features, LinearHead, Start
        >>> previous, none = LinearHead(1, 2), Features(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
        >>> previous.load_state_dict({"weight": torch.tensor([[4.0], [2.0]]), "bias": torch.zeros(2)})
        <All keys matched successfully>
        >>> source = Prior([0.8, 0.2])
        >>> head = PriorNormHead(1, 2, tau=1.0)
        >>> head.begin(Start(previous=previous, train=none, validation=none, source=source, carried=source))
        >>> head(torch.ones(1, 1))
        tensor([[ 5., 10.]])

    References:
        Menon et al., *Long-Tail Learning via Logit Adjustment*, ICLR 2021, Eq. 3 and Section 4.2; Kim and
        Kim, *Adjusting Decision Boundary for Class Imbalanced Learning*, 2019.
    """

    needs_start: ClassVar[bool] = True
    weight: Tensor
    bias: Tensor

    def __init__(
        self, num_features: int, num_classes: int, *, tau: float | None = None, scale_bias: bool = True
    ) -> None:
        super().__init__()
        self.tau = _checked(tau)
        self.scale_bias = scale_bias
        self.chosen: dict[str, float] = {}
        self.register_buffer("weight", torch.zeros(num_classes, num_features))
        self.register_buffer("bias", torch.zeros(num_classes))

    @staticmethod
    def conventional_prior(source: Prior) -> Prior:
        """Its authors use its logits on the uniform mix."""
        return Prior.uniform(source.num_classes)

    @torch.no_grad()
    def begin(self, start: Start) -> None:
        """Scale the head before, with an exponent chosen on the validation images.

        Raises:
            ValueError: If that is not a linear head, or there are no validation images to choose on.
        """
        previous = linear_before(start.previous)
        weight, bias = previous.weight.to(self.weight.device), previous.bias.to(self.bias.device)
        probs = torch.tensor(start.source.probs).to(weight)

        def scaled(tau: float) -> tuple[Tensor, Tensor]:
            factor = probs**-tau
            return factor[:, None] * weight, factor * bias if self.scale_bias else bias

        tau = self.tau
        if tau is None:
            tau = best_tau(
                lambda tau: F.linear(start.validation.features, *scaled(tau)), start.validation.labels, TAUS
            )
            self.chosen = {"tau": tau}
        for buffer, value in zip((self.weight, self.bias), scaled(tau), strict=True):
            buffer.copy_(value)

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of features."""
        return F.linear(features, self.weight, self.bias)


def _checked(tau: float | None) -> float | None:
    if tau is not None and not (math.isfinite(tau) and tau >= 0):
        raise ValueError(f"Expected `tau` to be finite and non-negative, but got {tau}.")
    return tau
