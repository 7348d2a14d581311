"""Reads what people hand over, once, with one set of messages: scores, labels, weights, names, settings."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from priorshift._kinds import Array as Array
from priorshift._kinds import ArrayLike as ArrayLike
from priorshift._kinds import Kind as Kind
from priorshift._kinds import Names as Names
from priorshift._kinds import as_frame, floating, library, numbers_of, to_numpy
from priorshift._kinds import quoted as quoted
from priorshift._kinds import read_array as read_array
from priorshift._kinds import read_kind as read_kind

_ROW_SUM = 1e-3  # how far from 1 a row of probabilities may sum; percentages and logits are further off
_INSPECTED = 256  # rows that are looked at to tell probabilities from logits
_FEW = 4  # rows below which the logits of a stream may well sum to nearly 1: then they must to rounding
_RULES: dict[str, tuple[str, Callable[[Array, Callable[[], Array]], Array]]] = {
    "numbers": ("without NaN", lambda top, low: np.isnan(top)),
    "rows": ("finite or −inf, and finite for some class of each sample", lambda top, low: ~np.isfinite(top)),
    "finite": ("finite", lambda top, low: ~(np.isfinite(top) & np.isfinite(low()))),
}


def read_scores(
    values: ArrayLike, argument: str = "logits", *, num_classes: int | None = None, rule: str = "rows"
) -> tuple[Array, Names]:
    """Logits of samples, float32 or float64, `[N, C]`, scanned once; and the column names of a table.

    `rule` says what values may be: see `_RULES`. Probabilities are refused by all of them.
    """
    names, scores = read_rows(values, argument)
    scores = floating(scores, argument)
    if scores.ndim != 2 or scores.shape[0] == 0 or scores.shape[1] < 2:
        raise ValueError(
            f"Expected `{argument}` of shape [N, C], N ≥ 1 and C ≥ 2, but got shape {scores.shape}."
        )
    if num_classes is not None and scores.shape[1] != num_classes:
        raise ValueError(f"Expected `{argument}` with {num_classes} classes, but got {scores.shape[1]}.")
    _scan(scores, argument, rule)
    refuse_probs(scores, argument)
    return scores, names


def _scan(scores: Array, argument: str, rule: str) -> None:
    """Look at every value: a row's largest is NaN with any NaN in it, −inf if all classes are ruled out."""
    words, broken = _RULES[rule]
    wrong = broken(scores.max(axis=1), lambda: scores.min(axis=1))
    if wrong.any():
        row = np.flatnonzero(wrong)[0]
        column = np.flatnonzero(~np.isfinite(scores[row]))[0]
        raise ValueError(
            f"Expected `{argument}` to be {words}, but got {scores[row, column]} for class {column} of "
            f"sample {row} ({wrong.sum()} of {len(scores)} rows). Clamp probabilities before their logarithm."
        )


def refuse_probs(scores: Array, argument: str = "logits") -> None:
    """Refuse logits whose rows lie in [0, 1] and sum to 1; some rows, evenly spread, are looked at."""
    some = np.linspace(0, len(scores) - 1, min(len(scores), _INSPECTED)).astype(int)
    near = _ROW_SUM if len(some) >= _FEW else scores.shape[1] * float(np.finfo(scores.dtype).eps)
    if len(some) and not (wrong_probs(scores[some[:1]], near).any() or wrong_probs(scores[some], near).any()):
        raise ValueError(
            f"Expected `{argument}` to be logits or log-probabilities, but each row lies in [0, 1] and sums "
            "to 1: these are probabilities. Use `Predictions.from_probs` or `adjust_probs`, or their log."
        )


def read_probs(values: ArrayLike, argument: str = "probs") -> tuple[Array, Names]:
    """Probabilities, `[N, C]`, whose rows sum to 1; a vector of P(positive), `[N]`, becomes two columns."""
    names, probs = read_rows(values, argument)
    probs = probs.astype(np.float64) if probs.dtype.kind in "iub" else floating(probs, argument)
    if probs.ndim == 1 or (probs.ndim == 2 and probs.shape[1] == 1):
        probs, names = np.stack([1 - probs.reshape(-1), probs.reshape(-1)], axis=1), None
    if probs.ndim != 2 or len(probs) == 0:
        raise ValueError(f"Expected `{argument}` of shape [N, C] or [N], N ≥ 1, but got shape {probs.shape}.")
    check_probs(probs, argument)
    return probs, names


def wrong_probs(probs: Array, near: float = _ROW_SUM) -> Array:
    """Whether each row is no distribution: a value below 0, or a sum that is not `near` 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        wrong: Array = ~((np.abs(probs.sum(axis=1) - 1) <= near) & (probs.min(axis=1) >= 0))
    return wrong


def check_probs(probs: Array, argument: str) -> None:
    """Refuse rows that are no distributions, in words that say what they probably are."""
    wrong = wrong_probs(probs)
    if not wrong.any():
        return
    first = np.flatnonzero(wrong)[0]
    with np.errstate(over="ignore", invalid="ignore"):
        if (probs <= 0).all() and not wrong_probs(np.exp(probs)).any():
            remedy = "These are log-probabilities: pass them as logits, or take `exp`."
        elif (probs >= 0).all() and not wrong_probs(probs / 100).any():
            remedy = "These are percentages: divide by 100."
        else:
            remedy = "Apply a softmax if these are logits."
    raise ValueError(
        f"Expected `{argument}` between 0 and 1 with rows that sum to 1, but row {first} sums to "
        f"{probs[first].sum():.6g} with {probs[first].min():.6g} as its least value ({wrong.sum()} of "
        f"{len(probs)} rows are wrong). {remedy}"
    )


def read_labels(
    values: ArrayLike,
    argument: str = "labels",
    *,
    size: int | None = None,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
) -> npt.NDArray[np.int64]:
    """Class indices, `[N]`, from indices, or from class names where `names` are known."""
    labels = np.asarray(to_numpy(values))
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.size and _one_hot(labels):
        raise ValueError(
            f"Expected `{argument}` with one class index per sample, but got shape {labels.shape}: "
            f"for one-hot rows pass `{argument}.argmax(axis=1)`."
        )
    if size is not None and labels.shape != (size,):
        raise ValueError(
            f"Expected `{argument}` with one entry per sample, ({size},), but got shape {labels.shape}."
        )
    labels = labels.reshape(-1)
    if labels.dtype.kind in "OUST":
        found, places = np.unique(labels.astype(str), return_inverse=True)
        if names is None:
            raise TypeError(
                f"Expected `{argument}` to be class indices, but got names such as {str(found[0])!r}: pass "
                "`class_names` in the order of the scores, or the index of each name."
            )
        place = {str(name): index for index, name in enumerate(names)}
        if unknown := [name for name in found if name not in place]:
            raise ValueError(f"Expected `{argument}` of classes {quoted(names)}, but got {quoted(unknown)}.")
        return np.array([place[name] for name in found], dtype=np.int64)[places.reshape(-1)]
    if len(labels) and labels.dtype.kind not in "iu":
        raise TypeError(
            f"Expected `{argument}` to be class indices, but got dtype {labels.dtype}: use `.astype(int)`."
        )
    indices = labels.astype(np.int64)
    if len(indices) and not 0 <= indices.min() <= indices.max() < (num_classes or math.inf):
        wrong = (indices < 0) | (indices >= (num_classes or math.inf))
        rule = "to be at least 0" if num_classes is None else f"between 0 and {num_classes - 1}"
        from_one = (indices.min(), indices.max()) == (1, num_classes)
        raise ValueError(
            f"Expected `{argument}` {rule}, but got {indices[wrong][0]} for sample "
            f"{np.flatnonzero(wrong)[0]} ({wrong.sum()} of {len(indices)} labels are out of range)."
            f"{' Where labels begin at 1, subtract 1.' if from_one else ''}"
        )
    return indices


def read_weights(values: ArrayLike | None, size: int, argument: str = "weights") -> npt.NDArray[np.float64]:
    """One finite, non-negative weight per sample, `[N]`, not all zero. None weighs every sample 1."""
    if values is None:
        return np.ones(size)
    weights = read_array(values, argument).astype(np.float64)
    if weights.shape != (size,):
        raise ValueError(
            f"Expected `{argument}` with one entry per sample, ({size},), but got shape {weights.shape}."
        )
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        got = f"{weights[wrong[0]]} for sample {wrong[0]}"
        raise ValueError(f"Expected `{argument}` to be finite and non-negative, but got {got}.")
    with np.errstate(over="ignore"):
        total = weights.sum()
    if not 0 < total < np.inf:
        raise ValueError(
            f"Expected `{argument}` to have a positive finite sum, but they sum to {total:g}: "
            "they must neither be all zero nor overflow."
        )
    return weights


def read_per_class(
    values: ArrayLike, argument: str, *, names: Sequence[str] | None = None
) -> tuple[npt.NDArray[np.float64], Names]:
    """One number per class, `[C]`, C ≥ 2, in class order, and the class names where they are known.

    A mapping, a Series with an index or a table of two columns (class, number) is matched by name to `names`;
    an index of the numbers 0 … C−1 in any order, as `value_counts()` gives it, is put in order.
    """
    keys: list[str] | None = None
    if isinstance(values, Mapping):
        keys, values = list(map(str, values)), list(values.values())
    elif library(values) == "pandas" and hasattr(values, "index") and values.ndim == 1:
        keys, values = list(map(str, values.index)), values.to_numpy()
    elif (frame := as_frame(values, argument)) is not None and len(frame.columns) == 2:
        keys, values = (frame[name].to_list() for name in frame.columns)
        keys = list(map(str, keys))
    vector = np.array(read_array(values, argument), dtype=np.float64)
    if vector.ndim != 1 or len(vector) < 2:
        raise ValueError(
            f"Expected `{argument}` with one entry per class, at least two, but got shape {vector.shape}."
        )
    if keys is None:
        return vector, None
    read_names(keys, argument)
    if names is not None:
        return vector[align(keys, names, argument)], tuple(names)
    if set(keys) == set(map(str, range(len(keys)))):
        return vector[np.argsort([int(key) for key in keys])], None
    return vector, tuple(keys)


def read_names(values: ArrayLike, argument: str, num_classes: int | None = None) -> tuple[str, ...]:
    """Class names, each once."""
    names = tuple(map(str, np.asarray(to_numpy(values), dtype=object).reshape(-1).tolist()))
    if num_classes is not None and len(names) != num_classes:
        raise ValueError(
            f"Expected `{argument}` with one name per class, {num_classes}, but got {len(names)}."
        )
    if twice := [
        name for place, name in enumerate(names) if len(set(names)) < len(names) and name in names[:place]
    ]:
        raise ValueError(f"Expected `{argument}` to name each class once, but got {quoted(twice)} again.")
    return names


def read_table(values: Any, argument: str) -> Any:
    """A data frame in memory of any library, as Narwhals'."""
    if (frame := as_frame(values, argument)) is None:
        kind = type(values).__name__
        raise TypeError(f"Expected `{argument}` to be a pandas, polars or pyarrow table, but got {kind}.")
    return frame


def align(keys: Sequence[str], names: Sequence[str], argument: str) -> list[int]:
    """For each of `names` its place among `keys`; both must name the same classes."""
    place = {key: position for position, key in enumerate(keys)}
    missing, unknown = [name for name in names if name not in place], sorted(set(keys) - set(names))
    if missing or unknown:
        raise ValueError(
            f"Expected `{argument}` to name the same classes, but missing are {quoted(missing)} and unknown "
            f"are {quoted(unknown)}; the classes are {quoted(names)}."
        )
    return [place[name] for name in names]


def require_one_of(argument: str, value: object, choices: Sequence[object]) -> None:
    """Refuse a setting that is none of the choices."""
    if value not in choices:
        raise ValueError(
            f"Expected `{argument}` to be one of {', '.join(map(str, choices))}, but got {value!r}."
        )


def require_between(argument: str, value: float, low: float, high: float, *, closed: bool = False) -> None:
    """Refuse a number that is not strictly between two others, or, if `closed`, one of them."""
    if not (low <= value <= high if closed else low < value < high):
        ends = "" if closed else ", exclusive"
        raise ValueError(f"Expected `{argument}` between {low:g} and {high:g}{ends}, but got {value}.")


def require_at_least(argument: str, value: float, low: float) -> None:
    """Refuse a number below another one, NaN and infinity."""
    if not low <= value < math.inf:
        raise ValueError(f"Expected `{argument}` to be at least {low:g} and finite, but got {value}.")


def _one_hot(labels: Array) -> bool:
    ones = (labels == 1).sum(axis=1)
    return bool((ones == 1).all() and ((labels == 0).sum(axis=1) == labels.shape[1] - 1).all())


def read_rows(values: ArrayLike, argument: str) -> tuple[Names, Array]:
    """The column names of a table, None for an array, and its numbers, which are not looked at."""
    frame = as_frame(values, argument)
    return (None, read_array(values, argument)) if frame is None else numbers_of(frame, argument)
