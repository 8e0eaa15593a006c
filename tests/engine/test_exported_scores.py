"""An exported network in the place of weights: training/evaluate.py and `fusionocc robustness`."""

import json
import sys
from pathlib import Path

import pytest
from labelled_sample_tree import write_labelled_tree

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "training"), str(ROOT / "tests" / "core")]

import evaluate as evaluate_script  # noqa: E402
from export_cases import lively_network  # noqa: E402

from fusionocc_core import cli  # noqa: E402
from fusionocc_core.checkpoints import save_model  # noqa: E402
from fusionocc_core.data.nuscenes import NuScenesFrames  # noqa: E402
from fusionocc_core.data.pipeline import prepare  # noqa: E402
from fusionocc_core.export.run import Exporter  # noqa: E402


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """(data, weights, artefact) of a little FlashFusion."""
    folder = tmp_path_factory.mktemp("exported_scores")
    root = write_labelled_tree(folder / "labelled").root
    network = lively_network()
    save_model(network, folder / "little.safetensors")
    frames = NuScenesFrames(root)
    batches = [prepare(frames[index], network.config.inputs, network.config.grid) for index in (0, 4)]
    Exporter(network, batches).write(folder / "artefact", "torch-export")
    return root, folder / "little.safetensors", folder / "artefact"


def scores(out):
    content = json.loads((out / "metrics.json").read_text())
    return content["setting"], {line["setting"] + line["metric"]: line["value"] for line in content["lines"]}


def test_an_evaluation_of_an_artefact_is_that_of_its_weights(case, tmp_path):
    root, *networks = case
    common = ["--data", str(root), "--split", "mini_val", "--no-rays", "--no-baselines", "--workers", "0"]
    for network in networks:
        assert (
            evaluate_script.main([str(network), *common, "--device", "cpu", "--out", str(tmp_path / network.name)]) == 0
        )
    (_, before), (setting, after) = (scores(tmp_path / network.name) for network in networks)
    assert before == pytest.approx(after, abs=1e-4, nan_ok=True)
    assert setting["precision"].startswith("fp32 by torch.export")
    assert setting["checkpoint"] == str(networks[1])


def test_robustness_of_an_artefact(case, tmp_path, capsys):
    root, _, artefact = case
    arguments = ["--data", str(root), "--split", "mini_val", "--limit", "2", "--device", "cpu", "--threads", "1"]
    chosen = ["--conditions", "cameras-1", "lidar", "--out", str(tmp_path)]
    assert cli.main(["robustness", str(artefact), *arguments, *chosen]) == 0
    content = json.loads((tmp_path / "robustness.json").read_text())
    assert content["setting"]["precision"].startswith("fp32 by torch.export")
    rows = {row["condition"]: row for row in content["conditions"]}
    assert all(row["supported"] for row in rows.values())
    assert len({row["miou_none"] for row in rows.values()}) == len(rows) == 3, "every condition changes the answer"


def test_a_rig_that_is_not_the_artefact_s(case, capsys):
    root, _, artefact = case
    note = artefact / "artefact.json"
    content = json.loads(note.read_text())
    note.write_text(json.dumps({**content, "layout": {**content["layout"], "cameras": 5}}))
    try:
        assert evaluate_script.main([str(artefact), "--data", str(root), "--split", "mini_val"]) == 2
    finally:
        note.write_text(json.dumps(content))
    assert "exported for a rig of 5 cameras, this one has 6" in " ".join(capsys.readouterr().err.split())
