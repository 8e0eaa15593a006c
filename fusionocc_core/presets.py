"""Networks by name, and load_model, which makes or reads one.

A preset is a function that returns a config; a variant of one is ``dataclasses.replace`` on it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fusionocc_core.checkpoints import (
    ModelCard,
    decode_config,
    is_model_file,
    load_strictly,
    read_model,
    read_official,
)
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, DepthBins
from fusionocc_core.layers.cross_modal import DepthSegConfig
from fusionocc_core.layers.image_backbones import SwinConfig, TimmBackboneConfig
from fusionocc_core.layers.image_necks import FpnLssConfig
from fusionocc_core.layers.lidar_encoder import LidarEncoderConfig
from fusionocc_core.layers.view_transform import LiftConfig
from fusionocc_core.layers.volume_encoder import ResNet3dConfig
from fusionocc_core.models.fusionocc import FusionOcc, FusionOccConfig
from fusionocc_core.models.fusionocc_official import check_official_grid, from_official
from fusionocc_core.structures import UNTRAINED, InputConfig


def fusionocc_base() -> FusionOccConfig:
    """The official FusionOcc: Swin-B at 512 x 1408, two picture keyframes, seven earlier sweeps, 109 M parameters.

    Computes what the official checkpoint was trained with, habits included: see docs/fusionocc.md for each of them.
    """
    return FusionOccConfig(
        inputs=InputConfig(
            image_size=(512, 1408),
            num_cameras=6,
            camera_history=1,
            lidar_history=7,
            depth_range=(1.0, 45.0),
            resampling="pillow",
            channel_order="bgr",
            key_pose="first_camera",
            include_current_sweep=False,
            repeat_current_sweep=True,
            thin_rings_up_to=16,
            thin_keep=0.2,
            float32_poses=True,
        ),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=0.5),
        image_backbone=SwinConfig(),
        image_neck=FpnLssConfig(channels=256),
        depth_seg=DepthSegConfig(),
        lift=LiftConfig(frustum_pixels="corner_aligned", frustum_depths="lower_edges", voxel_rounding="truncate"),
        lidar=LidarEncoderConfig(grid=replace(OCC3D_GRID, voxel_size=(0.05, 0.05, 0.05))),
        volume_encoder=ResNet3dConfig(),
        history_depth="current",
        history_camera_pose="current",
        history_gradient=False,
    )


def fusionocc_tiny() -> FusionOccConfig:
    """The same network small enough for two CPU cores: about 1.5 s a frame of six cameras, 14 million parameters.

    Every official habit that is a mistake is switched off, and the current sweep enters the LiDAR branch. What was
    chosen, and why:

    * ResNet-18 at 256 x 704, the customary small setting of this field, whose C4 and C5 feed the same neck; a
      convolutional network with batch norm learns from scratch, on little data, what a Swin would not.
    * One picture keyframe: a second one doubles the time in the pictures, and the LiDAR already gives the depth that it
      is for.
    * The current sweep and two earlier keyframes: one second of points fills the gaps between 32 beams. More would
      smear what moves, since points carry no time.
    * LiDAR voxels of 0.2 m, halved once: an eighth of the sites of 0.1 m, and still two voxels an edge of the answer's
      0.4 m.
    * 16 channels at full resolution: there a 3D convolution costs 640,000 positions, more than all else together.
    """
    return FusionOccConfig(
        inputs=InputConfig(image_size=(256, 704), num_cameras=6, lidar_history=2, depth_range=(1.0, 45.0)),
        grid=OCC3D_GRID,
        label_set=OCC3D_LABELS,
        depth_bins=DepthBins(start=1.0, stop=45.0, step=0.5),
        image_backbone=TimmBackboneConfig(name="resnet18", stride=16, out_channels=(256, 512)),
        image_neck=FpnLssConfig(channels=128),
        depth_seg=DepthSegConfig(mid_channels=64, feature_channels=16, aspp_channels=32),
        lift=LiftConfig(),
        lidar=LidarEncoderConfig(
            grid=replace(OCC3D_GRID, voxel_size=(0.2, 0.2, 0.2)), stage_channels=(16, 32), out_channels=16
        ),
        volume_encoder=ResNet3dConfig(channels=(16, 32, 64), blocks=(1, 1, 1), strides=(1, 2, 2)),
        volume_channels=16,
    )


PRESETS: dict[str, Callable[[], FusionOccConfig]] = {
    "fusionocc-base": fusionocc_base,
    "fusionocc-tiny": fusionocc_tiny,
}

FRESH_SEED = 0
"""What `fusionocc predict` and the node draw fresh weights with, so that all runs have the same ones."""

NETWORKS: dict[str, tuple[type[FusionOcc], type[FusionOccConfig]]] = {"FusionOcc": (FusionOcc, FusionOccConfig)}
"""By the class name that our files hold: the network and its config."""


def list_presets() -> tuple[str, ...]:
    """Names that load_model and preset_config take."""
    return tuple(PRESETS)


def preset_config(name: str) -> FusionOccConfig:
    """The config of a preset.

    Raises:
        ValueError: there is no preset of that name; the message holds the nearest ones.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(PRESETS)}"
        raise ValueError(f"unknown preset {name!r}: {hint}")
    return PRESETS[name]()


def load_model(
    preset_or_path: str | Path | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device | None = None,
) -> FusionOcc:
    """A network in inference mode (``model.train()`` for training).

    ``load_model("fusionocc-tiny")`` has fresh weights, ``load_model("fusionocc-base", checkpoint="fusion_occ.pth")``
    those of an official file or of one of ours, ``load_model("mine.safetensors")`` everything from a file of ours.

    Args:
        preset_or_path: A name out of list_presets(), or a file written by save_model.
        checkpoint: With a preset: the file to take the weights from. Official layouts: see checkpoints.read_official.
        device: Where to put the network; None: where PyTorch makes new tensors, which is the CPU unless told otherwise.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown preset, or a file that does not fit; the message names what differs.
    """
    if preset_or_path is None:
        raise ValueError(
            "load_model: no trained weights come with this version; name a preset for fresh weights "
            f"({', '.join(PRESETS)}) or a file of weights"
        )
    if isinstance(preset_or_path, Path) or _looks_like_file(preset_or_path):
        if checkpoint is not None:
            raise ValueError(
                f"load_model: {preset_or_path} holds everything itself; checkpoint={checkpoint} goes with a preset"
            )
        model = _from_model_file(Path(preset_or_path))
    else:
        model = _from_preset(preset_or_path, None if checkpoint is None else Path(checkpoint))
    return (model if device is None else model.to(device)).eval()


def _looks_like_file(name: str) -> bool:
    return name not in PRESETS and (Path(name).is_file() or Path(name).suffix in (".safetensors", ".pth", ".pt"))


def _from_preset(name: str, checkpoint: Path | None) -> FusionOcc:
    config = preset_config(name)
    if checkpoint is None:
        model = FusionOcc(config)
        model.card = ModelCard(preset=name, trained_on=UNTRAINED)
        return model
    if is_model_file(checkpoint):
        model = _from_model_file(checkpoint)
        if differences := config_differences(model.config, config):
            raise ValueError(
                f"{checkpoint} is not a {name}: {'; '.join(differences)} (file and preset); "
                "load it by its path alone to take the network that it describes"
            )
        return model
    model = FusionOcc(config)
    load_official(model, checkpoint, preset=name)
    return model


def _from_model_file(path: Path) -> FusionOcc:
    if not is_model_file(path):
        raise ValueError(
            f"{path} does not say which network it belongs to; if it is an official checkpoint, name the preset: "
            f"load_model('fusionocc-base', checkpoint='{path}')"
        )
    file = read_model(path)
    if file.network not in NETWORKS:
        raise ValueError(f"{path}: holds a {file.network}, this version knows {', '.join(NETWORKS)}: update fusionocc")
    network, config_class = NETWORKS[file.network]
    model = network(decode_config(config_class, file.config))
    load_strictly(model, file.state, source=str(path), target=f"the {file.network} that it describes")
    model.card = file.card
    return model


def load_official(model: FusionOcc, path: str | Path, *, preset: str = "") -> None:
    """Copy the tensors of an official FusionOcc checkpoint into a network and note the source in its card.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: tensors or grid do not fit; the message names them.
    """
    path = Path(path)
    state, config_text = read_official(path)
    target = preset or "this network"
    check_official_grid(config_text, model.config.grid, str(path))
    load_strictly(model, from_official(state), source=str(path), target=target)
    model.card = ModelCard(preset=preset, trained_on=f"official checkpoint {path.name}", source=str(path))


def config_differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Fields in which two configs differ, each as "name: value in one, value in the other"."""
    if type(one) is type(other) and is_dataclass(one):
        found = (
            config_differences(getattr(one, f.name), getattr(other, f.name), f"{where}.{f.name}") for f in fields(one)
        )
        return [difference for differences in found for difference in differences]
    return [] if one == other else [f"{where.removeprefix('.')}: {one} and {other}"]
