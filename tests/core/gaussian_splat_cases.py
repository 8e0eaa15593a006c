"""Gaussians for the tests of splatting: made up, and those of the reference tensors."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.ops.gaussian_splat import SplatOptions
from fusionocc_core.ops.gaussian_splat_boxes import SplatGrid

GRID = SplatGrid(lower=(-3.0, -2.0, -1.0), voxel_size=(0.5, 0.4, 0.6), shape_xyz=(11, 9, 6))
"""No axis like another, none a whole number of tiles."""
FULL = SplatGrid(lower=(-50.0, -50.0, -5.0), voxel_size=(0.5, 0.5, 0.5), shape_xyz=(200, 200, 16))
REACH = {"v1": 3.0, "v1_solid": 3.0, "prob": 4.0, "prob_fast": 4.0}


def some(num=25, batch=2, classes=4, dtype=torch.float64, seed=0, spread=1.3) -> Gaussians:
    """Anywhere in GRID and a little outside, flat and long, turned."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(batch, num, *shape, generator=generator, dtype=torch.float64)

    lower = torch.tensor(GRID.lower, dtype=torch.float64)
    size = torch.tensor([s * n for s, n in zip(GRID.voxel_size, GRID.shape_xyz, strict=True)], dtype=torch.float64)
    return Gaussians(
        means_BG3=lower + size * (0.5 + spread * (rand(3) - 0.5)),
        scales_BG3=0.05 * 16 ** rand(3),
        rotations_BG4=rand(4) - 0.5,
        opacities_BG=rand(),
        semantics_BGC=rand(classes),
    ).to(dtype)


def leaves(gaussians: Gaussians) -> tuple[Gaussians, list[torch.Tensor]]:
    """The same values as leaves that want gradients."""
    tensors = {name: value.detach().clone().requires_grad_() for name, value in vars(gaussians).items()}
    return Gaussians(**tensors), list(tensors.values())


def options_of(kind: str, backend: str = "tiles") -> SplatOptions:
    """What the official op of this name does."""
    boxes = "unrotated" if kind == "prob_fast" else "cube"
    return SplatOptions(reach=REACH[kind], boxes=boxes, backend=backend)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float32))[None]


def small_golden(tensors, kind: str) -> Gaussians:
    """48 Gaussians of the small reference."""
    names = ("means", "scales", "rotations", "opacities", "semantics")
    means, scales, rotations, opacities, semantics = (_tensor(tensors[f"{kind}.in.{name}"]) for name in names)
    return Gaussians(
        means_BG3=means, scales_BG3=scales, rotations_BG4=rotations, opacities_BG=opacities, semantics_BGC=semantics
    )


def small_grid(tensors, kind: str) -> SplatGrid:
    x, y, z, _ = (int(n) for n in tensors[f"{kind}.cfg"])
    lower = tuple(float(v) for v in tensors["pc_min"])
    return SplatGrid(lower=lower, voxel_size=(float(tensors["grid_size"]),) * 3, shape_xyz=(x, y, z))


def full_golden(tensors, kind: str) -> Gaussians:
    """Thousands of Gaussians in the whole grid; v1 with the Gaussian for empty space that its head adds."""
    names = ("means", "scales", "rotations", "opacities", "semantics_raw")
    values = [_tensor(tensors[f"{kind}.in.{name}"]) for name in names]
    if kind == "v1_solid":
        values[4] = F.pad(F.softplus(values[4]), (0, 1))
        empty = [(0.0, 0.0, -1.0), (100.0, 100.0, 8.0), (1.0, 0.0, 0.0, 0.0), 1.0, (*[0.0] * 17, 2.0)]
        values = [torch.cat([v, torch.tensor(e)[None, None]], dim=1) for v, e in zip(values, empty, strict=True)]
    else:
        values[4] = values[4].softmax(-1)
    means, scales, rotations, opacities, semantics = values
    return Gaussians(
        means_BG3=means, scales_BG3=scales, rotations_BG4=rotations, opacities_BG=opacities, semantics_BGC=semantics
    )


def rows(volume_BCZYX: torch.Tensor) -> torch.Tensor:
    """(voxels, C) with x slowest, as the reference has them."""
    return volume_BCZYX[0].permute(3, 2, 1, 0).flatten(0, 2)
