"""Runs beside each other: grouped by what they have in common, read from their logs, drawn."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from small_recipes import small

from fusionocc_core.checkpoints import encode_config
from fusionocc_core.engine.curves import COLORS, draw_curves, group_runs, mean_and_spread, read_run
from fusionocc_core.engine.overrides import override

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

import compare as compare_script


def write_run(folder, *, values=(0.1, 0.3), changes=(), baselines=None):
    folder.mkdir()
    recipe = override(small(), list(changes))
    total = recipe.train.batch.total
    log = [{"kind": "train", "step": n, "loss": 4.0 / n, "step_s": 2.0} for n in (1, 10, 20)]
    log += [{"kind": "evaluation", "step": 10 * (n + 1), "miou_camera": v} for n, v in enumerate(values)]
    (folder / "run.json").write_text(json.dumps({"name": "small", "recipe": encode_config(recipe)}))
    (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
    if baselines:
        rows = {name: {"miou_camera": value} for name, value in baselines.items()}
        (folder / "baselines.json").write_text(json.dumps({"split": "train", **rows}))
    return folder, total


@pytest.fixture
def folders(tmp_path):
    return [
        write_run(tmp_path / f"s{seed}", values=(0.1, 0.3 + 0.1 * seed), changes=[f"train.seed={seed}"])[0]
        for seed in (2, 0, 1)
    ]


def test_a_run_is_read(tmp_path):
    folder, total = write_run(tmp_path / "a", baselines={"position": 0.2, "geometry": 0.25})
    run = read_run(folder, "miou_camera")
    assert run.metric.samples == (10 * total, 20 * total)
    assert run.metric.values == (0.1, 0.3)
    assert run.loss.values == (4.0, 0.4, 0.2)
    assert run.seconds == 40.0
    assert run.baselines == {"position": 0.2, "geometry": 0.25}


def test_runs_that_differ_in_their_seed_form_a_group(folders):
    groups = group_runs([read_run(folder, "miou_camera") for folder in folders])
    assert {name: [run.seed for run in runs] for name, runs in groups.items()} == {"small": [0, 1, 2]}
    mean, spread = mean_and_spread([run.metric.values[-1] for run in groups["small"]])
    assert (mean, spread) == (pytest.approx(0.4), pytest.approx(0.1))
    assert math.isnan(mean_and_spread([0.4])[1])


def test_other_settings_make_another_group_that_says_so(folders, tmp_path):
    other, _ = write_run(tmp_path / "other", changes=["train.optimizer.lr=0.5"])
    groups = group_runs([read_run(folder, "miou_camera") for folder in [*folders, other]])
    assert [len(runs) for runs in groups.values()] == [3, 1]
    assert "small, train.optimizer.lr=0.5" in groups


def test_the_curves_show_each_group_in_a_colour_of_its_own(folders, tmp_path):
    other, _ = write_run(tmp_path / "other", changes=["train.optimizer.lr=0.5"], baselines={"position": 0.2})
    groups = group_runs([read_run(folder, "miou_camera") for folder in [*folders, other]])
    both, one = draw_curves(groups, "miou_camera"), draw_curves(dict([*groups.items()][:1]), "miou_camera")
    first, second, dashes = (
        (both == np.array(c)).all(-1).sum() for c in ((58, 110, 178), (196, 92, 40), (150, 155, 162))
    )
    assert min(first, second, dashes) > 100
    assert not (one == np.array(COLORS[1])).all(-1).any()


def test_the_script_prints_mean_spread_and_baselines(folders, tmp_path, capsys):
    other, _ = write_run(tmp_path / "b", changes=["train.seed=5"], values=(0.5,), baselines={"geometry": 0.25})
    assert compare_script.main([*map(str, folders), str(other), "--picture", str(tmp_path / "curves.png")]) == 0
    said = capsys.readouterr().out
    assert "0, 1, 2, 5" in said
    assert "42.50" in said
    assert "baseline: geometry" in said
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_mistakes(folders, tmp_path, capsys):
    assert compare_script.main([str(tmp_path / "nothing")]) == 2
    assert "no such file; is" in capsys.readouterr().err
    assert compare_script.main([str(folders[0]), "--metric", "map"]) == 2
    assert "metric='map': expected one of miou_camera" in capsys.readouterr().err
    assert compare_script.main([str(folders[0]), str(folders[0])]) == 2
    assert "hold one twice" in capsys.readouterr().err
    empty, _ = write_run(tmp_path / "empty", values=())
    with pytest.raises(ValueError, match="no evaluation with miou_camera yet"):
        read_run(empty, "miou_camera")
