"""The whole way on a CPU: simulate two keyframes, learn them by heart with fusionocc-tiny, measure, over 90 % mIoU."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

import evaluate as evaluate_script
import train as train_script

GOAL = 0.90


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_simulated_keyframes_are_learnt_by_heart(tmp_path, capsys):
    """The setting is recipe tiny_overfit: fusionocc-tiny on the 8 m around the vehicle, small pictures."""
    pytest.importorskip("embreex", reason="the simulation's ray tracer: pip install fusionocc_ros[sim]")
    from fusionocc_core.simulation import SimulationConfig, generate

    torch.set_num_threads(2)
    data, out = tmp_path / "data", tmp_path / "run"
    generate(data, SimulationConfig(scenes=1, keyframes=2, seed=3, image_size=(288, 512)))
    began = time.perf_counter(), time.process_time()
    assert train_script.main(["tiny_overfit", "--data", str(data), "--out", str(out), "--device", "cpu"]) == 0
    seconds, cpu_seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    scores = tmp_path / "scores"
    arguments = ["--data", str(data), "--split", "sim_train", "--workers", "0", "--device", "cpu", "--out", str(scores)]
    assert evaluate_script.main([str(out / "last.safetensors"), *arguments]) == 0
    metrics = json.loads((scores / "metrics.json").read_text())
    lines = {(line["metric"], line["setting"]): line["value"] for line in metrics["lines"]}
    miou = lines["mIoU", "camera mask"]
    capsys.readouterr()
    with capsys.disabled():
        sys.stdout.write(f"\noverfit: mIoU {100 * miou:.1f} % after {seconds:.0f} s ({cpu_seconds:.0f} s of CPU)\n")
    present = [name for name, value in metrics["per_class"]["camera"].items() if value is not None and name != "free"]
    assert len(present) >= 8, f"the data holds {present} only"
    assert metrics["frames"] == 2
    assert miou > GOAL, metrics["per_class"]["camera"]
