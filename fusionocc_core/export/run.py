"""From a network and a data set to an artefact with its report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.data.remembered import history_of
from fusionocc_core.engine.evaluation import LabelledFrames, spread
from fusionocc_core.engine.session import open_frames
from fusionocc_core.export.artefact import NOTE, Artefact, check_target, is_artefact, write_note
from fusionocc_core.export.graph import Layout
from fusionocc_core.export.model import specs_of
from fusionocc_core.export.networks import check_exportable, layout_for, make_feed, make_graph
from fusionocc_core.export.parity import Keyframe
from fusionocc_core.export.writers import Traced, write_graph
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
    """Write a network as an artefact; see ``Exporter``."""
    exporter = Exporter(network, batches, confidence=wanted.confidence, batches_are=wanted.calibrated_on)
    return exporter.write(folder, wanted.target, wanted.precision)


class Exporter:
    """Writes artefacts of one network for one rig; what they have in common is made once.

    Args:
        network: in inference mode, on the CPU.
        batches: keyframes of the rig, each a batch of one: shapes follow from their calibration, and int8 takes the
            ranges of values from them.
        confidence: the graphs also give the probability of each label.
        batches_are: where the batches come from, in words.

    Raises:
        ValueError: the network cannot be exported.
    """

    def __init__(
        self, network: OccupancyNetwork, batches: Sequence[Batch], *, confidence: bool = False, batches_are: str = ""
    ) -> None:
        check_exportable(network.config)
        self.network, self.batches = network, batches
        self.confidence, self.batches_are = confidence, batches_are
        self._traced: dict[Layout, Traced] = {}

    def write(self, folder: Path, target: str, precision: str = "fp32") -> Artefact:
        """Write an artefact.

        Args:
            folder: is made; an artefact in it is replaced.
            target: see artefact.GRAPHS.
            precision: see artefact.PRECISIONS.

        Raises:
            ValueError: there is no such target or precision, no batch, or the folder holds something else.
            ModuleNotFoundError: a package of the extra "export" is missing.
        """
        check_target(target, precision)
        int8 = precision == "int8"
        if not self.batches:
            what = "int8 needs keyframes to take the ranges of values from" if int8 else "no keyframe"
            raise ValueError(f"{what}, and the shapes of the graph follow from a rig: name a data set with --data")
        traced = self._traced_for(target)
        claim(folder)
        tools = write_graph(traced, folder, target, precision)
        artefact = Artefact(
            folder=folder,
            target=target,
            precision=precision,
            config=self.network.config,
            card=self.network.card,
            layout=traced.graph.layout,
            inputs=specs_of(traced.feed, traced.sample),
            calibrated_on=self.batches_are if int8 else "",
            tools=tools,
        )
        write_note(artefact)
        return artefact

    def _traced_for(self, target: str) -> Traced:
        config = self.network.config
        layout = layout_for(config, self.batches, confidence=self.confidence, scatter_free=target == "tensorrt")
        if layout not in self._traced:
            graph, feed = make_graph(self.network, layout), make_feed(config, layout)
            self._traced[layout] = Traced(graph, feed, self.batches)
        return self._traced[layout]


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
    history = history_of(inputs)
    return frames.with_history(cameras=history.cameras, lidar=history.lidar)


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
