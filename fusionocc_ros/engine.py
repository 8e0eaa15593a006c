"""The network behind the node."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_ros.assemble import Needs
from fusionocc_ros.model_hash import artefact_hash, weights_hash
from fusionocc_ros.parameters import AUTO, COMPILED, TORCH, NodeParameters

QUICK_GIGA_MACS = 30.0
"""Thousands of millions of multiply-adds that a CPU does in a second or two."""
OPENCV = "opencv"
"""InputConfig.resampling of networks that need no pixel-exact copy of an official pipeline."""

if TYPE_CHECKING:
    from fusionocc_core.export.model import ExportedModel


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Something that turns frames into occupancy, and what it wants to be given."""

    predict: Callable[[SensorFrame], Occupancy]
    num_cameras: int
    """Most cameras that a frame may hold."""
    forget: Callable[[], None] = lambda: None
    """What the network remembers of earlier frames is not used any more."""
    camera_history: int = 0
    """Earlier keyframes of pictures."""
    lidar_history: int = 0
    """Earlier keyframes of sweeps."""
    least_width: int = 0
    """Columns that pictures must have, where larger ones may be decoded at a fraction of their size; 0: never."""
    needs_camera: bool = True
    """It cannot work on the LiDAR alone."""
    needs_lidar: bool = True
    """It was not made to go on when the LiDAR falls silent."""
    model: str = ""
    trained_on: str = ""
    device: str = ""
    model_hash: str = ""
    """Of the weights, or of the exported graph."""


def _no_network(frame: SensorFrame) -> Occupancy:
    raise RuntimeError("no network is loaded")


NO_ENGINE = Engine(predict=_no_network, num_cameras=0, model="none")


def load_engine(parameters: NodeParameters) -> Engine:
    """The network that the parameters name; fresh weights are the same in every run, those of `fusionocc predict`.

    Raises:
        ValueError: unknown preset, a checkpoint that does not fit, a device that is not there.
        FileNotFoundError: no such checkpoint.
    """
    import torch

    from fusionocc_core import load_model
    from fusionocc_core.export.model import ExportedModel
    from fusionocc_core.presets import FRESH_SEED
    from fusionocc_core.stream_predictor import StreamPredictor
    from fusionocc_core.warm_up import warm_up

    if parameters.num_threads:
        torch.set_num_threads(parameters.num_threads)
    torch.manual_seed(FRESH_SEED)
    model = _exported(parameters) or load_model(parameters.preset, checkpoint=parameters.checkpoint or None)
    predictor = StreamPredictor(
        model,
        device=parameters.device,
        confidence=parameters.confidence,
        compiled=parameters.runtime == COMPILED,
    )
    inputs = predictor.inputs
    if is_quick(model.card.preset, predictor.device.type):
        warm_up(predictor, cameras=len(parameters.camera_names), lidar=bool(parameters.lidars))
        predictor.forget()
    digest = artefact_hash(model.artefact) if isinstance(model, ExportedModel) else weights_hash(model.state_dict())
    return Engine(
        predict=predictor,
        forget=predictor.forget,
        num_cameras=inputs.num_cameras,
        camera_history=inputs.camera_history,
        lidar_history=inputs.lidar_history,
        least_width=inputs.image_size[1] if inputs.resampling == OPENCV else 0,
        needs_camera=not inputs.presence_masks,
        needs_lidar=not inputs.presence_masks,
        model=model.card.preset,
        trained_on=model.card.trained_on,
        device=model.runtime.name if isinstance(model, ExportedModel) else str(predictor.device),
        model_hash=digest,
    )


def is_quick(preset: str, device: str) -> bool:
    """Whether a network takes seconds at most for a frame, so that it may do some before the first one comes."""
    from fusionocc_core.models.multiplications import GIGA_MACS

    return device != "cpu" or GIGA_MACS.get(preset, math.inf) <= QUICK_GIGA_MACS


def _exported(parameters: NodeParameters) -> ExportedModel | None:
    """The exported network, where the parameters name one."""
    from fusionocc_core.export.artefact import is_artefact
    from fusionocc_core.export.model import load_exported

    if not parameters.checkpoint or not is_artefact(parameters.checkpoint):
        if parameters.runtime not in (AUTO, TORCH, COMPILED):
            raise ValueError(
                f"runtime: {parameters.runtime} runs exported networks, and checkpoint ({parameters.checkpoint!r}) is "
                "none: make one with fusionocc export"
            )
        return None
    if parameters.runtime in (TORCH, COMPILED):
        raise ValueError(
            f"runtime: {parameters.runtime} runs weights, and checkpoint ({parameters.checkpoint}) is an exported "
            "network"
        )
    model = load_exported(parameters.checkpoint, parameters.runtime)
    model.check_rig(len(parameters.camera_names))
    return model


def needs_of(engine: Engine, parameters: NodeParameters) -> Needs:
    """What the network cannot do without.

    Raises:
        ValueError: there are more cameras than it takes, or none and it needs one.
    """
    cameras = len(parameters.camera_names)
    if cameras > engine.num_cameras:
        raise ValueError(
            f"camera_names: {cameras} cameras, but {engine.model} takes at most {engine.num_cameras}; leave some out "
            "or choose another preset"
        )
    if not cameras and engine.needs_camera:
        raise ValueError(
            f"camera_names: there is none, and {engine.model} needs one; name it or choose a preset that works on the "
            "LiDAR alone, such as flashfusion-mini"
        )
    return Needs(cameras=int(engine.needs_camera), lidar=engine.needs_lidar and bool(parameters.lidars))
