"""The training loop, on one page."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priorshift.adjustment import adjust
from priorshift.data import ImageSet, augmented, shuffled
from priorshift.metrics import balanced_error
from priorshift.priors import Prior
from priorshift.training.build import build_loss, build_model, carried_prior, load_data
from priorshift.training.config import Optimizer, TrainConfig
from priorshift.training.run import Run, collect_logits, resolve_device
from priorshift.training.schedule import learning_rate
from priorshift.training.seeds import derived_seed


class NonFiniteLossError(ArithmeticError):
    """The loss was infinite or NaN; the message names the step."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images, and where it lies in the run."""

    number: int
    """Counted from 0 over all stages."""
    stage: int
    settings: Optimizer
    fresh: bool
    """Whether a new optimizer, and with it a new schedule, begins here."""
    scheduled: range
    """The schedule's steps that this epoch takes."""
    total_steps: int
    """The number of steps that the schedule spans."""


def plan(config: TrainConfig, steps_per_epoch: int) -> Iterator[Epoch]:
    """Every epoch of the run; the schedule of an optimizer spans all stages that it goes on through."""
    number = 0
    for index, stage in enumerate(config.stages):
        if stage.optimizer is not None:
            settings, begin = stage.optimizer, number
            spanned = stage.epochs
            for later in config.stages[index + 1 :]:
                if later.optimizer is not None:
                    break
                spanned += later.epochs
        for _ in range(stage.epochs):
            first = (number - begin) * steps_per_epoch
            steps = range(first, first + steps_per_epoch)
            yield Epoch(number, index, settings, number == begin, steps, spanned * steps_per_epoch)
            number += 1


def train(
    config: TrainConfig, folder: Path, *, on_epoch: Callable[[dict[str, Any]], None] = lambda record: None
) -> Run:
    """Train a model from scratch into a run folder.

    The folder gets `config.json`, `metrics.jsonl` (one line per epoch) and `model.safetensors`. When it is
    interrupted (Ctrl-C), the weights as they are then are written, marked as not completed, so that the
    folder can be predicted with; then the interrupt goes on its way.

    Args:
        config: The run. Everything in it is checked before the first step.
        folder: Where the run goes; an earlier run there is replaced.
        on_epoch: Called with the record of each epoch, which is also its line in `metrics.jsonl`.

    Raises:
        ValueError: If the config names something that does not exist or does not fit.
        NonFiniteLossError: At the end of an epoch in which a loss was not finite.
    """
    splits = load_data(config.data)
    device = resolve_device(config.device)
    source = Prior.from_counts(splits.train.counts)
    losses = [build_loss(stage.loss, source).to(device) for stage in config.stages]
    model = build_model(config.model, splits.train, derived_seed(config.seed, "weights")).to(device)
    images, labels = splits.train.pixels(device), splits.train.labels.to(device)
    epochs = list(plan(config, steps_per_epoch=-(-len(labels) // config.batch_size)))

    run = Run(folder)
    run.begin(config)
    done = 0
    try:
        for epoch in epochs:
            started = time.perf_counter()
            if epoch.fresh:
                optimizer = _sgd(model, epoch.settings)
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                step_losses = _train_epoch(
                    model, optimizer, losses[epoch.stage], images, labels, config, epoch
                )
            _check_finite(step_losses, epoch)
            done = epoch.number + 1
            carried, _ = carried_prior(config.stages[epoch.stage], splits.train)
            record = {
                "epoch": done,
                "epochs": len(epochs),
                "stage": epoch.stage,
                "loss": step_losses.mean().item(),
                "lr": optimizer.param_groups[0]["lr"],
                "validation_balanced_accuracy": _balanced_accuracy(model, splits.validation, carried, device),
                "seconds": round(time.perf_counter() - started, 4),
            }
            run.append_metrics(record)
            on_epoch(record)
    except KeyboardInterrupt:
        run.save_weights(model, stage=epoch.stage, epochs=done, completed=False)
        raise
    run.save_weights(model, stage=epoch.stage, epochs=done, completed=True)
    return run


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_function: nn.Module,
    images: Float[Tensor, "samples channels height width"],
    labels: Tensor,
    config: TrainConfig,
    epoch: Epoch,
) -> Float[Tensor, " steps"]:
    model.train()
    order = shuffled(len(labels), config.batch_size, derived_seed(config.seed, "order", epoch.number))
    step_losses = torch.zeros(len(order), device=images.device)
    for index, (batch, step) in enumerate(zip(order, epoch.scheduled, strict=True)):
        torch.manual_seed(derived_seed(config.seed, "step", epoch.number, index))
        inputs = augmented(
            images[batch],
            shift=config.augmentation.shift,
            flip=config.augmentation.flip,
            seed=derived_seed(config.seed, "augmentation", epoch.number, index),
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                epoch.settings, step, steps_per_epoch=len(order), total_steps=epoch.total_steps
            )
        loss = loss_function(model(inputs), labels[batch])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step_losses[index] = loss.detach()
    return step_losses


def _sgd(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        model.parameters(),
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


def _check_finite(step_losses: Float[Tensor, " steps"], epoch: Epoch) -> None:
    broken = torch.nonzero(~step_losses.isfinite()).flatten()
    if broken.numel():
        step = epoch.number * len(step_losses) + int(broken[0])
        raise NonFiniteLossError(
            f"The loss was {step_losses[broken[0]].item()} at step {step} (epoch {epoch.number + 1}); "
            "a smaller learning rate or a longer warm-up usually helps."
        )


def _balanced_accuracy(model: nn.Module, data: ImageSet, carried: Prior, device: torch.device) -> float:
    logits = collect_logits(model, data, device)
    adjusted = adjust(logits, carried=carried, target=Prior.uniform(data.num_classes))
    return 1 - balanced_error(adjusted.argmax(dim=1), data.labels, data.num_classes)
