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
from priorshift.data import ImageSet, Splits, augmented, sampled_order
from priorshift.metrics import balanced_error
from priorshift.models import Classifier
from priorshift.models.heads import Features, Start
from priorshift.priors import Prior
from priorshift.training.bilateral import bilateral_loss, require_branches
from priorshift.training.build import (
    build_head,
    build_loss,
    build_model,
    carried_prior,
    load_data,
    seeded,
)
from priorshift.training.config import Optimizer, TrainConfig
from priorshift.training.run import Run, collect, resolve_device
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
    progress: float
    """Share of the epochs of its stage that are over, 0 in the first and 1 in the last, or the only one."""


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
        for passed in range(stage.epochs):
            first = (number - begin) * steps_per_epoch
            yield Epoch(
                number=number,
                stage=index,
                settings=settings,
                fresh=number == begin,
                scheduled=range(first, first + steps_per_epoch),
                total_steps=spanned * steps_per_epoch,
                progress=passed / (stage.epochs - 1) if stage.epochs > 1 else 1.0,
            )
            number += 1


def train(
    config: TrainConfig, folder: Path, *, on_epoch: Callable[[dict[str, Any]], None] = lambda record: None
) -> Run:
    """Train a model from scratch into a run folder.

    The folder gets `config.json`, `metrics.jsonl` (one line per epoch) and `model.safetensors`. When it is
    interrupted (Ctrl-C, a full disk, memory that runs out), the weights as they are then are written, marked
    as not completed, so that the folder can be predicted with; then the interrupt goes on its way.

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
    losses = [build_loss(stage, source).to(device) for stage in config.stages]
    _rehearse(config, splits, source)
    model = build_model(config, splits.train).to(device)
    images = splits.train.pixels(device)
    epochs = list(plan(config, steps_per_epoch=-(-len(splits.train) // config.batch_size)))

    run = Run(folder)
    run.begin(config)
    stage, done = 0, 0
    try:
        for number, settings in enumerate(config.stages):
            _begin(model, config, number, splits, source, device)
            stage = number if settings.head is not None else stage
            carried, _ = carried_prior(config, number, source)
            for epoch in (each for each in epochs if each.stage == number):
                started = time.perf_counter()
                if epoch.fresh:
                    optimizer = _sgd(model, epoch.settings)
                step_losses = _train_epoch(model, optimizer, losses[number], images, splits, config, epoch)
                _check_finite(step_losses, epoch)
                stage, done = number, epoch.number + 1
                record = {
                    "epoch": done,
                    "epochs": len(epochs),
                    "stage": number,
                    "loss": step_losses.mean().item(),
                    "lr": optimizer.param_groups[0]["lr"],
                    "train_seconds": round(time.perf_counter() - started, 4),
                    "validation_balanced_accuracy": _balanced_accuracy(
                        model, splits.validation, carried, device
                    ),
                }
                run.append_metrics(record)
                on_epoch(record)
        run.save_weights(model, device, stage=stage, epochs=done, completed=True)
    except (KeyboardInterrupt, OSError, RuntimeError, ValueError):
        run.save_weights(model, device, stage=stage, epochs=done, completed=False)
        raise
    return run


def _rehearse(config: TrainConfig, splits: Splits, source: Prior) -> None:
    """Begin every stage on one image of each class: none may be refused after hours of training."""
    few = Splits(*(_one_of_each_class(part) for part in (splits.train, splits.validation, splits.test)))
    model = build_model(config, splits.train)
    for number, stage in enumerate(config.stages):
        _begin(model, config, number, few, source, torch.device("cpu"))
        if stage.bilateral:
            require_branches(model)
        if not stage.epochs and not hasattr(model.head, "conventional_prior"):
            raise ValueError(
                f"Expected `epochs` to be positive in stage {number}: its head is to be trained, not made."
            )
        if stage.epochs and not any(each.requires_grad for each in model.parameters()):
            raise ValueError(
                f"Expected stage {number} to have something to train, but its head has no weights."
            )
        if stage.epochs and stage.optimizer is not None:
            _sgd(model, stage.optimizer)


def _one_of_each_class(data: ImageSet) -> ImageSet:
    first = {label: row for row, label in reversed(list(enumerate(data.labels.tolist())))}
    return data.subset(torch.tensor(sorted(first.values()), dtype=torch.int64))


def _begin(
    model: Classifier, config: TrainConfig, number: int, splits: Splits, source: Prior, device: torch.device
) -> None:
    """Put a new head on where the stage asks for one, and freeze the backbone or free it."""
    stage = config.stages[number]
    if stage.head is not None:
        head: Any = build_head(config, model.backbone, splits.train.num_classes, number)
        if hasattr(head, "begin"):
            carried, _ = carried_prior(config, max(0, number - 1), source)
            head.begin(
                Start(
                    previous=model.head,
                    train=Features(collect(model.backbone, splits.train, device), splits.train.labels),
                    validation=Features(
                        collect(model.backbone, splits.validation, device), splits.validation.labels
                    ),
                    source=source,
                    carried=carried,
                )
            )
        model.head = head.to(device)
    model.backbone.requires_grad_(stage.trains == "all")


def _train_epoch(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    loss_function: nn.Module,
    images: Float[Tensor, "samples channels height width"],
    splits: Splits,
    config: TrainConfig,
    epoch: Epoch,
) -> Float[Tensor, " steps"]:
    stage = config.stages[epoch.stage]
    model.train()
    if stage.trains == "head":
        model.backbone.eval()
    labels = splits.train.labels
    orders = [
        sampled_order(
            labels,
            splits.train.num_classes,
            sampler,
            seed=derived_seed(config.seed, "order", epoch.number, sampler),
            progress=epoch.progress,
        )
        for sampler in ((stage.sampler, "reversed") if stage.bilateral else (stage.sampler,))
    ]
    streams = [torch.split(order, config.batch_size) for order in orders]
    step_losses = torch.zeros(len(streams[0]), device=images.device)
    for index, (step, *batches) in enumerate(zip(epoch.scheduled, *streams, strict=True)):
        loss: Any
        with seeded(derived_seed(config.seed, "step", epoch.number, index), images.device):
            inputs = [
                augmented(
                    images[batch],
                    shift=config.augmentation.shift,
                    flip=config.augmentation.flip,
                    seed=derived_seed(config.seed, "augmentation", epoch.number, index, stream),
                )
                for stream, batch in enumerate(batches)
            ]
            targets = [labels[batch].to(images.device) for batch in batches]
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    epoch.settings, step, steps_per_epoch=len(step_losses), total_steps=epoch.total_steps
                )
            if stage.bilateral:
                passed = (epoch.progress * (stage.epochs - 1)) / stage.epochs
                loss = bilateral_loss(model, loss_function, inputs, targets, progress=passed)
            else:
                features = model.backbone(inputs[0])
                loss = loss_function(model.head(features), targets[0])
                if hasattr(model.head, "regulariser"):
                    loss = loss + model.head.regulariser(features, targets[0])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        step_losses[index] = loss.detach()
    return step_losses


def _sgd(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
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
    logits = collect(model, data, device)
    adjusted = adjust(logits, carried=carried, target=Prior.uniform(data.num_classes))
    return 1 - balanced_error(adjusted.argmax(dim=1), data.labels, data.num_classes)
