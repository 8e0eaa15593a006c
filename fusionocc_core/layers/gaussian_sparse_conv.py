"""Sparse convolution over Gaussians: those in neighbouring cells tell each other what they know.

Names of submodules are those of the official checkpoints. Shape suffixes: B batch, G Gaussians, P = B * G, S cells that
hold Gaussians, C channels, O X Y Z I weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fusionocc_core.grids import VoxelGrid
from fusionocc_core.ops.rulebook import Rulebook, submanifold_rulebook
from fusionocc_core.ops.scatter import scatter_mean
from fusionocc_core.ops.sparse_conv import plan_submanifold_conv3d, submanifold_conv3d
from fusionocc_core.ops.sparse_volume import SparseVolume, coords_from_keys, voxel_keys
from fusionocc_core.ops.spconv_backend import SpconvRulebook

Plan = Rulebook | SpconvRulebook

KERNEL = 5
RULES = ("pool", "spconv")


@dataclass(frozen=True, kw_only=True)
class SparseConvConfig:
    """How Gaussians are sorted into cells, and what happens there."""

    cell: float
    """Edge of a cell, metres; must divide the grid."""
    layers: int = 1
    """1: one convolution without bias (v1). More: each with bias, layer norm and ReLU (v2)."""
    output_layer: bool = True
    """A linear layer at the end."""
    duplicate: str = "pool"
    """Several Gaussians in one cell: "pool": the cell has their mean, and all get what the cell gets. "spconv": what
    the official network's library does (see :func:`convolve_like_spconv`)."""

    def __post_init__(self) -> None:
        """Refuse rules that do not exist."""
        if self.duplicate not in RULES:
            raise ValueError(f"SparseConvConfig.duplicate={self.duplicate!r}: expected one of {RULES}")
        if self.cell <= 0 or self.layers < 1:
            raise ValueError(f"SparseConvConfig: cell={self.cell} and layers={self.layers} must be positive")


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Which Gaussians share a cell."""

    coords_S4: Tensor
    """(b, ix, iy, iz) of the cells, sorted."""
    cell_P: Tensor
    """Row of each Gaussian's cell."""
    first_S: Tensor
    """The first Gaussian of each cell."""
    shape: tuple[int, int, int]
    """Cells along x, y, z."""
    batch_size: int

    def volume(self, feature_SC: Tensor) -> SparseVolume:
        """The cells with features."""
        return SparseVolume(
            features_MC=feature_SC, coords_M4=self.coords_S4, shape=self.shape, batch_size=self.batch_size
        )


@torch.no_grad()
def cells_of(means_BG3: Tensor, grid: VoxelGrid) -> Cells:
    """Sort Gaussians into the cells of a grid; means on its upper faces count to the last cells."""
    lower, size = means_BG3.new_tensor(grid.lower), means_BG3.new_tensor(grid.voxel_size)
    last = torch.tensor(grid.shape, device=means_BG3.device) - 1
    index_P3 = torch.minimum(((means_BG3 - lower) / size).long().clamp(min=0), last).flatten(0, 1)
    batch, count = means_BG3.shape[:2]
    b_P = torch.arange(batch, device=means_BG3.device).repeat_interleave(count)
    keys_P = voxel_keys(torch.cat([b_P.unsqueeze(1), index_P3], dim=1), grid.shape)
    keys_S, cell_P = keys_P.unique(return_inverse=True)
    row_P = torch.arange(len(keys_P), device=keys_P.device)
    first_S = torch.full_like(keys_S, len(keys_P)).scatter_reduce(0, cell_P, row_P, "amin")
    return Cells(
        coords_S4=coords_from_keys(keys_S, grid.shape),
        cell_P=cell_P,
        first_S=first_S,
        shape=grid.shape,
        batch_size=batch,
    )


def convolve_pooled(feature_PC: Tensor, cells: Cells, weight_OXYZI: Tensor, plan: Plan | None) -> Tensor:
    """Each cell has the mean of its Gaussians; every Gaussian gets what its cell gets."""
    pooled_SC = scatter_mean(feature_PC, cells.cell_P, len(cells.coords_S4))
    return submanifold_conv3d(cells.volume(pooled_SC), weight_OXYZI, plan).features_MC[cells.cell_P]


def convolve_like_spconv(feature_PC: Tensor, cells: Cells, weight_OXYZI: Tensor, rulebook: Rulebook) -> Tensor:
    """What spconv 2 computes for kernels of more than 32 taps when cells hold several rows, in its serial order.

    Taps before the central one: only the first Gaussian of the output cell receives, and it receives the sum over the
    neighbouring cell. Central tap: everybody has its own. Taps after it: everybody receives the neighbouring cell's
    first Gaussian. (On a GPU, spconv's "first" is whoever comes last in a race.)
    """
    middle = len(rulebook.in_rows) // 2
    sum_SC = torch.zeros_like(feature_PC[: len(cells.coords_S4)]).index_add(0, cells.cell_P, feature_PC)
    before = submanifold_conv3d(cells.volume(sum_SC), weight_OXYZI, _taps(rulebook, 0, middle), "torch").features_MC
    after = submanifold_conv3d(
        cells.volume(feature_PC[cells.first_S]), weight_OXYZI, _taps(rulebook, middle + 1, 2 * middle + 1), "torch"
    ).features_MC
    central_IO = weight_OXYZI.flatten(1, 3)[:, middle].T
    return (feature_PC @ central_IO + after[cells.cell_P]).index_add(0, cells.first_S, before)


def _taps(rulebook: Rulebook, start: int, stop: int) -> Rulebook:
    """The same with the other taps emptied."""
    in_rows, out_rows = (
        tuple(row if start <= tap < stop else row[:0] for tap, row in enumerate(rows))
        for rows in (rulebook.in_rows, rulebook.out_rows)
    )
    return replace(rulebook, in_rows=in_rows, out_rows=out_rows, centre=None)  # it is always emptied


class SparseLayer(nn.Module):
    """The weight of one convolution; the voxels come with each call."""

    def __init__(self, channels: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, KERNEL, KERNEL, KERNEL, channels))
        bound = (KERNEL**3 * channels) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None


class GaussianSparseConv(nn.Module):
    """Gaussians (B, G, C) to the same, by way of the cells that they lie in."""

    def __init__(self, config: SparseConvConfig, channels: int, grid: VoxelGrid) -> None:
        super().__init__()
        self.config = config
        self.cells = replace(grid, voxel_size=(config.cell,) * 3)
        if config.layers == 1:
            self.layer: nn.Module = SparseLayer(channels, bias=False)
        else:
            layers: list[nn.Module] = []
            for _ in range(config.layers):
                layers += [SparseLayer(channels, bias=True), nn.LayerNorm(channels), nn.ReLU(inplace=True)]
            self.layer = nn.Sequential(*layers)
        self.output_proj = nn.Linear(channels, channels) if config.output_layer else nn.Identity()

    def forward(self, feature_BGC: Tensor, means_BG3: Tensor) -> Tensor:
        """(B, G, C) to the same; ``means`` lie in the grid and get no gradient."""
        cells = cells_of(means_BG3, self.cells)
        feature_PC = feature_BGC.flatten(0, 1)
        convolve = self._rule(cells.volume(feature_PC[cells.first_S]), cells)
        layers = [self.layer] if isinstance(self.layer, SparseLayer) else list(self.layer.children())
        for layer in layers:
            if isinstance(layer, SparseLayer):
                feature_PC = convolve(feature_PC, layer.weight.to(feature_PC.dtype))
                feature_PC = feature_PC if layer.bias is None else feature_PC + layer.bias
            else:
                feature_PC = layer(feature_PC)
        out: Tensor = self.output_proj(feature_PC.view_as(feature_BGC))
        return out

    def _rule(self, volume: SparseVolume, cells: Cells) -> Callable[[Tensor, Tensor], Tensor]:
        """(features, weight) to features; all layers share the pairs of cells that meet."""
        kernel = (KERNEL, KERNEL, KERNEL)
        if self.config.duplicate == "pool":
            plan = plan_submanifold_conv3d(volume, kernel)
            return lambda feature_PC, weight: convolve_pooled(feature_PC, cells, weight, plan)
        rulebook = submanifold_rulebook(volume, kernel)
        return lambda feature_PC, weight: convolve_like_spconv(feature_PC, cells, weight, rulebook)
