"""The presets of FlashFusion: one for a CPU, one for a GPU."""

from __future__ import annotations

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, DepthBins
from fusionocc_core.layers.thin_image_net import ThinImageNetConfig
from fusionocc_core.models.flashfusion import FlashFusionConfig
from fusionocc_core.structures import InputConfig

MARGIN = 12
"""Voxels of 0.4 m: the maps reach to 44.8 m."""


def flashfusion_mini() -> FlashFusionConfig:
    """Six pictures of 192 x 512 and the LiDAR of the last second, in real time on two CPU cores."""
    return FlashFusionConfig(
        inputs=InputConfig(
            image_size=(192, 512),
            num_cameras=6,
            lidar_history=2,
            depth_range=(1.0, 45.0),
            range_margin=-MARGIN * OCC3D_GRID.voxel_size[0],
            presence_masks=True,
        ),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=1.0),
        image_backbone=ThinImageNetConfig(),
        margin=MARGIN,
    )
