"""Training runs beside each other: those that differ in their seed alone form a group with mean and spread."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from fusionocc_core.engine.recipe import METRICS, flat_recipe
from fusionocc_core.grids import Color
from fusionocc_core.viz.canvas import FAINT_INK, INK, Picture, blank, text_size, write

COLORS: tuple[Color, ...] = ((58, 110, 178), (196, 92, 40), (38, 140, 122), (122, 84, 168), (176, 66, 96))
"""One a group, from the first again after the last."""
BASELINE: Color = (150, 155, 162)
GRID_LINE: Color = (226, 229, 233)

_PANEL = (420, 620)
_MARGIN = (90, 60, 40, 60)
"""Left, top, right, bottom of each panel's axes."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Something over samples seen."""

    samples: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the folder of a run tells."""

    folder: Path
    name: str
    """Of the recipe."""
    seed: int
    settings: Mapping[str, Any]
    """Every other key and value of the recipe."""
    loss: Curve
    metric: Curve
    seconds: float
    """Spent in steps, on the clock."""
    baselines: Mapping[str, float]
    """Name to the metric's value; empty where the run did not score them."""


def read_run(folder: Path, metric: str) -> Run:
    """Read the log of a run.

    Args:
        folder: what ``--out`` of the training was.
        metric: such as "miou_camera"; see recipe.METRICS.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: no such metric, or the run has not been evaluated yet.
    """
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r}: expected one of {', '.join(METRICS)}")
    about_file, log_file = folder / "run.json", folder / "log.jsonl"
    for file in (about_file, log_file):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; is {folder} the --out of a training?")
    about = json.loads(about_file.read_text())
    entries = [json.loads(line) for line in log_file.read_text().splitlines() if line]
    steps = [entry for entry in entries if entry["kind"] == "train"]
    evaluations = [entry for entry in entries if entry["kind"] == "evaluation" and metric in entry]
    if not evaluations:
        raise ValueError(f"{folder}: no evaluation with {metric} yet; see train.evaluate_every")
    settings = flat_recipe(about["recipe"])
    total = settings["train.batch.total"]
    baselines = folder / "baselines.json"
    rows = json.loads(baselines.read_text()) if baselines.is_file() else {}
    return Run(
        folder=folder,
        name=about["name"],
        seed=settings.pop("train.seed"),
        settings=settings,
        loss=_curve(steps, total, "loss"),
        metric=_curve(evaluations, total, metric),
        seconds=_seconds(steps),
        baselines={name: row[metric] for name, row in rows.items() if isinstance(row, Mapping) and metric in row},
    )


def _curve(entries: Sequence[Mapping[str, Any]], total: int, key: str) -> Curve:
    return Curve(
        samples=tuple(float(entry["step"] * total) for entry in entries),
        values=tuple(float(entry[key]) for entry in entries),
    )


def _seconds(steps: Sequence[Mapping[str, Any]]) -> float:
    """Each logged time is of one step; the steps between two lines of the log are taken to be like the later one."""
    seconds, before = 0.0, 0
    for entry in steps:
        seconds += (entry["step"] - before) * entry["step_s"]
        before = entry["step"]
    return seconds


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs that differ in their seed alone, in the order of the seeds, under the name of their recipe.

    Where several groups have the same recipe, their names tell what was set otherwise.

    Raises:
        ValueError: one group holds a seed twice, whose spread would look smaller than it is.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        alike = [other.settings for other in runs if other.name == run.name]
        keys = {key for settings in alike for key in settings}
        told = sorted(key for key in keys if len({json.dumps(settings.get(key)) for settings in alike}) > 1)
        groups.setdefault(", ".join([run.name, *(f"{key}={run.settings.get(key)}" for key in told)]), []).append(run)
    for name, members in groups.items():
        members.sort(key=lambda run: run.seed)
        seeds = [run.seed for run in members]
        if len(set(seeds)) != len(seeds):
            folders = ", ".join(str(run.folder) for run in members)
            raise ValueError(f"{name}: seeds {seeds} hold one twice ({folders}); name each run once")
    return groups


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation; the latter is nan for a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


def draw_curves(groups: Mapping[str, Sequence[Run]], metric: str) -> Picture:
    """Two panels over samples seen: the loss (smoothed), and the metric with the baselines as dashed lines."""
    runs = [run for members in groups.values() for run in members]
    losses = _Panel("loss", [_smoothed(run.loss) for run in runs], percent=False)
    baselines = {name: value for run in runs for name, value in run.baselines.items()}
    metrics = _Panel(f"{metric}, %", [run.metric for run in runs], percent=True, also=tuple(baselines.values()))
    for place, members in enumerate(groups.values()):
        for run in members:
            losses.line(_smoothed(run.loss), COLORS[place % len(COLORS)])
            metrics.line(run.metric, COLORS[place % len(COLORS)], dots=True)
    for name, value in baselines.items():
        metrics.level(value, name)
    picture = np.concatenate([losses.picture, metrics.picture], axis=1)
    legend = blank(24 * len(groups) + 16, picture.shape[1])
    for place, (name, members) in enumerate(groups.items()):
        cv2.line(legend, (_MARGIN[0], 16 + 24 * place), (_MARGIN[0] + 30, 16 + 24 * place), COLORS[place % 5], 3)
        seeds = ", ".join(str(run.seed) for run in members)
        write(legend, (_MARGIN[0] + 42, 6 + 24 * place), f"{name}, seeds {seeds}", 15)
    return np.concatenate([picture, legend])


def _smoothed(curve: Curve, share: float = 0.05) -> Curve:
    """Each value the mean of its neighbours, over a twentieth of the run."""
    half = max(1, round(len(curve.values) * share / 2))
    values = [statistics.fmean(curve.values[max(0, n - half) : n + half + 1]) for n in range(len(curve.values))]
    return Curve(samples=curve.samples, values=tuple(values))


class _Panel:
    """Axes, and what is drawn into them."""

    def __init__(self, title: str, curves: Sequence[Curve], *, percent: bool, also: Sequence[float] = ()) -> None:
        self.factor = 100.0 if percent else 1.0
        height, width = _PANEL
        left, top, right, bottom = _MARGIN
        self.picture = blank(height, width)
        self.box = (left, top, width - right, height - bottom)
        self.most_samples = max((s for curve in curves for s in curve.samples), default=1.0)
        values = [v * self.factor for curve in curves for v in curve.values] + [v * self.factor for v in also]
        self.step = _nice(max(values, default=1.0) / 5)
        self.top = self.step * (int(max(values, default=1.0) / self.step) + 1)
        write(self.picture, (left, 18), title, 18)
        self._axes()

    def _axes(self) -> None:
        left, _, right, bottom = self.box
        for n in range(round(self.top / self.step) + 1):
            y = self._at(0.0, n * self.step / self.factor)[1]
            cv2.line(self.picture, (left, y), (right, y), GRID_LINE, 1)
            label = f"{n * self.step:g}"
            write(self.picture, (left - 10 - text_size(label, 14)[0], y - 9), label, 14, FAINT_INK)
        step = _nice(self.most_samples / 5)
        for n in range(int(self.most_samples / step) + 1):
            x = self._at(n * step, 0.0)[0]
            label = f"{n * step:,.0f}"
            write(self.picture, (x - text_size(label, 14)[0] // 2, bottom + 10), label, 14, FAINT_INK)
        cv2.line(self.picture, (left, bottom), (right, bottom), INK, 1)
        write(self.picture, (right - text_size("samples seen", 14)[0], bottom + 32), "samples seen", 14, FAINT_INK)

    def _at(self, samples: float, value: float) -> tuple[int, int]:
        left, top, right, bottom = self.box
        x = left + (right - left) * samples / self.most_samples
        return round(x), round(bottom - (bottom - top) * value * self.factor / self.top)

    def line(self, curve: Curve, color: Color, *, dots: bool = False) -> None:
        """Draw a curve."""
        points = [self._at(s, v) for s, v in zip(curve.samples, curve.values, strict=True)]
        cv2.polylines(self.picture, [np.array(points, np.int32)], False, color, 2, cv2.LINE_AA)
        for point in points if dots else ():
            cv2.circle(self.picture, point, 4, color, -1, cv2.LINE_AA)

    def level(self, value: float, name: str) -> None:
        """Draw a named dashed line."""
        left, _, right, _ = self.box
        y = self._at(0.0, value)[1]
        for x in range(left, right, 12):
            cv2.line(self.picture, (x, y), (min(x + 6, right), y), BASELINE, 2)
        write(self.picture, (left + 6, y - 20), f"{name} {value * self.factor:.1f}", 14, FAINT_INK)


def _nice(length: float) -> float:
    """1, 2 or 5 times a power of ten, not below ``length``."""
    power = 10.0 ** np.floor(np.log10(max(length, 1e-9)))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= length * (1 - 1e-9)))
