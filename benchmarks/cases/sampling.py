"""Features read at places: deformable aggregation and convolution; a LiDAR's raster."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from floors import Work
from timing import Candidate
from torch import Tensor

from cases.case import Case, Setting, with_backward
from fusionocc_core.ops.deformable_aggregate import deformable_aggregate
from fusionocc_core.ops.deformable_conv import deformable_conv2d, torchvision_operator_works
from fusionocc_core.ops.raster import rasterize, rasterize_reference

CORNERS = 4
"""Feature cells around a place."""


def aggregate_cases(given: Setting) -> Iterator[Case]:
    """What Gaussians see in six pictures, of which one or two see each: official code samples all six."""
    cameras, groups, channels, points = 6, 4, 128, 13
    rows, columns = given.size.frustum[2:]
    num = given.size.gaussians // 4
    shape = (1, cameras, num, points)
    maps = [torch.randn(1, cameras, channels, rows // scale, columns // scale, device=given.device) for scale in (1, 2)]
    where = torch.rand(*shape, 2, device=given.device)
    seen = torch.rand(shape, device=given.device) < 1.3 / cameras
    weights = torch.rand(*shape, len(maps), groups, device=given.device)
    for backward in (False,) if given.short else (False, True):
        leaves = [tensor.clone().requires_grad_(backward) for tensor in (*maps, weights)]

        def run(backend: str, leaves: list[Tensor] = leaves) -> Callable[[], Tensor]:
            return lambda: deformable_aggregate(leaves[:-1], where, seen, leaves[-1], backend)

        candidates = (
            Candidate(label="ours, pairs that see each other", kind="ours", run=run("visible")),
            Candidate(label="every camera for every point", kind="baseline", run=run("dense")),
        )
        read = int(seen.sum()) * len(maps)
        moved = 4 * (sum(m.numel() for m in maps) + read * groups + 2 * int(seen.sum()) + num * channels)
        yield Case(
            op="aggregate",
            name=f"aggregate {num:,} Gaussians of {points} points{', with backward' if backward else ''}",
            candidates=with_backward(candidates, leaves) if backward else candidates,
            work=Work(
                bytes=moved * (2 if backward else 1),
                operations=2 * CORNERS * read * channels * (3 if backward else 1),
            ),
            tolerance=1e-3,
        )


def deformable_conv_cases(given: Setting) -> Iterator[Case]:
    """A convolution of 256 channels whose taps are moved, as the backbone of GaussianFormer has."""
    rows, columns = given.size.frustum[2:]
    channels, taps = 256, 9
    picture = torch.randn(6, channels, rows, columns, device=given.device).contiguous(memory_format=torch.channels_last)
    offset = torch.randn(6, taps, rows, columns, 2, device=given.device)
    mask = torch.rand(6, taps, rows, columns, device=given.device)
    weight = torch.randn(channels, channels, 3, 3, device=given.device) * 0.05

    def run(backend: str) -> Callable[[], Tensor]:
        return lambda: deformable_conv2d(picture, offset, mask, weight, backend=backend)

    candidates = [
        Candidate(label="ours", kind="ours", run=run("auto")),
        Candidate(label="grid_sample", kind="alternative", run=run("torch")),
    ]
    if torchvision_operator_works():
        candidates.append(Candidate(label="torchvision", kind="alternative", run=run("torchvision")))
    places = mask.numel()
    yield Case(
        op="deformable_conv",
        name=f"deformable convolution, 6 x {rows} x {columns}, {channels} channels",
        candidates=tuple(candidates),
        work=Work(
            bytes=4 * (2 * picture.numel() + 3 * places),
            operations=2 * places * channels * (CORNERS + channels),
        ),
        tolerance=1e-4,
    )


def raster_cases(given: Setting) -> Iterator[Case]:
    """Points to height slices of a map, as FlashFusion's LiDAR branch has them."""
    if given.device != "cpu":
        return
    grid, cloud = given.size.grid, given.cloud
    lower, size, shape = grid.lower, grid.voxel_size, grid.shape

    def candidate(label: str, kind: str, make: Callable[..., Tensor]) -> Candidate:
        return Candidate(label=label, kind=kind, run=lambda: make((cloud,), lower, size, shape))

    result = rasterize((cloud,), lower, size, shape)
    yield Case(
        op="raster",
        name=f"raster of {len(cloud):,} points",
        candidates=(candidate("ours", "ours", rasterize), candidate("point by point", "baseline", rasterize_reference)),
        work=Work(bytes=4 * (4 * len(cloud) + result.numel()), operations=12 * len(cloud)),
        tolerance=1e-4,
    )
