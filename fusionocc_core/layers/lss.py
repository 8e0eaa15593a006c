"""From a feature map to a depth distribution and the features that are spread along it: the ways that one may choose.

Lift, Splat, Shoot (Philion and Fidler, ECCV 2020) as BEVDet and BEVDepth have it. Legend: B pictures, C channels,
D depth bins, h w feature map, V camera vector. Submodules carry the names of the official checkpoints.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fusionocc_core.layers.camera_depth import CameraDepthConfig, CameraDepthNet


@dataclass(frozen=True, kw_only=True)
class DepthAndContext:
    """What is lifted into the volume."""

    depth_logits_BDhw: Tensor
    """Unnormalised scores of the depth bins."""
    context_BChw: Tensor
    """Features."""


@dataclass(frozen=True, kw_only=True)
class LssConfig:
    """One 1x1 convolution that is told nothing about the camera."""

    context_channels: int = 64
    """Channels of what is lifted."""


ViewConfig = LssConfig | CameraDepthConfig


def make_view(config: ViewConfig, in_channels: int, *, num_depths: int) -> Lss | CameraAwareLss:
    """The module that the configuration describes, with fresh weights."""
    if isinstance(config, LssConfig):
        return Lss(config, in_channels, num_depths=num_depths)
    return CameraAwareLss(config, in_channels, num_depths=num_depths)


class Lss(nn.Module):
    """The first D channels of the convolution are the depth scores, the others the context."""

    def __init__(self, config: LssConfig, in_channels: int, *, num_depths: int) -> None:
        super().__init__()
        self.num_depths = num_depths
        self.depth_net = nn.Conv2d(in_channels, num_depths + config.context_channels, 1)

    def forward(self, features_BChw: Tensor, vectors_BV: Tensor) -> DepthAndContext:
        """(B, C, h, w) to depth scores and context; ``vectors_BV`` (see camera_vectors) is for other choices."""
        both_BChw = self.depth_net(features_BChw)
        return DepthAndContext(
            depth_logits_BDhw=both_BChw[:, : self.num_depths], context_BChw=both_BChw[:, self.num_depths :]
        )


class CameraAwareLss(nn.Module):
    """A deep depth network that is told about the camera: see camera_depth.CameraDepthNet."""

    def __init__(self, config: CameraDepthConfig, in_channels: int, *, num_depths: int) -> None:
        super().__init__()
        self.depth_net = CameraDepthNet(config, in_channels, num_depths=num_depths)

    def forward(self, features_BChw: Tensor, vectors_BV: Tensor, cost_BDHW: Tensor | None = None) -> DepthAndContext:
        """(B, C, h, w), camera vectors (see camera_vectors) and, for stereo, a cost volume to scores and context."""
        seen = self.depth_net(features_BChw, vectors_BV, cost_BDHW)
        return DepthAndContext(depth_logits_BDhw=seen.depth_logits_BDhw, context_BChw=seen.context_BChw)
