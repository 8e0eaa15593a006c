"""Every runtime gives PyTorch's labels; artefacts that do not fit are refused in words."""

import json
import shutil

import numpy as np
import onnx
import pytest
import torch
from export_cases import CAMERAS, absences, export_little, little_frames, lively_network, with_absent
from flashfusion_cases import with_cameras

from fusionocc_core.export.artefact import NOTE, TRTEXEC, is_artefact, read_artefact
from fusionocc_core.export.model import load_exported
from fusionocc_core.export.parity import Keyframe, compare, render, write_report
from fusionocc_core.export.run import Wanted, claim, export_network
from fusionocc_core.predictor import Predictor, decode, read_labels

LEAST = {"onnx": 0.9999, "openvino": 0.9995, "torch-export": 1.0}
"""Share of the voxels whose label must be PyTorch's."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The network, and the folders of its artefacts; the ONNX one is int8's and OpenVINO's source as well."""
    folder = tmp_path_factory.mktemp("exported")
    network = lively_network()
    for target in LEAST:
        export_little(folder / target, target, confidence=target == "onnx")
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
    for cameras, lidar in absences().values():
        for batch in little_frames(2):  # another calibration each
            assert agreement(network, model, with_absent(batch, cameras, lidar)) >= LEAST[target]
    assert model(with_absent(little_frames(1)[0], [False] * CAMERAS, False)).observed_B.tolist() == [False]


def test_one_onnx_graph_in_two_runtimes_and_its_confidence(exported):
    network, folder = exported
    batch = little_frames(1)[0]
    with torch.no_grad():
        expected = decode(network(batch).logits_BKXYZ, confidence=True)[1]
    for runtime in ("onnx", "openvino"):
        _, confidence = read_labels(load_exported(folder / "onnx", runtime)(batch), confidence=True)
        assert np.abs(confidence.astype(int) - expected).max() <= 1
    with pytest.raises(ValueError, match="no confidence: export it with --confidence"):
        read_labels(load_exported(folder / "openvino")(batch), confidence=True)


def test_the_graph_has_standard_operators_only(exported):
    model = onnx.load(exported[1] / "onnx" / "graph.onnx")
    onnx.checker.check_model(model)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 18
    assert {node.domain for node in model.graph.node} == {""}
    awkward = {"ScatterND", "ScatterElements", "NonZero", "Loop", "If"}  # for TensorRT
    assert not awkward & {node.op_type for node in model.graph.node}


def test_report(exported):
    network, folder = exported
    model = load_exported(folder / "onnx")
    parity = compare(network, model, [Keyframe(batch=one, truth=None) for one in little_frames(3)], data="noise")
    assert parity.labels_equal >= LEAST["onnx"]
    assert parity.scores_before == {}
    written = json.loads(write_report(model.artefact, parity).read_text())
    assert written["labels_equal"] == parity.labels_equal
    assert written["precision"] == "fp32"
    assert render(model.artefact, parity).row_count == 5


def test_predictor_takes_an_artefact(exported, monkeypatch):
    _, folder = exported
    model = load_exported(folder / "onnx")
    batch = little_frames(1)[0]
    monkeypatch.setattr("fusionocc_core.predictor.prepare", lambda *_: batch)
    frame = type("Frame", (), {"stamp_ns": 5})()
    occupancy = Predictor(model, device="cpu", confidence=True)(frame)
    assert (occupancy.labels == read_labels(model(batch), confidence=False)[0]).all()
    assert occupancy.confidence is not None
    assert occupancy.trained_on == "untrained weights"


def test_int8_needs_keyframes_and_stays_close(tmp_path):
    network = lively_network()
    with pytest.raises(ValueError, match=r"int8 needs keyframes .* --data"):
        export_network(network, [], tmp_path / "none", Wanted(target="openvino", precision="int8"))
    _, artefact = export_little(tmp_path / "int8", "openvino", "int8")
    assert "FakeQuantize" in artefact.graph.read_text()
    assert agreement(network, load_exported(artefact.folder), little_frames(1)[0]) > 0.9


def test_tensorrt_gets_a_recipe_and_is_not_run(tmp_path):
    network, artefact = export_little(tmp_path / "trt", "tensorrt", "fp16")
    recipe = artefact.folder / TRTEXEC
    assert recipe.stat().st_mode & 0o100
    text = recipe.read_text()
    assert "--onnx=graph.onnx" in text
    assert "--fp16" in text
    assert "has NOT run it" in text
    with pytest.raises(ValueError, match="has no TensorRT"):
        load_exported(artefact.folder)
    parity = compare(
        network,
        load_exported(artefact.folder, "onnx"),
        [Keyframe(batch=one, truth=None) for one in little_frames(1)],
        data="noise",
    )
    assert parity.note.startswith("not run")


def change(note, **values):
    content = json.loads(note.read_text())
    note.write_text(json.dumps({**content, **values}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda folder: change(folder / NOTE, fusionocc="0.0.1"),
            "exported by fusionocc 0.0.1, this is .*export again",
        ),
        (lambda folder: change(folder / NOTE, format="fusionocc-export-9"), "this version reads 'fusionocc-export-1'"),
        (lambda folder: change(folder / NOTE, config={"class": "OtherConfig"}), "OtherConfig.*export again"),
        (lambda folder: change(folder / NOTE, layout={}), "damaged"),
        (lambda folder: (folder / NOTE).write_text("{"), "damaged"),
        (lambda folder: (folder / "graph.onnx").write_bytes(b"other"), "not the file that artefact.json"),
        (lambda folder: change(folder / NOTE, inputs=[]), "its graph takes"),
    ],
    ids=["version", "format", "network", "note", "json", "graph", "inputs"],
)
def test_artefacts_of_others_are_refused(exported, tmp_path, damage, words):
    shutil.copytree(exported[1] / "onnx", tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(ValueError, match=words):
        load_exported(tmp_path / "copy")


def test_other_rigs_and_runtimes_are_refused(exported, tmp_path):
    _, folder = exported
    model = load_exported(folder / "openvino")
    model.check_rig(CAMERAS)
    with pytest.raises(ValueError, match="for a rig of 4 cameras, this one has 5"):
        model.check_rig(5)
    with pytest.raises(ValueError, match="5 cameras, the graph was exported for 4"):
        model(with_cameras(little_frames(1)[0], [0, 1, 2, 3, 0]))
    with pytest.raises(ValueError, match="can be run by openvino; for onnx export with --to onnx"):
        load_exported(folder / "openvino", "onnx")
    with pytest.raises(FileNotFoundError, match="no artefact"):
        read_artefact(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="something else than an artefact"):
        claim(tmp_path)
    assert (tmp_path / "mine.txt").exists()
    assert not is_artefact(tmp_path)


@pytest.mark.parametrize(
    ("target", "precision", "words"),
    [
        ("caffe", "fp32", "expected one of onnx"),
        ("onnx", "bf16", "onnx has fp32, int8; bf16 is there with --to openvino or tensorrt"),
        ("openvino", "int4", "openvino has fp32, fp16, bf16, int8"),
    ],
)
def test_unknown_targets_and_precisions(tmp_path, target, precision, words):
    with pytest.raises(ValueError, match=words):
        export_network(lively_network(), little_frames(1), tmp_path, Wanted(target=target, precision=precision))
