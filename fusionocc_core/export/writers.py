"""From a graph to the file that a runtime opens."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from fusionocc_core.export.artefact import GRAPHS, OPSET, TRTEXEC
from fusionocc_core.export.flashfusion_graph import FlashFusionGraph
from fusionocc_core.export.flashocc_graph import FlashOccGraph
from fusionocc_core.export.graph import Feed
from fusionocc_core.export.quantize import operators_to_quantize, quantize
from fusionocc_core.export.runtimes import require, versions

OUTPUTS = ("labels", "confidence")

TRTEXEC_FLAGS = {"fp32": "--noTF32", "fp16": "--fp16", "bf16": "--bf16", "int8": "--int8 --fp16"}

TRTEXEC_RECIPE = """#!/bin/sh
# Builds and times a TensorRT engine: run it on the machine with the GPU, beside {graph}.
# Written by `fusionocc export`, which has NOT run it: TensorRT was not there. {graph} itself was run by ONNX Runtime
# (report.json). It has standard operators of opset {opset} only: no plugin is needed. All shapes are fixed.
# The tables of the calibration are inputs ({tables}): compute them for the rig at hand,
# never reuse those of another calibration.
set -eu
cd "$(dirname "$0")"
trtexec --onnx={graph} --saveEngine=graph.engine {flags} --builderOptimizationLevel=5 "$@"
"""


def write_graph(
    graph: FlashFusionGraph | FlashOccGraph,
    feed: Feed,
    samples: Sequence[Sequence[Tensor]],
    folder: Path,
    target: str,
    precision: str,
) -> dict[str, str]:
    """Write a graph for a target, and give the versions of what wrote it.

    Args:
        graph: in inference mode.
        feed: of its inputs; says their names.
        samples: the inputs of some keyframes. The first one is traced; int8 takes the ranges of values from all.
        folder: where to write GRAPHS[target] and what belongs to it.
        target: see artefact.GRAPHS.
        precision: see artefact.PRECISIONS.

    Raises:
        ValueError: int8 without samples.
        ModuleNotFoundError: what writes it is not installed.
    """
    path, int8 = folder / GRAPHS[target], precision == "int8"
    if target == "torch-export":
        with torch.no_grad():
            torch.export.save(torch.export.export(graph, tuple(samples[0])), path)
        return versions()
    tools = ("onnx", "onnxscript", *(["openvino"] if target == "openvino" else []), *(["nncf"] if int8 else []))
    require(target, *tools)
    model = onnx_model(graph, feed, samples[0])
    names = operators_to_quantize(model, type(graph.network).__name__)
    if target == "openvino":
        model = read_by_openvino(model)
    if int8:
        model = quantize(model, names, feed, samples)
    if target == "openvino":
        compress = precision in ("fp16", "bf16")
        import_module("openvino").save_model(model, str(path), compress_to_fp16=compress)
    else:
        import_module("onnx").save(model, path)
    if target == "tensorrt":
        write_trtexec(folder, feed, precision)
    return versions(*tools)


def onnx_model(graph: FlashFusionGraph | FlashOccGraph, feed: Feed, sample: Sequence[Tensor]) -> Any:
    """The graph as an onnx.ModelProto."""
    with torch.no_grad(), quiet():
        program = torch.onnx.export(
            graph,
            tuple(tensor.clone() for tensor in sample),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(feed.names),
            output_names=list(OUTPUTS[: 2 if graph.layout.confidence else 1]),
            verbose=False,
        )
    assert program is not None, "dynamo=True gives a program"
    return program.model_proto


def read_by_openvino(model: Any) -> Any:
    """An ONNX model as an openvino.Model."""
    with TemporaryDirectory() as folder:  # read_model, unlike convert_model, reports its use to nobody
        (Path(folder) / "graph.onnx").write_bytes(model.SerializeToString())
        return import_module("openvino").Core().read_model(str(Path(folder) / "graph.onnx"))


def write_trtexec(folder: Path, feed: Feed, precision: str) -> None:
    """The recipe for an engine."""
    tables = ", ".join(name for name in feed.names if name.split("_")[0] not in ("images", "measured", "raster"))
    text = TRTEXEC_RECIPE.format(
        graph=GRAPHS["tensorrt"], opset=OPSET, flags=TRTEXEC_FLAGS[precision], tables=tables.replace("\n", " ")
    )
    path = folder / TRTEXEC
    path.write_text(text)
    os.chmod(path, path.stat().st_mode | stat.S_IXUSR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters report their progress and warn of their own insides; errors still come through."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
