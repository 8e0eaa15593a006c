"""Depth and context of each feature cell from one 1x1 convolution (Lift, Splat, Shoot; BEVDet).

What turns a feature map into a depth distribution and the features that are spread along it is a choice of the
networks; this is the simplest. Legend: B pictures, C channels, D depth bins, h w feature map, V camera vector.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn


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

    channels: int = 64
    """Of the context."""


class Lss(nn.Module):
    """The first D channels of the convolution are the depth scores, the others the context."""

    def __init__(self, config: LssConfig, in_channels: int, *, num_depths: int) -> None:
        super().__init__()
        self.num_depths = num_depths
        self.depth_net = nn.Conv2d(in_channels, num_depths + config.channels, 1)

    def forward(self, features_BChw: Tensor, vectors_BV: Tensor) -> DepthAndContext:
        """(B, C, h, w) to depth scores and context; ``vectors_BV`` (see camera_vectors) is for other choices."""
        both_BChw = self.depth_net(features_BChw)
        return DepthAndContext(
            depth_logits_BDhw=both_BChw[:, : self.num_depths], context_BChw=both_BChw[:, self.num_depths :]
        )
