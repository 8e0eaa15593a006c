"""The decoder of GaussianFormer: Gaussians look at the pictures and at each other, and move, block after block.

v1: Huang et al., "GaussianFormer" (ECCV 2024). v2: Huang et al., "GaussianFormer-2" (CVPR 2025). Submodules of a block
carry the names of what they are; inside, those of the official checkpoints. Shape suffixes: B batch, G Gaussians,
C channels, A numbers of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.gaussian_anchors import AnchorSpace, safe_sigmoid
from fusionocc_core.layers.gaussian_attention import AttentionConfig, DeformableAttention, Views, two_layers
from fusionocc_core.layers.gaussian_sparse_conv import GaussianSparseConv, SparseConvConfig

STEPS = ("logit", "metric")
LAYOUTS = ("v1", "v2")


@dataclass(frozen=True, kw_only=True)
class GaussianEncoderConfig:
    """How Gaussians are refined."""

    layout: str
    """"v1": what each part says replaces the feature, and the first block has no sparse convolution. "v2": each part
    adds to the feature, and there are two feed-forward nets a block."""
    attention: AttentionConfig
    sparse_conv: SparseConvConfig
    channels: int = 128
    blocks: int = 4
    hidden: int = 512
    """Channels inside the feed-forward nets."""
    dropout: float = 0.1
    """Of the feed-forward nets."""
    largest_step: tuple[float, float, float] = (4.0, 4.0, 1.0)
    """How far a block moves a Gaussian at most along x, y, z, metres."""
    step: str = "metric"
    """What is bounded so: the way itself ("metric", v2), or its logit, which is less near the grid's border ("logit",
    v1)."""

    def __post_init__(self) -> None:
        """Refuse choices that do not exist."""
        if self.layout not in LAYOUTS or self.step not in STEPS:
            raise ValueError(
                f"GaussianEncoderConfig: layout={self.layout!r}, step={self.step!r}; expected one of {LAYOUTS} and "
                f"of {STEPS}"
            )
        if self.attention.joined != (self.layout == "v1"):
            raise ValueError(
                f"GaussianEncoderConfig: layout={self.layout!r} wants attention.joined={self.layout == 'v1'}"
            )
        if min(self.blocks, self.channels, self.hidden) < 1:
            raise ValueError(
                f"GaussianEncoderConfig: blocks={self.blocks}, channels={self.channels}, hidden={self.hidden} must be "
                "positive"
            )


@dataclass(frozen=True, kw_only=True)
class GaussianState:
    """The Gaussians between two blocks."""

    rows_BGA: Tensor
    """See AnchorSpace."""
    feature_BGC: Tensor


class AnchorEncoder(nn.Module):
    """What a row of numbers is to the network, from the numbers as they stand."""

    def __init__(self, channels: int, space: AnchorSpace) -> None:
        super().__init__()
        self.space = space
        self.xyz_fc = two_layers(3, channels)
        self.scale_fc = two_layers(3, channels)
        self.rot_fc = two_layers(4, channels)
        self.opacity_fc = two_layers(1, channels) if space.config.opacity else None
        self.semantics_fc = two_layers(space.config.classes, channels)
        self.output_fc = two_layers(channels, channels)

    def forward(self, rows_BGA: Tensor) -> Tensor:
        """(B, G, A) to (B, G, C)."""
        parts = self.space.parts(rows_BGA)
        told = self.xyz_fc(parts.position) + self.scale_fc(parts.scale) + self.rot_fc(parts.rotation)
        if self.opacity_fc is not None:
            told = told + self.opacity_fc(parts.opacity)
        out: Tensor = self.output_fc(told + self.semantics_fc(parts.semantics))
        return out


class FeedForward(nn.Module):
    """Two linear layers; in v1 on a normalised input of other width, which is added to the result."""

    def __init__(self, in_channels: int, channels: int, hidden: int, dropout: float, *, residual: bool) -> None:
        super().__init__()
        self.pre_norm = nn.LayerNorm(in_channels) if residual else None
        first = nn.Sequential(nn.Linear(in_channels, hidden), nn.ReLU(inplace=True), nn.Dropout(dropout))
        self.layers = nn.Sequential(first, nn.Linear(hidden, channels), nn.Dropout(dropout))
        self.identity_fc = nn.Linear(in_channels, channels) if residual else None

    def forward(self, x_BGC: Tensor) -> Tensor:
        """(B, G, in_channels) to (B, G, channels)."""
        if self.pre_norm is None or self.identity_fc is None:
            out: Tensor = self.layers(x_BGC)
            return out
        x_BGC = self.pre_norm(x_BGC)
        return self.identity_fc(x_BGC) + self.layers(x_BGC)


class Scale(nn.Module):
    """A learned factor a number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to the same."""
        return x * self.scale


class Refine(nn.Module):
    """A new row for each Gaussian: its place moves by a bounded step, all else is said anew."""

    def __init__(self, config: GaussianEncoderConfig, space: AnchorSpace) -> None:
        super().__init__()
        self.config, self.space = config, space
        c, width = config.channels, space.config.width
        half = [nn.Linear(c, c), nn.ReLU(inplace=True), nn.Linear(c, c), nn.ReLU(inplace=True), nn.LayerNorm(c)]
        again = [nn.Linear(c, c), nn.ReLU(inplace=True), nn.Linear(c, c), nn.ReLU(inplace=True), nn.LayerNorm(c)]
        self.layers = nn.Sequential(*half, *again, nn.Linear(c, width), Scale(width))

    def forward(self, feature_BGC: Tensor, embedding_BGC: Tensor, rows_BGA: Tensor) -> Tensor:
        """New rows (B, G, A), float32."""
        told_BGA = self.layers(feature_BGC + embedding_BGC).float()
        step_BG3 = (2 * safe_sigmoid(told_BGA[..., :3]) - 1) * told_BGA.new_tensor(self.config.largest_step)
        if self.config.step == "logit":  # whose slope is 1/4 at most
            position_BG3 = rows_BGA[..., :3] + 4 * step_BG3 / self.space.extent_3
        else:
            position_BG3 = self.space.positions(self.space.means(rows_BGA) + step_BG3)
        rotation_BG4 = nn.functional.normalize(told_BGA[..., 6:10], dim=-1)
        return torch.cat([position_BG3, told_BGA[..., 3:6], rotation_BG4, told_BGA[..., 10:]], dim=-1)


class BlockV1(nn.Module):
    """Looks at neighbours (not in the first block) and pictures; each part replaces the feature."""

    def __init__(
        self, config: GaussianEncoderConfig, space: AnchorSpace, grid: VoxelGrid, levels: int, *, first: bool
    ) -> None:
        super().__init__()
        c = config.channels
        self.spconv = None if first else GaussianSparseConv(config.sparse_conv, c, grid)
        self.spconv_norm = None if first else nn.LayerNorm(c)
        self.deformable = DeformableAttention(config.attention, c, levels, space)
        self.ffn = FeedForward(self.deformable.out_channels, c, config.hidden, config.dropout, residual=True)
        self.norm = nn.LayerNorm(c)
        self.refine = Refine(config, space)

    def forward(self, state: GaussianState, embedding_BGC: Tensor, views: Views) -> GaussianState:
        """The Gaussians after the block."""
        rows_BGA, feature_BGC = state.rows_BGA, state.feature_BGC
        if self.spconv is not None and self.spconv_norm is not None:
            feature_BGC = self.spconv_norm(self.spconv(feature_BGC, self.refine.space.means(rows_BGA)))
        feature_BGC = self.norm(self.ffn(self.deformable(feature_BGC, embedding_BGC, rows_BGA, views)))
        return GaussianState(rows_BGA=self.refine(feature_BGC, embedding_BGC, rows_BGA), feature_BGC=feature_BGC)


class BlockV2(nn.Module):
    """Looks at pictures, thinks, looks at neighbours, thinks; each part adds to the feature."""

    def __init__(self, config: GaussianEncoderConfig, space: AnchorSpace, grid: VoxelGrid, levels: int) -> None:
        super().__init__()
        c = config.channels
        self.deformable = DeformableAttention(config.attention, c, levels, space)
        self.deformable_norm = nn.LayerNorm(c)
        self.ffn = FeedForward(c, c, config.hidden, config.dropout, residual=False)
        self.ffn_norm = nn.LayerNorm(c)
        self.spconv = GaussianSparseConv(config.sparse_conv, c, grid)
        self.spconv_norm = nn.LayerNorm(c)
        self.second_ffn = FeedForward(c, c, config.hidden, config.dropout, residual=False)
        self.second_ffn_norm = nn.LayerNorm(c)
        self.refine = Refine(config, space)

    def forward(self, state: GaussianState, embedding_BGC: Tensor, views: Views) -> GaussianState:
        """The Gaussians after the block."""
        rows_BGA, x_BGC = state.rows_BGA, state.feature_BGC
        x_BGC = self.deformable_norm(x_BGC + self.deformable(x_BGC, embedding_BGC, rows_BGA, views))
        x_BGC = self.ffn_norm(x_BGC + self.ffn(x_BGC))
        x_BGC = self.spconv_norm(x_BGC + self.spconv(x_BGC, self.refine.space.means(rows_BGA)))
        x_BGC = self.second_ffn_norm(x_BGC + self.second_ffn(x_BGC))
        return GaussianState(rows_BGA=self.refine(x_BGC, embedding_BGC, rows_BGA), feature_BGC=x_BGC)


class GaussianEncoder(nn.Module):
    """All blocks; each ends with a whole new set of Gaussians."""

    def __init__(self, config: GaussianEncoderConfig, space: AnchorSpace, grid: VoxelGrid, *, levels: int) -> None:
        super().__init__()
        self.space = space
        self.anchor_encoder = AnchorEncoder(config.channels, space)
        self.blocks = nn.ModuleList(
            BlockV1(config, space, grid, levels, first=block == 0)
            if config.layout == "v1"
            else BlockV2(config, space, grid, levels)
            for block in range(config.blocks)
        )
        self._start()

    def _start(self) -> None:
        """Xavier for whatever mixes features; attention begins with equal weights."""
        for block in self.blocks:
            for name, module in block.named_children():
                if name != "refine":
                    for weight in module.parameters():
                        if weight.ndim > 1:
                            nn.init.xavier_uniform_(weight)
            attention = block.get_submodule("deformable")
            assert isinstance(attention, DeformableAttention)
            for zero in (attention.weights_fc.weight, attention.weights_fc.bias, attention.output_proj.bias):
                nn.init.zeros_(zero)

    def forward(self, state: GaussianState, views: Views) -> list[GaussianState]:
        """The Gaussians after each block."""
        states = []
        for block in self.blocks:
            state = block(state, self.anchor_encoder(state.rows_BGA), views)
            states.append(state)
        return states

    def gaussians(self, state: GaussianState) -> Gaussians:
        """What the rows of a state stand for."""
        return self.space.gaussians(state.rows_BGA)
