"""How an exported network compares with the network itself: labels, scores, milliseconds."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from fusionocc_core.engine.evaluation import summary
from fusionocc_core.export.artefact import REPORT, Artefact
from fusionocc_core.export.model import ExportedModel
from fusionocc_core.metrics import OccupancyScore, OccupancyTruth
from fusionocc_core.models.network import OccupancyNetwork
from fusionocc_core.predictor import read_labels
from fusionocc_core.structures import Batch, LabelOutputs, Occupancy, Outputs

NOT_RUN = "not run: TensorRT was not there; the graph was run by the runtime named here"


@dataclass(frozen=True, kw_only=True)
class Keyframe:
    """What is compared on."""

    batch: Batch
    truth: OccupancyTruth | None
    """None where the data have no labels."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """The comparison, shares from 0 to 1."""

    keyframes: int
    data: str
    runtime: str
    computes_in: str
    """See runtimes.Runtime."""
    labels_equal: float
    """Share of all voxels that have the same label."""
    labels_equal_worst: float
    """On the keyframe where that is least."""
    occupied_equal: float
    """Share among the voxels that the network does not call free."""
    scores_before: dict[str, float] = field(default_factory=dict)
    """mIoU and geometric IoU under each mask, of the network; empty where the data have no labels."""
    scores_after: dict[str, float] = field(default_factory=dict)
    """Of the exported network."""
    ms_before: float
    """A keyframe from batch to labels, median."""
    ms_after: float
    speedup: float
    """Median of the ratios of neighbouring runs."""
    threads: int
    load: float
    """Of the machine while it was measured: above the number of cores, milliseconds mean little."""
    note: str = ""


def compare(
    network: OccupancyNetwork,
    exported: ExportedModel,
    keyframes: Sequence[Keyframe],
    *,
    data: str,
    progress: Callable[[], None] = lambda: None,
) -> Parity:
    """Run both on the same keyframes, in turn.

    Raises:
        ValueError: there is no keyframe.
    """
    if not keyframes:
        raise ValueError("there is no keyframe to compare the exported network with the network on")
    config = network.config
    scores = [OccupancyScore(config.grid, config.label_set, rays=False) for _ in range(2)]
    equal, occupied_equal, seconds = [], [], []
    warm_up(network, exported, keyframes[0].batch)
    for one in keyframes:
        (before, before_s), (after, after_s) = timed(network, one.batch), timed(exported, one.batch)
        same = before == after
        equal.append(float(same.mean()))
        occupied_equal.append(same[before != config.label_set.free])
        seconds.append((before_s, after_s))
        if one.truth:
            for score, labels in zip(scores, (before, after), strict=True):
                prediction = Occupancy(labels=labels, grid=config.grid, label_set=config.label_set, stamp_ns=0)
                score.add(prediction, one.truth)
        progress()
    labelled = any(one.truth for one in keyframes)
    of_occupied = np.concatenate(occupied_equal)
    return Parity(
        keyframes=len(keyframes),
        data=data,
        runtime=exported.runtime.name,
        computes_in=exported.runtime.computes_in,
        labels_equal=float(np.mean(equal)),
        labels_equal_worst=min(equal),
        occupied_equal=float(of_occupied.mean()) if len(of_occupied) else math.nan,
        scores_before=summary(scores[0].report()) if labelled else {},
        scores_after=summary(scores[1].report()) if labelled else {},
        ms_before=1e3 * median(before_s for before_s, _ in seconds),
        ms_after=1e3 * median(after_s for _, after_s in seconds),
        speedup=median(before_s / after_s for before_s, after_s in seconds),
        threads=torch.get_num_threads(),
        load=round(os.getloadavg()[0], 1),
        note=NOT_RUN if exported.artefact.target == "tensorrt" and "Tensorrt" not in exported.runtime.name else "",
    )


@torch.inference_mode()
def timed(model: Callable[[Batch], Outputs | LabelOutputs], batch: Batch) -> tuple[NDArray[np.uint8], float]:
    """Labels (X, Y, Z) of a batch, and the seconds that they took."""
    began = time.perf_counter()
    labels, _ = read_labels(model(batch), confidence=False)
    return labels, time.perf_counter() - began


def warm_up(network: OccupancyNetwork, exported: ExportedModel, batch: Batch) -> None:
    """The first call of either makes plans and memory."""
    timed(network, batch)
    timed(exported, batch)


def write_report(artefact: Artefact, parity: Parity) -> Path:
    """Write report.json into the artefact's folder."""
    about = {name: getattr(artefact, name) for name in ("target", "precision", "calibrated_on")}
    about |= {"preset": artefact.card.preset, "trained_on": artefact.card.trained_on}
    path = artefact.folder / REPORT
    path.write_text(json.dumps({**about, **_json(asdict(parity)), "tools": dict(artefact.tools)}, indent=1) + "\n")
    return path


def _json(values: dict[str, object]) -> dict[str, object]:
    """NaN, which JSON does not have, as null."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def render(artefact: Artefact, parity: Parity) -> Table:
    """The comparison for the terminal."""
    table = Table(
        title=f"{artefact.card.preset}, {artefact.target} {artefact.precision}, {parity.keyframes} keyframes of "
        f"{parity.data}",
        caption="; ".join(filter(None, [f"{parity.threads} threads, load of the machine {parity.load}", parity.note])),
        box=None,
    )
    table.add_column("")
    table.add_column("PyTorch", justify="right")
    table.add_column(parity.runtime, justify="right")
    table.add_row("labels as PyTorch's, %", "", f"{100 * parity.labels_equal:.3f}")
    table.add_row("  on the worst keyframe, %", "", f"{100 * parity.labels_equal_worst:.3f}")
    table.add_row("  of voxels not free, %", "", f"{100 * parity.occupied_equal:.3f}")
    for name, before in parity.scores_before.items():
        table.add_row(f"{name}, %", f"{100 * before:.2f}", f"{100 * parity.scores_after[name]:.2f}")
    table.add_row("computes in", "fp32", parity.computes_in)
    table.add_row("ms a keyframe", f"{parity.ms_before:.0f}", f"{parity.ms_after:.0f}")
    table.add_row("times as fast", "1", f"{parity.speedup:.2f}")
    return table
