"""The presets of FlashFusion: one for a CPU, one for a GPU."""

from __future__ import annotations

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, DepthBins
from fusionocc_core.layers.bev_fusion import BevNetConfig
from fusionocc_core.layers.resnet import ResNetConfig
from fusionocc_core.layers.thin_image_net import ThinImageNetConfig
from fusionocc_core.models.flashfusion import FlashFusionConfig
from fusionocc_core.structures import InputConfig


def flashfusion_mini() -> FlashFusionConfig:
    """Six pictures of 192 x 512 and the LiDAR of the last second, in real time on two CPU cores.

    What was chosen, and why:

    * The pictures' net is narrow and gives features at an eighth of their resolution: at 20 m a cell is 0.6 m wide, as
      fine as the map that it is lifted to.
    * Depth bins of 1 m, longer than a cell of that map (0.8 m): a surface that falls into one bin is never between two
      cells.
    * The current sweep and two earlier keyframes, as fusionocc-tiny: one second of points. More would smear what moves,
      since points carry no time.
    * Maps reach 4.8 m (12 voxels) beyond the grid, so that its border has neighbours, too.
    """
    margin = 12
    return FlashFusionConfig(
        inputs=InputConfig(
            image_size=(192, 512),
            num_cameras=6,
            lidar_history=2,
            depth_range=(1.0, 45.0),
            range_margin=-margin * OCC3D_GRID.voxel_size[0],
            presence_masks=True,
        ),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=1.0),
        image_backbone=ThinImageNetConfig(),
        margin=margin,
    )


def flashfusion_r50() -> FlashFusionConfig:
    """ResNet-50 at 256 x 704 and a raster of 0.2 m: real time on a GPU.

    As flashfusion-mini, with more of everything. The maps reach 11.2 m beyond the grid (51.2 m), eight heights are
    lifted, and the depth bins reach to 61 m. The ResNet carries the names of the official encoders, so that their
    weights fit (`--init FILE --init-matching`).
    """
    margin = 28
    return FlashFusionConfig(
        inputs=InputConfig(
            image_size=(256, 704),
            num_cameras=6,
            lidar_history=2,
            depth_range=(1.0, 61.0),
            range_margin=-margin * OCC3D_GRID.voxel_size[0],
            presence_masks=True,
        ),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=61.0, step=1.0),
        image_backbone=ResNetConfig(),
        margin=margin,
        neck_channels=192,
        context_channels=64,
        lift_heights=(-0.6, 0.0, 0.6, 1.2, 1.8, 2.6, 3.6, 4.8),
        raster_scale=2,
        skip_channels=64,
        skip_blocks=1,
        lidar_channels=128,
        lidar_blocks=2,
        camera_channels=128,
        camera_blocks=1,
        bev=BevNetConfig(channels=(128, 256, 384), blocks=(2, 2, 2)),
        head_channels=128,
        head_hidden_channels=192,
    )
