"""The scorer of a stream: the prior that its logits carry; reads, calibrates and adapts them."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from priorshift._blocks import for_blocks
from priorshift._inputs import Array, ArrayLike, align, read_scores
from priorshift.adjustment import Scaling, adjust
from priorshift.estimation._problem import read_calibration
from priorshift.priors import Prior, as_prior

BLOCK = 256
"""Samples of one gradient, at most, so that a step does not depend on the size of larger batches."""
_CHUNK = 2**19
"""Entries of ratios that are computed at a time: enough for several threads."""
_FEW = 32
"""Classes up to which the maximum of a row is found faster column by column."""


class Scorer:
    """What a stream's logits carry, and the calibration to apply to them first.

    Without class names in `carried`, the first table whose columns have names gives them; later tables are
    matched to these.
    """

    def __init__(self, carried: Prior | ArrayLike, scaling: Scaling | None) -> None:
        self.source = as_prior(carried, "carried").require_positive("carried")
        self.scaling = None if scaling is None else read_calibration(scaling, None, self.source)
        self._name(self.source.names)

    @property
    def num_classes(self) -> int:
        """The number of classes, $C$."""
        return self.source.num_classes

    @property
    def names(self) -> tuple[str, ...] | None:
        """The class names, where they are known."""
        return self.source.names

    def calibrated(self, logits: ArrayLike) -> Float[np.ndarray, "samples classes"]:
        """Read logits of any kind, put the columns of a table in order, and calibrate them.

        Raises:
            TypeError: If `logits` are not floating-point.
            ValueError: If they are not of $C$ classes, name other classes, or a row has nothing finite.
        """
        scores, names = read_scores(logits, num_classes=self.num_classes)
        if names is not None:
            if self.names is None:
                self._name(names)
            elif names != self.names:
                scores = scores[:, align(names, self.names, "logits")]
        return self.calibrate(scores)

    def calibrate(self, scores: Array) -> Array:
        """Calibrate logits that were read before."""
        return scores if self.scaling is None else self.scaling(scores)

    def log_ratios(
        self, calibrated: Float[np.ndarray, "samples classes"], out: Float[np.ndarray, "samples classes"]
    ) -> None:
        """Write the logarithms of the likelihood ratios, less the largest of each row, to `out`."""
        shift = self.carried.log_probs.astype(calibrated.dtype)

        def work(part: slice) -> None:
            block = calibrated[part] - shift
            block -= row_max(block)[:, None]
            out[part] = block

        for_blocks(work, *calibrated.shape)

    def ratios(
        self, calibrated: Float[np.ndarray, "samples classes"]
    ) -> Iterator[Float[np.ndarray, "block classes"]]:
        """Likelihood ratios in blocks, each row divided by its largest entry."""
        shift = self.carried.log_probs.astype(calibrated.dtype)
        size = BLOCK * max(1, _CHUNK // (BLOCK * self.num_classes))
        for first in range(0, len(calibrated), size):
            chunk = calibrated[first : first + size]
            ratios = np.empty(chunk.shape, chunk.dtype)

            def work(part: slice, chunk: Array = chunk, ratios: Array = ratios) -> None:
                block = ratios[part]
                np.subtract(chunk[part], shift, out=block)
                block -= row_max(block)[:, None]
                np.exp(block, out=block)

            for_blocks(work, *chunk.shape)
            for start in range(0, len(chunk), BLOCK):
                yield ratios[start : start + BLOCK]

    def adapt(self, logits: ArrayLike, target: Prior) -> Any:
        """Calibrate logits of any kind and move them to a target prior."""
        calibrated = logits if self.scaling is None else self.scaling(logits)
        return adjust(calibrated, carried=self.carried, target=target)

    def _name(self, names: tuple[str, ...] | None) -> None:
        self.source = self.source.named(names)
        self.carried = self.source if self.scaling is None else self.scaling.carried.named(names)
        """The prior that calibrated logits carry."""


def row_max(block: Float[np.ndarray, "samples classes"]) -> Float[np.ndarray, " samples"]:
    """The largest entry of each row."""
    if len(block) < BLOCK or block.shape[1] > _FEW:
        return np.asarray(block.max(axis=1))
    top = block[:, 0].copy()
    for column in block.T[1:]:
        np.maximum(top, column, out=top)
    return top


def softmax(block: Float64[np.ndarray, "samples classes"]) -> None:
    """The softmax of each row, in place."""
    block -= row_max(block)[:, None]
    np.exp(block, out=block)
    block /= (block @ np.ones(block.shape[1]))[:, None]


def sum_of_posteriors(
    calibrated: Float[np.ndarray, "samples classes"], weights: Float[np.ndarray, " samples"] | None = None
) -> Float[np.ndarray, " classes"]:
    """The weighted sum of the softmax of each row, in float64."""
    ones = np.ones(calibrated.shape[1])

    def work(part: slice) -> Float[np.ndarray, " classes"]:
        block = calibrated[part].astype(np.float64)
        block -= row_max(block)[:, None]
        np.exp(block, out=block)
        scale = 1 / (block @ ones)
        if weights is not None:
            scale *= weights[part]
        return np.asarray(scale @ block)

    return np.asarray(np.sum(for_blocks(work, *calibrated.shape), axis=0))
