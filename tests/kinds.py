"""Every kind of array, table and column that a public function must read, from one list.

Only kinds whose library is installed are in the list. How to use it:

    from kinds import every_kind_of, exact

    @every_kind_of("scores")                      # parametrizes the argument `kind`
    def test_metrics_take_every_kind(kind):
        logits = exact(np.random.default_rng(0).normal(size=(6, 3)))
        np.testing.assert_allclose(accuracy(kind(logits), LABELS), accuracy(logits, LABELS), rtol=1e-6)

- `every_kind_of(role)`: role is "scores" (`[N, C]`), "vector" (`[N]` or `[C]`: weights, P(positive), values
  per class) or "labels" (`[N]`, whole numbers). `kinds_of(role)` is the same as a list.
- `every_named_kind`: values per class that bring class names, in another order than given:
  `kind(values, names)`.
- `kind(array)` makes the value from a float64 (or int64) NumPy array. `exact(array)` rounds so that all
  kinds, bfloat16 and float16 too, hold the same numbers; results then differ by float32 rounding at most.
- Functions that give back the kind that they got: `kind.require_same(found, given)` fails unless `found` is
  of the kind of `given`, on its device, at least float32, a table with its columns and index;
  `kind.numbers(found)` is NumPy.
- `kind.table` is True for tables, whose columns are named by `column_names(C)`; `kind.listed` for lists,
  which only functions of short arguments take.
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest


def exact(array):
    """Numbers rounded to the eight significant bits that bfloat16 holds."""
    fraction, exponent = np.frexp(np.asarray(array, dtype=np.float64))
    return np.ldexp(np.round(fraction * 256) / 256, exponent)


def column_names(num_classes):
    return [f"class {index}" for index in range(num_classes)]


def numbers(value):
    """A value of any kind as a NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        return (value.float() if str(value.dtype) == "torch.bfloat16" else value).numpy()
    if library(value) == "pyarrow":
        value = value.to_pandas()
    if library(value) == "array_api_strict":
        return np.from_dlpack(value)
    return np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)


def library(value):
    return type(value).__module__.partition(".")[0]


@dataclass(frozen=True)
class Kind:
    name: str
    make: Callable[[np.ndarray], Any]
    role: str
    table: bool = False

    def __call__(self, array):
        return self.make(np.asarray(array))

    @property
    def listed(self):
        return self.name in ("list", "tuple")

    def numbers(self, found):
        return numbers(found)

    def require_same(self, found, given):
        if isinstance(given, np.ndarray | list | tuple):
            assert isinstance(found, np.ndarray)
        else:
            assert type(found) is type(given) or library(given) == "jaxlib"
            assert library(found) == library(given)
        if hasattr(given, "detach"):
            assert found.device == given.device
            assert found.requires_grad == given.requires_grad
        if self.table:
            assert _columns(found) == _columns(given)
        if library(given) == "pandas":
            assert given.index.equals(found.index)
        if library(given) in ("pandas", "polars") and not self.table:
            assert found.name == given.name
        wide = np.float64 if _double(numbers(given)) else np.float32
        if library(given) not in ("pandas", "polars", "pyarrow"):
            assert numbers(found).dtype == wide, (numbers(found).dtype, wide)


def _columns(table):
    return list(table.column_names if library(table) == "pyarrow" else table.columns)


def _double(array):
    return (array.dtype.kind == "f" and array.dtype.itemsize >= 8) or array.dtype.kind == "O"


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def _memory_map(array):
    with tempfile.TemporaryFile() as file:
        mapped = np.memmap(file, dtype=array.dtype, mode="w+", shape=array.shape)
        mapped[...] = array
        return mapped


def _spread(array):
    """Every second entry of an array twice as long in its last dimension."""
    return np.repeat(array, 2, axis=-1)[..., ::2]


def _torch(dtype, *, grad=False):
    def make(array):
        import torch

        return torch.tensor(array, dtype=getattr(torch, dtype)).requires_grad_(grad)

    return make


def _jax(dtype):
    def make(array):
        import jax.numpy as jnp

        return jnp.asarray(array.astype(np.float32 if array.dtype.kind == "f" else np.int32), dtype=dtype)

    return make


def _strict(dtype):
    def make(array):
        import array_api_strict as xp

        return xp.asarray(array.copy(), dtype=getattr(xp, dtype))

    return make


def _pandas(dtype):
    def make(array):
        import pandas as pd

        index = [f"row {row}" for row in range(len(array))]
        if array.ndim == 1:
            return pd.Series(array, dtype=dtype, name="values")
        return pd.DataFrame(array, columns=column_names(array.shape[1]), index=index).astype(dtype)

    return make


def _polars(dtype):
    def make(array):
        import polars as pl

        if array.ndim == 1:
            return pl.Series("values", array).cast(getattr(pl, dtype))
        return pl.DataFrame(array, schema=column_names(array.shape[1])).cast(getattr(pl, dtype))

    return make


def _pyarrow(dtype, *, chunked=True):
    def make(array):
        import pyarrow as pa

        if array.ndim == 1:
            column = pa.array(array, type=getattr(pa, dtype)())
            return pa.chunked_array([column[:1], column[1:]]) if chunked else column
        columns = [pa.array(column, type=getattr(pa, dtype)()) for column in array.T]
        return pa.table(columns, names=column_names(array.shape[1]))

    return make


_LAYOUTS = {
    "columns first": np.asfortranarray,
    "reversed": lambda array: array[::-1].copy()[::-1],
    "every second": _spread,
    "read-only": _read_only,
    "memory map": _memory_map,
}
_FLOATS = ("float16", "float32", "float64", "longdouble", ">f4", ">f8", "<f4")
_WHOLE = ("int8", "uint8", "int16", "int32", "uint32", "int64", "uint64", ">i4", ">i8")


def _as_dtype(dtype):
    return lambda array: array.astype(dtype)


def _arrays(whole):
    kinds = {f"numpy {dtype}": _as_dtype(dtype) for dtype in (_WHOLE if whole else _FLOATS)}
    kinds |= {f"numpy, {layout}": make for layout, make in _LAYOUTS.items()}
    if find_spec("torch"):
        dtypes = ("uint8", "int32", "int64") if whole else ("float16", "bfloat16", "float32", "float64")
        kinds |= {f"torch {dtype}": _torch(dtype) for dtype in dtypes}
        if not whole:
            kinds |= {f"torch {dtype} that requires grad": _torch(dtype, grad=True) for dtype in dtypes[1:]}
    if find_spec("jax"):
        dtypes = ("int32", "uint8") if whole else ("float16", "bfloat16", "float32")
        kinds |= {f"jax {dtype}": _jax(dtype) for dtype in dtypes}
    if find_spec("array_api_strict"):
        dtypes = ("int64", "int32", "uint8") if whole else ("float32", "float64")
        kinds |= {f"array-api-strict {dtype}": _strict(dtype) for dtype in dtypes}
    return kinds


def _tables(whole):
    kinds = {}
    if find_spec("pandas"):
        dtypes = ("int64", "Int64", "uint8") if whole else ("float64", "float32", "Float64")
        kinds |= {f"pandas {dtype}": _pandas(dtype) for dtype in dtypes}
        if find_spec("pyarrow"):
            kinds["pandas of pyarrow"] = _pandas("int64[pyarrow]" if whole else "double[pyarrow]")
    if find_spec("polars"):
        dtypes = ("Int64", "UInt8") if whole else ("Float64", "Float32")
        kinds |= {f"polars {dtype}": _polars(dtype) for dtype in dtypes}
    if find_spec("pyarrow"):
        dtypes = ("int64", "int8") if whole else ("float64", "float32")
        kinds |= {f"pyarrow {dtype}": _pyarrow(dtype) for dtype in dtypes}
    return kinds


def kinds_of(role):
    """All kinds that are installed, for "scores", "vector" or "labels"."""
    whole, table = role == "labels", role == "scores"
    made = {**_arrays(whole), "list": lambda array: array.tolist()}
    kinds = [Kind(name, make, role) for name, make in made.items()]
    kinds += [Kind(name, make, role, table=table) for name, make in _tables(whole).items()]
    if not table and find_spec("pyarrow"):
        kinds.append(Kind("pyarrow array", _pyarrow("int64" if whole else "float64", chunked=False), role))
    return kinds


def every_kind_of(role):
    return pytest.mark.parametrize("kind", kinds_of(role), ids=lambda kind: kind.name)


def _pandas_by_name(values, names):
    import pandas as pd

    return pd.Series(dict(zip(names, values, strict=True)))


def _table_by_name(name):
    def make(values, names):
        columns = {"class": list(names), "value": list(values)}
        if name == "pandas":
            import pandas as pd

            return pd.DataFrame(columns)
        if name == "polars":
            import polars as pl

            return pl.DataFrame(columns)
        import pyarrow as pa

        return pa.table(columns)

    return make


def _turned(make):
    """The same names and values, in another order."""
    return lambda values, names: make(list(values)[::-1], list(names)[::-1])


_NAMED = {"dict": lambda values, names: dict(zip(names, values, strict=True))}
_NAMED["Counter"] = lambda values, names: Counter(dict(zip(names, values, strict=True)))
if find_spec("pandas"):
    _NAMED["pandas Series"] = _pandas_by_name
_NAMED |= {
    f"{name} table": _table_by_name(name) for name in ("pandas", "polars", "pyarrow") if find_spec(name)
}

every_named_kind = pytest.mark.parametrize(
    "kind", [_turned(make) for make in _NAMED.values()], ids=_NAMED.keys()
)
