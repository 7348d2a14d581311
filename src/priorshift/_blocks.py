"""Work on the rows of large arrays in blocks that fit a cache, by all threads that this process may use."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

Result = TypeVar("Result")

BLOCK = 2**16
"""Entries of a block: half a megabyte in float64."""
_SERIAL = 4
"""Blocks up to which threads take longer to start than they save."""


def row_blocks(num_rows: int, row_size: int, *, entries: int = BLOCK) -> Iterator[slice]:
    """Slices of rows, each of about `entries` numbers, whatever the number of threads."""
    step = max(1, entries // max(1, row_size))
    return (slice(first, min(first + step, num_rows)) for first in range(0, num_rows, step))


def for_blocks(
    work: Callable[[slice], Result], num_rows: int, row_size: int, *, entries: int = BLOCK
) -> list[Result]:
    """What `work` returns for each block of rows, in order. NumPy lets threads run side by side.

    Blocks do not depend on the number of threads, so sums over them are the same on every machine.
    """
    blocks = list(row_blocks(num_rows, row_size, entries=entries))
    if len(blocks) <= _SERIAL or (pool := _pool(os.getpid())) is None:
        return [work(block) for block in blocks]
    return list(pool.map(work, blocks))


def num_threads() -> int:
    """CPUs that this process may use, or OMP_NUM_THREADS where that is fewer."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(asked)) if asked.isdecimal() and int(asked) > 0 else usable


@cache
def _pool(process: int) -> ThreadPoolExecutor | None:
    """The threads of this process; a forked child has none of its parent's."""
    threads = num_threads()
    return ThreadPoolExecutor(threads, thread_name_prefix="priorshift") if threads > 1 else None
