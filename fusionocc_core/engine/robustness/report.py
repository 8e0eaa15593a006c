"""A measurement of robustness as one page of HTML, with the moments at which spoilt sensors cost most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fusionocc_core.engine.evaluation import LabelledFrames, spread
from fusionocc_core.engine.evaluation_report import add_voxels
from fusionocc_core.engine.robustness.conditions import Around, Condition
from fusionocc_core.engine.robustness.picture import draw
from fusionocc_core.engine.robustness.results import RobustnessTable, render, summary_lines
from fusionocc_core.engine.robustness.scene_files import SceneFiles
from fusionocc_core.engine.worst_frames import FrameScore, score_frame, view_of
from fusionocc_core.metrics import OccupancyTruth
from fusionocc_core.structures import UNTRAINED, Occupancy
from fusionocc_core.viz.report_page import ReportPage
from fusionocc_core.viz.scene_picture import scene_picture

SHOWN = 4
"""Conditions with a picture, from the costliest."""

IN_3D = 2
"""Of these, how many turn in the browser."""


@dataclass(frozen=True, kw_only=True)
class WorstMoment:
    """The keyframe at which a condition cost most."""

    condition: Condition
    score: FrameScore
    clean: FrameScore

    @property
    def loss(self) -> float:
        """Of mIoU against the same keyframe with clean sensors; a fraction."""
        return self.clean.miou - self.score.miou


class WorstMoments:
    """Told of every prediction of a measurement; the clean one of a keyframe comes before the spoilt ones."""

    def __init__(self) -> None:
        self._clean: dict[int, FrameScore] = {}
        self._worst: dict[str, WorstMoment] = {}

    def add(self, condition: Condition, index: int, prediction: Occupancy, truth: OccupancyTruth) -> None:
        """Score a prediction; OnPrediction of ``measure``."""
        score = score_frame(index, prediction, truth)
        if condition.group == "clean":
            self._clean[index] = replace(score, labels=None)
            return
        moment = WorstMoment(condition=condition, score=score, clean=self._clean[index])
        before = self._worst.get(condition.key)
        if not math.isnan(moment.loss) and (before is None or moment.loss > before.loss):
            self._worst[condition.key] = moment

    def costliest(self, count: int = SHOWN) -> list[WorstMoment]:
        """The conditions that cost most at their worst keyframe, costliest first."""
        return sorted(self._worst.values(), key=lambda moment: -moment.loss)[:count]


def write_report(
    path: Path,
    table: RobustnessTable,
    labelled: LabelledFrames,
    moments: Sequence[WorstMoment],
    *,
    limit: int | None,
) -> None:
    """Write the page.

    Args:
        path: of the .html file.
        table: the numbers.
        labelled: the keyframes.
        moments: from ``WorstMoments.costliest``.
        limit: that the measurement was given.

    Raises:
        OSError: it cannot be written.
    """
    setting = table.setting
    page = ReportPage(f"{setting.preset}: robustness", setting.in_a_line())
    page.heading("Settings")
    page.settings(asdict(setting))
    if setting.trained_on == UNTRAINED:
        page.paragraph(f"{UNTRAINED}: the figures mean nothing", warning=True)
    page.heading("Scores")
    page.table(render(table))
    for line in summary_lines(table):
        page.paragraph(line)
    page.heading("Plots")
    page.picture(draw(table), "mIoU under every condition")
    page.heading("Worst moments")
    if not moments:
        page.paragraph("No condition was measured besides the clean one.")
    places = {index: place for place, index in enumerate(spread(len(labelled), limit))}
    files = SceneFiles(labelled.frames)
    for number, moment in enumerate(moments):
        around = Around(seed=labelled.seed, place=places[moment.score.index], files=files)
        view = view_of(labelled, moment.score, model=setting.preset)
        assert view.sensors is not None, "view_of reads them"
        view = replace(view, sensors=moment.condition.apply(view.sensors, around).frame)
        caption = (
            f"{moment.condition.title}, {view.scene} {view.stamp_ns / 1e9:.2f} s: "
            f"mIoU {100 * moment.score.miou:.2f} %, with clean sensors {100 * moment.clean.miou:.2f} %"
        )
        page.picture(scene_picture(view, title=moment.condition.title), caption, photo=True)
        if number < IN_3D:
            add_voxels(page, view, caption)
    page.write(path)
