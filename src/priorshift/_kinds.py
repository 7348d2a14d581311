"""Arrays and tables of any library as NumPy's, and back: NumPy, torch, JAX, CuPy, pandas, polars, pyarrow."""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

ArrayLike: TypeAlias = Any
"""NumPy, torch, JAX or CuPy arrays, pandas, polars or pyarrow tables and columns, or a list."""
Array: TypeAlias = npt.NDArray[Any]
Names: TypeAlias = tuple[str, ...] | None

_TABLES = ("pandas", "polars", "pyarrow", "modin", "cudf")


class Kind(NamedTuple):
    """Scores in their own library, for functions that give scores back as the kind that they got."""

    scores: Any  # floating-point array of `xp`, at least float32, on its device
    xp: ModuleType  # the array namespace: NumPy's, or that of torch, JAX, CuPy
    names: Names  # column names of a table
    back: Callable[[Any], Any]  # turns an array of `xp` of the same shape into the kind that came


def read_array(values: ArrayLike, argument: str) -> Array:
    """Real numbers as a NumPy array in native byte order, copied only where necessary."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(
            f"Expected `{argument}` without masked entries, but got {values.mask.sum()} of them."
        )
    if hasattr(values, "toarray") and hasattr(values, "nnz"):
        raise TypeError(f"Expected `{argument}` to be a dense array, but got a sparse one: use `.toarray()`.")
    try:
        array = np.asarray(to_numpy(values))
        if array.dtype.kind == "V":  # bfloat16 and its kin, as JAX gives them
            array = array.astype(np.float32)
        elif array.dtype.kind == "O" and None not in array.reshape(-1).tolist():
            array = array.astype(np.float64)
        if array.dtype.kind not in "fiub":
            raise TypeError(f"dtype {array.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:
        text = repr(values)
        shown = text if len(text) <= 200 else f"{type(values).__name__} {text[:150]}…"
        raise TypeError(f"Expected `{argument}` to be real numbers, but got {shown} ({error}).") from error
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def read_kind(values: ArrayLike, argument: str = "logits") -> Kind:
    """Floating-point scores for functions that give back the kind that they got; values are not looked at."""
    if (frame := as_frame(values, argument)) is not None:
        names, array = numbers_of(frame, argument)
        return Kind(floating(array, argument), np, names, lambda scores: _like_table(scores, frame))
    if library(values) in _TABLES:
        column = read_array(values, argument)
        return Kind(floating(column, argument), np, None, lambda scores: _like_column(scores, values))
    if isinstance(values, np.ndarray | Sequence) or hasattr(values, "__array_interface__"):
        return Kind(floating(read_array(values, argument), argument), np, None, lambda scores: scores)
    xp: Any
    if library(values) == "torch":
        import array_api_compat.torch as xp  # torch's compiler cannot trace `array_namespace`
    else:
        from array_api_compat import array_namespace

        try:
            xp = array_namespace(values)
        except TypeError as error:
            kind = type(values).__name__
            raise TypeError(f"Expected `{argument}` to be an array or a table, but got {kind}.") from error
    if not xp.isdtype(values.dtype, "real floating"):
        raise TypeError(f"Expected `{argument}` to be floating-point, but got dtype {values.dtype}.")
    wide = xp.float64 if values.dtype == xp.float64 else xp.float32
    return Kind(xp.astype(values, wide, copy=False), xp, None, lambda scores: scores)


def floating(array: Array, argument: str) -> Array:
    if array.dtype.kind != "f":
        raise TypeError(f"Expected `{argument}` to be floating-point, but got dtype {array.dtype}.")
    return array.astype(np.float32 if array.dtype.itemsize <= 4 else np.float64, copy=False)


def quoted(names: Sequence[object]) -> str:
    """Names in quotes, at most ten of them."""
    shown = ", ".join(repr(str(name)) for name in names[:10]) or "none"
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def as_frame(values: ArrayLike, argument: str) -> Any:
    """A data frame as Narwhals', None for anything else."""
    if library(values) not in _TABLES:
        return None
    if type(values).__name__ == "LazyFrame":
        raise TypeError(
            f"Expected `{argument}` to be a table in memory, but got a LazyFrame: use `.collect()`."
        )
    if not hasattr(values, "columns"):
        return None
    import narwhals

    return narwhals.from_native(values, eager_only=True)


def numbers_of(frame: Any, argument: str) -> tuple[Names, Array]:
    """The names of a table's columns, None where they are 0 … C−1, and its numbers."""
    if text := [name for name in frame.columns if not frame.schema[name].is_numeric()]:
        raise TypeError(
            f"Expected `{argument}` with columns of numbers, but {quoted(text)} are not: drop them."
        )
    names = tuple(map(str, frame.columns))
    numbers = read_array(frame.to_numpy(), argument)
    return (None if names == tuple(map(str, range(len(names)))) else names), numbers


def _like_table(scores: Array, frame: Any) -> Any:
    import narwhals

    series = [
        narwhals.new_series(name, scores[:, place], backend=frame.implementation)
        for place, name in enumerate(frame.columns)
    ]
    return frame.with_columns(*series).to_native()


def _like_column(scores: Array, column: Any) -> Any:
    import narwhals

    if whole := library(column) == "pyarrow" and not hasattr(column, "chunks"):
        import pyarrow

        column = pyarrow.chunked_array([column])
    series = narwhals.from_native(column, series_only=True)
    frame = narwhals.from_native(_like_table(scores[:, None], series.alias("scores").to_frame()))
    found = frame["scores"].alias(series.name).to_native()
    return found.combine_chunks() if whole else found


def to_numpy(values: ArrayLike) -> Any:
    """Something that `np.asarray` reads, from any library and device."""
    if library(values) == "torch" and hasattr(values, "detach"):
        return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy(force=True)
    if library(values) == "cupy":
        return values.get()
    if isinstance(values, list | tuple) and values and hasattr(values[0], "detach"):
        return [to_numpy(value) for value in values]
    if hasattr(values, "to_numpy") and not hasattr(values, "__array__"):
        return values.to_numpy()
    return (
        np.from_dlpack(values)
        if hasattr(values, "__dlpack__") and not hasattr(values, "__array__")
        else values
    )


def library(values: object) -> str:
    return type(values).__module__.partition(".")[0]
