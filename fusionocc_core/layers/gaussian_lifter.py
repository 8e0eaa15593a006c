"""Where Gaussians stand before the network looks at anything twice: learned places (v1), or drawn along rays (v2).

Names of tensors are those of the official checkpoints. Shape suffixes: B batch, N cameras, M = B * N pictures,
G Gaussians, A numbers of a row, C channels, h w a map of the pictures, D depths, E = D + 1, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.dcn_resnet import DcnResNet, DcnResNetConfig
from fusionocc_core.layers.gaussian_anchors import AnchorSpace
from fusionocc_core.layers.gaussian_attention import Views
from fusionocc_core.layers.gaussian_encoder import GaussianState
from fusionocc_core.layers.gaussian_necks import JoinedMap, JoinedMapConfig
from fusionocc_core.ops.pixel_rays import points_along_rays
from fusionocc_core.ops.point_sampling import farthest_points, inverse_cdf_bins
from fusionocc_core.structures import RayOutputs

DRAWS = ("seeded", "global")
NOISE = 0.1
"""Standard deviation of copies where there are too few points, metres."""


@dataclass(frozen=True, kw_only=True)
class LearnedLifterConfig:
    """v1: every Gaussian begins at a place that the network has learned."""

    gaussians: int

    def __post_init__(self) -> None:
        """Refuse an empty set."""
        if self.gaussians < 1:
            raise ValueError(f"LearnedLifterConfig.gaussians={self.gaussians}: expected 1 or more")


@dataclass(frozen=True, kw_only=True)
class RayLifterConfig:
    """v2: each pixel draws a depth from what it believes to be occupied; some Gaussians begin at learned places."""

    drawn: int
    """Gaussians at points along rays."""
    learned: int
    """Gaussians at learned places."""
    depths: tuple[float, float] = (1.0, 72.0)
    """The first and the last depth along the camera's z axis, metres."""
    num_depths: int = 128
    backbone: DcnResNetConfig | None = field(default_factory=DcnResNetConfig)
    """A second image backbone; None takes the maps of the network's own."""
    joined_map: JoinedMapConfig = field(default_factory=JoinedMapConfig)
    trained: bool = True
    """False: the part that looks for occupied points keeps its weights; it has no gradient but from a loss of its own
    (losses.ray_occupancy)."""
    draws: str = "seeded"
    """At inference: "seeded": the same draws for each frame. "global": from PyTorch's own generator (official)."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what gives no points."""
        first, last = self.depths
        if min(self.drawn, self.learned + 1, self.num_depths - 1) < 1 or not 0 < first < last:
            raise ValueError(
                f"RayLifterConfig: drawn={self.drawn} must be positive, learned={self.learned} not negative, "
                f"num_depths={self.num_depths} at least 2, depths={self.depths} rise from above zero"
            )
        if self.draws not in DRAWS:
            raise ValueError(f"RayLifterConfig.draws={self.draws!r}: expected one of {DRAWS}")

    @property
    def gaussians(self) -> int:
        """Of a sample."""
        return self.drawn + self.learned

    def depth_list(self) -> tuple[float, ...]:
        """All depths, evenly spaced, metres."""
        return tuple(torch.linspace(*self.depths, self.num_depths, dtype=torch.float64).tolist())


GaussianLifterConfig = LearnedLifterConfig | RayLifterConfig


@dataclass(frozen=True, kw_only=True)
class Lifted:
    """The Gaussians that the encoder begins with."""

    state: GaussianState
    rays: RayOutputs | None = None
    """What the pixels believe to be occupied, where they were asked."""


class LearnedLifter(nn.Module):
    """Learned rows, features of zero."""

    def __init__(self, config: LearnedLifterConfig, space: AnchorSpace, channels: int) -> None:
        super().__init__()
        self.anchor = nn.Parameter(space.fresh_rows(config.gaussians))
        self.instance_feature = nn.Parameter(torch.zeros(config.gaussians, channels), requires_grad=False)

    def forward(self, images_BNCHW: Tensor, stages_MChw: Sequence[Tensor], views: Views) -> Lifted:
        """The same for every sample."""
        batch = len(images_BNCHW)
        return Lifted(state=_repeated(self.anchor, self.instance_feature, batch))


class OccupiedRays(nn.Module):
    """Where along its ray a pixel expects something: the map that the rays' scores are read from."""

    def __init__(self, config: RayLifterConfig, own_channels: Sequence[int]) -> None:
        super().__init__()
        self.img_backbone = None if config.backbone is None else DcnResNet(config.backbone)
        channels = own_channels if config.backbone is None else config.backbone.out_channels
        self.img_neck = JoinedMap(config.joined_map, channels)

    def forward(self, images_BNCHW: Tensor, stages_MChw: Sequence[Tensor]) -> Tensor:
        """(M, C, h, w) at a stride of 8 pixels."""
        own = self.img_backbone
        out: Tensor = self.img_neck(stages_MChw if own is None else own(images_BNCHW.flatten(0, 1)))
        return out


class RayScores(nn.Module):
    """What each pixel believes about the points of its ray: the part of the lifter that is trained by itself."""

    def __init__(self, config: RayLifterConfig, grid: VoxelGrid, own_channels: Sequence[int]) -> None:
        super().__init__()
        self.config, self.grid = config, grid
        self.initialize_backbone = OccupiedRays(config, own_channels)
        joined = 4 * config.joined_map.channels
        self.projection = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(joined, config.num_depths + 1))

    def rays(
        self,
        images_BNCHW: Tensor,
        stages_MChw: Sequence[Tensor],
        projection_BN44: Tensor,
        image_size: tuple[int, int],
    ) -> RayOutputs:
        """Scores of all rays; ``stages_MChw`` are maps of the network's own backbone, if it has no other."""
        map_MChw = self.initialize_backbone(images_BNCHW, stages_MChw)
        logits_MhwE = self.projection(map_MChw.permute(0, 2, 3, 1)).float()
        return RayOutputs(
            logits_BNhwE=logits_MhwE.unflatten(0, images_BNCHW.shape[:2]),
            projection_BN44=projection_BN44,
            depths=self.config.depth_list(),
            image_size=image_size,
            grid=self.grid,
        )


class RayLifter(RayScores):
    """Draws points along rays, spreads them evenly, and adds learned ones."""

    def __init__(
        self, config: RayLifterConfig, space: AnchorSpace, grid: VoxelGrid, channels: int, own_channels: Sequence[int]
    ) -> None:
        super().__init__(config, grid, own_channels)
        self.space = space
        self.random_anchors = nn.Parameter(space.fresh_rows(config.learned, scale=0.5))
        rest = space.fresh_rows(config.drawn, scale=0.5)[:, 3:]
        self.anchor = nn.Parameter(rest, requires_grad=False)
        self.instance_feature = nn.Parameter(torch.zeros(config.gaussians, channels), requires_grad=False)
        if not config.trained:
            self.initialize_backbone.requires_grad_(False)
            self.projection.requires_grad_(False)

    def train(self, mode: bool = True) -> RayLifter:
        """As usual, but what keeps its weights keeps its statistics, too."""
        super().train(mode)
        if not self.config.trained:
            self.initialize_backbone.eval()
        return self

    def forward(self, images_BNCHW: Tensor, stages_MChw: Sequence[Tensor], views: Views) -> Lifted:
        """Rows of points along rays, then learned ones."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.trained):
            rays = self.rays(images_BNCHW, stages_MChw, views.projection_BN44, views.image_size)
        points_BP3 = self.points(rays, views.present_BN)
        drawn_BGA = torch.cat([self.space.positions(points_BP3), self.anchor.expand(len(points_BP3), -1, -1)], dim=-1)
        state = _repeated(self.random_anchors, self.instance_feature, len(images_BNCHW))
        rows_BGA = torch.cat([drawn_BGA, state.rows_BGA], dim=1)
        return Lifted(state=GaussianState(rows_BGA=rows_BGA, feature_BGC=state.feature_BGC), rays=rays)

    @torch.no_grad()
    def points(self, rays: RayOutputs, present_BN: Tensor | None) -> Tensor:
        """Where Gaussians begin, (B, drawn, 3) in the grid."""
        logits_BNhwE = rays.logits_BNhwE.detach()
        generator = self._generator()
        uniform = _uniform(logits_BNhwE.shape[:-1], generator, logits_BNhwE.device)
        depth_BNhw = inverse_cdf_bins(logits_BNhwE.softmax(dim=-1), uniform)
        kept_BNhw = logits_BNhwE.argmax(dim=-1) < self.config.num_depths
        if present_BN is not None:
            kept_BNhw = kept_BNhw & present_BN[..., None, None]
        # Kept pixels may still draw "nothing": they take the last depth.
        chosen = depth_BNhw.clamp(max=self.config.num_depths - 1)[..., None, None].expand(*depth_BNhw.shape, 1, 3)
        along_BNhwD3 = points_along_rays(
            rays.projection_BN44, rays.depths, rays.image_size, (chosen.shape[2], chosen.shape[3])
        )
        points_BNhw3 = along_BNhwD3.gather(4, chosen).squeeze(4)
        return torch.stack(
            [self.spread(points[kept], generator) for points, kept in zip(points_BNhw3, kept_BNhw, strict=True)]
        )

    def spread(self, points_P3: Tensor, generator: torch.Generator | None) -> Tensor:
        """Exactly as many points as wanted out of those in the grid; with too few, noisy copies of them, too.

        The official code divides by zero where no point is left; here they are then anywhere in the grid.
        """
        lower, upper = (points_P3.new_tensor(corner) for corner in (self.grid.lower, self.grid.upper))
        points_P3 = points_P3[((points_P3 >= lower) & (points_P3 < upper)).all(dim=1)]
        wanted = self.config.drawn
        if not len(points_P3):
            return lower + (upper - lower) * _uniform((wanted, 3), generator, points_P3.device)
        if len(points_P3) < wanted:
            copies = points_P3.repeat(-(-wanted // len(points_P3)) - 1, 1)
            noise = torch.randn(copies.shape, generator=generator).to(copies)
            margin = 1e-4 * (upper - lower)
            points_P3 = torch.cat([points_P3, (copies + NOISE * noise).clamp(lower + margin, upper - margin)])
        return points_P3[farthest_points(points_P3, wanted)]

    def _generator(self) -> torch.Generator | None:
        """Of this call's draws; None: PyTorch's own."""
        seeded = self.config.draws == "seeded" and not self.training
        return torch.Generator().manual_seed(self.config.seed) if seeded else None


def make_gaussian_lifter(
    config: GaussianLifterConfig, space: AnchorSpace, grid: VoxelGrid, channels: int, own_channels: Sequence[int]
) -> LearnedLifter | RayLifter:
    """The lifter that the configuration describes; ``own_channels`` are those of the network's own backbone."""
    if isinstance(config, LearnedLifterConfig):
        return LearnedLifter(config, space, channels)
    return RayLifter(config, space, grid, channels, own_channels)


def _repeated(rows_GA: Tensor, feature_GC: Tensor, batch: int) -> GaussianState:
    return GaussianState(rows_BGA=rows_GA.expand(batch, -1, -1), feature_BGC=feature_GC.expand(batch, -1, -1))


def _uniform(shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Numbers of 0 to 1, drawn on the CPU, so that every device gets the same."""
    return torch.rand(tuple(shape), generator=generator).to(device)
