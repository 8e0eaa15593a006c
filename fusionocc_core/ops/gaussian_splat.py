"""Gaussians to voxels, as in GaussianFormer (ECCV 2024, additive) and GaussianFormer-2 (CVPR 2025, probabilistic).

Shape suffixes: B batch, G Gaussians, C classes, X Y Z voxels, 3 = (x, y, z).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fusionocc_core.gaussians import Gaussians
from fusionocc_core.ops.gaussian_splat_boxes import BOXES, Boxes, SplatGrid, boxes_of
from fusionocc_core.ops.gaussian_splat_lists import TilePlan
from fusionocc_core.ops.gaussian_splat_reference import splat_pairs
from fusionocc_core.ops.gaussian_splat_tiles import precision_root, splat_tiles
from fusionocc_core.ops.triton_device import unavailable

BACKENDS = ("auto", "tiles", "triton", "pairs")
MIXTURES = ("density", "opacity")

SMALLEST_SCALE, LARGEST_SCALE = 1e-4, 1e4
"""Metres. Outside, squares and densities leave the range of float32."""
LEAST_WEIGHT = 1e-9
"""Sum of densities (1 / cubic metre) up to which a voxel's semantics count as undefined."""


@dataclass(frozen=True, kw_only=True)
class SplatOptions:
    """How far Gaussians reach, and how the sums are made."""

    reach: float = 3.0
    """Standard deviations beyond which a Gaussian counts as zero (official name: scale_multiplier)."""
    boxes: str = "exact"
    """"exact": around the ellipsoid. "cube": around its largest axis, as the official networks were trained (more work;
    adds what lies between, each below exp(-reach^2 / 2)). "unrotated": see :func:`boxes_of`."""
    memory_bytes: int = 256 * 2**20
    """For everything but arguments, results and a few numbers a Gaussian; forward and backward each."""
    backend: str = "auto"
    """"tiles" (what "auto" takes), "triton" (the same lists in kernels; CUDA, float32) or "pairs" (the readable form;
    slow, and its backward keeps every pair)."""
    mixture: str = "density"
    """What weighs Gaussians against each other where splat_probabilistic mixes their semantics. "density": opacity
    times density, so that a small one counts more than a large one (official). "opacity": opacity times alpha."""

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        if not (math.isfinite(self.reach) and self.reach > 0):
            raise ValueError(f"SplatOptions.reach={self.reach}: expected a positive number of standard deviations")
        if self.boxes not in BOXES:
            raise ValueError(f"SplatOptions.boxes={self.boxes!r}; expected one of {BOXES}")
        if self.memory_bytes <= 0:
            raise ValueError(f"SplatOptions.memory_bytes={self.memory_bytes}; expected a positive number of bytes")
        if self.backend not in BACKENDS:
            raise ValueError(f"SplatOptions.backend={self.backend!r}; expected one of {BACKENDS}")
        if self.mixture not in MIXTURES:
            raise ValueError(f"SplatOptions.mixture={self.mixture!r}; expected one of {MIXTURES}")


@dataclass(frozen=True, kw_only=True)
class ProbabilisticSplat:
    """What :func:`splat_probabilistic` gives; volumes as inside models."""

    semantics_BCZYX: Tensor
    """Mean of the Gaussians' semantics, weighted by opacity times density; 1 / C where no Gaussian has weight."""
    occupancy_BZYX: Tensor
    """Probability that at least one Gaussian fills the voxel, 0 to 1."""
    density_BZYX: Tensor
    """Sum of the Gaussians' values, each 1 at its mean."""


def splat_additive(gaussians: Gaussians, grid: SplatGrid, options: SplatOptions | None = None) -> Tensor:
    """Sum over Gaussians of opacity x alpha x semantics at each voxel centre.

    alpha(x) = exp(-d' precision d / 2) with d = x - mean, and zero outside the Gaussian's box. Boxes carry no gradient.
    float16 and bfloat16 are computed in float32, also under autocast. The same input gives the same bits again (tiles).

    Args:
        gaussians: in the grid's frame; none (G = 0) gives zeros.
        grid: the voxels.
        options: None for the defaults.

    Returns:
        (B, C, Z, Y, X) in channels_last_3d memory order of (X, Y, Z), float32 (float64 for float64); differentiable
        once in every tensor of the Gaussians.

    Raises:
        ValueError: a batch of no sample, values that are not finite, scales outside 1e-4 to 1e4 m, quaternions
            of length zero, or ``memory_bytes`` that do not hold the Gaussians of one tile.
    """
    options = options or SplatOptions()
    gaussians = _checked(gaussians)
    with torch.autocast(gaussians.device.type, enabled=False):
        weights_BGC = gaussians.opacities_BG.unsqueeze(2) * gaussians.semantics_BGC
        sums_BXYZC, _ = _sums(gaussians, weights_BGC, grid, options, survival=False)
    return _volume(sums_BXYZC)


def splat_probabilistic(
    gaussians: Gaussians, grid: SplatGrid, options: SplatOptions | None = None
) -> ProbabilisticSplat:
    """Occupancy as the chance that not every Gaussian misses the voxel, semantics as a mixture of Gaussians.

    occupancy = 1 - prod(1 - alpha); opacity has no part in it. Semantics are the mean weighted by p = opacity x alpha /
    ((2 pi)^1.5 s1 s2 s3), the determinant being that of the scales rather than of an inverted matrix as in the official
    code, where it can turn negative. GaussianFormer-2 gives Gaussians 17 probabilities; append none for empty space.

    Arguments, errors, dtypes, gradients as in :func:`splat_additive`; all voxels of an empty set are undefined.
    """
    options = options or SplatOptions()
    gaussians = _checked(gaussians)
    with torch.autocast(gaussians.device.type, enabled=False):
        density_BG = gaussians.opacities_BG
        if options.mixture == "density":
            density_BG = density_BG / ((2 * math.pi) ** 1.5 * gaussians.scales_BG3.prod(dim=2))
        columns = [density_BG.unsqueeze(2) * gaussians.semantics_BGC, density_BG.unsqueeze(2)]
        weights_BGD = torch.cat([*columns, torch.ones_like(columns[1])], dim=2)
        sums_BXYZD, log_BXYZ = _sums(gaussians, weights_BGD, grid, options, survival=True)
        semantics, weight, density = sums_BXYZD.split([gaussians.num_classes, 1, 1], dim=4)
        defined = weight > LEAST_WEIGHT
        semantics = semantics / torch.where(defined, weight, 1)
        semantics = torch.where(defined, semantics, 1 / max(gaussians.num_classes, 1))
    return ProbabilisticSplat(
        semantics_BCZYX=_volume(semantics),
        occupancy_BZYX=-torch.expm1(log_BXYZ).permute(0, 3, 2, 1),
        density_BZYX=_volume(density).squeeze(1),
    )


def _checked(gaussians: Gaussians) -> Gaussians:
    """The Gaussians in float32 or more, with values that can be computed with."""
    if not gaussians.batch_size:
        raise ValueError("Gaussians: a batch of no sample; expected one or more (each may have no Gaussian: G = 0)")
    gaussians.check_values(SMALLEST_SCALE, LARGEST_SCALE)
    return gaussians.to(torch.promote_types(gaussians.dtype, torch.float32))


def _sums(
    gaussians: Gaussians, weights_BGD: Tensor, grid: SplatGrid, options: SplatOptions, *, survival: bool
) -> tuple[Tensor, Tensor]:
    """Of alpha x weights (B, X, Y, Z, D) and of log(1 - alpha) (B, X, Y, Z)."""
    if options.backend == "triton" and (problem := _no_kernels(gaussians)):
        raise ValueError(f"SplatOptions.backend='triton': {problem}; take backend='tiles'")
    boxes = boxes_of(gaussians, grid, options.reach, options.boxes)
    splat = _by_pairs if options.backend == "pairs" else _by_tiles
    samples = [splat(gaussians, weights_BGD, b, boxes[b], grid, options, survival) for b in range(len(boxes))]
    return torch.stack([sums for sums, _ in samples]), torch.stack([log for _, log in samples])


def _no_kernels(gaussians: Gaussians) -> str:
    if gaussians.dtype != torch.float32:
        return f"the kernels compute in float32, the Gaussians are {gaussians.dtype}"
    return unavailable(gaussians.device.type)


def _by_tiles(
    gaussians: Gaussians,
    weights_BGD: Tensor,
    b: int,
    boxes: Boxes,
    grid: SplatGrid,
    options: SplatOptions,
    survival: bool,
) -> tuple[Tensor, Tensor]:
    exact = gaussians.to(torch.float64)  # a few numbers a Gaussian; flat ones need the digits
    root_G6 = precision_root(
        exact.precisions_BG33()[b], exact.covariances_BG33()[b], exact.scales_BG3[b].prod(dim=1).reciprocal()
    )
    plan = TilePlan(
        boxes=boxes,
        grid=grid,
        memory_bytes=options.memory_bytes,
        survival=survival,
        kernels=options.backend == "triton",
    )
    return splat_tiles(gaussians.means_BG3[b], root_G6.to(gaussians.dtype), weights_BGD[b], plan)


def _by_pairs(
    gaussians: Gaussians,
    weights_BGD: Tensor,
    b: int,
    boxes: Boxes,
    grid: SplatGrid,
    options: SplatOptions,
    survival: bool,
) -> tuple[Tensor, Tensor]:
    whitening_G33 = (gaussians.frame2local_BG33() / gaussians.scales_BG3.unsqueeze(3))[b]
    return splat_pairs(gaussians.means_BG3[b], whitening_G33, weights_BGD[b], boxes, grid, options.memory_bytes)


def _volume(values_BXYZC: Tensor) -> Tensor:
    return values_BXYZC.permute(0, 4, 3, 2, 1)
