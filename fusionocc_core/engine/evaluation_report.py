"""An evaluation as one page of HTML: settings, numbers, tables, plots, the worst keyframes, some of them in 3D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.table import Table

from fusionocc_core.engine.baseline_scores import BaselineScores
from fusionocc_core.engine.evaluation import LabelledFrames
from fusionocc_core.engine.score_pictures import ErrorMap, class_bars, confusion_matrix
from fusionocc_core.engine.scores import Setting, class_table, comparison_table, ring_table
from fusionocc_core.engine.worst_frames import FrameScore, view_of
from fusionocc_core.metrics import OccupancyReport
from fusionocc_core.structures import UNTRAINED
from fusionocc_core.viz.canvas import FAINT_INK, INK, Picture, blank, write
from fusionocc_core.viz.difference import truth_as_occupancy
from fusionocc_core.viz.report_page import ReportPage
from fusionocc_core.viz.scene_picture import scene_picture
from fusionocc_core.viz.view_frame import ViewFrame

IN_3D = 2
"""Of the worst keyframes, how many turn in the browser: each makes the page larger by about a megabyte."""


def write_report(
    path: Path,
    report: OccupancyReport,
    setting: Setting,
    labelled: LabelledFrames,
    *,
    errors: ErrorMap,
    frames: Sequence[FrameScore],
    baselines: BaselineScores | None = None,
) -> None:
    """Write the page.

    Args:
        path: of the .html file.
        report: the numbers.
        setting: what they were measured with.
        labelled: the keyframes.
        errors: where the errors lie.
        frames: from ``WorstFrames.gathered``.
        baselines: what simple predictors score, where that was measured.

    Raises:
        OSError: it cannot be written.
    """
    page = ReportPage(f"{setting.preset}: evaluation", setting.in_a_line())
    _add_settings(page, setting)
    page.heading("Scores")
    page.table(headline_table(report))
    if baselines:
        page.table(comparison_table(report, baselines.reports, setting, baselines.trained_on))
    page.table(class_table(report, setting))
    page.table(ring_table(report, setting))
    page.heading("Plots")
    title = setting.in_a_line()
    page.picture(class_bars(report, title), "IoU of each class under each mask")
    scores = report.of_mask("camera") or report.voxels[0]
    page.picture(confusion_matrix(scores, title), "what was said of each true class")
    page.picture(errors.draw(title), "where the errors lie, from above, forward up")
    page.picture(frame_plot(frames), "mIoU of every keyframe, worst first")
    _add_worst(page, [(score, view_of(labelled, score, model=setting.preset)) for score in frames if _kept(score)])
    page.write(path)


def headline_table(report: OccupancyReport) -> Table:
    """The headline numbers, each with what it means."""
    table = Table(title="Headline")
    table.add_column("metric")
    table.add_column("%", justify="right")
    table.add_column("setting")
    for line in report.lines():
        value = "-" if math.isnan(line.value) else f"{100 * line.value:.2f}"
        table.add_row(line.metric, value, line.setting)
    return table


def frame_plot(frames: Sequence[FrameScore]) -> Picture:
    """A thin bar for every keyframe, in the order given; height is its mIoU."""
    width, height, left, top = 900, 220, 60, 40
    picture = blank(height + top + 30, width + left + 20)
    write(picture, (left, 10), f"mIoU of {len(frames)} keyframes, %", 16)
    for percent in (0, 50, 100):
        y = top + round(height * (1 - percent / 100))
        picture[y, left : left + width] = (220, 223, 228)
        write(picture, (12, y - 8), f"{percent}", 13, FAINT_INK)
    edges = left + np.round(np.linspace(0, width, len(frames) + 1)).astype(int)
    for score, start, stop in zip(frames, edges[:-1], edges[1:], strict=True):
        if not math.isnan(score.miou):
            y = top + round(height * (1 - score.miou))
            picture[y : top + height, start : max(stop - (stop - start > 3), start + 1)] = (58, 110, 178)
    picture[top + height, left : left + width] = INK
    return picture


def _kept(score: FrameScore) -> bool:
    return score.labels is not None


def _add_settings(page: ReportPage, setting: Setting) -> None:
    """First of all, since numbers without them mean little."""
    page.heading("Settings")
    page.settings(asdict(setting))
    if setting.trained_on == UNTRAINED:
        page.paragraph(f"{UNTRAINED}: the figures mean nothing", warning=True)


def _add_worst(page: ReportPage, worst: Sequence[tuple[FrameScore, ViewFrame]]) -> None:
    page.heading("Worst keyframes")
    for place, (score, view) in enumerate(worst):
        name = f"{view.scene} {view.stamp_ns / 1e9:.2f} s" if view.scene else f"{view.stamp_ns / 1e9:.2f} s"
        caption = f"{name}: mIoU {100 * score.miou:.2f} %, geometric IoU {100 * score.iou:.2f} %"
        page.picture(scene_picture(view), caption, photo=True)
        if place < IN_3D:
            add_voxels(page, view, caption)


def add_voxels(page: ReportPage, view: ViewFrame, caption: str) -> None:
    """Prediction, truth and difference of a moment, turning."""
    assert view.prediction is not None, "view_of gives it"
    assert view.truth is not None, "view_of gives it"
    compared = view.compared()
    volumes = {"prediction": view.prediction, "truth": truth_as_occupancy(view.truth, view.stamp_ns)}
    if compared is not None:
        volumes["difference"] = compared
    page.voxels(volumes, caption)
