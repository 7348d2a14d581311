"""The processes of a run: one, or as many as `torchrun` started."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(minutes=10)
"""The longest that a process waits for the others in one exchange; one that dies is noticed at once."""


class LostProcessError(RuntimeError):
    """Another process of the run has died or does not answer."""


@dataclass(frozen=True)
class World:
    """This process among those that train one model together.

    Args:
        rank: Number of this process.
        size: Number of processes.
        local_rank: Number of this process on its machine, and of its accelerator.
        group: The process group; None for one process alone, which never waits for another.
        talk: A process group for words between the processes, on the CPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    group: dist.ProcessGroup | None = None
    talk: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    @property
    def share(self) -> slice:
        """Which places of a batch are this process's: every k-th from its rank."""
        return slice(self.rank, None, self.size)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the processes."""
        if self.group is None:
            return values
        total = values.clone()
        dist.all_reduce(total, group=self.group)
        return total / self.size

    def gathered(self, share: Tensor, total: int, device: torch.device) -> Tensor:
        """Rows that were dealt out by `share`, together again and in order, on every process.

        Args:
            share: This process's rows, on the CPU.
            total: The number of rows of all processes.
            device: Where the process group exchanges tensors.
        """
        if self.group is None:
            return share
        most = -(-total // self.size)
        padded = share.new_zeros((most, *share.shape[1:]))
        padded[: len(share)] = share
        padded = padded.to(device)
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded, group=self.group)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total].cpu()

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Take over what the first process has in these tensors."""
        if self.group is not None:
            for tensor in tensors:
                dist.broadcast(tensor, src=0, group=self.group)

    def any(self, wish: bool) -> bool:
        """Whether any process wishes it: they stop together or not at all."""
        if self.talk is None:
            return wish
        wishes = torch.tensor(float(wish))
        dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self.talk)
        return bool(wishes)

    def require_agreement(self, what: str, mine: object) -> None:
        """Go on when all processes have come here with the same.

        Raises:
            ValueError: On every process, if they have not.
        """
        if self.talk is None:
            return
        all_of_them: list[object] = [None] * self.size
        dist.all_gather_object(all_of_them, mine, group=self.talk)
        if any(other != mine for other in all_of_them):
            raise ValueError(f"Expected all processes to have the same {what}, but got {all_of_them}.")


def leads() -> bool:
    """Whether this process is the one that shows progress, before and after it joins the others."""
    return _announced().leads


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The processes of this run for the block: those of `torchrun`, or this one alone.

    Args:
        device: The device of the config: on CUDA the processes talk by NCCL, elsewhere by gloo.

    Raises:
        ValueError: If the environment variables of `torchrun` are set only in part, or a machine has fewer
            accelerators than processes.
        LostProcessError: If another process dies during the block.
    """
    world = _announced()
    if world.size == 1:
        yield world
        return
    if ":" in device:
        raise ValueError(
            f"Expected `device` to be auto, cuda or cpu for {world.size} processes, each of which has "
            f"its own, but got {device!r}."
        )
    on_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_cuda:
        if world.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"Expected one GPU for each process of a machine, but process {world.local_rank} of this one "
                f"found {torch.cuda.device_count()}: start fewer with `torchrun --nproc-per-node`."
            )
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if on_cuda else "gloo", timeout=PATIENCE)
    group: Any = dist.group.WORLD
    failed = True
    try:
        talk: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if on_cuda else group
        yield World(world.rank, world.size, world.local_rank, group, talk)
        failed = False
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise LostProcessError(
            f"Process {world.rank} of {world.size} lost another one, and stops: see that one's message; "
            "the same command resumes from the last checkpoint."
        ) from error
    finally:
        if not (failed and on_cuda):  # NCCL might wait for the others, who wait for this one
            dist.destroy_process_group()


def _announced() -> World:
    """What the environment says of this process."""
    words = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if words["RANK"] is None and words["WORLD_SIZE"] is None:
        return World()
    try:
        rank, size = int(words["RANK"] or ""), int(words["WORLD_SIZE"] or "")
        return World(rank, size, int(words["LOCAL_RANK"] or rank))
    except ValueError as error:
        raise ValueError(
            "Expected the environment variables RANK, WORLD_SIZE and LOCAL_RANK as torchrun sets them, "
            f"but got {words}."
        ) from error


def _is_loss(error: RuntimeError) -> bool:
    """Whether an exchange failed because of the other side."""
    words = ("Connection closed by peer", "Connection reset", "Timed out", "timed out", "Broken pipe", "NCCL")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
