r"""Recipes of RenderOcc: each a function that returns a Recipe; a variant is `replace` on another."""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.data.render_rays import renderocc_rays
from fusionocc_core.engine.occupancy_examples import DataConfig
from fusionocc_core.engine.optimizer import OptimizerConfig
from fusionocc_core.engine.recipe import Recipe
from fusionocc_core.engine.sampler import BatchConfig
from fusionocc_core.engine.schedule import ScheduleConfig
from fusionocc_core.engine.trainer import TrainConfig
from fusionocc_core.layers.density_head import DensityHeadConfig
from fusionocc_core.losses import renderocc_recipe_losses
from fusionocc_core.models.renderocc_presets import renderocc_swinb as network


def renderocc_swinb() -> Recipe:
    r"""The official RenderOcc: Swin-B, 2D labels alone, rays of seven keyframes, 12 epochs, 16 samples a step.

    Paper: Pan et al., "RenderOcc: Vision-Centric 3D Occupancy Prediction with 2D Rendering Supervision", ICRA 2024, and
    its code, whose rendering is kept with its mistakes (docs/renderocc.md).
    Expected: 23.93 % mIoU on Occ3D-nuScenes val with the camera mask (the paper); 24.46 (the authors' checkpoint).
    Start: BEVStereo's detector; a user who began with fresh weights reports 19.54 (issue 36 of the authors'
    repository).

        torchrun --nproc-per-node 8 training/train.py renderocc_swinb --data data/nuscenes --out out/renderocc \
            --init bevdet-stbase-4d-stereo-512x1408-cbgs.pth --init-matching
    """
    return Recipe(
        preset="renderocc-swinb",
        model=network(),
        data=DataConfig(rays=renderocc_rays()),
        loss=renderocc_recipe_losses(),
        train=TrainConfig(
            epochs=12,
            batch=BatchConfig(total=16, per_process=2),
            optimizer=OptimizerConfig(lr=1e-4),
            schedule=ScheduleConfig(decay="constant", warmup_steps=200, warmup_ratio=1e-3),
        ),
    )


def renderocc_swinb_both() -> Recipe:
    r"""The official RenderOcc with labels of voxels as well, without mask; a voxel is occupied by comparing two scores.

    Paper: as renderocc_swinb. Expected: 26.11 % mIoU (the paper).

        torchrun --nproc-per-node 8 training/train.py renderocc_swinb_both --data data/nuscenes --out out/rendered \
            --init bevdet-stbase-4d-stereo-512x1408-cbgs.pth --init-matching
    """
    head = DensityHeadConfig(density="official", decision="score")
    return replace(renderocc_swinb(), model=replace(network(), head=head), loss=renderocc_recipe_losses(voxels=1.0))
