"""The samples a metric is taken over: read and checked here, those of zero weight dropped first."""

from collections.abc import Iterator
from typing import TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor

from priorshift.priors import ArrayLike

Classes: TypeAlias = Int[Tensor, " samples"] | Int[np.ndarray, " samples"]
Weights: TypeAlias = Num[Tensor, " samples"] | Num[np.ndarray, " samples"]
Rows: TypeAlias = Num[Tensor, "samples classes"] | Num[np.ndarray, "samples classes"]

# A float32 softmax over thousands of classes stays well within this, a half-precision one does not.
TOLERANCE = 1e-4

BLOCK = 2**18
"""Numbers that are worked on at a time: few enough to stay in a cache."""


@final
class Samples:
    """The samples of positive weight, and the reading of arrays that hold one entry or row per sample.

    Args:
        counted: The argument whose first dimension says how many samples there are.
        argument: The name of that argument.
        weights: Non-negative, shape `[N]`; None weighs every sample 1.

    Raises:
        ValueError: If there is no sample, or `weights` are not as stated or all zero.
    """

    def __init__(self, counted: ArrayLike, argument: str, weights: Weights | None) -> None:
        self._size = read(counted, argument).shape[:1].numel()
        if self._size == 0:
            raise ValueError(f"Expected `{argument}` with at least one sample, but got none.")
        if weights is None:
            self._kept = None
            self.weights = torch.ones(self._size, dtype=torch.float64)
        else:
            every = read_weights(weights, self._size)
            self._kept = torch.nonzero(every).flatten()
            self.weights = every[self._kept]

    def classes(self, values: Classes, argument: str, num_classes: int | None = None) -> Int[Tensor, " kept"]:
        """Class indices, int64; below `num_classes` where that is given."""
        indices = read(values, argument)
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise TypeError(f"Expected `{argument}` to be class indices, but got dtype {indices.dtype}.")
        if indices.shape != (self._size,):
            raise ValueError(
                f"Expected `{argument}` with one entry per sample, ({self._size},), "
                f"but got shape {tuple(indices.shape)}."
            )
        indices = self._keep(indices.to(torch.int64))
        wrong = indices < 0 if num_classes is None else (indices < 0) | (indices >= num_classes)
        if wrong.any():
            rule = "to be at least 0" if num_classes is None else f"between 0 and {num_classes - 1}"
            first = self._first(wrong)
            raise ValueError(
                f"Expected `{argument}` {rule}, but got {int(indices[wrong][0])} for sample {first} "
                f"({int(wrong.sum())} of {len(indices)} are out of range)."
            )
        return indices

    def rows(self, values: Rows, argument: str) -> Num[Tensor, "samples classes"]:
        """One row for each sample, in the precision it came in; `probs` and `log_probs` read them."""
        rows = read(values, argument)
        if rows.ndim != 2 or rows.shape[0] != self._size or rows.shape[1] < 2:
            raise ValueError(
                f"Expected `{argument}` with one row per sample and at least two classes, ({self._size}, C), "
                f"but got shape {tuple(rows.shape)}."
            )
        return rows

    def probs(
        self, rows: Num[Tensor, "samples classes"]
    ) -> Iterator[tuple[slice, Float[Tensor, "block classes"]]]:
        """Rows of probabilities, clamped to [0, 1] where rounding left them outside, a block at a time.

        Refused once all have been read: only then may what was made of them be returned.
        """
        lowest, highest, sums = torch.empty(3, len(self.weights), dtype=torch.float64)
        for part, block in self._blocks(rows):
            # In two passes: aminmax takes ten times as long.
            lowest[part], highest[part] = block.amin(dim=1), block.amax(dim=1)
            sums[part] = block.sum(dim=1)
            yield part, block.clamp(0, 1)
        inside = (lowest >= -TOLERANCE) & (highest <= 1 + TOLERANCE)
        if not inside.all():
            row = int(torch.nonzero(~inside)[0])
            value = highest[row] if lowest[row] >= -TOLERANCE else lowest[row]
            raise ValueError(
                f"Expected `probs` between 0 and 1, but got {value.item():g} "
                f"for sample {self._first(~inside)}. Apply a softmax if these are logits."
            )
        self._refuse_wrong_sums(sums, "probs")

    def log_probs(
        self, rows: Num[Tensor, "samples classes"]
    ) -> Iterator[tuple[slice, Float[Tensor, "block classes"]]]:
        r"""Rows of log-probabilities, as `probs` gives its; $-\infty$ is a probability of zero."""
        sums = torch.empty(len(self.weights), dtype=torch.float64)
        for part, block in self._blocks(rows):
            sums[part] = block.logsumexp(dim=1).exp()
            yield part, block.clamp(max=0)
        self._refuse_wrong_sums(sums, "log_probs")

    def mean(self, values: Shaped[Tensor, " kept"]) -> float:
        """The weighted mean over samples."""
        return ((self.weights * values).sum() / self.weights.sum()).item()

    def sums(
        self, by: Int[Tensor, " kept"], size: int, values: Shaped[Tensor, " kept"]
    ) -> Float[Tensor, " size"]:
        """The weighted sum of `values` over the samples of each index in `by`."""
        return torch.bincount(by, weights=self.weights * values, minlength=size)

    def _blocks(
        self, rows: Num[Tensor, "samples classes"]
    ) -> Iterator[tuple[slice, Float[Tensor, "block classes"]]]:
        step = max(1, BLOCK // rows.shape[1])
        for start in range(0, len(self.weights), step):
            part = slice(start, start + step)
            block = rows[part] if self._kept is None else rows[self._kept[part]]
            yield part, block.to(torch.float64)

    def _refuse_wrong_sums(self, sums: Float[Tensor, " kept"], argument: str) -> None:
        wrong = ~((sums - 1).abs() <= TOLERANCE)
        if wrong.any():
            what, softmax = (
                ("probabilities", "softmax") if argument == "probs" else ("exponentials", "log_softmax")
            )
            raise ValueError(
                f"Expected the {what} of each row of `{argument}` to sum to 1, but got "
                f"{sums[wrong][0].item():.6g} for sample {self._first(wrong)} "
                f"({int(wrong.sum())} of {len(sums)} rows are off by more than {TOLERANCE:g}). "
                f"Take the {softmax} of logits in float32 or float64."
            )

    def _keep(self, values: Tensor) -> Tensor:
        return values if self._kept is None else values[self._kept]

    def _first(self, wrong: Tensor) -> int:
        position = torch.nonzero(wrong)[0]
        return int(position if self._kept is None else self._kept[position])


def read(values: ArrayLike, argument: str) -> Tensor:
    """A real tensor on the CPU, outside the graph, in the precision it came in."""
    if isinstance(values, np.ndarray):
        # torch warns of read-only arrays, which memory maps are, and refuses negative strides.
        values = np.require(values, requirements=["C", "W"])
    try:
        tensor = torch.as_tensor(values).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"Expected `{argument}` to be an array of real numbers, but got {values!r}."
        ) from error
    if tensor.is_complex():
        raise TypeError(
            f"Expected `{argument}` to be an array of real numbers, but got dtype {tensor.dtype}."
        )
    return tensor


def read_weights(weights: Weights, size: int | None = None) -> Float[Tensor, " samples"]:
    """One weight per sample: finite, non-negative, not all zero.

    Raises:
        ValueError: If they are not, or not `size` many.
    """
    masses = read(weights, "weights").to(torch.float64)
    if masses.ndim != 1 or (size is not None and masses.shape[0] != size):
        expected = "shape (N,)" if size is None else f"({size},)"
        raise ValueError(
            f"Expected `weights` with one entry per sample, {expected}, but got shape {tuple(masses.shape)}."
        )
    wrong = torch.nonzero(~(masses.isfinite() & (masses >= 0))).flatten()
    if wrong.numel():
        first = int(wrong[0])
        raise ValueError(
            "Expected `weights` to be finite and non-negative, "
            f"but got {masses[first].item()} for sample {first}."
        )
    total = masses.sum().item()
    if total == 0 or total == float("inf"):
        raise ValueError(f"Expected `weights` to have a positive finite sum, but they sum to {total:g}.")
    return masses


def check_num_classes(num_classes: int) -> None:
    """Refuse fewer than two classes."""
    if num_classes < 2:
        raise ValueError(f"Expected `num_classes` to be at least 2, but got {num_classes}.")
