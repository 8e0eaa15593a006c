"""AdamW over all weights, as the official recipe has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The defaults are FusionOcc's: no weight is exempt from decay, none has a rate of its own."""

    lr: float = 5e-5
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 5.0
    """Largest L2 norm of all gradients together; none does not clip."""

    def __post_init__(self) -> None:
        """Refuse rates that do not train."""
        if self.lr <= 0 or self.weight_decay < 0 or (self.clip_norm is not None and self.clip_norm <= 0):
            raise ValueError(
                f"OptimizerConfig: lr={self.lr} and clip_norm={self.clip_norm} must be positive, "
                f"weight_decay={self.weight_decay} not negative"
            )


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.AdamW:
    """The optimizer over everything that takes a gradient.

    Raises:
        ValueError: nothing does.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if not weights:
        raise ValueError("make_optimizer: the network has no weight that takes a gradient")
    return torch.optim.AdamW(weights, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
