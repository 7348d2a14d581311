"""From the names in a config to losses, models and data; and what a trained stage carries."""

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any, Literal

import torch
from torch import nn

from priorshift import losses
from priorshift.data import DataSet, Splits, sampled_prior, sources
from priorshift.models import Classifier, backbones, heads
from priorshift.priors import Prior
from priorshift.training.config import Part, Stage, TrainConfig
from priorshift.training.seeds import derived_seed

CPU = torch.device("cpu")
FIRST_WEIGHTS = ("pretrained", "weights")
"""Options of a backbone that say what weights it begins with."""


def loss_names() -> dict[str, str]:
    """Config name → class of every loss in `priorshift.losses`: `lade` → `LADELoss`."""
    return {_kebab(name.removesuffix("Loss")): name for name in losses.__all__ if name.endswith("Loss")}


def model_names() -> dict[str, str]:
    """Config name → class of every backbone in `priorshift.models.backbones`."""
    return {_kebab(name): name for name in backbones.__all__}


def head_names() -> dict[str, str]:
    """Config name → class of every head in `priorshift.models.heads`: `cosine` → `CosineHead`."""
    return {_kebab(name.removesuffix("Head")): name for name in heads.__all__ if name.endswith("Head")}


def source_names() -> dict[str, str]:
    """Config name → function of every source in `priorshift.data.sources`."""
    return {_kebab(name): name for name in sources.__all__}


def build_loss(stage: Stage, source: Prior) -> nn.Module:
    """The loss of a stage, for the class mix that its sampler deals from data of the mix `source`.

    Raises:
        ValueError: If there is no such loss or sampler, or the loss does not take one of the options.
    """
    stream = sampled_prior(stage.sampler, source)
    loss: nn.Module = _build(losses, loss_names(), "loss", stage.loss, stream)
    return loss


def build_model(
    config: TrainConfig, data: DataSet, stage: int = -1, *, pretrained: bool = True
) -> Classifier:
    """The classifier of a stage, with the initial weights that the seed of the config gives.

    Args:
        config: The run.
        data: Images of the channels and the classes that it is for.
        stage: Index of the stage; -1 is before the first one.
        pretrained: Whether the backbone begins with the weights that its options name. No, where the weights
            of a run are loaded over it: what a run began with need not be at hand any more.

    Raises:
        ValueError: If there is no such backbone or head, or it does not take one of the options.
    """
    with seeded(derived_seed(config.seed, "weights")):
        part = config.model
        if not pretrained:
            kept = {name: value for name, value in part.options.items() if name not in FIRST_WEIGHTS}
            part = replace(part, options=kept)
        backbone: nn.Module = _build(backbones, model_names(), "model", part, data.channels)
    return Classifier(backbone, build_head(config, backbone, data.num_classes, stage))


def build_head(config: TrainConfig, backbone: nn.Module, num_classes: int, stage: int) -> nn.Module:
    """The head that is in force in a stage, with the initial weights that the seed of the config gives.

    Raises:
        ValueError: If there is no such head, or it does not take one of the options.
    """
    part, since = head_in_force(config, stage)
    if since is None and _needs_start(part):
        raise ValueError(
            f"The head {part.name!r} is made from the one before it: give it to a later stage, "
            "not to the run."
        )
    with seeded(derived_seed(config.seed, "head", since or 0)):
        head: nn.Module = _build(heads, head_names(), "head", part, backbone.num_features, num_classes)
    return head


def _needs_start(part: Part) -> bool:
    return getattr(getattr(heads, head_names().get(part.name, ""), None), "needs_start", False)


def head_in_force(config: TrainConfig, stage: int) -> tuple[Part, int | None]:
    """The head of a stage, and the stage that it came with; None for the one that the run begins with."""
    for number in range(stage, -1, -1):
        part = config.stages[number].head
        if part is not None:
            return part, number
    return config.head, None


def load_data(part: Part) -> Splits:
    """The splits of the data source of this name.

    Raises:
        ValueError: If there is no such source, or it does not take one of the options.
    """
    splits: Splits = _build(sources, source_names(), "data", part)
    return splits


def carried_prior(
    config: TrainConfig, stage: int, source: Prior
) -> tuple[Prior, Literal["theory", "convention"]]:
    """The prior that logits carry after a stage on training images of this class mix, and by which right.

    It follows from the loss of the stage and the mix that its sampler deals, at the end where that moves;
    after a head to which theory no longer applies, from what its authors use it for.
    """
    part, _ = head_in_force(config, stage)
    head = getattr(heads, head_names()[part.name])
    if hasattr(head, "conventional_prior"):
        return head.conventional_prior(source), "convention"
    loss: Any = build_loss(config.stages[stage], source)
    moving = config.stages[stage].sampler == "progressively-balanced"
    return loss.carried_prior, "convention" if moving else loss.carried_by


@contextmanager
def seeded(seed: int, device: torch.device = CPU) -> Iterator[None]:
    """Seed torch's generators of the CPU and a device for the block, and leave them as they were."""
    devices = [] if device.type == "cpu" else [device.index or 0]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=devices, device_type=kind):
        manual_seed(seed, device)
        yield


def manual_seed(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and a device."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def _build(room: ModuleType, names: dict[str, str], kind: str, part: Part, *arguments: object) -> Any:
    if part.name not in names:
        raise ValueError(f"There is no {kind} {part.name!r}; there are {', '.join(sorted(names))}.")
    constructor: Callable[..., Any] = getattr(room, names[part.name])
    options = {
        name: parameter.annotation
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for name, value in part.options.items():
        if name not in options:
            raise ValueError(f"The {kind} {part.name!r} has no option {name!r}; it has {', '.join(options)}.")
        wanted = options[name]
        fits = type(value) is wanted or (wanted is float and type(value) is int)
        if wanted in (bool, int, float, str) and not fits:
            raise ValueError(
                f"Expected the option `{name}` of the {kind} {part.name!r} to be of type {wanted.__name__}, "
                f"but got {value!r}."
            )
    try:
        return constructor(*arguments, **part.options)
    except TypeError as error:
        raise ValueError(f"The {kind} {part.name!r} cannot be built: {error}.") from error


def _kebab(name: str) -> str:
    """`CrossEntropy` → `cross-entropy`, `SmallCNN` → `small-cnn`, `digits_lt` → `digits-lt`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_", "-", name)
    return words.lower()
