"""The learning rate over a run: linear warm-up, then cosine or constant."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The defaults are FusionOcc's: a cosine that steps once an epoch, and 500 steps of warm-up from a third."""

    decay: str = "cosine"
    """"cosine" or "constant"."""
    every: str = "epoch"
    """When the cosine moves: once an "epoch" (official), or each "step"."""
    final_ratio: float = 1e-3
    """What the cosine would reach at the very end, as a share of the full rate."""
    warmup_steps: int = 500
    """Optimizer steps with a reduced rate at the start."""
    warmup_ratio: float = 1 / 3
    """Share of the rate at the first step; it grows linearly to 1."""

    def __post_init__(self) -> None:
        """Refuse values that the schedule does not know."""
        for name, allowed in (("decay", ("cosine", "constant")), ("every", ("epoch", "step"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"ScheduleConfig.{name}={getattr(self, name)!r}: expected one of {allowed}")
        if self.warmup_steps < 0 or not 0 < self.warmup_ratio <= 1 or not 0 <= self.final_ratio <= 1:
            raise ValueError(
                f"ScheduleConfig: warmup_steps={self.warmup_steps} must not be negative, "
                f"warmup_ratio={self.warmup_ratio} lies in (0, 1], final_ratio={self.final_ratio} in [0, 1]"
            )


def rate_factor(config: ScheduleConfig, *, step: int, epoch: float, epochs: float) -> float:
    """What the full learning rate is multiplied with at a step.

    As mmcv's CosineAnnealing (by epoch) with its linear warm-up, which the official recipe uses: the warm-up scales
    what the cosine gives.

    Args:
        config: the shape.
        step: optimizer steps done before this one.
        epoch: passes over the data done before this step, with fraction.
        epochs: of the whole run.
    """
    passed = math.floor(epoch) if config.every == "epoch" else epoch
    factor = 1.0
    if config.decay == "cosine":
        factor = config.final_ratio + (1 - config.final_ratio) * (1 + math.cos(math.pi * passed / epochs)) / 2
    if step < config.warmup_steps:
        factor *= 1 - (1 - step / config.warmup_steps) * (1 - config.warmup_ratio)
    return factor
