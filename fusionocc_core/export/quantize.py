"""Int8 by post-training quantisation with NNCF: value ranges come from keyframes, weights from the network."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor

from fusionocc_core.export.graph import Feed
from fusionocc_core.export.runtimes import array_of

QUANTIZED: dict[str, tuple[str, ...]] = {
    "FlashFusion": ("network.pictures.backbone", "network.pictures.lateral", "network.pictures.join"),
    "FlashOcc": ("network.img_backbone", "network.img_neck"),
}
"""Parts of the networks whose convolutions become int8. What leads to depth, the map seen from above and the heads keep
their precision: measured on FlashFusion, int8 there costs several percent of the labels (docs/export.md)."""

SCOPES = "pkg.torch.onnx.name_scopes"
"""Under this name PyTorch notes, at each operator of an ONNX graph, which module it comes from."""

SILENT = "NNCF_CI"
"""NNCF reports its use to its makers unless this says, when it is imported, that it runs in an automatic test."""


def quantize(model: Any, names: Sequence[str], feed: Feed, samples: Sequence[Sequence[Tensor]]) -> Any:
    """A model with the operators of these names in int8, and all others as they are.

    Args:
        model: onnx.ModelProto, or openvino.Model that was read from one.
        names: see ``operators_to_quantize``.
        feed: of its inputs; says their names.
        samples: the inputs of some keyframes.

    Raises:
        ValueError: there are no samples.
    """
    if not samples:
        raise ValueError("int8 needs keyframes to take the ranges of values from: name a data set with --data")
    with silenced():
        nncf = import_module("nncf")
        inputs = [dict(zip(feed.names, map(array_of, sample), strict=True)) for sample in samples]
        return nncf.quantize(
            model,
            nncf.Dataset(inputs),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=others(model, names), validate=False),
        )


def operators_to_quantize(model: Any, network: str) -> list[str]:
    """Names of the convolutions of an ONNX model that belong to QUANTIZED parts of a network."""
    prefixes = QUANTIZED[network]
    found = []
    for node in model.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
        if node.op_type == "Conv" and any(prefix in scopes for prefix in prefixes):
            found.append(node.name)
    return found


def others(model: Any, names: Sequence[str]) -> list[str]:
    """Names of all operators but the convolutions of these names.

    OpenVINO splits a convolution into NAME/WithoutBiases and an addition, NAME, which must not become int8 either.
    """
    if hasattr(model, "graph"):
        return [node.name for node in model.graph.node if node.name not in names]
    convolutions = {name + end for name in names for end in ("", "/WithoutBiases")}
    return [
        op.get_friendly_name()
        for op in model.get_ops()
        if op.get_type_name() not in ("Constant", "Parameter", "Result")
        and not (op.get_type_name() == "Convolution" and op.get_friendly_name() in convolutions)
    ]


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Without reports to anyone, and without log lines of every step."""
    logger = logging.getLogger("nncf")
    disabled, before = logger.disabled, os.environ.get(SILENT)
    os.environ[SILENT], logger.disabled = "1", True
    try:
        yield
    finally:
        logger.disabled = disabled
        if before is None:
            del os.environ[SILENT]
        else:
            os.environ[SILENT] = before
