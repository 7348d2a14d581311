"""Decisions and confidences of runs, computed once and then weighted to any number of mixes."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int

from priorshift._blocks import for_blocks
from priorshift.metrics._kernels import bins_of, edges_of, row_sums
from priorshift.predictions import Predictions

NUM_BINS = 20
"""Bins of the calibration errors, as the papers have them."""
Result = TypeVar("Result")
Work: TypeAlias = Callable[
    [slice, Int[np.ndarray, " block"], Float[np.ndarray, "block classes"], Float[np.ndarray, " block"]],
    Result,
]


class Decisions(NamedTuple):
    """Numbers of each sample, `[N]`.

    Attributes:
        hits: Whether the predicted class is the label.
        confidence: Probability of the predicted class.
        bins: Bin of the confidence.
    """

    hits: Bool[np.ndarray, " samples"]
    confidence: Float[np.ndarray, " samples"]
    bins: Int[np.ndarray, " samples"]


def decide(run: Predictions, *, num_bins: int = NUM_BINS) -> Decisions:
    """Decisions of a labeled run under the prior that its logits carry, in one pass."""
    predicted = np.empty(run.num_samples, dtype=np.int64)
    confidence = np.empty(run.num_samples)

    def work(
        part: slice,
        best: Int[np.ndarray, " block"],
        masses: Float[np.ndarray, "block classes"],
        sums: Float[np.ndarray, " block"],
    ) -> None:
        predicted[part], confidence[part] = best, 1 / sums

    _for_masses(run, work)
    return Decisions(predicted == run.labels, confidence, bins_of(confidence, edges_of(num_bins)))


def mean_probs(run: Predictions, weights: Float[np.ndarray, " samples"]) -> Float[np.ndarray, " classes"]:
    """Weighted mean of the probabilities of each class, `[C]`, in one pass."""

    def work(
        part: slice,
        best: Int[np.ndarray, " block"],
        masses: Float[np.ndarray, "block classes"],
        sums: Float[np.ndarray, " block"],
    ) -> Float[np.ndarray, " classes"]:
        block: Float[np.ndarray, " classes"] = (weights[part] / sums) @ masses
        return block

    total: Float[np.ndarray, " classes"] = sum(_for_masses(run, work), np.zeros(run.num_classes))
    mean: Float[np.ndarray, " classes"] = total / weights.sum()
    return mean


def _for_masses(run: Predictions, work: Work[Result]) -> list[Result]:
    """What `work` returns for the samples, likeliest classes, exponentials and their sums of each block."""

    def block_of(part: slice) -> Result:
        logits = run.logits[part]
        best = logits.argmax(axis=1)
        masses = logits.astype(np.float64)
        masses -= masses[np.arange(len(best)), best][:, None]
        np.exp(masses, out=masses)
        return work(part, best, masses, row_sums(masses))

    return for_blocks(block_of, *run.logits.shape)
