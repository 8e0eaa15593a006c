"""`fusionocc robustness` from the command line to its files, on a small simulated street."""

import csv
import json
import shutil
import sys
from pathlib import Path

import cv2
import pytest
import torch

from fusionocc_core import cli
from fusionocc_core.checkpoints import save_model
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.engine.session import fresh_network, open_frames

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))

from small_recipes import small


@pytest.fixture(scope="module")
def weights(tmp_path_factory, sim_root):
    """Fresh, but shifted so that no class wins everywhere: what the network sees then decides the answer."""
    torch.set_num_threads(1)
    model = fresh_network(small()).eval()
    frames = open_frames(sim_root, model.config.inputs, split="sim_val", version=None)
    with torch.no_grad():
        logits = model(prepare(frames[1], model.config.inputs, model.config.grid)).logits_BKXYZ
        model.predicter[2].bias -= logits.mean(dim=(0, 2, 3, 4))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    save_model(model, path)
    return path


def command(*arguments):
    return cli.main(["robustness", *map(str, arguments)])


@pytest.fixture(scope="module")
def outcome(sim_root, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "er"
    assert command(weights, "--data", sim_root, "--split", "sim_val", "--limit", 2, "--out", out, "--rays") == 0
    return out


def test_every_condition_has_a_row_and_all_but_one_figures(outcome):
    content = json.loads((outcome / "robustness.json").read_text())
    rows = {row["condition"]: row for row in content["conditions"]}
    assert len(rows) == 1 + 6 + 1 + 3 + 6 + 6 + 15
    assert [key for key, row in rows.items() if not row["supported"]] == ["cameras-all"]
    assert "has no camera" in rows["cameras-all"]["note"]
    assert all(row["ray_iou"] is not None for row in rows.values() if row["supported"])
    assert {row["note"] for key, row in rows.items() if "-delay-" in key} == {"ego motion"}
    figures = [row["miou_none"] for row in rows.values() if row["supported"]]
    assert len(set(figures)) > 30, "nearly every condition changes the answer"
    assert content["setting"]["frames"] == 2
    assert content["setting"]["split"] == "sim_val (limited to 2)"
    assert len(list(csv.reader((outcome / "robustness.csv").open()))) == 1 + len(rows)
    assert cv2.imread(str(outcome / "robustness.png")).shape[1] == 1210


def test_same_seed_same_files_and_single_conditions(outcome, sim_root, weights, tmp_path, capsys):
    options = [weights, "--data", sim_root, "--split", "sim_val", "--limit", 2, "--threads", 1]
    names = ["cameras", "lidar-calibration-5deg", "snow-3"]
    assert command(*options, "--out", tmp_path, "--conditions", *names) == 0
    told = capsys.readouterr()
    assert "untrained weights: the figures mean nothing" in told.out
    assert "said once" not in told.err
    assert "…" not in told.out
    before = {row["condition"]: row for row in json.loads((outcome / "robustness.json").read_text())["conditions"]}
    again = json.loads((tmp_path / "robustness.json").read_text())["conditions"]
    assert [row["condition"] for row in again] == [
        "clean", *(f"cameras-{n}" for n in (1, 2, 3, 4, 5, "all")), "lidar-calibration-5deg", "snow-3",
    ]  # fmt: skip
    for row in again:
        assert {**before[row["condition"]], "ray_iou": None} == row


def failure(capsys, *arguments):
    assert command(*arguments) == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert told.err.count("\n") == 1
    return told.err


def test_mistakes_are_told_before_anything_is_measured(sim_root, weights, tmp_path, capsys):
    options = [weights, "--data", sim_root, "--split", "sim_val"]
    assert "'camras' is not known" in (told := failure(capsys, *options, "--conditions", "camras"))
    assert "nearest: cameras" in told
    assert "severity=9" in failure(capsys, *options, "--severities", 9)
    assert "limit=0" in failure(capsys, *options, "--limit", 0)
    assert "--threads 0" in failure(capsys, *options, "--threads", 0)
    assert "split='val'" in failure(capsys, weights, "--data", sim_root)
    assert "no such" in failure(capsys, tmp_path / "absent.safetensors", "--data", sim_root).lower()
    (tmp_path / "file").write_text("")
    assert "cannot be created" in failure(capsys, *options, "--out", tmp_path / "file" / "out")
    bare = tmp_path / "bare"
    shutil.copytree(sim_root, bare, ignore=shutil.ignore_patterns("gts", "test_truth", "surroundocc", "imgseg"))
    assert "Occ3D labels: 3 of 3 files are missing" in failure(capsys, weights, "--data", bare, "--split", "sim_val")
