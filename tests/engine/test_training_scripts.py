"""The two scripts, from the command line to the files that they leave, on a tiny data set and a small network."""

import csv
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import pytest
from labelled_sample_tree import write_labelled_tree

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(__file__).parent / "small_recipes.py"
sys.path.insert(0, str(ROOT / "training"))

import evaluate as evaluate_script  # noqa: E402
import train as train_script  # noqa: E402


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_labelled_tree(tmp_path_factory.mktemp("data") / "labelled")


@pytest.fixture(scope="module")
def run_folder(tree, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert train_script.main([f"{RECIPES}:small", "--data", str(tree.root), "--out", str(out), "--device", "cpu"]) == 0
    return out


def failure(capsys, script, *arguments):
    assert script.main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


def log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_run_leaves_its_files(run_folder):
    assert [line["step"] for line in log(run_folder) if line["kind"] == "train"] == [1, 2, 3, 4]
    evaluations = [line for line in log(run_folder) if line["kind"] == "evaluation"]
    assert [line["step"] for line in evaluations] == [2, 4]
    assert {"miou_camera", "miou_lidar", "miou_none", "iou_camera", "iou_lidar", "iou_none"} <= evaluations[0].keys()
    for name in ("best.safetensors", "last.safetensors", "run.json"):
        assert (run_folder / name).is_file()
    run = json.loads((run_folder / "run.json").read_text())
    assert run["name"] == "small"
    assert run["recipe"]["train"]["optimizer"]["lr"] == 1e-3
    assert "v1.0-mini mini_train, 4 keyframes" in run["data"]


def test_weights_of_a_run_carry_their_card(run_folder):
    from fusionocc_core import load_model

    model = load_model(run_folder / "best.safetensors")
    assert model.card.preset == "small"
    assert model.card.trained_on == "v1.0-mini mini_train, 4 keyframes, recipe small"
    best = max((line for line in log(run_folder) if line["kind"] == "evaluation"), key=lambda line: line["miou_camera"])
    assert model.card.metrics["miou_camera"] == pytest.approx(best["miou_camera"])


def test_evaluation_of_a_run_states_its_setting_everywhere(tree, run_folder, tmp_path, capsys):
    out = tmp_path / "scores"
    code = evaluate_script.main(
        [str(run_folder), "--data", str(tree.root), "--split", "mini_val", "--out", str(out), "--workers", "0"]
    )
    assert code == 0
    told = capsys.readouterr().out
    headline = [line for line in told.splitlines() if line.startswith(("mIoU", "geometric", "RayIoU"))]
    assert [line.split()[0] for line in headline] == ["mIoU"] * 3 + ["geometric"] * 3 + [
        "RayIoU@1", "RayIoU@2", "RayIoU@4", "RayIoU",
    ]  # fmt: skip
    for line, mask in zip(headline, ["camera mask", "LiDAR mask", "no mask"] * 2, strict=False):
        assert mask in line
    assert all(line.endswith("| v1.0-mini mini_val, 3 keyframes, occ3d, small, fp32") for line in headline)
    assert "IoU by class" in told
    assert "by distance" in told
    content = json.loads((out / "metrics.json").read_text())
    assert content["setting"]["split"] == "mini_val"
    assert content["frames"] == 3
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert {row["predictor"] for row in rows} == {"model", "majority", "position", "geometry"}
    assert "Held against baselines" in told
    assert content["baselines"]["majority"]["lines"][0]["value"] == 0.0  # nothing but free space
    assert content["baselines"]["split"] == "mini_train"
    rows = [row for row in rows if row["predictor"] == "model"]
    assert all(row["split"] == "mini_val" and row["preset"] == "small" for row in rows)
    percent = {row["mask"]: float(row["percent"]) for row in rows if row["metric"] == "mIoU" and not row["from_m"]}
    written = {line["setting"]: line["value"] for line in content["lines"] if line["metric"] == "mIoU"}
    assert percent["camera"] == pytest.approx(100 * written["camera mask"], abs=1e-4)


def test_baselines_can_be_left_out_and_say_what_they_lack(tree, run_folder, capsys):
    common = [str(run_folder), "--data", str(tree.root), "--split", "mini_val", "--no-rays", "--workers", "0"]
    assert evaluate_script.main([*common, "--no-baselines"]) == 0
    assert "baselines" not in capsys.readouterr().out
    assert evaluate_script.main([*common, "--baseline-split", "train"]) == 0
    captured = capsys.readouterr()
    assert "Held against" in captured.out
    assert evaluate_script.main([*common, "--baseline-split", "test"]) == 0
    captured = capsys.readouterr()
    assert "Held against" not in captured.out
    [line] = [line for line in captured.err.splitlines() if line.startswith("no baselines:")]
    assert "leave them out with --no-baselines" in line
    assert "cannot go with" in failure(capsys, evaluate_script, *common, "--no-baselines", "--baseline-split", "x")


def test_a_run_ends_with_its_baselines(run_folder):
    content = json.loads((run_folder / "baselines.json").read_text())
    assert content["split"] == "mini_val"
    assert content["majority"]["miou_camera"] == 0.0
    assert content["geometry"].keys() == content["position"].keys()


def test_baselines_answer_for_the_keyframes_that_the_run_evaluates(tree, run_folder, tmp_path, capsys):
    command = [f"{RECIPES}:small", "--data", str(tree.root), "--device", "cpu", "--set", "train.epochs=0.5"]
    assert train_script.main([*command, "--out", str(tmp_path / "one"), "--set", "data.val_keyframes=1"]) == 0
    assert "v1.0-mini mini_val, 1 keyframes" in capsys.readouterr().out
    scores = [json.loads((folder / "baselines.json").read_text()) for folder in (tmp_path / "one", run_folder)]
    assert scores[0]["trained_on"] == scores[1]["trained_on"]
    assert scores[0]["geometry"] != scores[1]["geometry"]
    assert train_script.main([*command, "--out", str(tmp_path / "none"), "--set", "data.val_keyframes=0"]) == 0
    assert "no baselines: data.val_keyframes=0" in capsys.readouterr().out
    assert not (tmp_path / "none" / "baselines.json").exists()


def test_expectations_decide_the_exit_code(tree, run_folder, tmp_path, capsys):
    common = [str(run_folder), "--data", str(tree.root), "--split", "mini_val", "--no-rays", "--workers", "0"]
    out = tmp_path / "scores"
    assert evaluate_script.main([*common, "--out", str(out)]) == 0
    lines = json.loads((out / "metrics.json").read_text())["lines"]
    true = 100 * next(line["value"] for line in lines if line["setting"] == "camera mask" and line["metric"] == "mIoU")
    assert evaluate_script.main([*common, "--expect", str(true + 0.05)]) == 0
    assert "as expected" in capsys.readouterr().out
    assert evaluate_script.main([*common, "--expect", str(true + 0.3)]) == 1
    assert "MISSED" in capsys.readouterr().out
    assert evaluate_script.main([*common, "--expect", str(true + 0.3), "--tol", "0.5"]) == 0
    assert "ray_iou cannot be expected" in failure(
        capsys, evaluate_script, *common, "--expect", 50, "--metric", "ray_iou"
    )


def test_a_training_checkpoint_can_be_evaluated(tree, run_folder, capsys):
    """It gives its averaged weights: the same numbers as the file that was written at the same step."""
    newest = sorted((run_folder / "checkpoints").glob("step-*.pt"))[-1]
    common = ["--data", str(tree.root), "--split", "mini_val", "--no-rays", "--workers", "0"]
    told = []
    for weights in (newest, run_folder / "last.safetensors"):
        assert evaluate_script.main([str(weights), *common]) == 0
        told.append([line for line in capsys.readouterr().out.splitlines() if line.startswith("mIoU")])
    assert told[0] == told[1]


def test_the_same_command_goes_on_and_another_recipe_is_refused(tree, run_folder, capsys):
    same = [f"{RECIPES}:small", "--data", tree.root, "--out", run_folder, "--device", "cpu"]
    before = (run_folder / "log.jsonl").read_text()
    assert train_script.main([*map(str, same), "--set", "train.workers=1"]) == 0  # nothing is left to do
    assert "going on from step 4" in " ".join(capsys.readouterr().out.split())
    assert (run_folder / "log.jsonl").read_text() == before
    told = failure(capsys, train_script, *same, "--set", "train.optimizer.lr=0.5")
    assert "begun with another recipe (train.optimizer.lr: 0.001 then, 0.5 now)" in told


def evaluate_as_torchrun_would(rank, size, port, arguments):
    environment = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in environment.items()})
    sys.exit(evaluate_script.main(arguments))


def test_two_processes_give_the_numbers_of_one(tree, run_folder, tmp_path, spawner):
    """Three frames over two processes: uneven shards, and sums of integers are exact."""
    common = [str(run_folder), "--data", str(tree.root), "--split", "mini_val", "--workers", "0", "--device", "cpu"]
    assert evaluate_script.main([*common, "--out", str(tmp_path / "one")]) == 0
    shutil.rmtree(tree.root / ".fusionocc")  # the two processes shall fit and score the baselines themselves
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*common, "--out", str(tmp_path / "two")]
    processes = [
        spawner.Process(target=evaluate_as_torchrun_would, args=(rank, 2, port, arguments)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    one, two = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fusionocc_bas"], "did you mean fusionocc_base"),
        (["tiny", "--set", "train.optimiser.lr=1"], "did you mean train.optimizer.lr"),
        (["tiny", "--set", "train.workers=many"], "expected a whole number"),
        (["tiny"], "--data ROOT and --out DIR are needed"),
        ([], "which recipe?"),
        (["nowhere.py:mine"], "nowhere.py: no such file of recipes"),
        (["tiny", "--data", "nowhere", "--out", "{out}"], "nowhere"),
        (["tiny", "--init-matching", "--data", "x", "--out", "y"], "--init-matching goes with --init"),
    ],
)
def test_mistakes_of_the_command_line(arguments, message, capsys, tmp_path):
    assert message in failure(capsys, train_script, *(a.format(out=tmp_path / "run") for a in arguments))


def test_mistakes_about_data_and_weights(tree, capsys, tmp_path):
    run = [f"{RECIPES}:small", "--data", tree.root, "--out", tmp_path / "run", "--device", "cpu"]
    assert "none of its" in failure(capsys, train_script, *run, "--set", "data.train_split=test")
    assert "expected one of" in failure(capsys, train_script, *run, "--set", "data.train_split=no_such")
    assert "no such file" in failure(capsys, train_script, *run, "--init", tmp_path / "none.pth")
    evaluation = ["--data", tree.root, "--split", "mini_val"]
    assert "holds neither" in failure(capsys, evaluate_script, tmp_path, *evaluation)
    assert "no such file" in failure(capsys, evaluate_script, tmp_path / "none.safetensors", *evaluation)


def test_weights_to_begin_with(tree, run_folder, tmp_path, capsys):
    run = [f"{RECIPES}:small", "--data", str(tree.root), "--device", "cpu", "--set", "train.epochs=1"]
    whole = [*run, "--out", str(tmp_path / "a"), "--init", str(run_folder / "last.safetensors")]
    assert train_script.main(whole) == 0
    assert f"weights of {run_folder}" in "".join(capsys.readouterr().out.splitlines()).replace("  ", " ")
    other = ["--set", "model.volume_channels=12", "--init", str(run_folder / "last.safetensors")]
    told = failure(capsys, train_script, *run, "--out", tmp_path / "b", *other)
    assert "final_conv" in told
    assert train_script.main([*run, "--out", str(tmp_path / "c"), *other, "--init-matching"]) == 0
    assert "fresh, " in " ".join(capsys.readouterr().out.split())


def test_lists(capsys):
    assert train_script.main(["--list"]) == 0
    told = capsys.readouterr().out
    for name in ("fusionocc_base", "fusionocc_base_no_mask", "fusionocc_base_one_gpu", "tiny_simulated"):
        assert name in told
    assert train_script.main(["fusionocc-base", "--show"]) == 0
    assert "train.optimizer.lr=5e-05" in capsys.readouterr().out
