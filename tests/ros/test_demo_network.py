"""What runs the demo's network."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from nuscenes_tree import write_tree
from rich.console import Console

from fusionocc_core import DEFAULT_PRESET, NuScenesFrames, load_model
from fusionocc_core.checkpoints import save_model
from fusionocc_core.export.model import load_exported
from fusionocc_core.layers.bfloat16 import cpu_multiplies_bfloat16
from fusionocc_ros import demo_network, parameters
from fusionocc_ros.demo import DemoPlan
from fusionocc_ros.demo_network import AUTO, OPENVINO, TORCH, with_runtime
from fusionocc_ros.model_hash import weights_hash


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    tree = write_tree(tmp_path_factory.mktemp("rig"), scenes={"lot": 2}, cameras={"LEFT": 90.0, "RIGHT": -90.0})
    return NuScenesFrames(tree.root)


def plan_of(rig, out, **settings):
    return DemoPlan(data=rig.root, scene=None, out=out, **settings)


def said(plan, rig):
    console = Console(file=io.StringIO(), width=200)
    return with_runtime(plan, rig, console), console.file.getvalue()


def test_names_are_those_of_the_node():
    assert set(demo_network.RUNTIMES) <= set(parameters.RUNTIMES)


class TestExports:
    def test_once_for_the_rig_and_again_where_it_is_damaged(self, rig, tmp_path):
        plan, words = said(plan_of(rig, tmp_path), rig)
        assert plan.model is None
        assert plan.checkpoint.parent == tmp_path
        precision = "bf16" if cpu_multiplies_bfloat16() else "fp32"
        assert f"{DEFAULT_PRESET} exported to OpenVINO, {precision}, in " in words
        exported = load_exported(plan.checkpoint)
        assert exported.artefact.layout.cameras == 2
        assert exported.artefact.layout.confidence  # the demo shows it
        assert exported.card.preset == DEFAULT_PRESET
        made = (plan.checkpoint / "graph.bin").stat().st_mtime_ns
        again, words = said(plan_of(rig, tmp_path), rig)
        assert (again.checkpoint, words) == (plan.checkpoint, "")
        assert (plan.checkpoint / "graph.bin").stat().st_mtime_ns == made
        (plan.checkpoint / "graph.bin").write_bytes(b"")
        again, words = said(plan_of(rig, tmp_path), rig)
        assert again.checkpoint == plan.checkpoint
        assert "exported" in words
        assert (plan.checkpoint / "graph.bin").stat().st_size

    def test_other_weights_to_another_folder(self, rig, tmp_path):
        network = load_model()
        with torch.no_grad():
            network.head.scores.bias[0] += 1.0
        save_model(network, tmp_path / "mine.safetensors")
        mine, _ = said(plan_of(rig, tmp_path, checkpoint=tmp_path / "mine.safetensors"), rig)
        assert mine.checkpoint.name == f"openvino-{weights_hash(network.state_dict())}"
        assert load_exported(mine.checkpoint).artefact.layout.cameras == 2


class TestLeavesAlone:
    def test_what_is_exported_already(self, rig, tmp_path):
        (tmp_path / "artefact.json").write_text("{}")
        plan = plan_of(rig, tmp_path / "out", checkpoint=tmp_path)
        assert said(plan, rig) == (plan, "")
        with pytest.raises(ValueError, match="is an exported network, which says itself what runs it"):
            said(plan_of(rig, tmp_path / "out", checkpoint=tmp_path, runtime=OPENVINO), rig)

    @pytest.mark.parametrize(
        "settings", [{"runtime": TORCH}, {"model": "tiny"}, {"model": "flashocc-m0"}, {"model": "x"}]
    )
    def test_what_cannot_be_exported_or_takes_minutes_or_is_not_known(self, rig, tmp_path, settings):
        plan = plan_of(rig, tmp_path / "out", **settings)
        assert said(plan, rig) == (plan, "")
        assert not (tmp_path / "out").exists()

    def test_a_machine_without_the_packages(self, rig, tmp_path, monkeypatch):
        monkeypatch.setattr(demo_network, "find_spec", lambda name: None)
        plan = plan_of(rig, tmp_path, runtime=AUTO)
        assert said(plan, rig) == (plan, "")

    def test_a_machine_with_a_gpu(self, rig, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        plan = plan_of(rig, tmp_path)
        assert said(plan, rig) == (plan, "")


def test_what_was_asked_for_and_cannot_be_is_an_error(rig, tmp_path):
    with pytest.raises(ValueError, match="cannot be exported"):
        said(plan_of(rig, tmp_path, model="uniocc-tiny", runtime=OPENVINO), rig)
    with pytest.raises(ValueError, match="--runtime tpu: expected one of auto, torch, openvino"):
        said(plan_of(rig, tmp_path, runtime="tpu"), rig)
    assert not list(Path(tmp_path).iterdir())
