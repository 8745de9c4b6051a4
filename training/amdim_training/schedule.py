"""The learning rate at every update, as a pure function of the update's number."""

from __future__ import annotations

import math

from amdim_training.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Returns the rate of update `step`, counted from 0.

    Args:
        config: Base rate, warm-up and schedule.
        step: The update about to be made.
        steps: Updates in the whole run.
        steps_per_epoch: Updates in one pass over the data.

    Source: SPEC.md 4. The reference steps its scheduler at the end of epoch e with argument e,
    so a milestone m takes effect from epoch m + 1 on.
    """
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    rate = config.learning_rate * warm
    if config.schedule == "milestones":
        epoch = step // max(steps_per_epoch, 1)
        passed = sum(epoch > milestone for milestone in config.milestones)
        return float(rate * config.milestone_factor**passed)
    if config.schedule == "linear":
        falling = max(1, round(steps * config.decay_fraction))
        return float(rate * min(1.0, (steps - step) / falling))
    if config.schedule == "cosine":
        done = max(0, step - config.warmup_steps) / max(1, steps - config.warmup_steps)
        return float(rate * (1 + math.cos(math.pi * min(1.0, done))) / 2)
    return rate
