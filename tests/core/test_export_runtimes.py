"""Every runtime gives PyTorch's labels, whatever the calibration; TensorRT gets a recipe and a plain graph."""

import json

import numpy as np
import onnx
import pytest
import torch
from export_cases import (
    CAMERAS,
    absences,
    export_little,
    exporter,
    little_flashocc,
    little_flashocc_batch,
    little_frames,
    lively_network,
    moved,
    with_absent,
)
from flashfusion_cases import with_cameras
from flashocc_cases import little_config as little_flashocc_config

from fusionocc_core.export.artefact import TRTEXEC, read_artefact
from fusionocc_core.export.flashfusion_graph import HEADROOM
from fusionocc_core.export.model import load_exported
from fusionocc_core.export.networks import layout_for
from fusionocc_core.export.parity import Keyframe, compare, render, write_report
from fusionocc_core.export.run import Exporter
from fusionocc_core.export.torch_runtime import module_on
from fusionocc_core.export.writers import check_plain
from fusionocc_core.predictor import Predictor, decode, read_labels

LEAST = {"onnx": 0.9999, "openvino": 0.9995, "torch-export": 1.0}
"""Share of the voxels whose label must be PyTorch's."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The network, and the folders of its artefacts."""
    folder = tmp_path_factory.mktemp("exported")
    network = lively_network()
    export = exporter(network)
    for target in ("onnx", "openvino"):
        export.write(folder / target, target)
    export.write(folder / "tensorrt", "tensorrt", "fp16")
    export.write(folder / "int8", "openvino", "int8")
    export_little(folder / "torch-export", "torch-export")
    return network, folder


@torch.no_grad()
def agreement(network, model, batch):
    expected, _ = decode(network(batch).logits_BKXYZ, confidence=False)
    labels, _ = read_labels(model(batch), confidence=False)
    assert labels.shape == network.config.grid.shape
    return float((labels == expected).mean())


@pytest.mark.parametrize("target", LEAST)
def test_labels_are_those_of_pytorch(exported, target):
    network, folder = exported
    model = load_exported(folder / target)
    for number, (cameras, lidar) in enumerate(absences().values()):
        batch = little_frames(2)[number % 2]  # another calibration each
        assert agreement(network, model, with_absent(batch, cameras, lidar)) >= LEAST[target]
    assert model(with_absent(little_frames(1)[0], [False] * CAMERAS, False)).observed_B.tolist() == [False]


def test_one_artefact_under_many_calibrations_is_right_or_refuses(exported):
    """What a graph knows of the calibration comes with every frame; ranks of one frame do not serve another."""
    network, folder = exported
    model, batch = load_exported(folder / "onnx"), little_frames(1)[0]
    others = [moved(batch, seed=seed, turn=0.25 * seed) for seed in range(8)]
    fits = [fits_in(network, model, other) for other in others]
    assert 2 <= sum(fits) <= 6, "some have room in the graph, some see more from two cameras"
    for other, fit in zip([*others, batch], [*fits, True], strict=True):
        if fit:
            assert agreement(network, model, other) >= LEAST["onnx"]
        else:
            with pytest.raises(ValueError, match="export again with data of this rig"):
                model(other)


def fits_in(network, model, batch):
    """Whether the lift of a calibration has no more pairs of point and camera than the graph has room for."""
    layout = layout_for(network.config, [batch], confidence=False, scatter_free=False)
    room = model.artefact.layout
    return layout.rows <= int(room.rows * HEADROOM) and layout.overlap <= room.overlap


def test_flashocc_in_its_runtimes_under_two_calibrations(tmp_path):
    config = little_flashocc_config()
    network, batch = little_flashocc(config), little_flashocc_batch(config)
    export = Exporter(network, [batch])
    for target in ("onnx", "tensorrt"):
        export.write(tmp_path / target, target)
    check_plain(onnx.load(tmp_path / "tensorrt" / "graph.onnx"))
    with pytest.raises(ValueError, match=r"need a plugin: ai\.onnx\.Scatter"):
        check_plain(onnx.load(tmp_path / "onnx" / "graph.onnx"))
    for folder, runtime in (("onnx", "onnx"), ("onnx", "openvino"), ("tensorrt", "onnx")):
        model = load_exported(tmp_path / folder, runtime)
        for one in (batch, moved(batch, seed=1), batch):
            assert agreement(network, model, one) >= LEAST["openvino"]
        with pytest.raises(ValueError, match="has 2 cameras, the graph was exported for 4"):
            model(with_cameras(batch, [0, 1]))


def test_one_onnx_graph_in_two_runtimes_and_its_confidence(exported):
    network, folder = exported
    batch = little_frames(1)[0]
    with torch.no_grad():
        expected = decode(network(batch).logits_BKXYZ, confidence=True)[1]
    for runtime in ("onnx", "openvino"):
        _, confidence = read_labels(load_exported(folder / "onnx", runtime)(batch), confidence=True)
        assert np.abs(confidence.astype(int) - expected).max() <= 1
    with pytest.raises(ValueError, match="no confidence: export it with --confidence"):
        read_labels(load_exported(folder / "torch-export")(batch), confidence=True)


def test_a_graph_of_torch_moves_as_a_whole(exported):
    artefact = read_artefact(exported[1] / "torch-export")
    elsewhere = torch.device("meta")  # holds no numbers, and refuses to compute with tensors of other devices
    inputs = [torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype), device=elsewhere) for spec in artefact.inputs]
    (labels,) = module_on(artefact, elsewhere)(*inputs)
    assert labels.device == elsewhere
    assert labels.shape[1:] == artefact.config.grid.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: compiled kernels and graphs")
def test_on_a_gpu_the_graph_is_recorded_once_and_replayed(exported):
    network, folder = exported
    model = load_exported(folder / "torch-export")
    assert model.runtime.name.endswith("CUDA graph")
    for batch in little_frames(3):
        assert agreement(network, model, batch) > 0.999


def test_report(exported):
    network, folder = exported
    model = load_exported(folder / "onnx")
    parity = compare(network, model, [Keyframe(batch=one, truth=None) for one in little_frames(3)], data="noise")
    assert parity.labels_equal >= LEAST["onnx"]
    assert parity.scores_before == {}
    assert parity.computes_in == "fp32"
    written = json.loads(write_report(model.artefact, parity).read_text())
    assert written["labels_equal"] == parity.labels_equal
    assert written["precision"] == "fp32"
    assert render(model.artefact, parity).row_count == 6


def test_predictor_takes_an_artefact(exported, monkeypatch):
    _, folder = exported
    model = load_exported(folder / "onnx")
    batch = little_frames(1)[0]
    monkeypatch.setattr("fusionocc_core.predictor.prepare", lambda *_, device: batch)
    frame = type("Frame", (), {"stamp_ns": 5})()
    occupancy = Predictor(model, device="cpu", confidence=True)(frame)
    assert (occupancy.labels == read_labels(model(batch), confidence=False)[0]).all()
    assert occupancy.confidence is not None
    assert occupancy.trained_on == "untrained weights"


def test_int8_stays_close_and_says_what_it_computes_in(exported):
    network, folder = exported
    model = load_exported(folder / "int8")
    assert "FakeQuantize" in model.artefact.graph.read_text()
    assert agreement(network, model, little_frames(1)[0]) > 0.9
    parts = dict(part.rsplit(" ", 1) for part in model.runtime.computes_in.split(", "))
    assert int(parts["int8"]) >= 8
    assert "fp32" in parts or "bf16" in parts  # what is not quantised, by what the processor has


def test_tensorrt_gets_a_recipe_and_a_plain_graph_and_is_not_run(exported):
    network, folder = exported
    model = onnx.load(folder / "tensorrt" / "graph.onnx")
    check_plain(model)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 18
    assert {node.domain for node in model.graph.node} == {""}
    recipe = folder / "tensorrt" / TRTEXEC
    assert recipe.stat().st_mode & 0o100
    text = recipe.read_text()
    assert "trtexec --onnx=graph.onnx --saveEngine=graph.engine --fp16" in text
    assert "has NOT run it" in text
    with pytest.raises(ValueError, match="has no TensorRT"):
        load_exported(folder / "tensorrt")
    by_onnx = load_exported(folder / "tensorrt", "onnx")
    keyframes = [Keyframe(batch=one, truth=None) for one in little_frames(1)]
    assert compare(network, by_onnx, keyframes, data="noise").note.startswith("not run")


def test_operators_that_need_a_plugin_are_named(exported):
    model = onnx.load(exported[1] / "onnx" / "graph.onnx")
    model.graph.node[0].domain = "mine"
    model.opset_import.append(onnx.helper.make_opsetid("mine", 1))
    with pytest.raises(ValueError, match=rf"need a plugin: mine\.{model.graph.node[0].op_type}"):
        check_plain(model)
