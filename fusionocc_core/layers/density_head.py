"""From features of cells to a density, the classes behind it, and whether a voxel is occupied (RenderOcc, UniOcc).

Legend: B samples, C channels, K classes without free space, S scores, X Y Z voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.structures import DensityOutputs

DENSITIES = ("metric", "official")
DECISIONS = ("score", "density")
RARELY_OCCUPIED = -3.0
"""Log-odds of a fresh network's voxels: rays then reach some metres and learn from what they hit there."""


@dataclass(frozen=True, kw_only=True)
class DensityHeadConfig:
    """What the density means, and when a voxel counts as occupied."""

    density: str = "metric"
    """"metric": one score a voxel, the log-odds that it is occupied; its density per metre stops a ray that crosses the
    voxel with that probability. "official": two scores a voxel, softplus over both: the density as RenderOcc's opacity
    wants it, and that of being free."""
    decision: str = "score"
    """"score": by the log-odds; "official" densities: the two scores compared. "density": where the density exceeds
    ``threshold`` (RenderOcc without labels of voxels)."""
    threshold: float = 8.5
    """See ``decision``."""

    def __post_init__(self) -> None:
        """Refuse choices that do not exist."""
        for name, allowed in (("density", DENSITIES), ("decision", DECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"DensityHeadConfig.{name}={getattr(self, name)!r}: expected one of {allowed}")

    @property
    def scores(self) -> int:
        """How many a voxel."""
        return 1 if self.density == "metric" else 2


def density_mlp(config: DensityHeadConfig, channels: int, *, heights: int = 1) -> nn.Sequential:
    """Scores (..., heights * S) of features (..., C), height after height."""
    last = nn.Linear(2 * channels, heights * config.scores)
    if config.density == "metric":
        nn.init.constant_(last.bias, RARELY_OCCUPIED)
    return nn.Sequential(nn.Linear(channels, 2 * channels), nn.Softplus(), last)


def semantic_mlp(channels: int, *, classes: int, heights: int = 1) -> nn.Sequential:
    """Scores (..., heights * K) of features (..., C), height after height."""
    return nn.Sequential(nn.Linear(channels, 2 * channels), nn.Softplus(), nn.Linear(2 * channels, heights * classes))


def density_outputs(
    config: DensityHeadConfig, scores_BXYZS: Tensor, semantic_BXYZK: Tensor, *, edge: float
) -> DensityOutputs:
    """Density and log-odds from scores; ``edge`` is that of a voxel, metres."""
    with torch.autocast(scores_BXYZS.device.type, enabled=False):
        scores_BXYZS = scores_BXYZS.float()
        if config.density == "metric":
            odds_BXYZ = scores_BXYZS[..., 0]
            density_BXYZ = F.softplus(odds_BXYZ) / edge
        else:
            density_BXYZ, free_BXYZ = F.softplus(scores_BXYZS).unbind(-1)
            odds_BXYZ = density_BXYZ - free_BXYZ
    return DensityOutputs(density_BXYZ=density_BXYZ, semantic_BXYZK=semantic_BXYZK, occupied_logits_BXYZ=odds_BXYZ)


def two_step_logits(config: DensityHeadConfig, density: DensityOutputs, *, free: int) -> Tensor:
    """Scores (B, K + 1, X, Y, Z) of all classes, whose largest is the answer of the two steps.

    Free space has the score zero, the best other class the log-odds (or the density above the threshold), the others
    less by as much as their scores lie below the best one's.
    """
    decision = density.occupied_logits_BXYZ
    if config.decision == "density":
        decision = density.density_BXYZ - config.threshold
    semantic = density.semantic_BXYZK
    best = semantic.max(dim=-1).values  # not amax, whose gradient costs a comparison of every class of every voxel
    relative = semantic + (decision.to(semantic.dtype) - best)[..., None]
    nothing = torch.zeros_like(relative[..., :1])
    return torch.cat([relative[..., :free], nothing, relative[..., free:]], dim=-1).movedim(-1, 1)
