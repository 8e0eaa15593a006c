"""A moving average of a network's weights and batch-norm statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """The defaults are those of the official FusionOcc and FlashOcc recipes."""

    decay: float = 0.999
    """Where the decay ends up."""
    ramp: float = 2000.0
    """Updates over which it rises: decay * (1 - exp(-updates / ramp))."""
    initial_updates: int = 10560
    """Where the count of updates starts; 0 lets the average follow the weights closely in short runs."""

    def __post_init__(self) -> None:
        """Refuse decays that do not average."""
        if not 0 <= self.decay < 1 or self.ramp <= 0 or self.initial_updates < 0:
            raise ValueError(
                f"EmaConfig: decay={self.decay} lies in [0, 1), ramp={self.ramp} is positive, "
                f"initial_updates={self.initial_updates} not negative"
            )

    def decay_at(self, updates: int) -> float:
        """The decay of the update that makes the count ``updates``."""
        return self.decay * (1 - math.exp(-updates / self.ramp))


class Ema:
    """Averages every floating-point tensor of the state dict, buffers included; integers are copied."""

    def __init__(self, config: EmaConfig, model: nn.Module) -> None:
        self.config = config
        self.updates = config.initial_updates
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        self.updates += 1
        decay = self.config.decay_at(self.updates)
        state = model.state_dict()
        floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
        average = [self.average[name] for name in floating]
        torch._foreach_mul_(average, decay)
        torch._foreach_add_(average, [state[name].detach() for name in floating], alpha=1 - decay)
        for name in state.keys() - set(floating):
            self.average[name].copy_(state[name])

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """The network computes with the averaged weights inside the block, and with its own again afterwards."""
        own = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        model.load_state_dict(self.average)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"updates": self.updates, "average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what a checkpoint kept."""
        self.updates = int(state["updates"])
        for name, tensor in self.average.items():
            stored: Tensor = state["average"][name]
            tensor.copy_(stored)
