"""Reads the run folders and predictions files of a figure and checks that they fit together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from priorshift._files import open_envelope
from priorshift.predictions import Predictions

if TYPE_CHECKING:
    from priorshift.training import TrainConfig

WEIGHTS_VERSION = 1
"""Schema version of the weights file of a run folder."""


@dataclass(frozen=True)
class Source:
    """One run: its test predictions, and its config and weights where it is a run folder."""

    path: Path
    predictions: Predictions

    @property
    def config(self) -> "TrainConfig":
        """The config of the run.

        Raises:
            FileNotFoundError: If the folder has no config.
            ValueError: If there is only a predictions file, or the config cannot be read.
        """
        if not self.path.is_dir():
            raise ValueError(
                f"Expected a run folder, whose config and weights this figure needs, but got {self.path}."
            )
        file = self.path / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} is no run folder: it has no config.json.")
        # A module of the torch wing that does not load torch; files without a config do without it.
        from priorshift.training.config import TrainConfig

        return TrainConfig.load(file)

    @property
    def alpha(self) -> float | None:
        """The strength of LADE's regularizer; None of other losses and of a predictions file."""
        loss = self.config.stages[-1].loss if self.path.is_dir() else None
        if loss is None or loss.name != "lade":
            return None
        return float(loss.options["alpha"]) if "alpha" in loss.options else None

    @property
    def optimizer(self) -> str:
        """The name of the optimizer that trained the head."""
        settings = [stage.optimizer for stage in self.config.stages if stage.optimizer is not None][-1]
        if settings.algorithm == "adam":
            return "Adam"
        return f"SGD, momentum {settings.momentum:g}" if settings.momentum else "SGD"

    def weights(self) -> Float[np.ndarray, "classes features"]:
        """The weights of the linear classifier, `[C, D]`.

        Raises:
            FileNotFoundError: If the run has no weights yet.
            ValueError: If there is only a predictions file, the head is another one, or the weights file is
                truncated, another file, or by a newer version.
        """
        config = self.config
        head = [config.head, *(stage.head for stage in config.stages if stage.head is not None)][-1]
        if head.name != "linear":
            raise ValueError(
                f"Expected a run with a `linear` head, whose weights this figure shows, but {self.path} has "
                f"{head.name!r}."
            )
        file = self.path / "model.safetensors"
        if not file.is_file():
            raise FileNotFoundError(f"{self.path} has no weights yet: train it first.")
        with open_envelope(file, "weights", WEIGHTS_VERSION) as (_, arrays):
            return arrays.get_tensor("head.weight")


def read_sources(paths: Sequence[Path]) -> list[Source]:
    """Read test predictions of runs that are to be drawn together.

    Raises:
        FileNotFoundError: If a path does not exist, or a run folder has no test predictions.
        ValueError: If there is none, one is named twice, one lacks labels or training counts, or they are not
            of one test set and one training mix.
    """
    if not paths:
        raise ValueError("Expected at least one run folder or predictions file.")
    sources = [Source(path, _predictions(path)) for path in paths]
    first = sources[0].predictions
    seen: set[Path] = set()
    for path, run in ((source.path, source.predictions) for source in sources):
        if path.resolve() in seen:
            raise ValueError(f"Expected each run once, but got {path} twice.")
        seen.add(path.resolve())
        if run.labels is None or run.train_counts is None:
            raise ValueError(f"Expected predictions with `labels` and `train_counts`, but {path} lacks them.")
        assert first.labels is not None and first.train_counts is not None
        if run.fingerprint != first.fingerprint or not np.array_equal(run.labels, first.labels):
            raise ValueError(
                f"Expected runs judged on one test set, but that of {path} is another than {paths[0]}'s."
            )
        if not np.array_equal(run.train_counts, first.train_counts):
            raise ValueError(
                f"Expected runs trained on one class mix, but that of {path} is another than {paths[0]}'s."
            )
    return sources


def require_seeds(what: str, sources: Iterable[Source]) -> None:
    """Refuse runs drawn as one that differ by more than their seed, where they have configs.

    Raises:
        ValueError: If they do.
    """
    folders = [source for source in sources if source.path.is_dir()]
    for source in folders[1:]:
        if _but_seed(source.config) != _but_seed(folders[0].config):
            raise ValueError(
                f"Expected runs of {what} to differ by their seed alone, "
                f"but the configs of {folders[0].path} and {source.path} differ in more."
            )


def _but_seed(config: "TrainConfig") -> "TrainConfig":
    return replace(config, seed=0, device="auto", workers=0)


def _predictions(path: Path) -> Predictions:
    if not path.is_dir():
        return Predictions.load(path)
    file = path / "predictions-test.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{path} has no test predictions; run `priorshift predict {path}` first.")
    return Predictions.load(file)
