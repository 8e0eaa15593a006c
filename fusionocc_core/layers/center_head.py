"""Where objects are, as points of the bird's-eye view (CenterPoint, Yin et al., CVPR 2021; Panoptic-FlashOcc, 2024).

Legend: B samples, C channels, K classes of objects, X Y columns of the grid. Submodules carry the names of the official
checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from fusionocc_core.grids import LabelSet
from fusionocc_core.layers.conv_blocks import init_conv
from fusionocc_core.structures import CenterOutputs

NUSCENES_THINGS = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""Classes of objects in the order of the official heatmaps."""

UNTRAINED_BRANCHES = {"dim": 3, "rot": 2, "vel": 2}
"""Channels of the official branches for size, yaw and speed, which training gives a weight of zero."""

RARE = -2.19
"""Bias of fresh heatmaps: a centre has a probability of 0.1."""


@dataclass(frozen=True, kw_only=True)
class CenterHeadConfig:
    """The head that finds centres of objects."""

    classes: tuple[str, ...] = NUSCENES_THINGS
    """Names in the network's label set, in the order of the heatmap's channels."""
    channels: int = 64
    """Inside the head."""
    untrained_branches: bool = False
    """True keeps a place for the official branches that are never trained (size, yaw, speed), so that official tensors
    fit. They take no gradient, and nothing computes them."""

    def __post_init__(self) -> None:
        """Refuse a head without classes, and a class that occurs twice."""
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"CenterHeadConfig.classes={self.classes}: expected one name or more, each once")


class CenterHead(nn.Module):
    """A heatmap a class, the place of the centre in its column, and its height."""

    def __init__(self, config: CenterHeadConfig, in_channels: int, label_set: LabelSet) -> None:
        super().__init__()
        unknown = [name for name in config.classes if name not in label_set.names]
        if unknown:
            raise ValueError(f"CenterHeadConfig.classes: {unknown} are not in the label set {label_set.name!r}")
        self.class_ids = tuple(label_set.names.index(name) for name in config.classes)
        width = config.channels
        outputs = {"reg": 2, "height": 1, **UNTRAINED_BRANCHES, "heatmap": len(config.classes)}
        if not config.untrained_branches:
            outputs = {name: count for name, count in outputs.items() if name not in UNTRAINED_BRANCHES}
        self.shared_conv = _conv_bn_relu(in_channels, width)
        branches = {
            name: nn.Sequential(_conv_bn_relu(width, width), nn.Conv2d(width, count, 3, padding=1))
            for name, count in outputs.items()
        }
        self.task_heads = nn.ModuleList([nn.ModuleDict(branches)])
        self.apply(init_conv)
        nn.init.constant_(self.get_parameter("task_heads.0.heatmap.1.bias"), RARE)
        for name in set(branches) & set(UNTRAINED_BRANCHES):
            branches[name].requires_grad_(False)

    def forward(self, bev_BCYX: Tensor) -> CenterOutputs:
        """(B, C, Y, X) to centres of objects; turns Y X into the public X Y."""
        shared_BCYX = self.shared_conv(bev_BCYX)
        heatmap, offset, height = (
            self.get_submodule(f"task_heads.0.{name}")(shared_BCYX).transpose(2, 3)
            for name in ("heatmap", "reg", "height")
        )
        return CenterOutputs(
            class_ids=self.class_ids, heatmap_logits_BKXY=heatmap, offset_B2XY=offset, height_BXY=height[:, 0]
        )


def _conv_bn_relu(in_channels: int, channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    parts: OrderedDict[str, nn.Module] = OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True))
    return nn.Sequential(parts)
