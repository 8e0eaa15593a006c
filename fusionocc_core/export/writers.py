"""From a graph to the file that a runtime opens."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
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
from fusionocc_core.structures import Batch

OUTPUTS = ("labels", "confidence")

NOT_FOR_TENSORRT = ("ScatterND", "ScatterElements", "NonZero", "Loop", "If", "SequenceConstruct")
"""Standard operators that TensorRT leaves to plugins, or whose shapes or number of rounds follow from values."""

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


class Traced:
    """A graph with what feeds it; however many files are written of it, it is traced to ONNX once.

    Args:
        graph: in inference mode.
        feed: of its inputs; says their names.
        batches: some keyframes, at least one. The first one is traced; int8 takes the ranges of values from all.
    """

    def __init__(self, graph: FlashFusionGraph | FlashOccGraph, feed: Feed, batches: Sequence[Batch]) -> None:
        self.graph, self.feed, self.batches = graph, feed, batches

    @cached_property
    def sample(self) -> tuple[Tensor, ...]:
        """The inputs of the first keyframe."""
        return tensors_of_batch(self.feed(self.batches[0]))

    @cached_property
    def samples(self) -> list[tuple[Tensor, ...]]:
        """Of all."""
        return [self.sample, *(tensors_of_batch(self.feed(batch)) for batch in self.batches[1:])]

    @property
    def onnx(self) -> Any:
        """The graph as an onnx.ModelProto of its own."""
        return import_module("onnx").load_from_string(self._onnx)

    @cached_property
    def _onnx(self) -> bytes:
        content: bytes = onnx_model(self.graph, self.feed, self.sample).SerializeToString()
        return content


def tensors_of_batch(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """In plain memory of their own: tables are kept, and made in inference mode."""
    return tuple(tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors)


def write_graph(traced: Traced, folder: Path, target: str, precision: str) -> dict[str, str]:
    """Write a graph for a target, and give the versions of what wrote it.

    Args:
        traced: the graph.
        folder: where to write GRAPHS[target] and what belongs to it.
        target: see artefact.GRAPHS.
        precision: see artefact.PRECISIONS.

    Raises:
        ValueError: the graph holds operators that the target does not have.
        ModuleNotFoundError: what writes it is not installed.
    """
    path, int8 = folder / GRAPHS[target], precision == "int8"
    if target == "torch-export":
        with torch.no_grad():
            torch.export.save(torch.export.export(traced.graph, traced.sample), path)
        return versions()
    tools = ("onnx", "onnxscript", *(["openvino"] if target == "openvino" else []), *(["nncf"] if int8 else []))
    require(target, *tools)
    model = traced.onnx
    names = operators_to_quantize(model, type(traced.graph.network).__name__)
    if target == "openvino":
        model = read_by_openvino(model)
    if int8:
        model = quantize(model, names, traced.feed, traced.samples)
    if target == "openvino":
        # bf16 is rounded from fp32 as the graph is loaded: by way of fp16, small weights would lose digits before.
        import_module("openvino").save_model(model, str(path), compress_to_fp16=precision == "fp16")
    else:
        import_module("onnx").save(model, path)
    if target == "tensorrt":
        check_plain(model)
        write_trtexec(folder, traced.feed, precision)
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


def check_plain(model: Any) -> None:
    """Check that an ONNX model is valid and holds nothing that TensorRT has no own layer for.

    Raises:
        ValueError: it holds operators that need a plugin.
    """
    import_module("onnx").checker.check_model(model, full_check=True)
    foreign = sorted(
        {f"{node.domain or 'ai.onnx'}.{node.op_type}" for node in all_nodes(model.graph) if not_plain(node)}
    )
    if foreign:
        raise ValueError(f"tensorrt: the graph holds operators that need a plugin: {', '.join(foreign)}")


def all_nodes(graph: Any) -> Iterator[Any]:
    """Of an ONNX graph and the graphs inside its operators."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from all_nodes(inner)


def not_plain(node: Any) -> bool:
    """Whether an operator is not of the ONNX standard, or one of NOT_FOR_TENSORRT."""
    return node.domain not in ("", "ai.onnx") or node.op_type in NOT_FOR_TENSORRT


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
