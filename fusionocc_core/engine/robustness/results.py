"""The outcome as figures, table and files, with the setting that it was measured in."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from fusionocc_core.engine.robustness.measure import ConditionResult
from fusionocc_core.engine.run_folder import whole_file
from fusionocc_core.engine.scores import Setting
from fusionocc_core.metrics import OccupancyReport

MASK_TITLES = {"camera": "camera mask", "none": "no mask"}

NOT_SUPPORTED = "not supported"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One condition. Scores in percent; NaN where there is nothing to measure or the condition is not supported."""

    group: str
    condition: str
    title: str
    supported: bool
    miou_camera: float
    miou_none: float
    iou: float
    """Geometric, under the main mask."""
    ray_iou: float
    change: float
    """Of the main mIoU against the clean one, points."""
    relative: float
    """The main mIoU over the clean one; a fraction."""
    note: str
    """How the condition was made, or why it is not supported."""


@dataclass(frozen=True, kw_only=True)
class RobustnessTable:
    """All rows, the clean one first."""

    rows: tuple[Row, ...]
    main_mask: str
    """"camera" where the labels have that mask, else "none": of ``iou``, ``change`` and ``relative``."""
    rays: bool
    setting: Setting

    @property
    def clean(self) -> Row:
        """What the others are compared with."""
        return self.rows[0]

    @property
    def groups(self) -> tuple[str, ...]:
        """Those that were tried."""
        return tuple(dict.fromkeys(row.group for row in self.rows[1:]))

    def main(self, row: Row) -> float:
        """The mIoU that counts, percent."""
        return row.miou_camera if self.main_mask == "camera" else row.miou_none

    def mean_relative(self, group: str | None = None) -> float:
        """Mean over conditions of mIoU over clean mIoU, a fraction; conditions that are not supported are left out.

        The resilience rate of RoboBEV and Robo3D, there over corruptions and severities alone. NaN: nothing to count.
        """
        chosen = [r.relative for r in self.rows[1:] if group in (None, r.group) and not math.isnan(r.relative)]
        return float(np.mean(chosen)) if chosen else math.nan

    def left_out(self) -> tuple[Row, ...]:
        """Conditions that are not supported."""
        return tuple(row for row in self.rows if not row.supported)


def tabulate(results: Sequence[ConditionResult], setting: Setting) -> RobustnessTable:
    """The table of a measurement, whose first result is the clean one."""
    clean = results[0].report
    assert clean is not None, "measure raises where the clean keyframes are refused"
    main_mask = "camera" if clean.of_mask("camera") else "none"
    reference = _percent(clean, main_mask)
    return RobustnessTable(
        rows=tuple(_row(result, main_mask, reference) for result in results),
        main_mask=main_mask,
        rays=clean.rays is not None,
        setting=setting,
    )


def render(table: RobustnessTable) -> Table:
    """For a rich console."""
    main = MASK_TITLES[table.main_mask]
    noted = any(row.supported and row.note for row in table.rows)
    out = Table(title="mIoU and geometric IoU with spoilt sensors, %", caption=table.setting.in_a_line(), box=None)
    out.add_column("condition", no_wrap=True)
    if table.main_mask == "camera":
        out.add_column("mIoU\ncamera mask", justify="right", no_wrap=True)
    out.add_column("mIoU\nno mask", justify="right", no_wrap=True)
    out.add_column(f"geometric IoU\n{main}", justify="right", no_wrap=True)
    if table.rays:
        out.add_column("RayIoU\nno mask", justify="right", no_wrap=True)
    out.add_column(f"change of mIoU\n{main}", justify="right", no_wrap=True)
    if noted:
        out.add_column("made with", no_wrap=True)
    last = table.rows[0].group
    for row in table.rows:
        if row.group != last:
            out.add_row("")
        last = row.group
        out.add_row(*_cells(table, row, noted=noted))
    return out


def summary_lines(table: RobustnessTable) -> list[str]:
    """What is said below the table."""
    by_group = ", ".join(f"{g} {_share(table.mean_relative(g))}" for g in table.groups)
    missing = table.left_out()
    counted = len(table.rows) - 1 - len(missing)
    lines = [
        f"mean relative robustness {_share(table.mean_relative())} (mean of mIoU / clean mIoU, "
        f"{MASK_TITLES[table.main_mask]}, over {counted} conditions"
        + (f"; {len(missing)} left out)" if missing else ")"),
        f"by group: {by_group}",
    ]
    return lines + [f"{NOT_SUPPORTED}: {row.title}: {row.note}" for row in missing]


def write_files(out: Path, table: RobustnessTable, results: Sequence[ConditionResult]) -> None:
    """Write robustness.json and robustness.csv."""
    reports = {result.condition.key: result.report for result in results}
    content = {
        "setting": asdict(table.setting),
        "main_mask": table.main_mask,
        "units": "scores in percent, change in points, relative as a fraction; null: nothing to measure",
        "mean_relative": {
            "all": _plain(table.mean_relative()),
            **{group: _plain(table.mean_relative(group)) for group in table.groups},
        },
        "conditions": [
            {**{k: _plain(v) for k, v in asdict(row).items()}, "classes": _classes(reports[row.condition], table)}
            for row in table.rows
        ],
    }
    with whole_file(out / "robustness.json") as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())
    text = io.StringIO()
    writer = csv.writer(text)
    about = asdict(table.setting)
    writer.writerow([*(f.name for f in fields(Row)), "main_mask", *about])
    for row in table.rows:
        writer.writerow([*(_csv_cell(v) for v in asdict(row).values()), table.main_mask, *about.values()])
    with whole_file(out / "robustness.csv") as file:
        file.write(text.getvalue().encode())


def _row(result: ConditionResult, main_mask: str, reference: float) -> Row:
    condition, report = result.condition, result.report
    value = _percent(report, main_mask)
    main = report.of_mask(main_mask) if report else None
    return Row(
        group=condition.group,
        condition=condition.key,
        title=condition.title,
        supported=report is not None,
        miou_camera=_percent(report, "camera"),
        miou_none=_percent(report, "none"),
        iou=100 * main.geometric_iou if main else math.nan,
        ray_iou=100 * report.rays.ray_iou if report and report.rays else math.nan,
        change=value - reference,
        relative=value / reference if reference > 0 else math.nan,
        note=result.note if report else result.reason,
    )


def _percent(report: OccupancyReport | None, mask: str) -> float:
    scores = report.of_mask(mask) if report else None
    return 100 * scores.miou if scores else math.nan


def _cells(table: RobustnessTable, row: Row, *, noted: bool) -> list[str | Text]:
    scores = [row.miou_camera] if table.main_mask == "camera" else []
    scores += [row.miou_none, row.iou, *([row.ray_iou] if table.rays else [])]
    cells: list[str | Text] = [Text(row.title)]
    if row.supported:
        cells += [number(value) for value in scores]
        cells.append("" if row is table.clean else number(row.change, sign="+"))
        return cells + ([Text(row.note)] if noted else [])
    cells += [Text(NOT_SUPPORTED, style="yellow"), *("-" for _ in scores)]
    return cells + ([""] if noted else [])


def _classes(report: OccupancyReport | None, table: RobustnessTable) -> dict[str, float | None]:
    """IoU of each class under the main mask, percent."""
    scores = report.of_mask(table.main_mask) if report else None
    if report is None or scores is None:
        return {}
    pairs = zip(report.label_set.names, scores.iou_K, strict=True)
    return {name: None if math.isnan(value) else round(100 * float(value), 4) for name, value in pairs}


def number(value: float, sign: str = "") -> str:
    """With two decimals, "-" for NaN; never minus zero."""
    return "-" if math.isnan(value) else f"{round(value, 2) + 0.0:{sign}.2f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value


def _csv_cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return value
