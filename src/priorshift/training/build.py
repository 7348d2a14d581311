"""From the names in a config to losses, models and data; and what a trained stage carries."""

import inspect
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from priorshift import losses, models
from priorshift.data import ImageSet, Splits, sources
from priorshift.priors import Prior
from priorshift.training.config import Part, Stage


def loss_names() -> dict[str, str]:
    """Config name → class of every loss in `priorshift.losses`: `lade` → `LADELoss`."""
    return {_kebab(name.removesuffix("Loss")): name for name in losses.__all__ if name.endswith("Loss")}


def model_names() -> dict[str, str]:
    """Config name → class of every model in `priorshift.models`."""
    return {_kebab(name): name for name in models.__all__}


def source_names() -> dict[str, str]:
    """Config name → function of every source in `priorshift.data.sources`."""
    return {_kebab(name): name for name in sources.__all__}


def build_loss(part: Part, source: Prior) -> nn.Module:
    """The loss of this name for a stream of this class mix.

    Raises:
        ValueError: If there is no such loss, or it does not take one of the options.
    """
    loss: nn.Module = _build(losses, loss_names(), "loss", part, source)
    return loss


def build_model(part: Part, data: ImageSet, seed: int) -> nn.Module:
    """The model of this name for such images, with initial weights that depend on the seed alone.

    Raises:
        ValueError: If there is no such model, or it does not take one of the options.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = _build(
            models, model_names(), "model", part, data.images.shape[1], data.num_classes
        )
    return model


def load_data(part: Part) -> Splits:
    """The splits of the data source of this name.

    Raises:
        ValueError: If there is no such source, or it does not take one of the options.
    """
    splits: Splits = _build(sources, source_names(), "data", part)
    return splits


def carried_prior(stage: Stage, train: ImageSet) -> tuple[Prior, Literal["theory", "convention"]]:
    """The prior that logits carry after a stage on these training images, and by which right.

    It follows from the loss and from the class mix of the stream that the stage sees.
    """
    loss: Any = build_loss(stage.loss, Prior.from_counts(train.counts))
    return loss.carried_prior, loss.carried_by


def _build(room: ModuleType, names: dict[str, str], kind: str, part: Part, *arguments: object) -> Any:
    if part.name not in names:
        raise ValueError(f"There is no {kind} {part.name!r}; there are {', '.join(sorted(names))}.")
    constructor: Callable[..., Any] = getattr(room, names[part.name])
    options = [
        name
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    for name in part.options:
        if name not in options:
            raise ValueError(f"The {kind} {part.name!r} has no option {name!r}; it has {', '.join(options)}.")
    try:
        return constructor(*arguments, **part.options)
    except TypeError as error:
        raise ValueError(f"The {kind} {part.name!r} cannot be built: {error}.") from error


def _kebab(name: str) -> str:
    """`CrossEntropy` → `cross-entropy`, `SmallCNN` → `small-cnn`, `digits_lt` → `digits-lt`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", "-", name)
    return words.lower()
