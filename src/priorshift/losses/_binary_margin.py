"""The binary margin losses with a temperature: their link function, their threshold and their risk."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from priorshift.losses._batch import Reduction, at_least_float32, reduce
from priorshift.losses._group import ProcessGroup
from priorshift.losses._settings import finite, positive

PLAIN = (1.0, 1.0)
NO_MARGIN = (0.0, 0.0)


def binary_margin_loss(
    scores: Float[Tensor, "*batch"],
    labels: Int[Tensor, "*batch"],
    *,
    weights: tuple[float, float] = PLAIN,
    margins: tuple[float, float] = NO_MARGIN,
    temperature: float = 1.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    process_group: ProcessGroup | None = None,
) -> Float[Tensor, "*_"]:
    r"""The pairwise margin loss of two classes on one score, with a temperature.

    $$\ell(+1, f) = \frac{\omega_+}{\gamma} \log\big(1 + e^{\gamma\delta_+} e^{-\gamma f}\big), \qquad
    \ell(-1, f) = \frac{\omega_-}{\gamma} \log\big(1 + e^{\gamma\delta_-} e^{\gamma f}\big)$$

    At $\gamma = 1$ it is `pairwise_margin_loss` of two classes with $f = f_+ - f_-$,
    $\delta_+ = \Delta_{+-}$ and $\delta_- = \Delta_{-+}$; as $\gamma \to \infty$ it becomes the hinge losses
    $\omega_+ [\delta_+ - f]_+$ and $\omega_- [\delta_- + f]_+$. The optimal score is
    `binary_margin_link` of $p(+1 \mid x)$. At test time predict $+1$ where $f > 0$; that is right for the
    balanced error if and only if `binary_margin_threshold` is the share of the positive class.

    Args:
        scores: $f(x)$, any shape.
        labels: 1 for the positive and 0 for the negative class, of the shape of the scores.
        weights: $(\omega_+, \omega_-)$, positive.
        margins: $(\delta_+, \delta_-)$.
        temperature: $\gamma > 0$.
        ignore_index: Positions with this label do not count.
        reduction: "mean" over the positions that count, "sum", or "none" for one value per position.
        process_group: Ranks that the batch is spread over; None is this process alone.

    Raises:
        TypeError: If `scores` are not floating-point, or `labels` are.
        ValueError: If the shapes differ, a number is out of range or `reduction` is unknown.

    Example:
        >>> import torch
        >>> scores, labels = torch.tensor([2.0, -1.0]), torch.tensor([1, 0])
        >>> binary_margin_loss(scores, labels, weights=(9.0, 1.0), temperature=2.0)
        tensor(0.0726)

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Appendix B, Eq. 13.
    """
    _check(scores, "scores", weights, margins, temperature)
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"Expected `labels` to be 0 or 1 as whole numbers, but got dtype {labels.dtype}.")
    if labels.shape != scores.shape:
        raise ValueError(
            f"Expected `labels` of the shape of the scores, {tuple(scores.shape)}, "
            f"but got {tuple(labels.shape)}."
        )
    f = at_least_float32(scores)
    losses = torch.where(
        labels == 1,
        -weights[0] / temperature * F.logsigmoid(temperature * (f - margins[0])),
        -weights[1] / temperature * F.logsigmoid(-temperature * (f + margins[1])),
    )
    losses = torch.where(labels.long() != ignore_index, losses, 0)
    return reduce(losses, labels, ignore_index=ignore_index, reduction=reduction, process_group=process_group)


def binary_margin_link(
    probs: Float[Tensor, "*batch"],
    *,
    weights: tuple[float, float] = PLAIN,
    margins: tuple[float, float] = NO_MARGIN,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""The score $\Psi(p)$ that minimises the expected `binary_margin_loss` where $P(+1 \mid x) = p$.

    $$\Psi(p) = \frac{\delta_+ - \delta_-}{2} + \frac1\gamma \left[\frac s2 + \operatorname{asinh}\!\left(
    e^{\gamma(\delta_+ + \delta_-)/2} \sinh \frac s2\right)\right], \qquad
    s = \log \frac{\omega_+\, p}{\omega_- (1 - p)}$$

    This is the positive root $g = e^{\gamma f}$ of the quadratic in the proof of Lemma 4, in a form that does
    not cancel. Where $\delta_+ + \delta_- = 0$ it is the logit, moved and scaled.

    Args:
        probs: $p$, any shape; 0 and 1 give infinite scores.
        weights: $(\omega_+, \omega_-)$, positive.
        margins: $(\delta_+, \delta_-)$.
        temperature: $\gamma > 0$.

    Raises:
        TypeError: If `probs` are not floating-point.
        ValueError: If a weight or the temperature is not positive.

    Example:
        >>> import torch
        >>> binary_margin_link(torch.tensor([0.2, 0.5]), weights=(5.0, 1.25), margins=(1.0, 1.0))
        tensor([0.0000, 2.1540])

    References:
        Menon et al., ICLR 2021, Lemma 4.
    """
    _check(probs, "probs", weights, margins, temperature)
    half = (torch.logit(at_least_float32(probs)) + math.log(weights[0] / weights[1])) / 2
    stretch = temperature * sum(margins) / 2
    # Beyond e^20 the inverse hyperbolic sine is a logarithm; its argument may overflow there.
    # At 0 the other branch is taken, but an infinite slope here would make its gradient NaN.
    size = torch.where(half == 0, 1, half.abs())
    log_double = stretch + size + torch.log(-torch.expm1(-2 * size))
    largest = math.log(torch.finfo(half.dtype).max)
    near = torch.asinh(math.exp(min(stretch, largest)) * torch.sinh(half))
    bent = torch.where(log_double > 20, half.sign() * log_double, near)
    return (margins[0] - margins[1]) / 2 + (half + bent) / temperature


def binary_margin_inverse_link(
    scores: Float[Tensor, "*batch"],
    *,
    weights: tuple[float, float] = PLAIN,
    margins: tuple[float, float] = NO_MARGIN,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""The probability $\Psi^{-1}(f)$ of the positive class that an optimal score stands for.

    $$\Psi^{-1}(f) = \frac{1}{1 - \ell'(+1, f) / \ell'(-1, f)}, \qquad
    -\frac{\ell'(+1, f)}{\ell'(-1, f)}
    = \frac{\omega_+\, \sigma(\gamma(\delta_+ - f))}{\omega_-\, \sigma(\gamma(\delta_- + f))}$$

    Args:
        scores: $f$, any shape.
        weights: $(\omega_+, \omega_-)$, positive.
        margins: $(\delta_+, \delta_-)$.
        temperature: $\gamma > 0$.

    Raises:
        TypeError: If `scores` are not floating-point.
        ValueError: If a weight or the temperature is not positive.

    Example:
        >>> import torch
        >>> binary_margin_inverse_link(torch.tensor([0.0, 2.1540]), weights=(5.0, 1.25), margins=(1.0, 1.0))
        tensor([0.2000, 0.5000])

    References:
        Menon et al., ICLR 2021, Eq. 14 and 15.
    """
    _check(scores, "scores", weights, margins, temperature)
    f = at_least_float32(scores)
    log_odds = (
        math.log(weights[1] / weights[0])
        + F.logsigmoid(temperature * (margins[1] + f))
        - F.logsigmoid(temperature * (margins[0] - f))
    )
    return torch.sigmoid(log_odds)


def binary_margin_threshold(
    *,
    weights: tuple[float, float] = PLAIN,
    margins: tuple[float, float] = NO_MARGIN,
    temperature: float = 1.0,
) -> float:
    r"""The class probability $\Psi^{-1}(0)$ above which an optimal score is positive.

    The loss is consistent for the balanced error if and only if this is the share $\pi$ of the positives:

    $$\Psi^{-1}(0) = \pi \iff
    \frac{\omega_+\, \sigma(\gamma\delta_+)}{\omega_-\, \sigma(\gamma\delta_-)} = \frac{1 - \pi}{\pi},
    \qquad \sigma(z) = \frac{1}{1 + e^{-z}}$$

    The paper prints $\sigma$ with the opposite sign. Weights $(1/\pi, 1/(1-\pi))$ with equal margins meet the
    condition, and so do weights of 1 with $\delta_\pm = \pm\frac1\gamma \log\frac{1-\pi}{\pi}$; the two
    together do not.

    Args:
        weights: $(\omega_+, \omega_-)$, positive.
        margins: $(\delta_+, \delta_-)$.
        temperature: $\gamma > 0$.

    Raises:
        ValueError: If a weight or the temperature is not positive.

    Example:
        >>> round(binary_margin_threshold(weights=(1 / 0.2, 1 / 0.8), margins=(1.0, 1.0)), 6)
        0.2
        >>> round(binary_margin_threshold(weights=(1 / 0.2, 1 / 0.8), margins=(1.0, 0.2)), 6)
        0.158268

    References:
        Menon et al., ICLR 2021, Theorem 2 ($\gamma = 1$) and Lemma 3.
    """
    zero = torch.zeros((), dtype=torch.float64)
    return binary_margin_inverse_link(zero, weights=weights, margins=margins, temperature=temperature).item()


def binary_margin_risk(
    probs: Float[Tensor, "*batch"],
    *,
    weights: tuple[float, float] = PLAIN,
    margins: tuple[float, float] = NO_MARGIN,
    temperature: float = 1.0,
) -> Float[Tensor, "*batch"]:
    r"""The conditional Bayes risk: the smallest expected `binary_margin_loss` where $P(+1 \mid x) = p$.

    $$L(p) = p\, \ell\big(+1, \Psi(p)\big) + (1 - p)\, \ell\big(-1, \Psi(p)\big)$$

    Concave, and 0 at both ends. Margins with $\delta_+ + \delta_- = 0$ do not change it.

    Args:
        probs: $p$, any shape.
        weights: $(\omega_+, \omega_-)$, positive.
        margins: $(\delta_+, \delta_-)$.
        temperature: $\gamma > 0$.

    Raises:
        TypeError: If `probs` are not floating-point.
        ValueError: If a weight or the temperature is not positive.

    Example:
        >>> import torch
        >>> binary_margin_risk(torch.tensor([0.0, 0.2, 0.5]))
        tensor([0.0000, 0.5004, 0.6931])

    References:
        Menon et al., ICLR 2021, Appendix B.2, with the second term as it is meant.
    """
    scores = binary_margin_link(probs, weights=weights, margins=margins, temperature=temperature)
    parts = [
        share
        * binary_margin_loss(
            # At an end the score is infinite and that class, of probability 0, costs nothing.
            torch.where(share > 0, scores, 0),
            torch.full(probs.shape, label, device=probs.device),
            weights=weights,
            margins=margins,
            temperature=temperature,
            reduction="none",
        )
        for label, share in ((1, at_least_float32(probs)), (0, 1 - at_least_float32(probs)))
    ]
    return parts[0] + parts[1]


def _check(
    values: Tensor,
    argument: str,
    weights: tuple[float, float],
    margins: tuple[float, float],
    temperature: float,
) -> None:
    if not values.is_floating_point():
        raise TypeError(f"Expected `{argument}` to be floating-point, but got dtype {values.dtype}.")
    for weight in weights:
        positive("weights", weight)
    for margin in margins:
        finite("margins", margin)
    positive("temperature", temperature)
