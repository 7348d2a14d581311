"""Choose the strength of a post-hoc method on held-out training data."""

from collections.abc import Callable, Sequence

from jaxtyping import Float, Integer
from torch import Tensor

from priorshift.adjustment._adjust import logit_adjust
from priorshift.priors import ArrayLike, Prior, as_prior, count_labels

TAUS = tuple(round(0.1 * step, 1) for step in range(31))
"""0, 0.1, …, 3."""


def tune_tau(
    logits: Float[Tensor, "samples classes"],
    labels: Integer[Tensor, " samples"],
    prior: Prior | ArrayLike,
    *,
    taus: Sequence[float] = TAUS,
) -> float:
    r"""The $\tau$ at which post-hoc logit adjustment has the lowest balanced error on these samples.

    Use samples held out of training, never test samples. Their class mix does not matter, since the balanced
    error does not depend on it.

    Args:
        logits: Scores of a model trained with plain cross-entropy, `[N, C]`.
        labels: Class indices, `[N]`.
        prior: The training prior $\pi$, `[C]`, strictly positive.
        taus: Candidates; of those that are equally good the first one is taken.

    Raises:
        ValueError: If the parts do not fit, or there is no candidate or no sample.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 1.0], [1.0, 0.5]])
        >>> tune_tau(logits, torch.tensor([0, 0, 1]), [0.9, 0.1])
        0.3

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Section 6.2.
    """
    training = as_prior(prior, "prior", logits.shape[1])
    return best_tau(lambda tau: logit_adjust(logits, training, tau), labels, taus)


def best_tau(
    logits_at: Callable[[float], Float[Tensor, "samples classes"]],
    labels: Integer[Tensor, " samples"],
    taus: Sequence[float] = TAUS,
) -> float:
    """The strength at which some logits have the lowest balanced error; the first of those equally good.

    Args:
        logits_at: Scores at a strength, `[N, C]`.
        labels: Class indices, `[N]`, of samples held out of training.
        taus: Candidates.

    Raises:
        ValueError: If there is no candidate or no sample, or the labels do not fit the logits.
    """
    if not taus or not labels.numel():
        raise ValueError(
            "Expected at least one candidate in `taus` and one sample in `labels`, but got none."
        )
    classes = labels.detach().cpu().long()
    scores = []
    for tau in taus:
        logits = logits_at(tau)
        if logits.shape[:1] != classes.shape:
            raise ValueError(
                f"Expected `labels` with one entry per row of logits, {tuple(logits.shape[:1])}, "
                f"but got shape {tuple(classes.shape)}."
            )
        share = 1 / count_labels(classes, logits.shape[1]).clamp(min=1).double()
        scores.append((share[classes] * (logits.argmax(dim=1).cpu() == classes)).sum().item())
    return taus[max(range(len(taus)), key=lambda index: (round(scores[index], 9), -index))]
