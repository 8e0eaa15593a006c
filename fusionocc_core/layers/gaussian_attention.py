"""What Gaussians see in the pictures: key points on each, their projections, and a weighted sum of features.

Names of submodules are those of the official checkpoints (Huang et al., "GaussianFormer", ECCV 2024). Shape suffixes:
B batch, N cameras, G Gaussians, K key points of each, L levels, M groups, C channels, A numbers of a row, h w maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fusionocc_core.layers.depth_gate import DepthGate
from fusionocc_core.layers.gaussian_anchors import AnchorSpace, rotated, safe_sigmoid
from fusionocc_core.ops.deformable_aggregate import deformable_aggregate
from fusionocc_core.ops.pixel_rays import project_points

FIXED_OFFSET = 0.45
"""Standard deviations from the middle of a Gaussian to its six fixed key points."""


@dataclass(frozen=True, kw_only=True)
class Views:
    """What the cameras of a batch show, and where they stand."""

    maps_BNChw: tuple[Tensor, ...]
    """Levels of features, finest first."""
    projection_BN44: Tensor
    """frame2image, see camera_projections; float32."""
    image_size: tuple[int, int]
    """(H, W) of the network's pictures."""
    present_BN: Tensor | None = None
    """Bool: cameras that count; None: all."""
    gate: DepthGate | None = None
    """How far a picture is believed at each depth; None: wherever a ray goes."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Where Gaussians look, and how."""

    learned_points: int = 2
    """Key points that a Gaussian chooses, beside seven fixed ones (its middle, and both ways along each axis)."""
    learned_reach: float = 1.0
    """Chosen points lie within half of this, in standard deviations along each axis."""
    groups: int = 4
    """Groups of channels, each with weights of its own."""
    dropout: float = 0.15
    """Share of the weights that is left out in training."""
    joined: bool = False
    """True: the result stands beside the Gaussian's own feature (v1). False: it is the result alone (v2)."""
    gaussians_at_once: int = 16384
    """More are worked on in parts of this size, to bound memory; in training each part is computed twice."""
    operator: str = "auto"
    """Backend of deformable_aggregate."""

    @property
    def points(self) -> int:
        """Key points of a Gaussian."""
        return 7 + self.learned_points


def two_layers(in_channels: int, channels: int) -> nn.Sequential:
    """Twice a linear layer, ReLU and layer norm: how the official network encodes numbers."""
    layers: list[nn.Module] = []
    for width in (in_channels, channels):
        layers += [nn.Linear(width, channels), nn.ReLU(inplace=True), nn.LayerNorm(channels)]
    return nn.Sequential(*layers)


class KeyPoints(nn.Module):
    """Points on and around each Gaussian."""

    fixed_K3: Tensor

    def __init__(self, config: AttentionConfig, channels: int, space: AnchorSpace) -> None:
        super().__init__()
        self.config, self.space = config, space
        axes = FIXED_OFFSET * torch.eye(3)
        both_ways = torch.stack([axes, -axes], dim=1).flatten(0, 1)
        self.register_buffer("fixed_K3", torch.cat([torch.zeros(1, 3), both_ways]), persistent=False)
        self.learnable_fc = nn.Linear(channels, 3 * config.learned_points)
        nn.init.xavier_uniform_(self.learnable_fc.weight)
        nn.init.zeros_(self.learnable_fc.bias)

    def forward(self, feature_BGC: Tensor, rows_BGA: Tensor) -> Tensor:
        """(B, G, K, 3) in the grid's frame, metres, float32."""
        chosen_BGk3 = safe_sigmoid(self.learnable_fc(feature_BGC).float()).unflatten(-1, (-1, 3)) - 0.5
        with torch.autocast(rows_BGA.device.type, enabled=False):
            fixed_BGk3 = self.fixed_K3.expand(*rows_BGA.shape[:2], -1, -1)
            offsets_BGK3 = torch.cat([fixed_BGk3, chosen_BGk3 * self.config.learned_reach], dim=2)
            offsets_BGK3 = rotated(offsets_BGK3 * self.space.scales(rows_BGA).unsqueeze(2), rows_BGA)
            return self.space.means(rows_BGA).unsqueeze(2) + offsets_BGK3


class DeformableAttention(nn.Module):
    """Each Gaussian gathers features at its key points from all pictures that show them."""

    def __init__(self, config: AttentionConfig, channels: int, levels: int, space: AnchorSpace) -> None:
        super().__init__()
        if channels % config.groups:
            raise ValueError(f"AttentionConfig.groups={config.groups} do not divide {channels} channels")
        self.config, self.levels = config, levels
        self.kps_generator = KeyPoints(config, channels, space)
        self.camera_encoder = two_layers(12, channels)
        self.weights_fc = nn.Linear(channels, levels * config.points * config.groups)
        self.output_proj = nn.Linear(channels, channels)

    @property
    def out_channels(self) -> int:
        """Of the result."""
        return self.output_proj.out_features * (2 if self.config.joined else 1)

    def forward(self, feature_BGC: Tensor, embedding_BGC: Tensor, rows_BGA: Tensor, views: Views) -> Tensor:
        """(B, G, C), or (B, G, 2C) where joined with the Gaussians' own features."""
        at_once = self.config.gaussians_at_once
        parts = list(
            zip(feature_BGC.split(at_once, 1), embedding_BGC.split(at_once, 1), rows_BGA.split(at_once, 1), strict=True)
        )
        recompute = torch.is_grad_enabled() and len(parts) > 1
        seen = []
        for feature, embedding, rows in parts:
            if recompute:
                seen.append(checkpoint(self.look, feature, embedding, rows, views, use_reentrant=False))
            else:
                seen.append(self.look(feature, embedding, rows, views))
        out_BGC = self.output_proj(torch.cat(seen, dim=1))
        return torch.cat([out_BGC, feature_BGC], dim=-1) if self.config.joined else out_BGC

    def look(self, feature_BGC: Tensor, embedding_BGC: Tensor, rows_BGA: Tensor, views: Views) -> Tensor:
        """What is gathered for some Gaussians, (B, G, C), before the last layer."""
        points_BGK3 = self.kps_generator(feature_BGC, rows_BGA)
        uv_BNP2, visible_BNP = project_points(points_BGK3.flatten(1, 2), views.projection_BN44, views.image_size)
        if views.present_BN is not None:
            visible_BNP = visible_BNP & views.present_BN.unsqueeze(2)
        shape = points_BGK3.shape[1:3]
        visible_BNGK = visible_BNP.unflatten(2, shape)
        camera_BN1C = self.camera_encoder(views.projection_BN44[:, :, :3].flatten(2)).unsqueeze(2)
        told_BNGC = feature_BGC.unsqueeze(1) + embedding_BGC.unsqueeze(1) + camera_BN1C
        logits = self.weights_fc(told_BNGC).float().unflatten(-1, (self.levels, self.config.points, self.config.groups))
        weights_BNGKLM = self.weights(logits.movedim(4, 3), visible_BNGK)
        if views.gate is not None:
            factors_BNP = views.gate.at(points_BGK3.flatten(1, 2), uv_BNP2, views.projection_BN44)
            weights_BNGKLM = weights_BNGKLM * factors_BNP.unflatten(2, shape)[..., None, None]
        return deformable_aggregate(
            views.maps_BNChw, uv_BNP2.unflatten(2, shape), visible_BNGK, weights_BNGKLM, self.config.operator
        )

    def weights(self, logits_BNGKLM: Tensor, visible_BNGK: Tensor) -> Tensor:
        """Softmax over cameras, points and levels of what is visible; zeros for a Gaussian that nothing shows."""
        out_BNGKLM = (~visible_BNGK)[..., None, None].expand_as(logits_BNGKLM)
        if self.training and self.config.dropout:
            out_BNGKLM = out_BNGKLM | (torch.rand_like(logits_BNGKLM) < self.config.dropout)
        lonely = out_BNGKLM.all(dim=(1, 3, 4), keepdim=True)
        logits = logits_BNGKLM.masked_fill(out_BNGKLM, -torch.inf).masked_fill(lonely, 0.0)
        flat_BGMJ = logits.permute(0, 2, 5, 1, 3, 4)
        weights = flat_BGMJ.flatten(3).softmax(dim=-1).view_as(flat_BGMJ).permute(0, 3, 1, 4, 5, 2)
        return weights.masked_fill(lonely, 0.0)
