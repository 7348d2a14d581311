"""Files of logits larger than memory: what is in them, their rows in blocks, and reading these in batches."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
from jaxtyping import Float

from priorshift._files import open_envelope
from priorshift.predictions import KIND, SCHEMA_VERSION
from priorshift.priors import Prior, prior_from_arrays

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

Columns: TypeAlias = str | Sequence[str]

_BLOCK = 2**22
"""Numbers in a block, the unit of work: 16 MiB in float32."""
_BATCH = 2**18
"""Numbers in a batch, the unit of memory."""
_END = 2**16
"""Bytes at either end of a file that distinguish it from others."""
_CARRIED = ("carried", "carried_log_probs")
"""Arrays one of which holds the carried prior."""


def read_batches(
    path: str | Path, *, rows: int | None = None, columns: Columns = "logits"
) -> Iterator[Float[np.ndarray, "rows classes"]]:
    """Logits of a file of any size in order, a batch at a time.

    A file is one that `Predictions.save` wrote, or Parquet with logits or log-probabilities: a list column,
    or a floating-point column for each class.

    Args:
        path: The file.
        rows: Rows of a batch at most; by default as many as hold 2¹⁸ numbers.
        columns: Of Parquet. One name: that of the list column, or of columns `NAME_0` … `NAME_(C−1)`.
            Several: the columns of the classes, in class order.

    Yields:
        Logits, `[B, C]`, in the precision of the file (bfloat16 as float32).

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, of no such kind, without rows, or lacks the columns; the message
            names it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> import numpy as np
        >>> from priorshift import Predictions
        >>> predictions = Predictions(logits=np.zeros((5, 3)), carried=Prior.uniform(3))
        >>> with TemporaryDirectory() as folder:
        ...     predictions.save(f"{folder}/p.safetensors")
        ...     [len(batch) for batch in read_batches(f"{folder}/p.safetensors", rows=2)]
        [2, 2, 1]
    """
    if rows is not None and rows < 1:
        raise ValueError(f"Expected `rows` to be at least 1, but got {rows}.")
    for block in describe_file(path, columns=columns).blocks:
        yield from block.batches(rows)


@final
@dataclass(frozen=True)
class Block:
    """Some rows of a file, the unit of work.

    Attributes:
        path: The file.
        stream: Name that no other block has.
        first: The first row.
        last: The row after the last one.
        num_classes: Number of classes, $C$.
        columns: Of Parquet, the columns to read, one or one per class; empty for safetensors.
        groups: Of Parquet, the row groups to read.
    """

    path: Path
    stream: str
    first: int
    last: int
    num_classes: int
    columns: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()

    def batches(self, rows: int | None = None) -> Iterator[Float[np.ndarray, "rows classes"]]:
        """The logits, at most `rows` at a time."""
        rows = rows or max(1, _BATCH // self.num_classes)
        if not self.columns:
            with open_envelope(self.path, KIND, SCHEMA_VERSION) as (_, file):
                logits = file.get_slice("logits")
                for first in range(self.first, self.last, rows):
                    yield logits[first : min(first + rows, self.last)]
            return
        with _open_parquet(self.path) as file:
            for batch in file.iter_batches(rows, row_groups=list(self.groups), columns=list(self.columns)):
                yield _logits_of(batch, self)


@final
@dataclass(frozen=True, eq=False)
class LogitsFile:
    """Description of a file of logits, without the logits.

    Attributes:
        path: The file.
        num_samples: Number of rows, $N$.
        num_classes: Number of classes, $C$.
        blocks: Its rows in blocks.
        carried: The prior that the logits carry, where the file holds it.
        class_names: One name per class, where the file holds them.
        fingerprint: Fingerprint of the images predicted on; empty where the file holds none.
    """

    path: Path
    num_samples: int
    num_classes: int
    blocks: tuple[Block, ...]
    carried: Prior | None = None
    class_names: tuple[str, ...] | None = None
    fingerprint: str = ""


def describe_file(path: str | Path, *, columns: Columns = "logits") -> LogitsFile:
    """Describe a file of logits, and divide its rows into blocks.

    Args:
        path: The file, as `read_batches` reads it.
        columns: Of Parquet, as in `read_batches`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, of no such kind, without rows, or lacks the columns; the message
            names it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    size = path.stat().st_size
    with path.open("rb") as content:
        start = content.read(_END)
        content.seek(max(0, size - _END))
        digest = hashlib.blake2b(b"%d|%b|%b" % (size, start, content.read()), digest_size=8).hexdigest()
    name = f"{path.name}@{digest}"
    found = (
        _describe_parquet(path, name, columns) if start[:4] == b"PAR1" else _describe_safetensors(path, name)
    )
    if not found.num_samples:
        raise ValueError(f"{path} has no rows.")
    if found.num_classes < 2:
        raise ValueError(f"Expected {path} with at least 2 classes, but got {found.num_classes}.")
    return found


def _describe_safetensors(path: Path, name: str) -> LogitsFile:
    with open_envelope(path, KIND, SCHEMA_VERSION) as (header, file):
        held = set(file.keys())
        if "logits" not in held or not held & set(_CARRIED):
            raise ValueError(f"{path} is a safetensors file, but no predictions file of priorshift.")
        num_samples, num_classes = file.get_slice("logits").get_shape()
        carried = prior_from_arrays({key: file.get_tensor(key) for key in _CARRIED if key in held}, "carried")
        names = None if header["class_names"] is None else tuple(header["class_names"])
        rows = max(1, _BLOCK // num_classes)
        return LogitsFile(
            path,
            num_samples,
            num_classes,
            tuple(
                Block(path, f"{name}:{first}", first, min(first + rows, num_samples), num_classes)
                for first in range(0, num_samples, rows)
            ),
            carried.named(names),
            names,
            header["fingerprint"],
        )


def _describe_parquet(path: Path, name: str, columns: Columns) -> LogitsFile:
    with _open_parquet(path) as file:
        chosen, num_classes = _choose_columns(file, path, columns)
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    blocks, first, groups = [], 0, list[int]()
    last = 0
    for group, size in enumerate(sizes):
        last += size
        groups.append(group)
        if last > first and ((last - first) * num_classes >= _BLOCK or group == len(sizes) - 1):
            blocks.append(Block(path, f"{name}:{first}", first, last, num_classes, chosen, tuple(groups)))
            first, groups = last, []
    return LogitsFile(path, last, num_classes, tuple(blocks))


def _choose_columns(file: "ParquetFile", path: Path, columns: Columns) -> tuple[tuple[str, ...], int]:
    """The columns to read, and the number of classes in them."""
    import pyarrow

    schema = file.schema_arrow
    if isinstance(columns, str):
        if columns in schema.names:
            kind = schema.field(columns).type
            is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
            if not (is_list or pyarrow.types.is_fixed_size_list(kind)) or not pyarrow.types.is_floating(
                kind.value_type
            ):
                raise ValueError(
                    f"Expected {path} with lists of floating-point numbers in column {columns!r}, "
                    f"but got {kind}."
                )
            first = next(file.iter_batches(1, columns=[columns]), None)
            values = None if first is None else first.column(0)[0].as_py()
            return (columns,), 2 if first is None else len(values or ())
        wanted = sum(f"{columns}_{label}" in schema.names for label in range(len(schema.names)))
        chosen = tuple(f"{columns}_{label}" for label in range(wanted))
    else:
        chosen = tuple(columns)
    if len(chosen) < 2 or not set(chosen) <= set(schema.names):
        asked = columns if isinstance(columns, str) else ", ".join(columns)
        raise ValueError(
            f"Expected {path} with a list column or one column per class, {asked!r}, but it has "
            f"{', '.join(schema.names[:20])}; name them with `columns`."
        )
    for column in chosen:
        if not pyarrow.types.is_floating(schema.field(column).type):
            raise ValueError(
                f"Expected {path} with floating-point numbers in column {column!r}, but got "
                f"{schema.field(column).type}."
            )
    return chosen, len(chosen)


@contextmanager
def _open_parquet(path: Path) -> Iterator["ParquetFile"]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        # Without a buffer size it would read a whole row group at once.
        with ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is truncated or no Parquet file ({error}).") from error


def _logits_of(batch: Any, block: Block) -> Float[np.ndarray, "rows classes"]:
    if len(block.columns) > 1:
        arrays = [batch.column(name).to_numpy(zero_copy_only=False) for name in block.columns]
        return np.stack(arrays, axis=1)
    import pyarrow.compute

    lists = batch.column(0)
    whole = pyarrow.compute.equal(pyarrow.compute.list_value_length(lists), block.num_classes)
    if lists.null_count or not pyarrow.compute.all(whole).as_py():
        raise ValueError(f"Expected {block.path} with {block.num_classes} logits in every row.")
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(len(lists), block.num_classes))
