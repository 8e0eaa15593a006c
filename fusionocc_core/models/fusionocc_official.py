"""Tensor names and layouts of the official FusionOcc checkpoint, to and from ours.

Most modules carry the official names. What differs: the parts that timm provides, the order of the inputs of Swin's
patch merging, the layout of the sparse convolutions, and one index that is stored there and computed here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.layers.image_backbones import SwinConfig
from fusionocc_core.ops.sparse_conv import sparse_weight_from_official, sparse_weight_to_official

if TYPE_CHECKING:
    from fusionocc_core.models.fusionocc import FusionOcc

RENAMED = (  # official, ours
    ("img_backbone.patch_embed.projection.", "img_backbone.patch_embed.proj."),
    (".ffn.layers.0.0.", ".ffn.fc1."),
    (".ffn.layers.1.", ".ffn.fc2."),
)
INDEX = ".relative_position_index"
"""A buffer of the official file that follows from the window size."""
TABLE = ".relative_position_bias_table"
MERGED = re.compile(r"img_backbone\.stages\.\d+\.downsample\.")
SPARSE = re.compile(r"lidar_encoder\.(conv_input|conv_out|encoder_layers\.encoder_layer\d+\.\d+)\.0\.weight")


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names and in our layouts, from those of an official file (either layout of sparse weights).

    Raises:
        ValueError: a stored position index that is not the usual one, so that the bias tables would be read wrongly.
    """
    ours = {}
    for name, tensor in state.items():
        if name.endswith(INDEX):
            _check_index(name, tensor)
            continue
        for official, own in RENAMED:
            name = name.replace(official, own)
        if MERGED.match(name):
            tensor = merging_from_official(tensor)
        elif SPARSE.fullmatch(name):
            tensor = sparse_weight_from_official(tensor)
        ours[name] = tensor
    return ours


def official_state_dict(model: FusionOcc) -> dict[str, Tensor]:
    """A network's tensors under the official names and in the official layouts (sparse weights as mmcv keeps them).

    Raises:
        ValueError: the network has no official counterpart.
    """
    if not isinstance(model.config.image_backbone, SwinConfig):
        raise ValueError(
            f"official_state_dict: the official network has a Swin backbone, this one {model.config.image_backbone}"
        )
    return to_official(model.state_dict())


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`from_official`; sparse weights as mmcv keeps them."""
    official = {}
    for name, tensor in state.items():
        if MERGED.match(name):
            tensor = merging_to_official(tensor)
        elif SPARSE.fullmatch(name):
            tensor = sparse_weight_to_official(tensor)
        for theirs, own in RENAMED:
            name = name.replace(own, theirs)
        official[name] = tensor
        if name.endswith(TABLE):
            window = (round(tensor.shape[0] ** 0.5) + 1) // 2
            official[name.removesuffix(TABLE) + INDEX] = relative_position_index(window).to(tensor.device)
    return official


def merging_from_official(weight: Tensor) -> Tensor:
    """Inputs of a patch merging (last axis, 4C): from channel, row, column order to timm's column, row, channel."""
    channels = weight.shape[-1] // 4
    return weight.unflatten(-1, (channels, 2, 2)).transpose(-1, -3).flatten(-3).contiguous()


def merging_to_official(weight: Tensor) -> Tensor:
    """Inverse of :func:`merging_from_official`."""
    channels = weight.shape[-1] // 4
    return weight.unflatten(-1, (2, 2, channels)).transpose(-1, -3).flatten(-3).contiguous()


def relative_position_index(window: int) -> Tensor:
    """(N, N) int64: the row of the bias table for each query and key of a window, N = window squared."""
    row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    down = row.reshape(-1, 1) - row.reshape(1, -1) + window - 1
    right = column.reshape(-1, 1) - column.reshape(1, -1) + window - 1
    return down * (2 * window - 1) + right


def _check_index(name: str, index: Tensor) -> None:
    window = round(index.shape[0] ** 0.5)
    if tuple(index.shape) != (window**2, window**2) or not torch.equal(index.cpu(), relative_position_index(window)):
        raise ValueError(
            f"{name}: the file orders the relative positions of its attention windows in a way that this network does "
            "not know; it was not written by the official FusionOcc"
        )


def check_official_grid(config_text: str, grid: VoxelGrid, source: str) -> None:
    """Compare the grid in the config text that an official file may carry with the network's.

    Raises:
        ValueError: they differ.
    """
    number = r"\s*(-?[\d.]+(?:e-?\d+)?)\s*"
    section = re.search(r"grid_config\s*=?\s*[\"']?:?\s*(?:dict\(|\{)([^)}]*)", config_text)
    for axis, lower, upper, size in zip("xyz", grid.lower, grid.upper, grid.voxel_size, strict=True):
        found = section and re.search(
            rf"\b{axis}[\"']?\s*[=:]\s*[\[(]{number},{number},{number}[\])]", section.group(1)
        )
        if not found:
            continue
        theirs = tuple(float(value) for value in found.groups())
        if any(abs(a - b) > 1e-6 for a, b in zip(theirs, (lower, upper, size), strict=True)):
            raise ValueError(
                f"{source}: trained on a grid with {axis} from {theirs[0]} to {theirs[1]} m in steps of {theirs[2]} m; "
                f"this network's has {lower} to {upper} m in steps of {size} m: use the preset that the file belongs to"
            )
