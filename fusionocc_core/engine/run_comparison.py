"""The last evaluation of a training run beside the baselines: told at its end, and kept in its folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from fusionocc_core.engine.baseline_scores import NoBaselinesError, score_baselines
from fusionocc_core.engine.distributed import World
from fusionocc_core.engine.evaluation import LabelledFrames, spread, summary
from fusionocc_core.engine.recipe import METRICS, Recipe
from fusionocc_core.engine.recorder import Recorder
from fusionocc_core.engine.session import open_frames


def tell_baselines(recipe: Recipe, recorder: Recorder, *, data: Path, version: str | None, world: World) -> None:
    """Fit and score the baselines once a run, print them beside its last evaluation, and write baselines.json.

    They answer for the keyframes that the run evaluates (DataConfig.val_keyframes). Every process must call it. Where
    the baselines cannot be fitted, or nothing is evaluated, one line says why.
    """
    limit = recipe.data.val_keyframes
    if limit == 0:
        recorder.say(
            "no baselines: data.val_keyframes=0, so that nothing is evaluated which they could be held against"
        )
        return
    inputs, split = recipe.model.inputs, recipe.data.val_split
    frames = open_frames(data, inputs, split=split, version=version)
    labelled = LabelledFrames(
        frames, inputs, recipe.model.grid, recipe.model.label_set, rays=False, seed=recipe.train.seed
    )
    recorder.say(f"baselines on {split}, fitted on {recipe.data.train_split} (once a run; some minutes) ...")
    try:
        scores = score_baselines(
            labelled,
            split=recipe.data.train_split,
            world=world,
            cache=recorder.out,
            limit=limit,
            workers=recipe.train.workers,
        )
    except NoBaselinesError as error:
        recorder.say(f"no baselines: {error}")
        return
    if not recorder.folder:
        return
    evaluations = [entry for entry in recorder.log.entries() if entry["kind"] == "evaluation"]
    rows = {name: summary(report) for name, report in scores.reports.items()}
    recorder.folder.write_json("baselines.json", {"split": split, "trained_on": scores.trained_on, **rows})
    if evaluations:
        rows = {f"{recipe.preset} at step {evaluations[-1]['step']}": evaluations[-1], **rows}
    keyframes = len(spread(len(labelled), limit))
    recorder.console.print(comparison(rows, f"{frames.version} {split}, {keyframes} keyframes"))


def comparison(rows: Mapping[str, Mapping[str, float]], setting: str) -> Table:
    """Named metrics, as fractions, in percent, one predictor a row."""
    table = Table(title="Held against baselines, %", caption=setting, box=None)
    table.add_column("", no_wrap=True)
    metrics = [metric for metric in METRICS if all(metric in values for values in rows.values())]
    for metric in metrics:
        table.add_column(metric, justify="right")
    for name, values in rows.items():
        numbers = [float(values[metric]) for metric in metrics]
        table.add_row(name, *("-" if math.isnan(number) else f"{100 * number:.2f}" for number in numbers))
    return table
