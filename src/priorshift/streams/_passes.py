"""The target prior from files of logits larger than memory: in one pass, by shards or on a cluster."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from priorshift._blocks import num_threads
from priorshift._inputs import ArrayLike
from priorshift.adjustment import Scaling
from priorshift.priors import Prior, as_prior
from priorshift.streams._files_of_scores import Block, Columns, LogitsFile, describe_file
from priorshift.streams._streaming import StreamingPrior
from priorshift.streams._workers import limit_threads

if TYPE_CHECKING:
    from distributed import Client

Paths: TypeAlias = str | Path | Iterable[str | Path]

_PIECE = 8
"""Blocks that one of several processes takes at a time, at most."""
_TREE = 4
"""States that one task of a cluster merges."""


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

    Files are divided into blocks, and each block is a stream that is named by the file's name and content and
    by its rows. So the states of shards, from any machines and in any order, `merge` to the state of one pass
    over everything, and a block that is in two of them is refused instead of counted twice.

    **Then** `state.estimate()` is the estimated prior with its warnings, `state.adapt(logits)` moves logits
    to it, and `state.save(path)` keeps it, to be merged with others.

    Args:
        paths: The files, as `read_batches` reads them; their order does not matter.
        carried: The prior that the logits carry, `[C]`. Files that `Predictions.save` wrote hold it.
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
        >>> import numpy as np
        >>> from priorshift import Predictions
        >>> rng = np.random.default_rng(0)
        >>> with TemporaryDirectory() as folder:
        ...     for day in (1, 2):
        ...         labels = rng.choice(2, 500, p=[0.2, 0.8])
        ...         logits = 2 * rng.normal(size=(500, 2)) + 4 * np.eye(2)[labels]
        ...         predictions = Predictions(logits=logits, carried=Prior.uniform(2))
        ...         predictions.save(f"{folder}/{day}.safetensors")
        ...     state = estimate_files(f"{folder}/{day}.safetensors" for day in (1, 2))
        >>> state.num_samples, state.prior.probs.round(2)
        (1000, array([0.21, 0.79]))
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
    threads = max(1, num_threads() // jobs)
    # In short pieces, so that a mistake in one ends all soon.
    pieces = max(jobs, -(-len(mine) // _PIECE))
    dealt = [mine[piece::pieces] for piece in range(pieces)]
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=limit_threads, initargs=(threads,)
    ) as pool:
        try:
            return reduce(_merged, pool.map(task, dealt))
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
            f"Expected `carried`, the prior that the logits carry, since {files[0].path} does not hold it."
        )
    source = as_prior(carried, "carried", files[0].num_classes, names=_names_of(files, columns))
    names = next((file.class_names for file in files if file.class_names is not None), None)
    for file in files:
        if file.num_classes != len(source):
            raise ValueError(
                f"Expected files of one scorer, but {files[0].path} has {len(source)} classes and "
                f"{file.path} has {file.num_classes}."
            )
        if file.class_names not in (None, names):
            raise ValueError(f"Expected files of one scorer, but {file.path} has other class names.")
        if file.carried is not None and not file.carried.matches(source):
            raise ValueError(
                f"Expected files of one scorer, whose logits carry {source}, but those of {file.path} carry "
                f"{file.carried}."
            )
    blocks = [block for file in files for block in file.blocks]
    for one, other in pairwise(files):
        if one.blocks[0].stream == other.blocks[0].stream:
            raise ValueError(f"Expected each file once, but {one.path} and {other.path} are the same.")
    StreamingPrior(source, scaling=scaling, capacity=capacity)  # refuses what does not fit before the pass
    return blocks, _Task(source, scaling, capacity)


def _names_of(files: Sequence[LogitsFile], columns: Columns) -> tuple[str, ...] | None:
    """Class names: those of a file, or the columns of Parquet that were listed one by one."""
    names = next((file.class_names for file in files if file.class_names is not None), None)
    return names if names is not None or isinstance(columns, str) else tuple(columns)
