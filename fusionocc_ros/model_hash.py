"""A short name for exactly these weights, so that two vehicles can be compared by their diagnostics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fusionocc_core.export.artefact import Artefact

DIGITS = 16
"""Hexadecimal digits that are shown of a SHA-256."""


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Of a network's state_dict: names, types, shapes and every byte; the same on every device."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()[:DIGITS]


def artefact_hash(artefact: Artefact) -> str:
    """Of an exported network: the files of its graph."""
    from fusionocc_core.export.artefact import graph_files, sha256

    parts = [f"{path.name} {sha256(path)}" for path in sorted(graph_files(artefact))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]
