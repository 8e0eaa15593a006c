"""flashfusion-mini with the weights that ship, at full size, in ONNX Runtime and OpenVINO on a real keyframe."""

from dataclasses import replace

import pytest
import torch

from fusionocc_core import DEFAULT_PRESET
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.pipeline import prepare
from fusionocc_core.export.model import ExportedModel
from fusionocc_core.export.networks import make_feed
from fusionocc_core.export.run import Exporter
from fusionocc_core.export.runtimes import open_runtime
from fusionocc_core.predictor import decode, read_labels
from fusionocc_core.presets import load_model, preset_config

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def batch(shared):
    config = preset_config(DEFAULT_PRESET)
    frames = NuScenesFrames(shared / "data" / "nuscenes_scene0061", lidar_history=config.inputs.lidar_history)
    return prepare(frames[0], config.inputs, config.grid)


@pytest.fixture(scope="module")
def expected(batch):
    with torch.inference_mode():
        return decode(load_model()(batch).logits_BKXYZ, confidence=False)[0]


@pytest.fixture(scope="module")
def artefact(batch, tmp_path_factory):
    """One graph for both runtimes: OpenVINO reads ONNX, too."""
    return Exporter(load_model(), [batch]).write(tmp_path_factory.mktemp("shipped") / "onnx", "onnx")


@pytest.mark.parametrize(
    ("runtime", "precision", "least"),
    [("onnx", "fp32", 0.9999), ("openvino", "fp32", 0.9999), ("openvino", "bf16", 0.998)],
)
def test_labels_are_those_of_pytorch(artefact, batch, expected, runtime, precision, least):
    feed = make_feed(artefact.config, artefact.layout)
    runs = open_runtime(replace(artefact, precision=precision), runtime, threads=1)
    labels, _ = read_labels(ExportedModel(artefact, feed, runs)(batch), confidence=False)
    assert (labels == expected).mean() >= least
