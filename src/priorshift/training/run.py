"""A run folder: config, weights and predictions, written whole, and metrics, a line at a time."""

import json
import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import priorshift
from priorshift._files import written_whole
from priorshift.data import Feed, Splits, feed
from priorshift.models import Classifier
from priorshift.predictions import Predictions
from priorshift.priors import Prior
from priorshift.training.build import build_model, carried_prior, load_data
from priorshift.training.config import TrainConfig

SCHEMA_VERSION = 1
_METADATA_KEY = "priorshift"
_FACTS = {"stage": int, "epochs": int, "completed": bool, "chosen": dict, "environment": dict}


@dataclass(frozen=True)
class Run:
    """The files of one run.

    Args:
        folder: The run folder.
    """

    folder: Path

    @property
    def config_file(self) -> Path:
        """The resolved config, `config.json`."""
        return self.folder / "config.json"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per epoch, `metrics.jsonl`."""
        return self.folder / "metrics.jsonl"

    @property
    def weights_file(self) -> Path:
        """The weights and how far they were trained, `model.safetensors`."""
        return self.folder / "model.safetensors"

    def predictions_file(self, split: str) -> Path:
        """The predictions on a split, `predictions-test.safetensors`."""
        return self.folder / f"predictions-{split}.safetensors"

    def config(self) -> TrainConfig:
        """The config of the run.

        Raises:
            FileNotFoundError: If the folder is no run folder.
            ValueError: If the config cannot be read.
        """
        if not self.config_file.is_file():
            raise FileNotFoundError(f"{self.folder} is no run folder: it has no config.json.")
        return TrainConfig.load(self.config_file)

    def finished(self, config: TrainConfig) -> bool:
        """Whether this folder holds a complete training of exactly this config."""
        try:
            return self.is_of(config) and self.load_weights()[1]["completed"] is True
        except (FileNotFoundError, ValueError):
            return False

    def begin(self, config: TrainConfig) -> None:
        """Write the config and drop what an earlier run left: weights, metrics, events and predictions."""
        self._drop_predictions()
        for file in (self.weights_file, self.metrics_file, *self.folder.glob("events.out.tfevents.*")):
            file.unlink(missing_ok=True)
        config.save(self.config_file)

    def _drop_predictions(self) -> None:
        for file in self.folder.glob("predictions-*.safetensors"):
            file.unlink(missing_ok=True)

    def is_of(self, config: TrainConfig) -> bool:
        """Whether this folder holds a run of this config, on whatever device, with any number of workers."""
        try:
            mine = self.config()
        except (FileNotFoundError, ValueError):
            return False
        return replace(mine, device=config.device, workers=config.workers) == config

    def keep_metrics(self, epochs: int) -> None:
        """Drop the lines of the metrics after so many epochs, which a resumed run writes again."""
        lines = self.metrics_file.read_bytes().splitlines() if self.metrics_file.is_file() else []
        with written_whole(self.metrics_file) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in lines[:epochs]))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add a line to the metrics."""
        with self.metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def save_weights(
        self,
        model: Classifier,
        device: torch.device,
        *,
        stage: int,
        epochs: int,
        completed: bool,
        chosen: dict[str, Any],
        data: str,
    ) -> None:
        """Write the weights, how far they were trained, what the head chose, on which data, and where."""
        facts = {
            "schema_version": SCHEMA_VERSION,
            "stage": stage,
            "epochs": epochs,
            "completed": completed,
            "chosen": chosen,
            "train_fingerprint": data,
            "environment": environment(device),
        }
        self._drop_predictions()  # they are of other weights
        with written_whole(self.weights_file) as temporary:
            save_file(
                {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()},
                temporary,
                metadata={_METADATA_KEY: json.dumps(facts)},
            )

    def load_weights(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The weights, and in which stage and after how many epochs they were written.

        Raises:
            FileNotFoundError: If the run has no weights yet.
            ValueError: If the file is truncated or not ours.
        """
        if not self.weights_file.is_file():
            raise FileNotFoundError(f"{self.folder} has no weights yet: train it first.")
        try:
            with safe_open(self.weights_file, framework="pt") as file:
                facts = json.loads((file.metadata() or {})[_METADATA_KEY])
                version = facts["schema_version"]
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.weights_file} is truncated or no weights file ({error}).") from error
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ValueError(
                f"{self.weights_file} was written by a newer priorshift (weights schema {version}, "
                f"this one reads up to {SCHEMA_VERSION}). Upgrade priorshift to read it."
            )
        for name, kind in _FACTS.items():
            if not isinstance(facts.get(name), kind):
                raise ValueError(
                    f"{self.weights_file} has an unreadable header: {name} is {facts.get(name)!r}."
                )
        return weights, facts


def resolve_device(name: str, local_rank: int | None = None) -> torch.device:
    """The device of a config: `auto` takes CUDA, then MPS, then the CPU.

    Args:
        name: `auto` or a torch device.
        local_rank: The number of this process on its machine, where several share its GPUs.

    Raises:
        ValueError: If there is no such device on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and local_rank is not None:
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"Expected `device` to be auto or one of this machine, but got {name!r}.") from error
    if device.type == "meta":
        raise ValueError("Expected `device` to be one that computes, but got 'meta'.")
    return device


@torch.no_grad()
def collect(
    model: nn.Module, images: Feed, batch_size: int, width: int, share: slice = slice(None)
) -> Tensor:
    """What a model says of every image in order, float32, on the CPU; it ends in evaluation mode.

    A batch is four times that of training, whose gradients take as much memory.

    Args:
        model: Images to rows of numbers.
        images: The images.
        batch_size: That of training.
        width: How many numbers it says of an image.
        share: Which of the images.
    """
    model.eval()
    said = [model(batch).float().cpu() for batch in images.plain(4 * batch_size, share) if len(batch)]
    return torch.cat([torch.empty(0, width), *said])


class Trained(NamedTuple):
    """A trained run, read back.

    Attributes:
        config: What was asked for.
        splits: Its data.
        model: Its classifier, on the CPU.
        carried: The prior that the logits carry.
        carried_by: Whether by "theory" or by "convention".
        progress: How far the weights were trained, and where.
    """

    config: TrainConfig
    splits: Splits
    model: Classifier
    carried: Prior
    carried_by: Literal["theory", "convention"]
    progress: dict[str, Any]


def load_trained(folder: Path) -> Trained:
    """Read a run's config, data and weights.

    Raises:
        FileNotFoundError: If the folder is no run folder, or not trained yet.
        ValueError: If a file in it cannot be read, or the weights do not fit the config.
    """
    run = Run(folder)
    config = run.config()
    weights, progress = run.load_weights()
    splits = load_data(config.data)
    if config.skip_unreadable:
        splits = splits.readable()
    stage = progress["stage"]
    if not 0 <= stage < len(config.stages):
        raise ValueError(f"{run.weights_file} does not fit {run.config_file}: no stage {stage}.")
    model = build_model(config, splits.train, stage, pretrained=False)
    load_weights(model, weights, run.weights_file, run.config_file)
    carried, carried_by = carried_prior(config, stage, Prior.from_counts(splits.train.counts))
    return Trained(config, splits, model, carried, carried_by, progress)


def load_weights(
    model: Classifier, weights: dict[str, Tensor], weights_file: Path, config_file: Path
) -> None:
    """Load weights that have to fit.

    Raises:
        ValueError: If they do not; the message names the files.
    """
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{weights_file} does not fit {config_file}: {error}") from error


def predict(folder: Path, split: str = "test", *, device: str = "auto") -> Predictions:
    """Predict with a trained run on one of its splits, with the carried prior and the facts of the run.

    Args:
        folder: The run folder.
        split: "train", "validation" or "test".
        device: `auto` takes CUDA, then MPS, then the CPU, wherever the run was trained.

    Raises:
        FileNotFoundError: If the folder is no run folder, or not trained yet.
        ValueError: If a file in it cannot be read, the weights do not fit the config, or the split does not
            exist.
    """
    here = resolve_device(device)
    config, splits, model, carried, carried_by, progress = load_trained(folder)
    data = splits.named(split)
    if not len(data):
        raise ValueError(f"The {split} split of this run is empty: give its data a `held_out` share.")
    return Predictions(
        logits=collect(
            model.to(here),
            feed(data, here, preparation=config.preparation, workers=config.workers),
            config.batch_size,
            data.num_classes,
        ).numpy(),
        labels=data.labels.numpy(),
        carried=carried,
        carried_by=carried_by,
        class_names=data.class_names,
        train_counts=splits.train.counts.numpy(),
        method=config.method,
        fingerprint=data.fingerprint,
        facts={
            "seed": config.seed,
            "split": split,
            "train_fingerprint": splits.train.fingerprint,
            "training": "completed"
            if progress["completed"]
            else f"stopped in epoch {progress['epochs'] + 1}",
            **{f"chosen {name}": value for name, value in progress["chosen"].items()},
            **progress["environment"],
            "predicted on": here.type,
        },
    )


def environment(device: torch.device) -> dict[str, str]:
    """Versions and hardware, for the record of a run."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "priorshift": priorshift.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device.type} ({hardware}), {torch.get_num_threads()} threads",
    }
