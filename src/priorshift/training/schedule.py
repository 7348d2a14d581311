"""The learning rate as a pure function of the step."""

import math

from priorshift.training.config import Optimizer


def learning_rate(config: Optimizer, step: int, *, steps_per_epoch: int, total_steps: int) -> float:
    """The learning rate of a step, counted from 0: linear warm-up, then the schedule.

    The first step of a warm-up already moves (lr / warm-up steps), and the last step of a cosine still does.

    Example:
        >>> config = Optimizer(lr=1.0, schedule="cosine", warmup_epochs=1)
        >>> [round(learning_rate(config, step, steps_per_epoch=2, total_steps=6), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "cosine":
        progress = (step - warmup) / max(1, total_steps - warmup)
        return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
    if config.schedule == "multistep":
        passed = sum(step >= round(epoch * steps_per_epoch) for epoch in config.milestones)
        return config.lr * config.decay**passed
    return config.lr
