"""Artefacts, rigs, runtimes and options that do not fit are refused in words."""

import json
import shutil
import types

import pytest
from export_cases import CAMERAS, export_little, little_frames, lively_network
from flashfusion_cases import with_cameras

from fusionocc_core import cli
from fusionocc_core.export import runtimes
from fusionocc_core.export.artefact import NOTE, is_artefact, read_artefact
from fusionocc_core.export.model import load_exported
from fusionocc_core.export.run import Wanted, claim, export_network


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A little FlashFusion for PyTorch, which is the quickest to write."""
    folder = tmp_path_factory.mktemp("exported") / "little"
    export_little(folder, "torch-export", confidence=False)
    return folder


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
        (lambda folder: (folder / "graph.pt2").write_bytes(b"other"), "not the file that artefact.json"),
        (lambda folder: change(folder / NOTE, inputs=[]), "its graph takes"),
    ],
    ids=["version", "format", "network", "note", "json", "graph", "inputs"],
)
def test_artefacts_of_others(folder, tmp_path, damage, words):
    shutil.copytree(folder, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(ValueError, match=words):
        load_exported(tmp_path / "copy")


def test_other_rigs(folder):
    model = load_exported(folder)
    model.check_rig(CAMERAS)
    with pytest.raises(ValueError, match="for a rig of 4 cameras, this one has 5"):
        model.check_rig(5)
    with pytest.raises(ValueError, match="5 cameras, the graph was exported for 4"):
        model(with_cameras(little_frames(1)[0], [0, 1, 2, 3, 0]))


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ("onnx", "can be run by torch-export; for onnx export with --to onnx"),
        ("torch", "for torch load the weights that it was made from"),
        ("caffe", "runtime caffe: expected one of auto, torch, torch-compile, onnx"),
    ],
)
def test_other_runtimes(folder, runtime, words):
    with pytest.raises(ValueError, match=words):
        load_exported(folder, runtime)


def test_folders_of_others(tmp_path):
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
        ("torch-export", "int8", "torch-export has fp32; int8 is there with --to onnx or openvino or tensorrt"),
        ("openvino", "int4", "openvino has fp32, fp16, bf16, int8"),
    ],
)
def test_unknown_targets_and_precisions(tmp_path, capsys, target, precision, words):
    with pytest.raises(ValueError, match=words):
        export_network(lively_network(), little_frames(1), tmp_path, Wanted(target=target, precision=precision))
    assert cli.main(["export", "--to", target, "--precision", precision, "--data", str(tmp_path)]) == 2
    assert f"--precision {precision}" in (told := capsys.readouterr().err) or f"--to {target}" in told


def test_int8_without_keyframes(tmp_path, capsys):
    with pytest.raises(ValueError, match=r"int8 needs keyframes .* --data"):
        export_network(lively_network(), [], tmp_path / "none", Wanted(target="openvino", precision="int8"))
    assert cli.main(["export", "--to", "openvino", "--precision", "int8"]) == 2
    assert "--data is missing: int8 takes the ranges of values from keyframes" in " ".join(
        capsys.readouterr().err.split()
    )


def test_an_artefact_is_no_network_to_export(folder, capsys):
    assert cli.main(["export", str(folder), "--to", "onnx", "--data", str(folder)]) == 2
    assert "is an exported network already" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "bf16"], "--precision bf16: leave it out"),
        (["--preset", "flashfusion-mini"], "--preset flashfusion-mini: leave it out"),
        (["--runtime", "openvino"], "can be run by torch-export"),
    ],
)
def test_options_that_an_artefact_does_not_take(folder, capsys, options, words):
    assert cli.main(["robustness", str(folder), "--data", str(folder), *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert cli.main(["robustness", "--runtime", "onnx", "--data", str(folder)]) == 2
    assert "--runtime onnx: the weights that ship are no exported network" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("precision", "capabilities", "hint"),
    [
        ("bf16", ("BF16", "FP32", "INT8"), "bf16"),
        ("bf16", ("FP32", "INT8"), "f32"),
        ("fp16", ("BF16", "FP32"), "f32"),
        ("fp16", ("BF16", "FP32", "FP16"), "f16"),
        ("int8", ("FP32", "INT8"), "f32"),
        ("fp32", ("BF16", "FP32", "FP16"), "f32"),
    ],
)
def test_openvino_never_computes_in_less_than_was_asked_for(precision, capabilities, hint):
    assert runtimes.hint_for(precision, capabilities) == hint


def test_what_a_compiled_model_computes_in():
    """What OpenVINO reports of a compiled model decides, not what was asked for."""

    def operation(layer, kernel):
        about = {"layerType": layer, "primitiveType": kernel}
        told = {k: types.SimpleNamespace(astype=lambda _, v=v: v) for k, v in about.items()}
        return types.SimpleNamespace(get_rt_info=lambda: told)

    layers = [("Convolution", "brgconv_avx512_f32")] * 3
    layers += [("Convolution", "jit_avx512_I8"), ("FullyConnected", "brgemm_avx512_bf16"), ("Reorder", "jit_uni_bf16")]
    model = types.SimpleNamespace(get_ops=lambda: [operation(*layer) for layer in layers])
    assert runtimes.precisions_of(model) == "fp32 3, int8 1, bf16 1"
