"""Tensor names of the official GaussianFormer checkpoints, to and from ours.

Everything but the blocks of the encoder carries the official names; those are one flat list there. Official files also
hold numbers that our configs hold (ranges, cells, the empty Gaussian): they are compared and left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusionocc_core.layers.gaussian_head import AdditiveHeadConfig

if TYPE_CHECKING:
    from fusionocc_core.models.gaussianformer import GaussianFormer, GaussianFormerConfig

V1_FIRST = {"deformable": 0, "ffn": 1, "norm": 2, "refine": 3}
"""Place of each part of the first block in the official list; operations without weights have places, too."""
V1_NEXT = {"spconv": 0, "spconv_norm": 1, "deformable": 2, "ffn": 3, "norm": 4, "refine": 5}
V2 = {
    "deformable": 1,
    "deformable_norm": 3,
    "ffn": 5,
    "ffn_norm": 7,
    "spconv": 9,
    "spconv_norm": 11,
    "second_ffn": 13,
    "second_ffn_norm": 15,
    "refine": 16,
}
OFFICIAL, OURS = re.compile(r"encoder\.layers\.(\d+)\."), re.compile(r"encoder\.blocks\.(\d+\.\w+)\.")


def from_official(state: Mapping[str, Tensor], config: GaussianFormerConfig) -> dict[str, Tensor]:
    """Tensors under our names, from those of an official file.

    Raises:
        ValueError: the file was made for another grid, other cells or another empty Gaussian.
    """
    constants = _constants(config)
    blocks = {str(place): part for part, place in _places(config).items()}
    ours = {}
    for name, tensor in state.items():
        if name in constants:
            _check_constant(name, tensor, constants[name])
            continue
        found = OFFICIAL.match(name)
        if found and found[1] in blocks:
            name = f"encoder.blocks.{blocks[found[1]]}.{name[found.end() :]}"
        ours[name] = tensor
    return ours


def official_state_dict(model: GaussianFormer) -> dict[str, Tensor]:
    """A network's tensors, and the numbers of its config that official files hold, under the official names."""
    places, official = _places(model.config), dict(_constants(model.config))
    for name, tensor in model.state_dict().items():
        if found := OURS.match(name):
            name = f"encoder.layers.{places[found[1]]}.{name[found.end() :]}"
        official[name] = tensor
    return official


def _places(config: GaussianFormerConfig) -> dict[str, int]:
    """Place in the official list of each "block.part"."""
    places, start = {}, 0
    for block in range(config.encoder.blocks):
        parts = V2 if config.encoder.layout == "v2" else V1_NEXT if block else V1_FIRST
        places.update({f"{block}.{part}": start + place for part, place in parts.items()})
        start += max(parts.values()) + 1
    return places


def _constants(config: GaussianFormerConfig) -> dict[str, Tensor]:
    """Buffers of the official modules that hold numbers of their configs."""
    grid, head = config.grid, config.head
    found = {"head.zero_tensor": torch.zeros(1), "head.aggregator.pc_min": torch.tensor([grid.lower])}
    for part, place in _places(config).items():
        if part.endswith(".spconv"):
            found[f"encoder.layers.{place}.pc_range"] = torch.tensor([*grid.lower, *grid.upper])
            found[f"encoder.layers.{place}.grid_size"] = torch.full((3,), config.encoder.sparse_conv.cell)
    if isinstance(head, AdditiveHeadConfig) and head.empty is not None:
        found["head.empty_mean"] = torch.tensor([[head.empty.mean]])
        found["head.empty_scale"] = torch.tensor([[head.empty.scales]])
        found["head.empty_rot"] = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])
        found["head.empty_sem"] = torch.zeros(1, 1, config.label_set.num)
        found["head.empty_opa"] = torch.ones(1, 1, 1)
    return found


def _check_constant(name: str, tensor: Tensor, expected: Tensor) -> None:
    if tensor.shape != expected.shape or not torch.allclose(tensor.float().cpu(), expected, rtol=0, atol=1e-5):
        raise ValueError(
            f"the official file holds {name} = {tensor.flatten().tolist()}, this network has "
            f"{expected.flatten().tolist()}: it was trained for another grid; choose the preset that it belongs to"
        )
