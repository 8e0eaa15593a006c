"""Rays, and where volume rendering looks along them.

Positions are "in radii": from the centre of a sphere, divided by its radius. Outside the sphere they are contracted
(mip-NeRF 360, Barron et al., CVPR 2022), so that everything far away lies in a thin shell around it.

Shape suffixes: R rays, S places along a ray, 3 = x y z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

DEPTH_MODES = ("metric", "official")
ALIGNMENTS = ("voxel_center", "official")
OPACITIES = ("metric", "log_odds", "official")
WIDTHS = ("metric", "official")

OFFICIAL_SHIFT = math.log(1 / (1 - 1e-6) - 1)
"""Added to densities by RenderOcc: an empty sample then has an opacity of 5e-7."""
RIGID_TOLERANCE = 1e-3
"""How far a frame's axes may be from orthogonal and of one length."""
Point = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """How a volume is rendered. The defaults are metric over Occ3D's grid; renderocc_rendering() is the official way.

    The places along a ray are the same in both: every ``step`` voxels out to two radii, then ever farther apart.
    """

    center: Point = (0.0, 0.0, 2.2)
    """Of the sphere, metres."""
    radius: float = 39.0
    """Of the sphere, metres."""
    extent: float = 40.0
    """Radius that infinity is contracted to, metres; half the volume's width."""
    box_lower: Point = (-40.0, -40.0, -1.0)
    """Metres; see ``align``."""
    box_upper: Point = (40.0, 40.0, 5.4)
    """Metres; see ``align``."""
    cells_across: int = 200
    """Voxels in twice the extent."""
    step: float = 0.5
    """Between places, voxels."""
    depth_mode: str = "metric"
    """"metric": mean distance along the ray, metres. "official": radius * mean of 1 - 1 / (1 + distance / radius), as
    RenderOcc renders it; true near the sphere's centre only (39 m is rendered as 19.5)."""
    align: str = "voxel_center"
    """"voxel_center": the box holds whole voxels; places outside are left out. "official": the first and last voxels'
    centres lie on the box's sides, which stretches the volume by half a voxel, and all beyond has density zero."""
    opacity: str = "metric"
    """"metric": 1 - exp(-density * metres to the next place), density not negative. "log_odds": the same, with density
    softplus(x) / edge of a voxel and x the log-odds that the volume then holds: they, not the density, are interpolated
    between voxels. A surface lies where they change their sign, anywhere between the centres of two voxels; a density
    that stops rays in a voxel does so half a voxel before its centre already. "official": 1 - exp(-softplus(density -
    13.8) / 2), whatever the distance."""
    distortion_width: str = "metric"
    """The width of a place in the distortion: "metric": its own. "official": 1 / number of places of the sample."""
    near: float = 0.4
    """Places up to so far from what was measured count as near it, metres along the ray ..."""
    near_share: float = 0.05
    """... and this share of what was measured: far away rays graze the ground, where a voxel is long."""
    least_alpha: float = 1e-7
    """Places of at most this opacity are left out."""
    least_weight: float = 1e-7
    """So are those of at most this weight, but they still hide what is behind."""
    stop_below: float = 1e-3
    """A ray ends behind the place where less than this share of it is left; zero never ends it."""

    def __post_init__(self) -> None:
        """Refuse unknown modes and geometry that cannot be sampled."""
        for name, known in (
            ("depth_mode", DEPTH_MODES),
            ("align", ALIGNMENTS),
            ("opacity", OPACITIES),
            ("distortion_width", WIDTHS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"RenderConfig.{name}={getattr(self, name)!r}: expected one of {known}")
        if self.opacity == "log_odds" and self.align != "voxel_center":
            raise ValueError(
                f"RenderConfig.align={self.align!r} goes on with zeros outside of the volume, which as log_odds are "
                "half occupied; expected align='voxel_center' with opacity='log_odds'"
            )
        if not 0 < self.radius < self.extent:
            raise ValueError(
                f"RenderConfig: radius={self.radius}, extent={self.extent}; expected 0 < radius < extent: the shell "
                "between them holds what is far away"
            )
        if any(lower >= upper for lower, upper in zip(self.box_lower, self.box_upper, strict=True)):
            raise ValueError(f"RenderConfig: box_lower={self.box_lower} must lie below box_upper={self.box_upper}")
        if not (self.near > 0 and self.near_share >= 0):
            raise ValueError(
                f"RenderConfig: near={self.near} must be positive, near_share={self.near_share} not negative"
            )
        if not self.step > 0 or self.cells_across < 20 * self.step:
            raise ValueError(
                f"RenderConfig: step={self.step} voxels, cells_across={self.cells_across}; expected a positive step "
                "and 20 of them or more across"
            )

    @property
    def edge(self) -> float:
        """Of a voxel, metres."""
        return 2 * self.extent / self.cells_across

    @property
    def threshold(self) -> float:
        """Least way between places outside the sphere, radii."""
        return 2 * self.extent / self.radius / self.cells_across * self.step * 0.95


def renderocc_rendering() -> RenderConfig:
    """As RenderOcc (Pan et al., ICRA 2024) renders: needed for its checkpoints; see the modes for what is odd."""
    return RenderConfig(
        depth_mode="official",
        align="official",
        opacity="official",
        distortion_width="official",
        box_lower=(-40.0, -40.0, 2.2 - 39 * 0.08),  # 6.4 / 80 of the radius instead of half of 6.4 m
        box_upper=(40.0, 40.0, 2.2 + 39 * 0.08),
    )


@dataclass(frozen=True, kw_only=True)
class Rays:
    """Rays of a batch in the frame of the volume, and what was measured along them."""

    origin_R3: Tensor
    """Metres."""
    direction_R3: Tensor
    """For one metre of the camera's z: a ray's point of depth z is origin + z * direction."""
    depth_R: Tensor
    """The camera's z, metres; zero or NaN where nothing was measured."""
    label_R: Tensor
    """int64 class, or the label set's ``unknown``."""
    sample_R: Tensor
    """int64 index into the batch."""
    current_R: Tensor
    """Bool: of the keyframe that the volume belongs to; the others are of its neighbours."""

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        count = len(self.origin_R3)
        for name in ("origin_R3", "direction_R3"):
            tensor = getattr(self, name)
            if tensor.shape != (count, 3) or not tensor.is_floating_point():
                raise ValueError(f"Rays.{name}: {tensor.dtype} {tuple(tensor.shape)}, expected float ({count}, 3)")
        if self.depth_R.shape != (count,) or not self.depth_R.is_floating_point():
            raise ValueError(
                f"Rays.depth_R: {self.depth_R.dtype} {tuple(self.depth_R.shape)}, expected float ({count},); zeros "
                "where nothing was measured"
            )
        for name in ("label_R", "sample_R"):
            tensor = getattr(self, name)
            if tensor.shape != (count,) or tensor.dtype != torch.int64:
                raise ValueError(f"Rays.{name}: {tensor.dtype} {tuple(tensor.shape)}, expected int64 ({count},)")
        if self.current_R.shape != (count,) or self.current_R.dtype != torch.bool:
            raise ValueError(
                f"Rays.current_R: {self.current_R.dtype} {tuple(self.current_R.shape)}, expected bool ({count},)"
            )

    def __len__(self) -> int:
        """How many rays."""
        return len(self.origin_R3)

    @property
    def range_R(self) -> Tensor:
        """Measured distance along the ray, metres."""
        return self.depth_R * self.direction_R3.norm(dim=1)

    def select(self, chosen: Tensor | slice) -> Rays:
        """Those rays that an index, a slice or a mask names."""
        return Rays(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})

    def within(self, farthest: float) -> Rays:
        """Those with a depth above zero and up to ``farthest`` metres (RenderOcc: 52); none at all is an answer too."""
        return self.select((self.depth_R > 0) & (self.depth_R <= farthest))

    def transformed(self, a2b_44: Tensor) -> Rays:
        """Brought to another frame by a2b_44, which may turn, mirror and scale.

        depth_R stays the z before scaling; range_R follows.

        Raises:
            ValueError: a2b_44 is not finite or distorts angles.
        """
        square = a2b_44[:3, :3].double() @ a2b_44[:3, :3].double().T if a2b_44.shape == (4, 4) else torch.zeros(3, 3)
        off = (square / square.diagonal().mean() - torch.eye(3).to(square)).abs().amax()
        if not off < RIGID_TOLERANCE:
            raise ValueError(
                f"a2b_44: {a2b_44.tolist()}; expected (4, 4): a rotation, mirrored or scaled by one factor, and a "
                "translation"
            )
        turn = a2b_44[:3, :3].to(self.origin_R3)
        origin = self.origin_R3 @ turn.T + a2b_44[:3, 3].to(self.origin_R3)
        return replace(self, origin_R3=origin, direction_R3=self.direction_R3 @ turn.T)

    def to(self, device: torch.device | str) -> Rays:
        """The same rays on another device."""
        return Rays(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})


def collate_rays(samples: list[Rays]) -> Rays:
    """One batch out of several samples, each of which becomes one sample.

    Raises:
        ValueError: no sample at all, or one that is a batch already.
    """
    if not samples or any(bool(rays.sample_R.any()) for rays in samples):
        raise ValueError("collate_rays: expected one or more samples, each with sample_R = 0")
    moved = [replace(rays, sample_R=rays.sample_R + b) for b, rays in enumerate(samples)]
    return Rays(**{f.name: torch.cat([getattr(rays, f.name) for rays in moved]) for f in fields(Rays)})


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a batch of rays looks."""

    distance_S: Tensor
    """Along the ray, radii."""
    position_RS3: Tensor
    """Contracted, radii."""
    kept_RS: Tensor
    """Bool: the others are left out."""
    width_RS: Tensor
    """Along the ray to the next place that is kept, radii."""


def sample_distances(config: RenderConfig, *, device: torch.device | None = None) -> Tensor:
    """(S,) float32 distances along a ray, radii: even out to 2, then even in one over the distance."""
    near = int(2 * config.radius / (2 * config.extent) * config.cells_across / config.step) + 1
    edges_near = torch.linspace(0, 2, near + 1, device=device)
    edges_far = 2 / torch.linspace(1, 1 / 64, near // 15 + 1, device=device)
    return torch.cat([(edges[1:] + edges[:-1]) / 2 for edges in (edges_near, edges_far)])


@torch.no_grad()
def place_samples(rays: Rays, config: RenderConfig, dtype: torch.dtype = torch.float32) -> Places:
    """Where each of the rays looks.

    Outside the sphere contracted places lie ever closer together: of those only every so many are kept that a ray
    makes a step of nearly its usual length from one to the next. "voxel_center" leaves out what is outside the box.
    """
    distance_S = sample_distances(config, device=rays.origin_R3.device).to(dtype)
    origin_R3 = (rays.origin_R3.to(dtype) - rays.origin_R3.new_tensor(config.center, dtype=dtype)) / config.radius
    direction_R3 = torch.nn.functional.normalize(rays.direction_R3.to(dtype), dim=1)
    position_RS3 = origin_R3[:, None] + direction_R3[:, None] * distance_S[:, None]
    norm_RS1 = position_RS3.norm(dim=-1, keepdim=True)
    inner_RS = norm_RS1[..., 0] <= 1
    shell = config.extent / config.radius - 1
    contracted_RS3 = position_RS3 / norm_RS1.clamp(min=1) * ((1 + shell) - shell / norm_RS1.clamp(min=1))
    position_RS3 = torch.where(inner_RS[..., None], position_RS3, contracted_RS3)
    kept_RS = inner_RS | _far_enough(position_RS3, inner_RS, config.threshold)
    width_RS = _widths(distance_S, kept_RS)
    if config.align == "voxel_center":
        part_RS3 = box_share(position_RS3, config)
        kept_RS = kept_RS & ((part_RS3 >= 0) & (part_RS3 <= 1)).all(dim=-1)
    return Places(distance_S=distance_S, position_RS3=position_RS3, kept_RS=kept_RS, width_RS=width_RS)


def box_share(position: Tensor, config: RenderConfig) -> Tensor:
    """Where positions (..., 3) in radii lie in the box, 0 to 1 from its lower to its upper side."""
    lower, upper = (
        position.new_tensor([(b - c) / config.radius for b, c in zip(box, config.center, strict=True)])
        for box in (config.box_lower, config.box_upper)
    )
    return (position - lower) / (upper - lower)


def _far_enough(position_RS3: Tensor, inner_RS: Tensor, threshold: float) -> Tensor:
    """(R, S) bool: places more than ``threshold`` of way behind the last for which this was so.

    Inside the sphere it is so everywhere, as RenderConfig sees to: there is nothing to add up before it ends.
    """
    far_RS = inner_RS.clone()
    way_RS = (position_RS3[:, 1:] - position_RS3[:, :-1]).norm(dim=-1)
    outside_S = (~inner_RS).any(dim=0)
    first = int(outside_S.int().argmax()) if bool(outside_S.any()) else len(outside_S)
    far_RS[:, :1] = False
    total_R = way_RS.new_zeros(len(way_RS))
    for k in range(max(first, 1), inner_RS.shape[1]):
        total_R = total_R + way_RS[:, k - 1]
        over_R = total_R > threshold
        total_R = total_R.masked_fill(over_R, 0.0)
        far_RS[:, k] = over_R
    return far_RS


def _widths(distance_S: Tensor, kept_RS: Tensor) -> Tensor:
    """(R, S): from each place to the next that is kept; behind the last one, to the next of all."""
    end = 2 * distance_S[-1:] - distance_S[-2:-1]
    following_S = torch.cat([distance_S[1:], end])
    next_RS = torch.where(kept_RS, distance_S, torch.inf)[:, 1:].flip(1).cummin(dim=1).values.flip(1)
    next_RS = torch.nn.functional.pad(next_RS, (0, 1), value=torch.inf)
    return torch.where(next_RS.isinf(), following_S, next_RS) - distance_S
