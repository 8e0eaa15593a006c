"""What a loss function gives: named, weighted terms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One named term."""

    name: str
    value: Tensor
    """Scalar, not weighted."""
    weight: float
    labelled: int
    """Voxels or cells that it is a mean over; with 0 the term is zero and so are its gradients."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The terms of one batch."""

    parts: tuple[LossTerm, ...]

    @property
    def terms(self) -> dict[str, Tensor]:
        """Weighted values by name, as they enter the sum."""
        return {part.name: part.value * part.weight for part in self.parts}

    @property
    def total(self) -> Tensor:
        """The weighted sum, to call backward() on."""
        return torch.stack(list(self.terms.values())).sum()
