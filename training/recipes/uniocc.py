r"""Recipes of UniOcc: each a function that returns a Recipe; a variant is `replace` on another.

Five ways to teach the same network: labels of voxels (3d), of rays (2d), both, both of a tenth of the keyframes, and
these with a teacher for the others. The forms that end in _simulated_cpu see equally many samples each.
"""

from __future__ import annotations

from dataclasses import replace

from fusionocc_core.data.augmentation import AugmentationConfig
from fusionocc_core.data.render_rays import RayConfig, rendering_of
from fusionocc_core.engine.ema import EmaConfig
from fusionocc_core.engine.occupancy_examples import DataConfig
from fusionocc_core.engine.optimizer import OptimizerConfig
from fusionocc_core.engine.recipe import Recipe
from fusionocc_core.engine.sampler import BatchConfig
from fusionocc_core.engine.schedule import ScheduleConfig
from fusionocc_core.engine.teacher import TeacherConfig
from fusionocc_core.engine.trainer import TrainConfig
from fusionocc_core.losses import (
    OCC3D_VOXEL_COUNTS,
    LossConfig,
    RenderingLossConfig,
    balancing_weights,
    renderocc_recipe_losses,
)
from fusionocc_core.losses.rendering import NUSCENES_RAY_COUNTS
from fusionocc_core.models import uniocc_presets

SIMULATED_SAMPLES = 1020
"""Samples of a run in the forms for a CPU: two passes over 510 keyframes."""
SIMULATED_KEYFRAMES = 510
"""Keyframes of sim_train in the data set that the commands make."""
EVERY_RAY = 200_000
"""More than a simulated keyframe and its neighbours have."""
LEAST_CROSSINGS = 6
"""From so many pulses on, the masks of the simulation call a voxel observed to be free."""
TENTH = 0.1


def uniocc() -> Recipe:
    r"""UniOcc in FlashOcc's bird's-eye view: ResNet-50, stereo, labels of voxels and rays, camera mask, 24 epochs.

    Paper: Pan et al., "UniOcc: Unifying Vision-Centric 3D Occupancy Prediction with Geometric and Semantic Rendering",
    2023, whose code was never published; this is that of the fork FlashOCC_on_UniOcc_and_RenderOCC.
    Expected: 38.76 % mIoU on Occ3D-nuScenes val with the camera mask, 38.44 without the rendering losses (comments in
    the fork's configs).
    Start: BEVDet's detector with stereo, as flashocc_m2.

        torchrun --nproc-per-node 4 training/train.py uniocc --data data/nuscenes --out out/uniocc \
            --init bevdet-r50-4d-stereo-cbgs.pth --init-matching
    """
    return Recipe(
        preset="uniocc-flash-r50",
        model=uniocc_presets.uniocc_flash_r50(),
        loss=renderocc_recipe_losses(voxels=1.0, rendering=0.1, mask="camera"),
        train=TrainConfig(
            batch=BatchConfig(total=16, per_process=4),
            optimizer=OptimizerConfig(lr=1e-4),
            schedule=ScheduleConfig(decay="constant", warmup_steps=200, warmup_ratio=1e-3),
        ),
    )


def uniocc_3d() -> Recipe:
    r"""As uniocc, with labels of voxels alone.

    Paper: as uniocc. Expected: 38.44 % mIoU with the camera mask (a comment in the fork's config).

        torchrun --nproc-per-node 4 training/train.py uniocc_3d --data data/nuscenes --out out/uniocc_3d \
            --init bevdet-r50-4d-stereo-cbgs.pth --init-matching
    """
    return replace(uniocc(), loss=renderocc_recipe_losses(voxels=1.0, rendering=0.0, mask="camera"))


def uniocc_2d() -> Recipe:
    r"""As uniocc, with rays alone; labels of voxels only measure it (--set data.val_keyframes=0 does without).

    Paper: as uniocc, which says that this comes near to labels of voxels. Expected: not measured.

        torchrun --nproc-per-node 4 training/train.py uniocc_2d --data data/nuscenes --out out/uniocc_2d \
            --init bevdet-r50-4d-stereo-cbgs.pth --init-matching
    """
    base = uniocc()
    head = replace(base.model.head, decision="density")  # type: ignore[attr-defined]
    return replace(base, model=replace(uniocc_presets.uniocc_flash_r50(), head=head), loss=renderocc_recipe_losses())


def uniocc_volume() -> Recipe:
    r"""UniOcc on the 3D volume, as the paper has it: ResNet-50, stereo, labels of voxels and rays, metric rendering.

    Paper: as uniocc; the sizes are RenderOcc's. Expected: not measured.

        torchrun --nproc-per-node 8 training/train.py uniocc_volume --data data/nuscenes --out out/uniocc_volume \
            --init bevdet-r50-4d-stereo-cbgs.pth --init-matching
    """
    base, model = uniocc(), uniocc_presets.uniocc_r50()
    rendering = RenderingLossConfig(
        rendered_depth=0.1,
        rendered_semantic=0.1,
        class_weights=balancing_weights(NUSCENES_RAY_COUNTS),
        render=rendering_of(model.grid),
    )
    return replace(base, preset="uniocc-r50", model=model, loss=replace(base.loss, rendering=rendering))


def uniocc_labels10() -> Recipe:
    r"""As uniocc, with a tenth of the keyframes, ten times as often.

    Paper: as uniocc. Expected: not measured.

        torchrun --nproc-per-node 4 training/train.py uniocc_labels10 --data data/nuscenes --out out/uniocc_labels10 \
            --init bevdet-r50-4d-stereo-cbgs.pth --init-matching
    """
    base = uniocc()
    return replace(
        base,
        data=replace(base.data, labelled_share=TENTH),
        train=replace(base.train, epochs=base.train.epochs / TENTH, evaluate_every=20),
    )


def uniocc_labels10_teacher() -> Recipe:
    r"""As uniocc_labels10, with a teacher for the other keyframes, which knows their measured depth.

    Paper: as uniocc. Expected: not measured. Labelled keyframes come as often as others. Ablations: `--set
    train.teacher=none` (the others teach depth alone), `--set train.teacher.measured_depth=false`.

        torchrun --nproc-per-node 4 training/train.py uniocc_labels10_teacher --data data/nuscenes \
            --out out/uniocc_labels10_teacher --init bevdet-r50-4d-stereo-cbgs.pth --init-matching
    """
    base = uniocc_labels10()
    epochs = base.train.epochs * TENTH / (2 * (1 - TENTH))
    return replace(
        base,
        data=replace(base.data, unlabelled="keep", labelled_repeats=round((1 - TENTH) / TENTH)),
        train=replace(
            base.train,
            epochs=epochs,
            evaluate_every=1,
            teacher=TeacherConfig(start_epoch=epochs / 3, ramp_epochs=epochs / 6),
        ),
    )


def uniocc_both_simulated_cpu() -> Recipe:
    r"""The small network on simulated streets, labels of voxels and rays: 1,020 samples on a CPU.

    Paper: none. Expected: docs/uniocc.md, which also says why nothing is rendered.

        fusionocc simulate --out data/sim --scenes 64 --keyframes 10 --seed 100 --image-size 800x450
        python training/train.py uniocc_both_simulated_cpu --data data/sim --out out/uniocc_both
    """
    model = uniocc_presets.uniocc_tiny()
    return Recipe(
        preset="uniocc-tiny",
        model=model,
        data=DataConfig(
            train_split="sim_train",
            val_split="sim_val",
            val_keyframes=26,
            label_mask="camera",
            augmentation=AugmentationConfig(turn_degrees=(0.0, 0.0)),
            rays=RayConfig(count=EVERY_RAY, neighbours=(-4, -3, -2, -1, 1, 2, 3, 4)),
        ),
        loss=LossConfig(
            cross_entropy=0.0,
            occupied=1.0,
            occupied_class=1.0,
            lovasz=1.0,
            depth=0.05,
            class_weights=balancing_weights(OCC3D_VOXEL_COUNTS),
            rendering=RenderingLossConfig(
                rendered_depth=0.0,
                rendered_semantic=0.0,
                entropy=0.0,
                distortion=0.0,
                ray_voxels=1.0,
                least_crossings=LEAST_CROSSINGS,
                class_weights=balancing_weights(NUSCENES_RAY_COUNTS),
                render=rendering_of(model.grid, step=1.0),
                chunk_rays=8000,
            ),
        ),
        train=TrainConfig(
            epochs=SIMULATED_SAMPLES / SIMULATED_KEYFRAMES,
            batch=BatchConfig(total=4, per_process=4),
            optimizer=OptimizerConfig(lr=2e-3, clip_norm=10.0),
            schedule=ScheduleConfig(every="step", warmup_steps=20, warmup_ratio=0.1),
            ema=EmaConfig(decay=0.98, ramp=50.0, initial_updates=0),
            precision="bf16",
            workers=0,
        ),
    )


def uniocc_3d_simulated_cpu() -> Recipe:
    r"""As uniocc_both_simulated_cpu, with labels of voxels alone.

    Paper: none. Expected: docs/uniocc.md.

        python training/train.py uniocc_3d_simulated_cpu --data data/sim --out out/uniocc_3d
    """
    base = uniocc_both_simulated_cpu()
    return replace(base, loss=replace(base.loss, rendering=None))


def uniocc_2d_simulated_cpu() -> Recipe:
    r"""As uniocc_both_simulated_cpu, with rays alone.

    Paper: none. Expected: docs/uniocc.md.

        python training/train.py uniocc_2d_simulated_cpu --data data/sim --out out/uniocc_2d
    """
    base = uniocc_both_simulated_cpu()
    return replace(base, loss=replace(base.loss, occupied=0.0, occupied_class=0.0, lovasz=0.0))


def uniocc_labels10_simulated_cpu() -> Recipe:
    r"""As uniocc_both_simulated_cpu, with a tenth of the keyframes, ten times as often.

    Paper: none. Expected: docs/uniocc.md.

        python training/train.py uniocc_labels10_simulated_cpu --data data/sim --out out/uniocc_labels10
    """
    base = uniocc_both_simulated_cpu()
    return replace(
        base,
        data=replace(base.data, labelled_share=TENTH),
        train=replace(base.train, epochs=base.train.epochs / TENTH, evaluate_every=10),
    )


def uniocc_labels10_teacher_simulated_cpu() -> Recipe:
    r"""As uniocc_labels10_simulated_cpu, with a teacher for the other keyframes: every second sample is one of these.

    Paper: none. Expected: docs/uniocc.md.

        python training/train.py uniocc_labels10_teacher_simulated_cpu --data data/sim --out out/uniocc_teacher
    """
    base = uniocc_both_simulated_cpu()
    repeats = round((1 - TENTH) / TENTH)
    epochs = SIMULATED_SAMPLES / (SIMULATED_KEYFRAMES * TENTH * 2 * repeats)
    return replace(
        base,
        data=replace(base.data, labelled_share=TENTH, unlabelled="keep", labelled_repeats=repeats),
        train=replace(base.train, epochs=epochs, teacher=TeacherConfig(start_epoch=epochs / 3, ramp_epochs=epochs / 6)),
    )
