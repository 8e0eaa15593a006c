"""From a network and a data set to an artefact with its report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.engine.evaluation import LabelledFrames, spread
from fusionocc_core.engine.session import open_frames
from fusionocc_core.export.artefact import NOTE, Artefact, check_target, is_artefact, write_note
from fusionocc_core.export.model import specs_of
from fusionocc_core.export.networks import check_exportable, layout_for, make_feed, make_graph
from fusionocc_core.export.parity import Keyframe
from fusionocc_core.export.writers import write_graph
from fusionocc_core.models.network import OccupancyNetwork
from fusionocc_core.structures import Batch


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to export to."""

    target: str
    """See artefact.GRAPHS."""
    precision: str = "fp32"
    """See artefact.PRECISIONS."""
    confidence: bool = False
    """Also give the probability of each label."""
    calibrated_on: str = ""
    """Where the batches come from, in words."""


def export_network(network: OccupancyNetwork, batches: Sequence[Batch], folder: Path, wanted: Wanted) -> Artefact:
    """Write a network as an artefact.

    Args:
        network: in inference mode, on the CPU.
        batches: keyframes of the rig, each a batch of one: shapes follow from their calibration, and int8 takes the
            ranges of values from them.
        folder: is made; an artefact in it is replaced.
        wanted: what to write.

    Raises:
        ValueError: the network cannot be exported, there is no such target or precision, no batch, or the folder holds
            something else.
        ModuleNotFoundError: a package of the extra "export" is missing.
    """
    check_exportable(network.config)
    check_target(wanted.target, wanted.precision)
    if not batches:
        what = "int8 needs keyframes to take the ranges of values from" if wanted.precision == "int8" else "no keyframe"
        raise ValueError(f"{what}, and the shapes of the graph follow from a rig: name a data set with --data")
    layout = layout_for(network.config, batches, confidence=wanted.confidence, scatter_free=wanted.target == "tensorrt")
    feed, graph = make_feed(network.config, layout), make_graph(network, layout)
    samples = [tensors_of_batch(feed(batch)) for batch in (batches if wanted.precision == "int8" else batches[:1])]
    claim(folder)
    tools = write_graph(graph, feed, samples, folder, wanted.target, wanted.precision)
    artefact = Artefact(
        folder=folder,
        target=wanted.target,
        precision=wanted.precision,
        config=network.config,
        card=network.card,
        layout=layout,
        inputs=specs_of(feed, samples[0]),
        calibrated_on=wanted.calibrated_on if wanted.precision == "int8" else "",
        tools=tools,
    )
    write_note(artefact)
    return artefact


def tensors_of_batch(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """In plain memory of their own: tables are kept, and made in inference mode."""
    return tuple(tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors)


def claim(folder: Path) -> None:
    """Make an empty folder; an earlier artefact gives way, anything else does not.

    Raises:
        ValueError: the folder holds something else.
    """
    if is_artefact(folder):
        shutil.rmtree(folder)
    elif folder.exists() and (not folder.is_dir() or any(path.name != NOTE for path in folder.iterdir())):
        raise ValueError(f"{folder}: holds something else than an artefact; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)


def calibration_batches(frames: NuScenesFrames, network: OccupancyNetwork, count: int) -> list[Batch]:
    """So many keyframes, spread evenly."""
    config = network.config
    return [prepare(frames[index], config.inputs, config.grid) for index in spread(len(frames), count)]


def frames_of(root: Path, network: OccupancyNetwork, *, split: str | None, version: str | None) -> NuScenesFrames:
    """The keyframes of a data set; without a split all of them."""
    inputs = network.config.inputs
    if split is not None:
        return open_frames(root, inputs, split=split, version=version)
    frames = NuScenesFrames(root, version=version)
    return frames.with_history(cameras=inputs.camera_history, lidar=inputs.lidar_history)


def keyframes_to_compare(frames: NuScenesFrames, network: OccupancyNetwork, count: int) -> Iterator[Keyframe]:
    """So many keyframes, spread evenly, with labels where there are any."""
    config = network.config
    labelled: LabelledFrames | None
    try:
        labelled = LabelledFrames(frames, config.inputs, config.grid, config.label_set, rays=False, seed=0)
    except FileNotFoundError:  # there are no labels: labels are compared, scores are not
        labelled = None
    for index in spread(len(frames), count):
        if labelled is not None:
            one = labelled[index]
            yield Keyframe(batch=one.batch, truth=one.truth)
        else:
            yield Keyframe(batch=prepare(frames[index], config.inputs, config.grid), truth=None)
