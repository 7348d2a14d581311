"""The learning rate as a pure function of the step."""

import math

from priorshift.training.config import Optimizer


def learning_rate(config: Optimizer, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then the schedule.

    Moving per step, the first step of a warm-up already rises (lr / warm-up steps), and the last step of a
    cosine still moves. Moving per epoch, the rate of epoch $e$ is that of the schedule at $e$ + `lead`.

    Example:
        >>> config = Optimizer(lr=1.0, schedule="cosine", warmup_epochs=1)
        >>> [round(learning_rate(config, step, steps_per_epoch=2, total_steps=6), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if config.per_epoch:
        at, unit, end = step // steps_per_epoch + config.lead, 1, total_steps // steps_per_epoch
        risen = at
    else:
        at, unit, end = step, steps_per_epoch, total_steps
        risen = step + 1
    warmup = round(config.warmup_epochs * unit)
    if at < warmup:
        return config.lr * (config.warmup_from + (1 - config.warmup_from) * risen / warmup)
    if config.schedule == "cosine":
        progress = (at - warmup) / max(1, end - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    if config.schedule == "multistep":
        passed = sum(at >= round(epoch * unit) for epoch in config.milestones)
        return config.lr * config.decay**passed
    return config.lr
