"""Checkpoints: all that a run needs to go on from a step as if it had never stopped."""

import json
import logging
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from priorshift._files import written_whole

SCHEMA_VERSION = 1
KEPT = 2
"""The newest one, and the one before in case that the newest cannot be read."""
_METADATA_KEY = "priorshift"
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where in a run a checkpoint was taken.

    Args:
        stage: The stage that the model is in; it has begun.
        epoch: The epoch that comes next or is under way, counted from 0 over all stages.
        step: The step of that epoch that comes next.
        steps: The number of steps taken in the run.
        chosen: What the head of the stage chose when it began.
        data: Fingerprint of the training images.
    """

    stage: int
    epoch: int
    step: int
    steps: int
    chosen: dict[str, Any]
    data: str = ""


START = Position(stage=-1, epoch=0, step=0, steps=0, chosen={})
"""Before the first stage has begun."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a run at a position.

    Args:
        position: Where in the run.
        model: Weights and buffers of the model.
        momenta: Momentum of each parameter that the optimizer moves, by its number; empty before a step.
        losses: Losses of the steps of the epoch that is under way.
    """

    position: Position
    model: dict[str, Tensor]
    momenta: dict[int, Tensor]
    losses: Tensor

    @classmethod
    def of(
        cls,
        position: Position,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer | None,
        losses: Tensor,
    ) -> "Checkpoint":
        """The state as it is, sharing memory with the model."""
        return cls(position, model.state_dict(), dict(_momenta(optimizer)), losses)

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Give an optimizer its momenta back."""
        for number, parameter in enumerate(_parameters(optimizer)):
            if number in self.momenta:
                momentum = self.momenta[number].to(parameter.device, parameter.dtype)
                optimizer.state[parameter]["momentum_buffer"] = momentum.clone()


class Checkpoints:
    """The checkpoints of a run, of which the newest two are kept.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint whole, then drop those that are too old.

        Raises:
            OSError: If it cannot be written; the ones before are still there then.
        """
        tensors = {f"model.{name}": each for name, each in checkpoint.model.items()}
        tensors |= {f"momentum.{number}": each for number, each in checkpoint.momenta.items()}
        tensors["losses"] = checkpoint.losses
        tensors = {name: each.detach().cpu().contiguous() for name, each in tensors.items()}
        facts = {
            "schema_version": SCHEMA_VERSION,
            "position": asdict(checkpoint.position),
            "digest": _digest(tensors),
        }
        with written_whole(self._folder / f"checkpoint-{checkpoint.position.steps:09}.safetensors") as file:
            save_file(tensors, file, metadata={_METADATA_KEY: json.dumps(facts)})
        for old in self._files()[:-KEPT]:
            old.unlink(missing_ok=True)

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read; a warning is logged for each newer one that cannot.

        Raises:
            ValueError: If a checkpoint was written by a newer priorshift.
        """
        for file in reversed(self._files()):
            try:
                return _read(file)
            except (SafetensorError, KeyError, TypeError, OSError, _CorruptError) as error:
                _LOGGER.warning("%s cannot be read (%s); trying the checkpoint before it.", file, error)
        return None

    def clear(self) -> None:
        """Drop all checkpoints."""
        for file in self._files():
            file.unlink(missing_ok=True)

    def clear_unfinished(self) -> None:
        """Drop what a process that was killed while it wrote has left."""
        for file in self._folder.glob(".*.safetensors.*.tmp"):
            file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("checkpoint-*.safetensors"))


class _CorruptError(Exception):
    """The content is not what was written."""


def _read(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        metadata = (file.metadata() or {})[_METADATA_KEY]
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        facts = json.loads(metadata)
    except ValueError as error:
        raise _CorruptError("its header is no JSON") from error
    if facts["schema_version"] > SCHEMA_VERSION:
        raise ValueError(
            f"{path} was written by a newer priorshift (checkpoint schema {facts['schema_version']}, "
            f"this one reads up to {SCHEMA_VERSION}). Upgrade priorshift to resume from it."
        )
    if facts["digest"] != _digest(tensors):
        raise _CorruptError("its content is not what was written")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind in parts:
            parts[kind][rest] = tensor
    return Checkpoint(
        position=Position(**facts["position"]),
        model=parts["model"],
        momenta={int(number): tensor for number, tensor in parts["momentum"].items()},
        losses=tensors["losses"],
    )


def _digest(tensors: dict[str, Tensor]) -> str:
    state = blake2b(digest_size=16)
    for name in sorted(tensors):
        state.update(name.encode())
        state.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _momenta(optimizer: torch.optim.Optimizer | None) -> list[tuple[int, Tensor]]:
    if optimizer is None:
        return []
    pairs = [
        (number, optimizer.state[parameter].get("momentum_buffer"))
        for number, parameter in enumerate(_parameters(optimizer))
        if parameter in optimizer.state
    ]
    return [(number, momentum) for number, momentum in pairs if momentum is not None]
