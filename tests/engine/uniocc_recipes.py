"""RenderOcc networks small enough for tests of the whole way, on the part of the Occ3D grid of small_recipes.py."""

from __future__ import annotations

from dataclasses import replace

from small_recipes import GRID, small

from fusionocc_core.data.render_rays import RayConfig, rendering_of
from fusionocc_core.engine.ema import EmaConfig
from fusionocc_core.engine.occupancy_examples import DataConfig
from fusionocc_core.engine.recipe import Recipe
from fusionocc_core.engine.teacher import TeacherConfig
from fusionocc_core.grids import OCC3D_LABELS, DepthBins
from fusionocc_core.layers.bev_encoder import BevResNetConfig
from fusionocc_core.layers.image_necks import FpnLssConfig
from fusionocc_core.layers.lss import LssConfig
from fusionocc_core.layers.thin_image_net import ThinImageNetConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.losses import LossConfig, RenderingLossConfig
from fusionocc_core.models.renderocc import PlaneDecoderConfig, RenderOccConfig
from fusionocc_core.structures import InputConfig


def _network() -> RenderOccConfig:
    return RenderOccConfig(
        inputs=InputConfig(image_size=(64, 96), depth_range=(1.0, 17.0)),
        grid=GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=17.0, step=1.0),
        image_backbone=ThinImageNetConfig(stem_channels=4, channels=(8, 8, 8), blocks=(1, 1, 1)),
        image_neck=FpnLssConfig(channels=8),
        view=LssConfig(context_channels=8),
        lift=LiftConfig(),
        decoder=PlaneDecoderConfig(encoder=BevResNetConfig(channels=(8, 8, 8), blocks=(1, 1, 1)), channels=8),
    )


def rendered() -> Recipe:
    """Rays alone: no label of a voxel is read but for the evaluation."""
    base = small()
    return replace(
        base,
        preset="rendered",
        model=_network(),
        data=DataConfig(train_split="mini_train", val_split="mini_val", rays=RayConfig(count=60, neighbours=(-1, 1))),
        loss=LossConfig(
            cross_entropy=0.0, depth=0.05, rendering=RenderingLossConfig(render=rendering_of(GRID, step=1.0))
        ),
        train=replace(base.train, ema=EmaConfig(initial_updates=0, ramp=5.0)),
    )


def taught() -> Recipe:
    """Every second keyframe is labelled, the others have a teacher from the first step on."""
    base = rendered()
    return replace(
        base,
        preset="taught",
        data=replace(base.data, labelled_share=0.5, unlabelled="keep"),
        loss=replace(base.loss, occupied=1.0, occupied_class=1.0),
        train=replace(
            base.train,
            teacher=TeacherConfig(start_epoch=0.0, ramp_epochs=1.0, confidence=0.05, free_share=0.5),
        ),
    )
