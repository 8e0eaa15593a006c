"""Splatting of Gaussians, volume rendering, ray casting: what meets a volume along the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from baselines.ray_iou import count_rays_one_by_one
from baselines.splat import additive_by_pairs, probabilistic_by_pairs
from baselines.volume_render import render_everywhere
from floors import Work
from op_inputs import a_voxel_off, gaussians, street_around, view_rays
from timing import Candidate
from torch import Tensor

from cases.case import Case, Setting, with_backward
from fusionocc_core.gaussians import Gaussians
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.metrics.ray_iou import count_rays
from fusionocc_core.metrics.rays import cast_rays, make_rays
from fusionocc_core.ops.gaussian_splat import SplatOptions, splat_additive, splat_probabilistic
from fusionocc_core.ops.gaussian_splat_boxes import SplatGrid, boxes_of
from fusionocc_core.ops.volume_render import volume_render
from fusionocc_core.ops.volume_render_rays import RenderConfig

CLASSES = 18
OPERATIONS_OF_A_GAUSSIAN = 18
"""At a voxel: three differences, six products and sums with the precision's root, three squares and sums, one exp."""


def splat_cases(given: Setting) -> Iterator[Case]:
    """Gaussians with the scales at which GaussianFormer's training starts, and the official boxes."""
    solid = SplatOptions(reach=3.0, boxes="cube", backend="tiles")
    prob = SplatOptions(reach=4.0, boxes="cube", backend="tiles")
    todo = [("solid", given.size.gaussians, solid, False), ("prob", given.size.probable_gaussians, prob, False)]
    if not given.short:
        todo.append(("solid", given.size.gaussians, solid, True))
    for kind, num, options, backward in todo:
        made = gaussians(kind, num, grid=given.size.gaussian_grid).to(given.device)
        leaves = [value.requires_grad_(backward) for value in vars(made).values()]
        yield splat_case(kind, made, leaves, options, given.size.gaussian_grid)


def splat_case(kind: str, made: Gaussians, leaves: Sequence[Tensor], options: SplatOptions, grid: SplatGrid) -> Case:
    """Tiles, tiles with boxes that fit (another result, so not compared), and every pair listed."""
    backward = leaves[0].requires_grad

    def splat(options: SplatOptions, pairs: bool = False) -> Callable[[], Tensor]:
        if kind == "solid":
            additive = additive_by_pairs if pairs else splat_additive
            return lambda: additive(made, grid, options)
        probabilistic = probabilistic_by_pairs if pairs else splat_probabilistic
        return lambda: probabilistic(made, grid, options).semantics_BCZYX

    candidates = [
        Candidate(label="ours, tiles", kind="ours", run=splat(options)),
        Candidate(label="every pair listed", kind="baseline", run=splat(options, pairs=True)),
    ]
    if made.device.type == "cuda":
        candidates.append(Candidate(label="Triton kernels", run=splat(replace(options, backend="triton"))))
    (boxes,) = boxes_of(made, grid, options.reach, options.boxes)
    pairs = float((boxes.last_G3 - boxes.first_G3 + 1).clamp(min=0).prod(dim=1).sum())
    columns = made.num_classes + (0 if kind == "solid" else 3)
    voxels = float(np.prod(grid.shape_xyz))
    moved = 4 * (made.means_BG3.shape[1] * (11 + made.num_classes) + voxels * columns)
    operations = pairs * (OPERATIONS_OF_A_GAUSSIAN + 2 * columns)
    return Case(
        op="splat",
        name=f"splat {made.means_BG3.shape[1]:,} {'additive' if kind == 'solid' else 'probabilistic'} Gaussians, "
        f"{pairs / 1e6:.1f} M pairs{', with backward' if backward else ''}",
        candidates=with_backward(candidates, leaves) if backward else tuple(candidates),
        work=Work(bytes=moved * (3 if backward else 1), operations=operations * (3 if backward else 1)),
        tolerance=1e-3,
    )


def render_cases(given: Setting) -> Iterator[Case]:
    """What rays from the vehicle see of a street of soft walls."""
    labels = torch.from_numpy(street_around(given.size).astype(np.int64))
    density = (0.02 + 5.0 * (labels != OCC3D_LABELS.free))[None].to(given.device)
    semantic = F.one_hot(labels, CLASSES)[None].float().to(given.device)
    rays = view_rays(given.size).to(given.device)
    config = RenderConfig(box_lower=given.size.grid.lower, box_upper=given.size.grid.upper)
    for backward in (False,) if given.short else (False, True):
        leaves = [t.clone().requires_grad_(backward) for t in (density, semantic)]

        def ours(leaves: Sequence[Tensor] = leaves) -> Tensor:
            return volume_render(*leaves, rays, config).semantic_RK

        def theirs(leaves: Sequence[Tensor] = leaves) -> Tensor:
            return render_everywhere(*leaves, rays, config)[1]

        candidates = (
            Candidate(label="ours", kind="ours", run=ours),
            Candidate(label="every place at once", kind="baseline", run=theirs),
        )
        seen = volume_render(density, semantic, rays, config)
        # Until a ray ends, and one voxel a place: what weighs nothing has to be looked at, too.
        places = int(seen.places_R.sum())
        yield Case(
            op="render",
            name=f"render {len(rays):,} rays{', with backward' if backward else ''}",
            candidates=with_backward(candidates, leaves) if backward else candidates,
            work=Work(
                bytes=4 * places * 8 * (CLASSES + 1) * (2 if backward else 1),
                operations=places * 8 * 2 * (CLASSES + 1) * (3 if backward else 1),
            ),
            tolerance=0.1,  # ours ends a ray where 0.1 % of it is left; gradients count that by metres, many far away
        )


def ray_iou_cases(given: Setting) -> Iterator[Case]:
    """The 14,040 rays of one origin, in truth and prediction."""
    if given.device != "cpu":
        return
    truth, grid = street_around(given.size), given.size.grid
    said, origin = a_voxel_off(truth), np.array([[0.1, 0.13, 1.84]])

    def candidate(label: str, kind: str, count: Callable[..., object]) -> Candidate:
        return Candidate(
            label=label,
            kind=kind,
            run=lambda: torch.from_numpy(count(truth, said, origin, grid, OCC3D_LABELS).right_TK),  # type: ignore[attr-defined]
        )

    # A ray crosses some voxels, in each of which it compares three numbers, adds two and looks one up.
    steps = 14_040 * 2 * mean_steps(truth, grid, origin)
    yield Case(
        op="ray_iou",
        name="RayIoU, 14,040 rays into truth and prediction",
        candidates=(
            candidate("ours, all rays at once", "ours", count_rays),
            candidate("one ray at a time", "baseline", count_rays_one_by_one),
        ),
        work=Work(bytes=2 * truth.size, operations=5 * steps),
        tolerance=0.0,
    )


def mean_steps(truth: np.ndarray, grid: VoxelGrid, origin: np.ndarray) -> float:
    """Voxels that a ray crosses, on average: its length along the axes, in voxels."""
    rays = make_rays(origin, grid)
    hits = cast_rays(truth != OCC3D_LABELS.free, rays, 1.0)
    return float((hits.distance * np.abs(rays.direction).sum(axis=1)).mean())
