"""Predictions: scores of a data set with the prior that they carry, and what is needed to judge them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from priorshift._blocks import for_blocks
from priorshift._files import read_envelope, write_envelope
from priorshift._inputs import (
    Array,
    ArrayLike,
    align,
    quoted,
    read_labels,
    read_names,
    read_per_class,
    read_probs,
    read_scores,
    read_table,
    require_one_of,
)
from priorshift.adjustment import adjust
from priorshift.priors import Prior, as_prior, prior_as_arrays, prior_from_arrays

__all__ = ["Predictions"]

KIND = "predictions"
SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    r"""Logits of a data set with the prior they carry: predict once, then everything is a pure function.

    Make them from any model's scores: logits or log-probabilities here, probabilities with `from_probs`, a
    table of a CSV or Parquet file with `from_frame`. Everything is checked once, here, and kept as NumPy.

    Args:
        logits: Scores, `[N, C]`, floating-point, not NaN, of any array library, or a table whose columns are
            named by class. Log-probabilities do as well; probabilities are refused.
        carried: The class prior that the logits carry, `[C]`. For a classifier trained with plain
            cross-entropy, the class mix of its training data. Given by name it is matched by name.
        labels: Class indices, or class names, `[N]`, where they are known.
        train_counts: Number of training samples of each class, `[C]`, where known: sorts the classes for
            forward and backward mixes and into many, medium and few.
        class_names: One name per class, where known; by default those of the table's columns or of `carried`.
        method: Published name of the method, for tables and legends.
        carried_by: Whether `carried` holds by "theory" or only by "convention".
        fingerprint: Fingerprint of the images predicted on, as `priorshift.shift.fingerprint` gives it.
        facts: What else is true of the run (seed, recipe, split, versions, …): text, numbers, lists of them.

    Attributes:
        logits: float32 or float64, `[N, C]`.
        labels: int64, `[N]`, or None.
        train_counts: int64, `[C]`, or None.

    Raises:
        TypeError, ValueError: If the parts do not fit together; the message names the part.

    Example:
        >>> predictions = Predictions(logits=[[2.0, 1.0], [0.2, 0.1]], carried={"cat": 90, "dog": 10})
        >>> predictions.adjusted({"dog": 0.5, "cat": 0.5}).predicted
        array([1, 1])
    """

    logits: Float[Array, "samples classes"]
    carried: Prior
    labels: Int[Array, " samples"] | None = None
    train_counts: Int[Array, " classes"] | None = None
    class_names: tuple[str, ...] | None = None
    method: str = ""
    carried_by: Literal["theory", "convention"] = "theory"
    fingerprint: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        logits, columns = read_scores(self.logits, rule="numbers")
        num_samples, num_classes = logits.shape
        given = None if self.class_names is None else read_names(self.class_names, "class_names", num_classes)
        if columns is not None and given is not None:
            logits = logits[:, align(columns, given, "logits")]
        names = given or columns
        carried = as_prior(self.carried, "carried", num_classes, names=names)
        names = names or carried.names
        labels, counts = self.labels, self.train_counts
        if labels is not None:
            labels = read_labels(labels, size=num_samples, num_classes=num_classes, names=names)
        if counts is not None:
            counts = _read_counts(counts, num_classes, names)
        require_one_of("carried_by", self.carried_by, ("theory", "convention"))
        read = {
            "logits": logits,
            "carried": carried,
            "labels": labels,
            "train_counts": counts,
            "class_names": names,
        }
        for name, value in read.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_probs(cls, probs: ArrayLike, *, carried: Prior | ArrayLike, **parts: Any) -> Self:
        r"""Predictions from class probabilities, whose logarithms are logits.

        A probability of exactly 0, as a forest gives where no tree votes for a class, would rule the class
        out on every mix. It counts as half of the smallest positive probability of the table.

        Args:
            probs: Probabilities, `[N, C]`, rows summing to 1 within a thousandth, of any array library, or a
                table whose columns are named by class; or P(positive) of two classes, `[N]`.
            carried: The class prior that the probabilities carry, `[C]`: the class mix of the training data.
            **parts: As for `Predictions`: `labels`, `class_names` and the others.

        Raises:
            TypeError, ValueError: If a row is no distribution, or the parts do not fit together.

        Example:
            >>> predictions = Predictions.from_probs([0.02, 0.4], carried=[0.9, 0.1])
            >>> predictions.adjusted([0.5, 0.5]).predicted
            array([0, 1])
        """
        read, columns = read_probs(probs)
        if columns is not None:
            names = parts.setdefault("class_names", columns)
            read = read[:, align(columns, read_names(names, "class_names"), "probs")]
        return cls(logits=_log_of(read), carried=carried, **parts)

    @classmethod
    def from_frame(
        cls,
        table: Any,
        *,
        carried: Prior | ArrayLike,
        label: str | None = None,
        scores: Literal["probs", "logits"] = "probs",
        **parts: Any,
    ) -> Self:
        """Predictions from a table with one column per class, matched to the classes by name.

        Args:
            table: A pandas, polars or pyarrow table.
            carried: The class prior that the scores carry. Where it has names, or `class_names` are given,
                the columns of these names are the scores and all others are left aside; otherwise all columns
                of numbers but `label` are.
            label: The column of true classes, names or indices, where there is one.
            scores: Whether the columns hold probabilities, or logits or log-probabilities.
            **parts: As for `Predictions`.

        Raises:
            TypeError, ValueError: If a class has no column, or a part does not fit.

        Example:
            >>> import pandas as pd
            >>> scores = {"id": [7, 8], "dog": [0.1, 0.6], "cat": [0.9, 0.4], "is": ["cat", "dog"]}
            >>> table = pd.DataFrame(scores)
            >>> predictions = Predictions.from_frame(table, carried={"cat": 30, "dog": 10}, label="is")
            >>> predictions.class_names, predictions.labels
            (('cat', 'dog'), array([0, 1]))
        """
        require_one_of("scores", scores, ("probs", "logits"))
        frame = read_table(table, "table")
        if label is not None and label not in frame.columns:
            raise ValueError(
                f"Expected `label` to be a column of {quoted(frame.columns)}, but got {label!r}."
            )
        prior = carried if isinstance(carried, Prior) else as_prior(carried, "carried")
        names = parts.pop("class_names", None) or prior.names
        if names is None:
            names = [name for name in frame.columns if name != label and frame.schema[name].is_numeric()]
        missing = [name for name in names if name not in frame.columns]
        if missing:
            raise ValueError(
                f"Expected `table` with a column for each class, but there is none for {quoted(missing)}; "
                f"its columns are {quoted(frame.columns)}."
            )
        chosen = frame.select(list(names)).to_native()
        values = _log_of(read_probs(chosen)[0]) if scores == "probs" else read_scores(chosen)[0]
        if label is not None:
            labels = np.asarray(frame[label].to_numpy())
            by_name = set(map(str, np.unique(labels))) <= set(map(str, names))
            parts["labels"] = labels.astype(str) if by_name else labels
        return cls(logits=values, carried=prior, class_names=tuple(map(str, names)), **parts)

    @property
    def num_samples(self) -> int:
        """The number of samples, $N$."""
        return len(self.logits)

    @property
    def num_classes(self) -> int:
        """The number of classes, $C$."""
        return int(self.logits.shape[1])

    @property
    def log_probs(self) -> Float[Array, "samples classes"]:
        """The log-posterior under the carried prior, `[N, C]`, float64."""
        found = np.empty(self.logits.shape)

        def work(rows: slice) -> None:
            block = found[rows]
            tops = self.logits[rows].max(axis=1, keepdims=True)
            np.subtract(self.logits[rows], tops, out=block, dtype=np.float64)
            block -= np.log(np.exp(block).sum(axis=1, keepdims=True))

        for_blocks(work, *self.logits.shape)
        return found

    @property
    def predicted(self) -> Int[Array, " samples"]:
        """The most likely class of each sample under the carried prior, `[N]`."""
        found: npt.NDArray[np.int64] = self.logits.argmax(axis=1)
        return found

    def adjusted(self, target: Prior | ArrayLike) -> Self:
        """The predictions for a deployment whose class mix is `target`, which their logits then carry.

        Raises:
            ValueError: If `target` is not of the same classes.
        """
        prior = as_prior(target, "target", self.num_classes, names=self.class_names)
        return self._with(logits=adjust(self.logits, carried=self.carried, target=prior), carried=prior)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all; everything but the arrays is JSON in its header.

        Raises:
            OSError: If the file cannot be written.
        """
        arrays = {"logits": self.logits, **prior_as_arrays(self.carried, "carried")}
        if self.labels is not None:
            arrays["labels"] = self.labels
        if self.train_counts is not None:
            arrays["train_counts"] = self.train_counts
        header = {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "tensors": sorted(arrays),
            "class_names": self.class_names,
            "method": self.method,
            "carried_by": self.carried_by,
            "fingerprint": self.fingerprint,
            "facts": dict(self.facts),
        }
        write_envelope(Path(path), KIND, SCHEMA_VERSION, header, arrays)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file that `save` wrote. Nothing in it is executed.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is truncated, is no predictions file, contradicts itself, or was written
                by a newer version; the message names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no predictions file {path}.")
        header, arrays = read_envelope(path, KIND, SCHEMA_VERSION)
        try:
            if sorted(arrays) != header["tensors"]:
                raise ValueError(f"expected tensors {header['tensors']}, but got {sorted(arrays)}")
            stated = (header["num_samples"], header["num_classes"])
            if arrays["logits"].shape != stated:
                raise ValueError(f"expected logits {stated}, but got {arrays['logits'].shape}")
            names: Sequence[str] | None = header["class_names"]
            return cls(
                logits=arrays["logits"],
                carried=prior_from_arrays(arrays, "carried"),
                labels=arrays.get("labels"),
                train_counts=arrays.get("train_counts"),
                class_names=None if names is None else tuple(names),
                method=header["method"],
                carried_by=header["carried_by"],
                fingerprint=header["fingerprint"],
                facts=header["facts"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} contradicts itself: {error}") from error

    def _with(self, **changes: Any) -> Self:
        """A copy with other parts, which are not looked at again."""
        copy = object.__new__(type(self))
        for name, value in {**vars(self), **changes}.items():
            object.__setattr__(copy, name, value)
        return copy


def _log_of(probs: Array) -> Array:
    floor = probs[probs > 0].min() / 2
    logs: Array = np.log(np.maximum(probs, floor))
    return logs


def _read_counts(counts: ArrayLike, num_classes: int, names: Sequence[str] | None) -> Int[Array, " classes"]:
    numbers, _ = read_per_class(counts, "train_counts", names=names)
    if numbers.shape != (num_classes,):
        raise ValueError(
            f"Expected `train_counts` with one entry per class, {num_classes}, but got shape {numbers.shape}."
        )
    wrong = numbers[~(np.isfinite(numbers) & (numbers >= 0) & (numbers == np.floor(numbers)))]
    if len(wrong):
        raise ValueError(f"Expected `train_counts` to be non-negative whole numbers, but got {wrong[0]:g}.")
    return numbers.astype(np.int64)
