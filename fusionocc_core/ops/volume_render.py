"""Volume rendering: what rays see of a volume of densities and class scores.

RenderOcc (Pan et al., ICRA 2024), whose code is also what UniOcc (Pan et al., 2023) is known by, and the metric
form that its paper describes; RenderConfig chooses. Along a ray, place k has an opacity a_k and the weight
w_k = a_k * prod_{j<k} (1 - a_j); depth and scores are sums over w.

Shape suffixes: B samples, X Y Z voxels, V = B * X * Y * Z, K classes, R rays, S places along a ray, Q kept places of
all rays, W those of them that weigh something, 8 the voxels around a place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fusionocc_core.ops.volume_render_rays import OFFICIAL_SHIFT, Places, Rays, RenderConfig, box_share, place_samples

CHUNK_RAYS = 1024
"""Rays rendered at a time: bounds the memory, forward and backward."""
MOST_EXPONENT = 60.0
"""Densities beyond are opaque, and their exponential would overflow."""
_DEPTH_FLOOR = 1e-7
"""In radii; RenderOcc adds it to every depth so that a logarithm can be taken."""


@dataclass(frozen=True, kw_only=True)
class RenderedRays:
    """What the rays see."""

    depth_R: Tensor
    """Distance along the ray, metres; see RenderConfig.depth_mode. What passes through counts as zero."""
    semantic_RK: Tensor
    """Weighted sum of the class scores, not normalised."""
    transmittance_R: Tensor
    """Share of the ray that passes through all, or is left where it ends; 1 - it is the ray's opacity."""
    distortion_R: Tensor
    """How far a ray's weights are spread (mip-NeRF 360)."""
    places_R: Tensor
    """int64: how many places have a weight."""
    near_R: Tensor
    """Share of the ray that is stopped near its measured depth (see RenderConfig.near); zero where there is none."""


@dataclass(frozen=True, kw_only=True)
class RayWeights:
    """The weights of places, for pictures and tests."""

    weight_RS: Tensor
    """Zero where a place is left out."""
    distance_S: Tensor
    """Metres along the ray."""
    transmittance_R: Tensor
    """See RenderedRays."""


def volume_render(
    density_BXYZ: Tensor,
    semantic_BXYZK: Tensor,
    rays: Rays,
    config: RenderConfig,
    *,
    chunk_rays: int = CHUNK_RAYS,
) -> RenderedRays:
    """What rays see of a volume.

    Rays are taken ``chunk_rays`` at a time and computed once more for their gradients, so that memory does not grow
    with their number. Scores are read only where a place weighs something. Computed in float32 (in float64 for a
    float64 density), also under autocast.

    Args:
        density_BXYZ: as RenderConfig.opacity wants it.
        semantic_BXYZK: class scores.
        rays: in the volume's frame; for an augmented volume, Rays.transformed.
        config: how.
        chunk_rays: rays at a time.

    Returns:
        One value a ray, in the order of the rays; differentiable in both volumes. Without rays, empty.

    Raises:
        ValueError: shapes that do not fit, samples outside the batch, rays without direction or not finite, negative
            or NaN density where opacity is "metric".
    """
    _check(density_BXYZ, semantic_BXYZK, rays, config)
    if chunk_rays < 1:
        raise ValueError(f"volume_render: chunk_rays={chunk_rays}; expected 1 or more")
    shape_xyz = (density_BXYZ.shape[1], density_BXYZ.shape[2], density_BXYZ.shape[3])
    dtype = torch.promote_types(density_BXYZ.dtype, torch.float32)
    with torch.autocast(density_BXYZ.device.type, enabled=False):
        density_V = density_BXYZ.to(dtype).reshape(-1)
        semantic_VK = semantic_BXYZK.to(dtype).reshape(density_V.numel(), -1)
        parts = []
        for first in range(0, max(len(rays), 1), chunk_rays):
            part = rays.select(slice(first, first + chunk_rays))
            if len(rays) > chunk_rays and torch.is_grad_enabled():
                again = (density_V, semantic_VK, part, shape_xyz, config)
                parts.append(checkpoint(_render, *again, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(_render(density_V, semantic_VK, part, shape_xyz, config))
        joined = [torch.cat(values) for values in zip(*parts, strict=True)]
        return _finish(joined, rays, len(density_BXYZ), config)


def ray_weights(density_BXYZ: Tensor, rays: Rays, config: RenderConfig) -> RayWeights:
    """The weights of all places of all rays at once; arguments and errors as for volume_render."""
    _check(density_BXYZ, density_BXYZ[..., None], rays, config)
    shape_xyz = (density_BXYZ.shape[1], density_BXYZ.shape[2], density_BXYZ.shape[3])
    places = place_samples(rays, config, torch.promote_types(density_BXYZ.dtype, torch.float32))
    at = _neighbours(places, rays.sample_R, shape_xyz, config)
    weight_RS, transmittance_R = _weights(density_BXYZ.to(places.distance_S.dtype).reshape(-1), places, at, config)
    return RayWeights(
        weight_RS=weight_RS, distance_S=places.distance_S * config.radius, transmittance_R=transmittance_R
    )


@dataclass(frozen=True, kw_only=True)
class _Neighbours:
    """The voxels around the kept places in the volume."""

    ray_Q: Tensor
    step_Q: Tensor
    voxel_Q8: Tensor
    share_Q8: Tensor


def _render(
    density_V: Tensor, semantic_VK: Tensor, rays: Rays, shape_xyz: tuple[int, int, int], config: RenderConfig
) -> tuple[Tensor, ...]:
    """One chunk: depth, scores, transmittance, both parts of the distortion, number of places."""
    places = place_samples(rays, config, density_V.dtype)
    at = _neighbours(places, rays.sample_R, shape_xyz, config)
    weight_RS, transmittance_R = _weights(density_V, places, at, config)
    weight_Q = weight_RS[at.ray_Q, at.step_Q]
    seen = weight_Q.detach() > 0
    voxel_W8, ray_W = at.voxel_Q8[seen], at.ray_Q[seen]
    share_W8 = weight_Q[seen][:, None] * at.share_Q8[seen]
    count_R = torch.bincount(ray_W, minlength=len(rays))
    semantic_RK = F.embedding_bag(
        voxel_W8.flatten(),
        semantic_VK,
        offsets=8 * (count_R.cumsum(0) - count_R),
        mode="sum",
        per_sample_weights=share_W8.flatten(),
    )
    depth_R, pairs_R, own_R = _sums(weight_RS, places, config)
    near_R = (weight_RS * near_measured(rays.range_R, places.distance_S, config)).sum(dim=1)
    return depth_R, semantic_RK, transmittance_R, pairs_R, own_R, (weight_RS.detach() > 0).sum(dim=1), near_R


@torch.no_grad()
def _neighbours(places: Places, sample_R: Tensor, shape_xyz: tuple[int, int, int], config: RenderConfig) -> _Neighbours:
    """The eight voxels around each kept place, and their trilinear weights; places that touch no voxel are left out."""
    size_3 = sample_R.new_tensor(shape_xyz)
    cell_RS3 = box_share(places.position_RS3, config)
    if config.align == "voxel_center":
        cell_RS3 = torch.minimum((cell_RS3 * size_3 - 0.5).clamp(min=0), (size_3 - 1).to(cell_RS3))
    else:
        cell_RS3 = cell_RS3 * (size_3 - 1)
    touches_RS = ((cell_RS3 > -1) & (cell_RS3 < size_3)).all(dim=-1)
    ray_Q, step_Q = (places.kept_RS & touches_RS).nonzero(as_tuple=True)
    cell_Q3 = cell_RS3[ray_Q, step_Q]
    base_Q3 = cell_Q3.floor()
    beyond_Q3 = cell_Q3 - base_Q3
    voxel_Q8, share_Q8 = sample_R[ray_Q, None], cell_Q3.new_ones(1)
    for axis, size in enumerate(shape_xyz):
        index_Q2 = torch.stack([base_Q3[:, axis], base_Q3[:, axis] + 1], dim=1).long()
        share_Q2 = torch.stack([1 - beyond_Q3[:, axis], beyond_Q3[:, axis]], dim=1)
        share_Q2 = share_Q2 * ((index_Q2 >= 0) & (index_Q2 < size))
        voxel_Q8 = (voxel_Q8[:, :, None] * size + index_Q2.clamp(0, size - 1)[:, None]).flatten(1)
        share_Q8 = (share_Q8[..., None] * share_Q2[:, None]).flatten(1)
    return _Neighbours(ray_Q=ray_Q, step_Q=step_Q, voxel_Q8=voxel_Q8, share_Q8=share_Q8)


def _weights(density_V: Tensor, places: Places, at: _Neighbours, config: RenderConfig) -> tuple[Tensor, Tensor]:
    """Weights (R, S) and transmittance (R,), by sums of optical thickness -ln(1 - a): exact where a is tiny."""
    around_Q8 = density_V.index_select(0, at.voxel_Q8.flatten()).view(at.voxel_Q8.shape)
    density_Q = (around_Q8 * at.share_Q8).sum(dim=1)
    nothing = -MOST_EXPONENT if config.opacity == "log_odds" else 0.0
    density_RS = torch.full_like(places.width_RS, nothing).index_put((at.ray_Q, at.step_Q), density_Q)
    if config.opacity == "official":
        # Not softplus: empty places add up, and what checkpoints have seen is their 1 + 1e-6 rounded to float32.
        thickness_RS = 0.5 * torch.log(1 + torch.exp((density_RS + OFFICIAL_SHIFT).clamp(max=MOST_EXPONENT)))
    else:
        if config.opacity == "log_odds":
            density_RS = F.softplus(density_RS) / config.edge
        thickness_RS = density_RS * places.width_RS * config.radius
    alpha_RS = -torch.expm1(-thickness_RS)
    counts_RS = places.kept_RS & (alpha_RS > config.least_alpha)
    thickness_RS = torch.where(counts_RS, thickness_RS, 0.0)
    before_RS = F.pad(thickness_RS, (1, 0)).cumsum(dim=1)[:, :-1]
    left_RS = torch.exp(-before_RS)
    reached_RS = left_RS.detach() >= config.stop_below
    weight_RS = torch.where(counts_RS & reached_RS, left_RS * alpha_RS, 0.0)
    weight_RS = torch.where(weight_RS > config.least_weight, weight_RS, 0.0)
    return weight_RS, torch.exp(-torch.where(reached_RS, thickness_RS, 0.0).sum(dim=1))


def _sums(weight_RS: Tensor, places: Places, config: RenderConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Depth in metres; the distortion between places, and within them but for the width that "official" wants."""
    squeezed_S = 1 - 1 / (1 + places.distance_S)
    squeezed_end_RS = 1 - 1 / (1 + places.distance_S + places.width_RS)
    metric = config.depth_mode == "metric"
    depth_R = config.radius * ((weight_RS * (places.distance_S if metric else squeezed_S)).sum(dim=1) + _DEPTH_FLOOR)
    weight_before_RS = weight_RS.cumsum(dim=1) - weight_RS
    moment_RS = weight_RS * squeezed_S
    pairs_R = 2 * (weight_RS * (squeezed_S * weight_before_RS - (moment_RS.cumsum(dim=1) - moment_RS))).sum(dim=1)
    width_RS = squeezed_end_RS - squeezed_S if config.distortion_width == "metric" else 1.0
    return depth_R, pairs_R, (weight_RS**2 * width_RS).sum(dim=1) / 3


def near_measured(range_R: Tensor, distance_S: Tensor, config: RenderConfig) -> Tensor:
    """(R, S) bool: places near what was measured along the ray; none where nothing was."""
    half_R = config.near + config.near_share * range_R
    close_RS = (distance_S * config.radius - range_R[:, None]).abs() <= half_R[:, None]
    return close_RS & (range_R > 0)[:, None]


def _finish(joined: list[Tensor], rays: Rays, samples: int, config: RenderConfig) -> RenderedRays:
    """Rays put together; the official width of a place needs to know all places of the sample."""
    depth_R, semantic_RK, transmittance_R, pairs_R, own_R, places_R, near_R = joined
    if config.distortion_width == "official":
        places_B = places_R.new_zeros(samples).index_add(0, rays.sample_R, places_R)
        own_R = own_R / places_B.clamp(min=1)[rays.sample_R]
    return RenderedRays(
        depth_R=depth_R,
        semantic_RK=semantic_RK,
        transmittance_R=transmittance_R,
        distortion_R=pairs_R + own_R,
        places_R=places_R,
        near_R=near_R,
    )


def volume_render_reference(
    density_BXYZ: Tensor, semantic_BXYZK: Tensor, rays: Rays, config: RenderConfig
) -> RenderedRays:
    """The same, ray by ray, to read and to test against."""
    parts = []
    metric_width = config.distortion_width == "metric"
    for r in range(len(rays)):
        ray = rays.select(slice(r, r + 1))
        places = place_samples(ray, config, density_BXYZ.dtype)
        kept_S = places.kept_RS[0]
        t, width = places.distance_S[kept_S], places.width_RS[0, kept_S]
        cell = 2 * box_share(places.position_RS3[0, kept_S], config).flip(-1)[None, None, None] - 1  # (z, y, x)
        b, official = ray.sample_R[0], config.align == "official"
        volume = torch.cat([density_BXYZ[b, None], semantic_BXYZK[b].movedim(-1, 0)])[None]
        beyond = "zeros" if official else "border"
        read = F.grid_sample(volume, cell, padding_mode=beyond, align_corners=official)[0, :, 0, 0]
        density, score = read[0], read[1:]
        if config.opacity == "official":
            alpha = 1 - (1 + torch.exp(density + OFFICIAL_SHIFT)) ** -0.5
        else:
            density = F.softplus(density) / config.edge if config.opacity == "log_odds" else density
            alpha = 1 - torch.exp(-density * width * config.radius)
        left = density.new_ones(())
        weights = []
        for a in alpha:
            counts = bool(a > config.least_alpha) and bool(left >= config.stop_below)
            weights.append(left * a if counts else 0 * a)
            left = left * (1 - a) if counts else left
        w = torch.stack(weights) if weights else density
        w = torch.where(w > config.least_weight, w, 0.0)
        s, s_end = 1 - 1 / (1 + t), 1 - 1 / (1 + t + width)
        depth = config.radius * ((w * (t if config.depth_mode == "metric" else s)).sum() + _DEPTH_FLOOR)
        pairs = (w[:, None] * w[None] * (s[:, None] - s[None]).abs()).sum()
        own = (w**2 * (s_end - s if metric_width else 1.0)).sum() / 3
        near = (w * near_measured(ray.range_R, t, config)[0]).sum()
        parts.append((depth, (w * score).sum(dim=1), left, pairs, own, (w > 0).sum(), near))
    return _finish([torch.stack(values) for values in zip(*parts, strict=True)], rays, len(density_BXYZ), config)


def _check(density: Tensor, semantic: Tensor, rays: Rays, config: RenderConfig) -> None:
    if density.ndim != 4 or 0 in density.shape or semantic.ndim != 5 or semantic.shape[:4] != density.shape:
        raise ValueError(
            f"volume_render: density is {tuple(density.shape)}, semantic {tuple(semantic.shape)}; expected "
            "(B, X, Y, Z) and (B, X, Y, Z, K)"
        )
    if config.opacity == "metric" and not bool(density.detach().amin() >= 0):
        raise ValueError(
            f"volume_render: the lowest density is {float(density.detach().amin())}; opacity='metric' wants it not "
            "negative (apply softplus) and no NaN"
        )
    if config.opacity == "log_odds" and bool(density.detach().amin().isnan()):
        raise ValueError("volume_render: the log-odds hold NaN")
    if not len(rays):
        return
    if int(rays.sample_R.min()) < 0 or int(rays.sample_R.max()) >= len(density):
        raise ValueError(
            f"Rays.sample_R holds {int(rays.sample_R.min())} to {int(rays.sample_R.max())}; the volume has "
            f"{len(density)} samples"
        )
    length_R = rays.direction_R3.norm(dim=1)
    bad = int((~(rays.origin_R3.isfinite().all(dim=1) & length_R.isfinite() & (length_R > 0))).sum())
    if bad:
        raise ValueError(
            f"Rays: {bad} of {len(rays)} have an origin or a direction that is not finite, or no direction; leave them "
            "out with Rays.select, and look at the poses that they were made with"
        )
