"""AdamW over all weights, as the official recipes have it."""

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
    rate_of_parts: tuple[tuple[str, float], ...] = ()
    """Weights whose name holds a text learn at this share of the rate; the first text that fits counts. GaussianFormer:
    (("img_backbone", 0.1),)."""

    def __post_init__(self) -> None:
        """Refuse rates that do not train."""
        if self.lr <= 0 or self.weight_decay < 0 or (self.clip_norm is not None and self.clip_norm <= 0):
            raise ValueError(
                f"OptimizerConfig: lr={self.lr} and clip_norm={self.clip_norm} must be positive, "
                f"weight_decay={self.weight_decay} not negative"
            )
        if any(share <= 0 for _, share in self.rate_of_parts):
            raise ValueError(f"OptimizerConfig.rate_of_parts={self.rate_of_parts}: expected positive shares")


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.AdamW:
    """The optimizer over everything that takes a gradient.

    Raises:
        ValueError: nothing does.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            share = next((share for text, share in config.rate_of_parts if text in name), 1.0)
            groups.setdefault(share, []).append(weight)
    if not groups:
        raise ValueError("make_optimizer: the network has no weight that takes a gradient")
    return torch.optim.AdamW(
        [{"params": weights, "share": share} for share, weights in sorted(groups.items(), reverse=True)],
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
    )
