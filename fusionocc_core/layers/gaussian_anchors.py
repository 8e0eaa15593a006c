"""Gaussians as networks keep them: rows of unbounded numbers, and what these stand for.

Shape suffixes: B batch, G Gaussians, A numbers of a row, 3 = (x, y, z), P points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.grids import VoxelGrid

LOGIT_LIMIT = 9.21
"""Numbers beyond this count as this in a sigmoid (official: the logit of 0.9999)."""
LEAST_PROBABILITY = 1e-4
"""Probabilities closer to 0 or 1 count as this in a logit."""
ACTIVATIONS = ("identity", "softplus", "softmax")


def safe_sigmoid(x: Tensor) -> Tensor:
    """Sigmoid of x within -9.21 to 9.21."""
    return x.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).sigmoid()


def safe_logit(p: Tensor) -> Tensor:
    """Logit of p within 1e-4 to 0.9999."""
    p = p.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return torch.log(p / (1 - p))


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """What a row of numbers holds: position 3, scales 3, rotation 4, opacity 1 (if any), semantics the rest."""

    classes: int
    """Numbers that a Gaussian says about classes; column c belongs to class id c."""
    scale_range: tuple[float, float]
    """Smallest and largest standard deviation, metres."""
    opacity: bool = True
    """Without, every Gaussian counts fully."""
    semantics: str = "identity"
    """What the numbers about classes go through on their way out: "identity", "softplus" or "softmax"."""

    def __post_init__(self) -> None:
        """Refuse what cannot be splatted."""
        low, high = self.scale_range
        if not 0 < low < high or self.classes < 1:
            raise ValueError(
                f"AnchorConfig: scale_range={self.scale_range} must rise from above zero, classes={self.classes} be "
                "positive"
            )
        if self.semantics not in ACTIVATIONS:
            raise ValueError(f"AnchorConfig.semantics={self.semantics!r}: expected one of {ACTIVATIONS}")

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return 10 + int(self.opacity) + self.classes


@dataclass(frozen=True, kw_only=True)
class AnchorParts:
    """The columns of rows, as they stand there."""

    position: Tensor
    scale: Tensor
    rotation: Tensor
    opacity: Tensor
    """Of width zero where there is none."""
    semantics: Tensor


class AnchorSpace(nn.Module):
    """Rows of numbers to Gaussians in a grid's frame, and back. No weights."""

    def __init__(self, config: AnchorConfig, grid: VoxelGrid) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("lower_3", torch.tensor(grid.lower), persistent=False)
        self.register_buffer("extent_3", torch.tensor(grid.upper) - torch.tensor(grid.lower), persistent=False)

    lower_3: Tensor
    """The grid's lower corner, metres."""
    extent_3: Tensor
    """Its edges, metres."""

    def parts(self, rows_BGA: Tensor) -> AnchorParts:
        """The columns by name.

        Raises:
            ValueError: rows of another width.
        """
        if rows_BGA.shape[-1] != self.config.width:
            raise ValueError(f"AnchorSpace: rows of {rows_BGA.shape[-1]} numbers; expected {self.config.width}")
        position, scale, rotation, opacity, semantics = rows_BGA.split(
            [3, 3, 4, int(self.config.opacity), self.config.classes], dim=-1
        )
        return AnchorParts(position=position, scale=scale, rotation=rotation, opacity=opacity, semantics=semantics)

    def means(self, rows_BGA: Tensor) -> Tensor:
        """Centres (B, G, 3), metres; always inside the grid."""
        return self.lower_3 + self.extent_3 * safe_sigmoid(rows_BGA[..., :3])

    def scales(self, rows_BGA: Tensor) -> Tensor:
        """Standard deviations (B, G, 3), metres."""
        low, high = self.config.scale_range
        return low + (high - low) * safe_sigmoid(rows_BGA[..., 3:6])

    def positions(self, points_P3: Tensor) -> Tensor:
        """The first three numbers of rows whose centres these points are; points outside the grid move into it."""
        return safe_logit((points_P3 - self.lower_3) / self.extent_3)

    def gaussians(self, rows_BGA: Tensor) -> Gaussians:
        """What the rows stand for, in float32."""
        rows_BGA = rows_BGA.float()
        parts = self.parts(rows_BGA)
        opacity = safe_sigmoid(parts.opacity[..., 0]) if self.config.opacity else torch.ones_like(rows_BGA[..., 0])
        semantics = parts.semantics
        if self.config.semantics == "softplus":
            semantics = nn.functional.softplus(semantics)
        elif self.config.semantics == "softmax":
            semantics = semantics.softmax(dim=-1)
        return Gaussians(
            means_BG3=self.means(rows_BGA),
            scales_BG3=self.scales(rows_BGA),
            rotations_BG4=nn.functional.normalize(parts.rotation, dim=-1),
            opacities_BG=opacity,
            semantics_BGC=semantics,
        )

    def fresh_rows(self, count: int, *, scale: float | None = None) -> Tensor:
        """Rows (count, A) spread evenly over the grid: no rotation, half opacity, random semantics.

        Args:
            count: how many.
            scale: the sigmoid of every raw scale, 0 to 1; None draws them evenly.
        """
        position = safe_logit(torch.rand(count, 3))
        scales = safe_logit(torch.rand(count, 3) if scale is None else torch.full((count, 3), scale))
        rotation = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(count, 4)
        opacity = torch.zeros(count, int(self.config.opacity))
        return torch.cat([position, scales, rotation, opacity, torch.randn(count, self.config.classes)], dim=1)


def rotated(offsets_BGK3: Tensor, rows_BGA: Tensor) -> Tensor:
    """Offsets along the Gaussians' own axes, seen in the frame: the axes are the rows of the rotation matrix."""
    w, *xyz = rows_BGA[..., 6:10].div(rows_BGA[..., 6:10].norm(dim=-1, keepdim=True).clamp(min=1e-12)).unbind(-1)
    # frame2local is the quaternion's rotation, so local2frame is that of its conjugate.
    axis_BG13 = -torch.stack(xyz, dim=-1).unsqueeze(2)
    twice = 2 * torch.linalg.cross(axis_BG13.expand_as(offsets_BGK3), offsets_BGK3)
    return offsets_BGK3 + w[..., None, None] * twice + torch.linalg.cross(axis_BG13.expand_as(twice), twice)
