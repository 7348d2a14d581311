"""The epochs of a run and the batches of an epoch: pure functions of the config and the labels."""

from dataclasses import dataclass

import torch

from priorshift.data import Batch, DataSet, sampled_order
from priorshift.training.config import Optimizer, TrainConfig
from priorshift.training.seeds import derived_seed


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
    passed: float
    """Share of the epochs of its stage that were over before it: 0 in the first, below 1 in the last."""
    progress: float
    """The same counted so that the last epoch, or the only one, has 1."""


def plan(config: TrainConfig, num_images: int) -> list[Epoch]:
    """Every epoch of the run; the schedule of an optimizer spans all stages that it goes on through.

    Raises:
        ValueError: If there are too few images to fill the one batch that `drop_last` wants.
    """
    steps_per_epoch = num_images // config.batch_size
    if not config.drop_last:
        steps_per_epoch = -(-num_images // config.batch_size)
    if not steps_per_epoch:
        raise ValueError(
            f"Expected `batch_size` to be at most the number of training images, {num_images}, "
            f"with `drop_last`, but got {config.batch_size}."
        )
    epochs: list[Epoch] = []
    for index, stage in enumerate(config.stages):
        if stage.optimizer is not None:
            settings, begin = stage.optimizer, len(epochs)
            spanned = stage.epochs
            for later in config.stages[index + 1 :]:
                if later.optimizer is not None:
                    break
                spanned += later.epochs
        for done in range(stage.epochs):
            first = (len(epochs) - begin) * steps_per_epoch
            epochs.append(
                Epoch(
                    number=len(epochs),
                    stage=index,
                    settings=settings,
                    fresh=len(epochs) == begin,
                    scheduled=range(first, first + steps_per_epoch),
                    total_steps=spanned * steps_per_epoch,
                    passed=done / stage.epochs,
                    progress=done / (stage.epochs - 1) if stage.epochs > 1 else 1.0,
                )
            )
    return epochs


def batches(
    config: TrainConfig, epoch: Epoch, data: DataSet, rank: int = 0, size: int = 1
) -> list[list[Batch]]:
    """A process's share of each batch of an epoch, one list a stream; a bilateral stage has two.

    Where a batch has fewer images than there are processes, those without one see its first image, which does
    not count for them.
    """
    stage = config.stages[epoch.stage]
    streams = []
    for number, sampler in enumerate((stage.sampler, "reversed") if stage.bilateral else (stage.sampler,)):
        order = sampled_order(
            data.labels,
            data.num_classes,
            sampler,
            seed=derived_seed(config.seed, "order", epoch.number, sampler),
            progress=epoch.progress,
        )
        stream = []
        for step, rows in enumerate(torch.split(order, config.batch_size)[: len(epoch.scheduled)]):
            share = slice(rank, None, size) if rank < len(rows) else slice(0, 1)
            stream.append(
                Batch(
                    rows[share],
                    torch.arange(len(rows))[share],
                    size=len(rows),
                    seed=derived_seed(config.seed, "augmentation", epoch.number, step, number),
                    counted=rank < len(rows),
                )
            )
        streams.append(stream)
    return streams
