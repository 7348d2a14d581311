"""The target prior from files of logits larger than memory: in one pass, by shards or on a cluster."""

import hashlib
import os
import pickle
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from priorshift._files import open_with_header
from priorshift.adjustment import Scaling
from priorshift.estimation import StreamingPrior
from priorshift.predictions import METADATA_KEY, SCHEMA_VERSION
from priorshift.priors import ArrayLike, Prior, as_prior

if TYPE_CHECKING:
    from distributed import Client
    from pyarrow.parquet import ParquetFile

Columns: TypeAlias = str | Sequence[str]
Paths: TypeAlias = str | Path | Iterable[str | Path]

_BLOCK = 2**22
"""Numbers in a block, the unit of work: 16 MiB in float32."""
_BATCH = 2**18
"""Numbers in a batch, the unit of memory."""
_PIECE = 8
"""Blocks that one of several processes takes at a time, at most."""
_TREE = 4
"""States that one task of a cluster merges."""
_END = 2**16
"""Bytes at either end of a file that tell it from others."""


def read_batches(
    path: str | Path, *, rows: int | None = None, columns: Columns = "logits"
) -> Iterator[Float[Tensor, "rows classes"]]:
    """The logits of a file in order, a batch at a time, whatever its size.

    A file is one that `Predictions.save` wrote, or Parquet with logits or log-probabilities: a list column,
    or a floating-point column for each class.

    Args:
        path: The file.
        rows: Rows of a batch at most; by default as many as hold 2¹⁸ numbers.
        columns: Of Parquet. One name: that of the list column, or of columns `NAME_0` … `NAME_(C−1)`.
            Several: the columns of the classes, in the order of the classes.

    Yields:
        Logits, `[B, C]`, in the precision of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, of no such kind, without rows, or lacks the columns; the message
            names it.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from priorshift import Predictions
        >>> predictions = Predictions(logits=torch.zeros(5, 3), carried=Prior.uniform(3))
        >>> with TemporaryDirectory() as folder:
        ...     predictions.save(f"{folder}/p.safetensors")
        ...     [len(batch) for batch in read_batches(f"{folder}/p.safetensors", rows=2)]
        [2, 2, 1]
    """
    if rows is not None and rows < 1:
        raise ValueError(f"Expected `rows` to be at least 1, but got {rows}.")
    for block in describe_file(path, columns=columns).blocks:
        yield from block.batches(rows)


def estimate_files(
    paths: Paths,
    *,
    carried: Prior | ArrayLike | None = None,
    scaling: Scaling | None = None,
    capacity: int | None = None,
    columns: Columns = "logits",
    shard: tuple[int, int] = (1, 1),
    jobs: int = 1,
) -> StreamingPrior:
    """Take all logits of some files into one state, in one pass and bounded memory.

    Files fall into blocks, and each block is a stream that is named by the file's name and content and by its
    rows. So the states of shards, from any machines and in any order, `merge` to the state of one pass over
    everything, and a block that is in two of them is refused instead of counted twice.

    **Then** `state.estimate()` is the mix with its warnings, `state.adapt(logits)` moves logits to it, and
    `state.save(path)` keeps it, to be merged with others.

    Args:
        paths: The files, as `read_batches` reads them; their order does not matter.
        carried: The prior that the logits carry, `[C]`. Files that `Predictions.save` wrote say it.
        scaling: Calibration to apply first, as `priorshift.adjustment.fit_scaling` gives it; recommended.
        capacity: Samples to keep at most, as in `StreamingPrior`.
        columns: Of Parquet, as in `read_batches`.
        shard: Take the i-th of n parts of the blocks only, `(i, n)`, i from 1.
        jobs: Processes to read with. As always with processes, a script that asks for several needs an
            `if __name__ == "__main__":`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file cannot be read, or holds NaN; if files are of different scorers, or one is there
            twice; or if `shard` or `jobs` is out of range, or no `carried` is known.
        OSError: If one of several processes dies.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from priorshift import Predictions
        >>> generator = torch.Generator().manual_seed(0)
        >>> with TemporaryDirectory() as folder:
        ...     for day in (1, 2):
        ...         labels = torch.multinomial(torch.tensor([0.2, 0.8]), 500, True, generator=generator)
        ...         logits = torch.randn(500, 2, generator=generator) + 2 * torch.eye(2)[labels]
        ...         predictions = Predictions(logits=2 * logits, carried=Prior.uniform(2))
        ...         predictions.save(f"{folder}/{day}.safetensors")
        ...     state = estimate_files(f"{folder}/{day}.safetensors" for day in (1, 2))
        >>> state.num_samples, [round(p, 2) for p in state.prior.probs.tolist()]
        (1000, [0.21, 0.79])
    """
    index, count = shard
    if not 1 <= index <= count:
        raise ValueError(f"Expected `shard` to be (i, n) with 1 ≤ i ≤ n, but got ({index}, {count}).")
    if jobs < 1:
        raise ValueError(f"Expected `jobs` to be at least 1, but got {jobs}.")
    blocks, task = _plan(paths, carried, scaling, capacity, columns)
    mine = blocks[index - 1 :: count]
    if not mine:
        raise ValueError(
            f"Expected `shard` to be of at most as many parts as the files have blocks, {len(blocks)}, "
            f"but got part {index} of {count}."
        )
    jobs = min(jobs, len(mine))
    if jobs == 1:
        return task(mine)
    threads = max(1, torch.get_num_threads() // jobs)
    # In short pieces, so that a mistake in one ends all soon.
    pieces = max(jobs, -(-len(mine) // _PIECE))
    dealt = [mine[piece::pieces] for piece in range(pieces)]
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        try:
            states: Iterator[StreamingPrior] = map(pickle.loads, pool.map(task.pickled, dealt))
            return reduce(_merged, states)
        except BrokenProcessPool as error:
            raise OSError(
                f"One of {jobs} processes ended early: for want of memory, or because the script that asked "
                'for them has no `if __name__ == "__main__":`.'
            ) from error


def estimate_on_cluster(
    paths: Paths,
    client: "Client",
    *,
    carried: Prior | ArrayLike | None = None,
    scaling: Scaling | None = None,
    capacity: int | None = None,
    columns: Columns = "logits",
) -> StreamingPrior:
    """`estimate_files` on the workers of a Dask cluster: the same state.

    Each block is a task, and states are merged in a tree as they become ready. The blocks of a worker that
    dies are read again by others, and count once.

    Args:
        paths: The files, which this process and all workers see under the same paths.
        client: Of `distributed`, connected to the cluster.
        carried: As in `estimate_files`, and so are the others.
        scaling: The calibration.
        capacity: Samples to keep at most; a worker holds a few states of that size for each of its threads.
        columns: Of Parquet.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file cannot be read or does not fit, as in `estimate_files`.
    """
    blocks, task = _plan(paths, carried, scaling, capacity, columns)
    states = client.map(task, [[block] for block in blocks], pure=False)
    height = 0
    while len(states) > 1:
        # Merges come before blocks, or the cluster would hold what all blocks gave before it merged any.
        height += 1
        states = [
            client.submit(_merged, *states[first : first + _TREE], pure=False, priority=height)
            for first in range(0, len(states), _TREE)
        ]
    state: StreamingPrior = states[0].result()
    return state


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

    def batches(self, rows: int | None = None) -> Iterator[Float[Tensor, "rows classes"]]:
        """The logits, at most `rows` at a time."""
        rows = rows or max(1, _BATCH // self.num_classes)
        if not self.columns:
            with open_with_header(self.path, "predictions", METADATA_KEY, SCHEMA_VERSION) as (_, file):
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
    """What a file of logits says of itself, without the logits.

    Attributes:
        path: The file.
        num_samples: Number of rows, $N$.
        num_classes: Number of classes, $C$.
        blocks: Its rows in blocks.
        carried: The prior that the logits carry, where the file says it.
        class_names: One name per class, where the file says them.
        fingerprint: Fingerprint of the images predicted on; empty where the file says none.
    """

    path: Path
    num_samples: int
    num_classes: int
    blocks: tuple[Block, ...]
    carried: Prior | None = None
    class_names: tuple[str, ...] | None = None
    fingerprint: str = ""


def describe_file(path: str | Path, *, columns: Columns = "logits") -> LogitsFile:
    """Read what a file of logits says of itself, and how its rows fall into blocks.

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
    with open_with_header(path, "predictions", METADATA_KEY, SCHEMA_VERSION) as (header, file):
        if "logits" not in file.keys() or "carried" not in file.keys():  # noqa: SIM118
            raise ValueError(f"{path} is a safetensors file, but no predictions file of priorshift.")
        num_samples, num_classes = file.get_slice("logits").get_shape()
        rows = max(1, _BLOCK // num_classes)
        names = header["class_names"]
        return LogitsFile(
            path,
            num_samples,
            num_classes,
            tuple(
                Block(path, f"{name}:{first}", first, min(first + rows, num_samples), num_classes)
                for first in range(0, num_samples, rows)
            ),
            Prior(file.get_tensor("carried")),
            None if names is None else tuple(names),
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


def _logits_of(batch: Any, block: Block) -> Float[Tensor, "rows classes"]:
    if len(block.columns) > 1:
        arrays = [batch.column(name).to_numpy(zero_copy_only=False) for name in block.columns]
        return torch.from_numpy(np.stack(arrays, axis=1))
    import pyarrow.compute

    lists = batch.column(0)
    whole = pyarrow.compute.equal(pyarrow.compute.list_value_length(lists), block.num_classes)
    if lists.null_count or not pyarrow.compute.all(whole).as_py():
        raise ValueError(f"Expected {block.path} with {block.num_classes} logits in every row.")
    values = lists.flatten().to_numpy(zero_copy_only=False)
    return torch.from_numpy(values.reshape(len(lists), block.num_classes).copy())


@dataclass(frozen=True, eq=False)
class _Task:
    """From blocks to their state, in this process or another."""

    carried: Prior
    scaling: Scaling | None
    capacity: int | None

    def __call__(self, blocks: Sequence[Block]) -> StreamingPrior:
        states: list[StreamingPrior] = []
        fresh = 0
        for block in blocks:
            state = self._of_block(block)
            states.append(state)
            fresh += state.num_samples
            if fresh >= state.capacity:
                states, fresh = [_merged(*states)], 0
        return _merged(*states)

    def pickled(self, blocks: Sequence[Block]) -> bytes:
        # As plain bytes, or torch would pass its tensors by shared memory, which ends with the process.
        return pickle.dumps(self(blocks))

    def _of_block(self, block: Block) -> StreamingPrior:
        state = StreamingPrior(
            self.carried, scaling=self.scaling, capacity=self.capacity, stream=block.stream
        )
        for batch in block.batches():
            first = block.first + state.num_samples
            try:
                state.update(batch)
            except ValueError as error:
                raise ValueError(f"{block.path}, rows from {first} on: {error}") from error
        return state


def _merged(*states: StreamingPrior) -> StreamingPrior:
    return states[0].merge(*states[1:])


def _plan(
    paths: Paths,
    carried: Prior | ArrayLike | None,
    scaling: Scaling | None,
    capacity: int | None,
    columns: Columns,
) -> tuple[list[Block], _Task]:
    """All blocks of all files in one order, whatever the order of the files, and what to do with them."""
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    files = sorted(
        (describe_file(path, columns=columns) for path in given), key=lambda file: file.blocks[0].stream
    )
    if not files:
        raise ValueError("Expected `paths` with at least one file, but got none.")
    if carried is None:
        carried = next((file.carried for file in files if file.carried is not None), None)
    if carried is None:
        raise ValueError(
            f"Expected `carried`, the prior that the logits carry, since {files[0].path} does not say it."
        )
    source = as_prior(carried, "carried", files[0].num_classes)
    names = next((file.class_names for file in files if file.class_names is not None), None)
    for file in files:
        if file.num_classes != len(source):
            raise ValueError(
                f"Expected files of one scorer, but {files[0].path} has {len(source)} classes and "
                f"{file.path} has {file.num_classes}."
            )
        if file.carried is not None and not file.carried.matches(source):
            raise ValueError(
                f"Expected files of one scorer, whose logits carry {source}, but those of {file.path} carry "
                f"{file.carried}."
            )
        if file.class_names not in (None, names):
            raise ValueError(f"Expected files of one scorer, but {file.path} names the classes otherwise.")
    blocks = [block for file in files for block in file.blocks]
    for one, other in pairwise(files):
        if one.blocks[0].stream == other.blocks[0].stream:
            raise ValueError(f"Expected each file once, but {one.path} and {other.path} are the same.")
    StreamingPrior(source, scaling=scaling, capacity=capacity)  # refuses what does not fit before the pass
    return blocks, _Task(source, scaling, capacity)
