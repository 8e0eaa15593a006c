"""The result of an evaluation as lines, tables and files, each number with the setting that it was measured in."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from fusionocc_core.engine.baseline_scores import BaselineScores
from fusionocc_core.engine.run_folder import whole_file
from fusionocc_core.metrics import OccupancyReport, PanopticScores, RayScores, VoxelScores


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What an evaluation was made with; without it its numbers mean little."""

    checkpoint: str
    preset: str
    trained_on: str
    data: str
    version: str
    split: str
    frames: int
    labels: str
    """Label set."""
    grid: str
    precision: str
    seed: int
    """Of random draws at test time (thinned LiDAR rings)."""

    def in_a_line(self) -> str:
        """What every printed line ends with."""
        return f"{self.version} {self.split}, {self.frames} keyframes, {self.labels}, {self.preset}, {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of the CSV file."""

    predictor: str
    """"model", or the name of a baseline."""
    metric: str
    mask: str
    class_name: str
    from_m: str
    to_m: str
    threshold_m: str
    percent: float


def lines(report: OccupancyReport, setting: Setting) -> Iterator[str]:
    """The headline numbers, one a line, in percent."""
    for line in report.lines():
        value = "     -" if math.isnan(line.value) else f"{100 * line.value:6.2f}"
        yield f"{line.metric:<14} {value} %  {line.setting} | {setting.in_a_line()}"


def class_table(report: OccupancyReport, setting: Setting) -> Table:
    """IoU of every class under every mask, and along rays; its panoptic quality where objects are told apart."""
    table = Table(title="IoU by class under each mask, %", caption=setting.in_a_line(), box=None)
    table.add_column("class", no_wrap=True)
    for scores in report.voxels:
        table.add_column(_mask_title(scores.mask), justify="right")
    rays = report.rays
    for threshold in rays.thresholds if rays else ():
        table.add_column(f"rays {threshold:g} m", justify="right")
    panoptic = report.panoptic
    for threshold in panoptic.thresholds if panoptic else ():
        table.add_column(f"RayPQ {threshold:g} m", justify="right")
    for k, name in enumerate(report.label_set.names):
        cells = [scores.iou_K[k] for scores in report.voxels]
        cells += list(rays.iou_TK[:, k]) if rays else []
        cells += list(panoptic.quality_TK[:, k]) if panoptic else []
        table.add_row(name, *(_cell(value) for value in cells))
    return table


def ring_table(report: OccupancyReport, setting: Setting) -> Table:
    """The mIoU and geometric IoU by distance under every mask."""
    table = Table(
        title="IoU by distance from the vehicle under each mask, %",
        caption=setting.in_a_line(),
        box=None,
    )
    table.add_column("metres", no_wrap=True)
    masks = [scores.mask for scores in report.voxels]
    for mask in masks:
        table.add_column(f"mIoU {_mask_title(mask)}", justify="right", no_wrap=True)
        table.add_column(f"IoU {_mask_title(mask)}", justify="right", no_wrap=True)
    for ring in dict.fromkeys(scores.ring for scores in report.rings):
        of_ring = {scores.mask: scores for scores in report.rings if scores.ring == ring}
        cells = [cell for mask in masks for cell in (of_ring[mask].miou, of_ring[mask].geometric_iou)]
        assert ring is not None, "rings of a report have bounds"
        outer = f"to {ring[1]:g}" if math.isfinite(ring[1]) else "and beyond"
        table.add_row(f"{ring[0]:g} {outer}", *(_cell(value) for value in cells))
    return table


def comparison_table(
    report: OccupancyReport, baselines: Mapping[str, OccupancyReport], setting: Setting, fitted_on: str
) -> Table:
    """The headline numbers of the model and of each baseline, one a row."""
    table = Table(
        title="Held against baselines, %", caption=f"{setting.in_a_line()}; baselines fitted on {fitted_on}", box=None
    )
    table.add_column("", no_wrap=True)
    masks = [scores.mask for scores in report.voxels]
    for mask in masks:
        table.add_column(f"mIoU {_mask_title(mask)}", justify="right")
    table.add_column(f"IoU {_mask_title(masks[0])}", justify="right")
    if report.rays:
        table.add_column("RayIoU", justify="right")
    for name, one in {setting.preset: report, **baselines}.items():
        cells = [scores.miou for scores in one.voxels] + [one.voxels[0].geometric_iou]
        table.add_row(name, *(_cell(value) for value in (*cells, *([one.rays.ray_iou] if one.rays else []))))
    return table


def rows(report: OccupancyReport, predictor: str = "model") -> Iterator[Row]:
    """Every number, one a row."""
    for scores in (*report.voxels, *report.rings):
        yield from _voxel_rows(report, scores, predictor)
    if report.rays:
        yield from _ray_rows("RayIoU", report.rays, report.rays.iou_TK, predictor)
    if report.panoptic:
        yield from _ray_rows("RayPQ", report.panoptic, report.panoptic.quality_TK, predictor)


def write_files(out: Path, report: OccupancyReport, setting: Setting, baselines: BaselineScores | None = None) -> None:
    """Write metrics.json and metrics.csv, each with the setting, and with the baselines where there are any."""
    content = {"setting": asdict(setting), **report.as_dict()}
    if baselines:
        content["baselines"] = baselines.as_dict()
    with whole_file(out / "metrics.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    text = io.StringIO()
    writer = csv.writer(text)
    about = asdict(setting)
    writer.writerow([*(f.name for f in fields(Row)), *about])
    reports = {"model": report, **(baselines.reports if baselines else {})}
    for row in (row for name, one in reports.items() for row in rows(one, name)):
        values = asdict(row)
        percent = "" if math.isnan(row.percent) else f"{row.percent:.4f}"
        writer.writerow([*list(values.values())[:-1], percent, *about.values()])
    with whole_file(out / "metrics.csv") as file:
        file.write(text.getvalue().encode())


def _ray_rows(
    metric: str, scores: RayScores | PanopticScores, value_TK: NDArray[np.float64], predictor: str
) -> Iterator[Row]:
    for threshold, mean, value_K in zip(scores.thresholds, scores.per_threshold, value_TK, strict=True):
        common: dict[str, Any] = {"mask": "none", "from_m": "", "to_m": "", "threshold_m": f"{threshold:g}"}
        common |= {"metric": metric, "predictor": predictor}
        yield Row(class_name="mean", percent=100 * mean, **common)
        for name, value in zip(scores.label_set.names, value_K, strict=True):
            yield Row(class_name=name, percent=100 * float(value), **common)


def _voxel_rows(report: OccupancyReport, scores: VoxelScores, predictor: str) -> Iterator[Row]:
    inner, outer = (f"{edge:g}" for edge in scores.ring) if scores.ring else ("", "")
    common: dict[str, Any] = {"mask": scores.mask, "from_m": inner, "to_m": outer, "threshold_m": ""}
    common["predictor"] = predictor
    yield Row(metric="mIoU", class_name="mean", percent=100 * scores.miou, **common)
    yield Row(metric="geometric IoU", class_name="occupied", percent=100 * scores.geometric_iou, **common)
    for name, value in zip(report.label_set.names, scores.iou_K, strict=True):
        yield Row(metric="IoU", class_name=name, percent=100 * float(value), **common)


def _mask_title(mask: str) -> str:
    return {"camera": "camera", "lidar": "LiDAR", "none": "no mask"}[mask]


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"
