"""Batch norms folded into the convolutions before them: the same network for inference, with fewer steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_NUMBERED = ("fusionocc_core.", "timm.models.resnet")
"""Modules from here name a norm bn<number> after the conv<number> whose result it takes, and nothing else does."""

Pair = tuple[tuple[str, ...], str]
"""Names of the convolutions whose sum a norm takes (one, mostly), and of the norm."""


@runtime_checkable
class NamesItsNorms(Protocol):
    """A module that says which of its norms take the sum of which of its convolutions, and of nothing else."""

    def norm_pairs(self) -> list[Pair]:
        """The names, relative to the module."""


def fold_batch_norms(network: Network) -> Network:
    """A copy for inference whose batch norms are part of the convolutions before them.

    The results are the same up to rounding. The network itself is not changed, and the copy shares with it all tensors
    that need no change; those of the copy have no gradients. A norm that does not directly follow a convolution stays.
    The weights of 2D convolutions lie with their channels last, as their inputs do here.

    Args:
        network: in inference mode.

    Raises:
        ValueError: the network is in training mode, in which a norm depends on the batch.
    """
    if network.training:
        raise ValueError("fold_batch_norms: the network is in training mode; call eval() on it first")
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    folded = copy.deepcopy(network, shared)
    pairs = [(parent, pair) for parent in folded.modules() for pair in _pairs(parent)]
    taken = [id(parent.get_submodule(name)) for parent, (layers, _) in pairs for name in layers]
    for parent, (layers, norm) in pairs:
        # A convolution that two norms follow is folded into neither.
        if all(taken.count(id(parent.get_submodule(name))) == 1 for name in layers):
            _fold(parent, layers, norm)
    for module in folded.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
    return folded


def _pairs(parent: nn.Module) -> Iterator[Pair]:
    """Convolutions of a module with the norm that takes their sum. Exact types only: others may do more."""
    for layers, norm in _named(parent):
        types = [type(parent.get_submodule(name)) for name in layers]
        found = parent.get_submodule(norm)
        if type(found) in _NORMS and found.running_mean is not None and all(kind in _CONVOLUTIONS for kind in types):
            yield layers, norm


def _named(parent: nn.Module) -> list[Pair]:
    children = dict(parent.named_children())
    if isinstance(parent, NamesItsNorms):
        return parent.norm_pairs()
    if type(parent) is nn.Sequential:
        return [((layer,), norm) for layer, norm in pairwise(children)]
    if type(parent).__module__.startswith(_NUMBERED):
        numbered = [(f"conv{name.removeprefix('bn')}", name) for name in children if name.startswith("bn")]
        return [((layer,), norm) for layer, norm in numbered if layer in children]
    return []


def _fold(parent: nn.Module, layers: tuple[str, ...], name: str) -> None:
    """Scale the convolutions and let the first of them add what the norm adds; the norm becomes the identity."""
    norm = parent.get_submodule(name)
    assert isinstance(norm, _NORMS)
    scale_C, shift_C = _scale_and_shift(norm)
    for layer in (parent.get_submodule(layer) for layer in layers):
        assert isinstance(layer, _CONVOLUTIONS)
        weight = layer.weight.detach()
        bias_C = torch.zeros_like(shift_C) if layer.bias is None else layer.bias.detach().double() * scale_C
        folded = weight.double() * scale_C.view(-1, *[1] * (weight.dim() - 1))
        layer.weight = nn.Parameter(folded.to(weight), requires_grad=False)
        layer.bias = nn.Parameter((bias_C + shift_C).to(weight), requires_grad=False)
        shift_C = torch.zeros_like(shift_C)
    parent.set_submodule(name, nn.Identity())


def _scale_and_shift(norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies with and adds in inference, float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale_C = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale_C = scale_C * norm.weight.detach().double()
    shift_C = -norm.running_mean.double() * scale_C
    return scale_C, shift_C + norm.bias.detach().double() if norm.affine else shift_C
