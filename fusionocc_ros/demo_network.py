"""What runs the demo's network: PyTorch, or OpenVINO, to which it is then exported for the rig at hand."""

from __future__ import annotations

import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fusionocc_core import DEFAULT_PRESET

if TYPE_CHECKING:
    from rich.console import Console

    from fusionocc_core.data.nuscenes import NuScenesFrames
    from fusionocc_core.export.graph import Layout
    from fusionocc_core.models.network import NetworkConfig, OccupancyNetwork
    from fusionocc_ros.demo import DemoPlan

AUTO, TORCH, OPENVINO = "auto", "torch", "openvino"
RUNTIMES = (AUTO, TORCH, OPENVINO)
"""What the demo offers; other runtimes take an artefact that is there already."""
PACKAGES = ("openvino", "onnx", "onnxscript")
"""Which exporting takes."""
RIG_KEYFRAMES = 4
"""From the calibration of so many keyframes follow the shapes of the graph."""


def with_runtime(plan: DemoPlan, frames: NuScenesFrames, console: Console) -> DemoPlan:
    """The plan, with the network exported into ``plan.out`` where OpenVINO shall run it; made once, then reused.

    With runtime "auto" that is on a CPU, where OpenVINO is installed, and for networks that can be exported and take
    seconds at most for a keyframe (for others the export alone takes minutes).

    Args:
        plan: what the demo runs.
        frames: the rig; at least one keyframe.
        console: where to say what is done.

    Raises:
        ValueError: runtime "openvino" and a network that cannot be exported, or that is exported already.
        ModuleNotFoundError: runtime "openvino", and it is not installed.
    """
    from fusionocc_core.export.artefact import is_artefact

    if plan.runtime not in RUNTIMES:
        raise ValueError(f"--runtime {plan.runtime}: expected one of {', '.join(RUNTIMES)}")
    exported = plan.checkpoint is not None and is_artefact(plan.checkpoint)
    if exported and plan.runtime != AUTO:
        raise ValueError(
            f"--runtime {plan.runtime}: --checkpoint {plan.checkpoint} is an exported network, which says itself what "
            "runs it; leave --runtime out"
        )
    if exported or plan.runtime == TORCH or (plan.runtime == AUTO and not _may_pay(plan)):
        return plan
    network = _load(plan)
    if plan.runtime == AUTO and not _pays(network.config, network.card.preset):
        return plan
    return replace(plan, model=None, checkpoint=_exported(plan.out, network, frames, console))


def _may_pay(plan: DemoPlan) -> bool:
    """Whether OpenVINO may be worth while, as far as can be said before the weights are read."""
    import torch

    from fusionocc_core.presets import PRESETS

    if torch.cuda.is_available() or any(find_spec(package) is None for package in PACKAGES):
        return False
    if plan.checkpoint is not None and plan.model is None:
        return True
    preset = plan.model or DEFAULT_PRESET
    return preset in PRESETS and _pays(PRESETS[preset](), preset)  # of other names the node says what is wrong


def _pays(config: NetworkConfig, preset: str) -> bool:
    from fusionocc_core.export.networks import check_exportable
    from fusionocc_ros.engine import is_quick

    try:
        check_exportable(config)
    except ValueError:
        return False
    return is_quick(preset, "cpu")


def _load(plan: DemoPlan) -> OccupancyNetwork:
    """The network as the node would load it, fresh weights included."""
    import torch

    from fusionocc_core import load_model
    from fusionocc_core.presets import FRESH_SEED

    torch.manual_seed(FRESH_SEED)
    if plan.checkpoint is not None and plan.model is None:
        return load_model(str(plan.checkpoint))
    return load_model(plan.model or DEFAULT_PRESET, checkpoint=plan.checkpoint)


def _exported(out: Path, network: OccupancyNetwork, frames: NuScenesFrames, console: Console) -> Path:
    """The folder of the artefact."""
    from fusionocc_core.data.remembered import history_of
    from fusionocc_core.export.networks import layout_for
    from fusionocc_core.export.run import Exporter, calibration_batches
    from fusionocc_core.layers.bfloat16 import cpu_multiplies_bfloat16
    from fusionocc_ros.model_hash import weights_hash

    began, precision = time.monotonic(), "bf16" if cpu_multiplies_bfloat16() else "fp32"
    folder = out / f"{OPENVINO}-{weights_hash(network.state_dict())}"
    with console.status("exporting the network to OpenVINO"):
        history = history_of(network.config.inputs)
        frames = frames.with_history(cameras=history.cameras, lidar=history.lidar)
        batches = calibration_batches(frames, network, RIG_KEYFRAMES)
        layout = layout_for(network.config, batches, confidence=True, scatter_free=False)
        if _is_current(folder, layout, precision):
            return folder
        Exporter(network, batches, confidence=True).write(folder, OPENVINO, precision)
    console.print(
        f"{network.card.preset or 'the network'} exported to OpenVINO, {precision}, in {time.monotonic() - began:.0f} "
        f"s: {folder}",
        highlight=False,
        soft_wrap=True,
    )
    return folder


def _is_current(folder: Path, layout: Layout, precision: str) -> bool:
    """Whether this version has exported the network for this rig before."""
    from fusionocc_core.export.artefact import is_artefact, read_artefact

    if not is_artefact(folder):
        return False
    try:
        artefact = read_artefact(folder)
    except (ValueError, FileNotFoundError):  # of another version, or damaged: it is made again
        return False
    return (artefact.layout, artefact.precision) == (layout, precision)
