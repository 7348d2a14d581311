"""Choose the strength of a post-hoc method on held-out training data."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from priorshift._blocks import for_blocks
from priorshift._inputs import Array, ArrayLike, read_array, read_labels, read_scores
from priorshift.priors import Prior, as_prior

TAUS = tuple(round(0.1 * step, 1) for step in range(31))
"""0, 0.1, …, 3."""


def tune_tau(
    logits: ArrayLike, labels: ArrayLike, prior: Prior | ArrayLike, *, taus: Sequence[float] = TAUS
) -> float:
    r"""The $\tau$ at which post-hoc logit adjustment has the lowest balanced error on these samples.

    Use samples held out of training, never test samples. Their class prior does not matter, since the
    balanced error does not depend on it.

    Args:
        logits: Scores of a model trained with plain cross-entropy, `[N, C]`: an array of any library, or a
            table with one column per class.
        labels: Class indices, or names of a table's columns, `[N]`.
        prior: The training prior $\pi$, `[C]`, strictly positive.
        taus: Candidates; of those that are equally good the first one is taken.

    Raises:
        ValueError: If the parts do not fit, or there is no candidate or no sample.

    Example:
        >>> tune_tau([[2.0, 0.0], [2.0, 1.0], [1.0, 0.5]], [0, 0, 1], [0.9, 0.1])
        0.3

    References:
        Menon et al., *Long-tail learning via logit adjustment*, ICLR 2021, Section 6.2.
    """
    scores, names = read_scores(logits)
    training = as_prior(prior, "prior", scores.shape[1], names=names).require_positive("prior")
    classes = read_labels(labels, num_classes=scores.shape[1], names=names or training.names)
    return _best(lambda tau: (scores, (-tau * training.log_probs).astype(scores.dtype)), classes, taus)


def best_tau(
    logits_at: Callable[[float], ArrayLike], labels: ArrayLike, taus: Sequence[float] = TAUS
) -> float:
    """The strength at which some logits have the lowest balanced error; the first of those equally good.

    Args:
        logits_at: Scores at a strength, `[N, C]`, of any kind.
        labels: Class indices, `[N]`, of samples held out of training.
        taus: Candidates.

    Raises:
        ValueError: If there is no candidate or no sample, or the labels do not fit the logits.
    """
    return _best(lambda tau: (read_array(logits_at(tau), "logits"), None), read_labels(labels), taus)


def _best(
    scores_at: Callable[[float], tuple[Array, Array | None]],
    classes: Int[np.ndarray, " samples"],
    taus: Sequence[float],
) -> float:
    if not len(taus) or not len(classes):
        raise ValueError(
            "Expected at least one candidate in `taus` and one sample in `labels`, but got none."
        )
    recalls = []
    for tau in taus:
        scores, offset = scores_at(tau)
        if scores.ndim != 2 or len(scores) != len(classes):
            raise ValueError(
                f"Expected `labels` with one entry per row of logits, {scores.shape[:1]}, "
                f"but got shape {classes.shape}."
            )
        classes = read_labels(classes, num_classes=scores.shape[1])
        right = _predicted(scores, offset) == classes
        counts = np.bincount(classes, minlength=scores.shape[1])
        recalls.append((right / np.maximum(counts, 1)[classes]).sum())
    return taus[max(range(len(taus)), key=lambda index: (round(recalls[index], 9), -index))]


def _predicted(scores: Array, offset: Array | None) -> Int[np.ndarray, " samples"]:
    def work(rows: slice) -> Int[np.ndarray, " rows"]:
        block = scores[rows] if offset is None else scores[rows] + offset
        found: Int[np.ndarray, " rows"] = block.argmax(axis=1)
        return found

    return np.concatenate(for_blocks(work, *scores.shape))
