"""Losses on rendered rays (RenderOcc, UniOcc).

Legend: R rays, L rays that carry a label, B samples, K classes. Everything is computed in float32, with autocast off.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fusionocc_core.losses.ray_voxels import ray_voxel_loss, ray_voxels
from fusionocc_core.losses.terms import Losses, LossTerm
from fusionocc_core.losses.voxels import balancing_weights
from fusionocc_core.ops.volume_render import CHUNK_RAYS, RenderedRays, volume_render
from fusionocc_core.ops.volume_render_rays import Rays, RenderConfig, renderocc_rendering

logger = logging.getLogger(__name__)

TARGETS = ("range", "z")
RENDERED_TERMS = ("rendered_depth", "rendered_semantic", "entropy", "distortion", "sight")
RENDERING_TERMS = (*RENDERED_TERMS, "ray_voxels")
"""Names of the weights in RenderingLossConfig and of the terms in Losses."""

NUSCENES_RAY_COUNTS = (
    1163161,
    2309034,
    188743,
    2997643,
    20317180,
    852476,
    243808,
    2457947,
    497017,
    2731022,
    7224789,
    214411435,
    5565043,
    63191967,
    76098082,
    128860031,
    141625221,
)
"""Of each of the 17 classes that are not free, as RenderOcc balances its rays with."""

_TINY = 1e-7
_LEAST_SQUARE = 1e-12
_LEAST_SHARE = 0.01
"""Of a ray: bounds the gradient where a ray is stopped long before, by what its measurement says nothing about."""


@dataclass(frozen=True, kw_only=True)
class RenderingLossConfig:
    """Weights of the terms; zero leaves a term out."""

    rendered_depth: float = 1.0
    rendered_semantic: float = 1.0
    entropy: float = 0.01
    distortion: float = 0.01
    sight: float = 0.0
    """Rays shall end near what was measured (see RenderConfig.near). RenderOcc does without; its other terms say little
    about where along a ray its weights lie."""
    ray_voxels: float = 0.0
    """Voxels where a ray ends are occupied, by its class; those that rays only cross are free (losses/ray_voxels.py).
    RenderOcc does without, and has to choose above which density a voxel is occupied."""
    least_crossings: int = 1
    """Rays of the current keyframe that must cross a voxel for it to count as free; see losses/ray_voxels.py."""
    target: str = "range"
    """What rendered depth is held against: "range": the distance along the ray. "z": the camera's z, as RenderOcc has
    it, which is shorter away from the middle of the picture."""
    variance_focus: float = 0.85
    """How much of a depth error common to all rays of a sample is forgiven; below 1."""
    class_weights: tuple[float, ...] | None = None
    """Of the cross-entropy, one for each class but free space; see balancing_weights."""
    render: RenderConfig = field(default_factory=RenderConfig)
    """How the volume is rendered; data.render_rays.rendering_of has one for any grid."""
    current_only: bool = False
    """Render rays of the current keyframe alone: those of its neighbours look behind things, where these pictures show
    nothing. ``ray_voxels`` takes all."""
    most_rays: int | None = None
    """Rays of a batch that are rendered, drawn anew each time; None: all. ``ray_voxels`` takes all of them."""
    chunk_rays: int = CHUNK_RAYS
    """Rays at a time, which bounds the memory: see volume_render."""

    def __post_init__(self) -> None:
        """Refuse a choice that does not exist and weights that are no weights."""
        if self.target not in TARGETS:
            raise ValueError(f"RenderingLossConfig.target={self.target!r}: expected one of {TARGETS}")
        weights = {name: getattr(self, name) for name in RENDERING_TERMS}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(
                f"RenderingLossConfig: weights must not be negative, and one must be positive; got {weights}"
            )
        if self.most_rays is not None and self.most_rays < 1:
            raise ValueError(f"RenderingLossConfig.most_rays={self.most_rays}: expected None or at least 1")
        if self.least_crossings < 1:
            raise ValueError(f"RenderingLossConfig.least_crossings={self.least_crossings}: expected 1 or more")
        if not 0 <= self.variance_focus < 1:
            raise ValueError(f"RenderingLossConfig.variance_focus={self.variance_focus}: expected 0 <= value < 1")


class DensityPredictions(Protocol):
    """A volume that rays can be sent through: see structures.DensityOutputs."""

    @property
    def density_BXYZ(self) -> Tensor: ...  # noqa: D102
    @property
    def semantic_BXYZK(self) -> Tensor: ...  # noqa: D102
    @property
    def occupied_logits_BXYZ(self) -> Tensor: ...  # noqa: D102


class VolumePredictions(Protocol):
    """The part of a network's outputs that can be rendered."""

    @property
    def logits_BKXYZ(self) -> Tensor: ...  # noqa: D102
    @property
    def density(self) -> DensityPredictions | None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class DensityVolume:
    """What is rendered."""

    density_BXYZ: Tensor
    """As RenderConfig.opacity wants it: with "log_odds" these."""
    semantic_BXYZK: Tensor
    """Without free space."""
    occupied_logits_BXYZ: Tensor
    """Log-odds that a voxel is occupied."""


def renderocc_losses(*, target: str = "z", weight: float = 1.0) -> RenderingLossConfig:
    """What RenderOcc is trained with; ``weight``: of depth and classes (0.1 in the fork that has voxel labels)."""
    return RenderingLossConfig(
        rendered_depth=weight,
        rendered_semantic=weight,
        target=target,
        class_weights=balancing_weights(NUSCENES_RAY_COUNTS),
        render=renderocc_rendering(),
    )


def density_volume(outputs: VolumePredictions, render: RenderConfig, *, free: int) -> DensityVolume:
    """What rays are sent through: the network's own density, or one that follows from its class scores.

    Of scores: a ray that crosses one voxel is stopped there with the probability that the voxel is not free, so the
    density is -ln p(free) / edge of a voxel; the scores of the other classes are rendered as they are.

    Args:
        outputs: of any network.
        render: its opacity must not be "official" where density follows from scores.
        free: id of free space.

    Raises:
        ValueError: the official opacity is wanted of a network without density of its own.
    """
    if (own := outputs.density) is not None:
        density, semantic, occupied = own.density_BXYZ, own.semantic_BXYZK, own.occupied_logits_BXYZ
    else:
        if render.opacity == "official":
            raise ValueError(
                "RenderConfig.opacity='official' belongs to networks with Outputs.density; class scores are rendered "
                "with opacity='log_odds' or 'metric'"
            )
        logits_BKXYZ = outputs.logits_BKXYZ.float()
        others_BKXYZ = torch.cat([logits_BKXYZ[:, :free], logits_BKXYZ[:, free + 1 :]], dim=1)
        occupied = others_BKXYZ.logsumexp(dim=1) - logits_BKXYZ[:, free]
        density, semantic = F.softplus(occupied) / render.edge, others_BKXYZ.movedim(1, -1)
    if render.opacity == "log_odds":
        density = occupied
    return DensityVolume(density_BXYZ=density, semantic_BXYZK=semantic, occupied_logits_BXYZ=occupied)


def rendered_terms(
    outputs: VolumePredictions, rays: Rays | None, config: RenderingLossConfig, *, free: int, unknown: int
) -> tuple[LossTerm, ...]:
    """The rendering losses of any network's outputs.

    Args:
        outputs: of any network.
        rays: with what was measured, in the frame of the outputs; labels are ids of the label set.
        config: terms, weights, and how rays are rendered.
        free: id of free space, which no ray may be labelled with.
        unknown: label of rays without one.

    Raises:
        ValueError: there are no rays, or some hold labels that are no class.
    """
    if rays is None:
        raise ValueError(
            "LossConfig.rendering is set, but targets.rays is None: the data give no rays (engine.ray_examples makes "
            "them); set LossConfig.rendering to None"
        )
    if bool((rays.label_R == free).any()):
        raise ValueError(f"Rays.label_R holds {free}, which is free space; rays end in something")
    classes = outputs.logits_BKXYZ.shape[1]
    wrong_R = (rays.label_R != unknown) & ((rays.label_R < 0) | (rays.label_R >= classes))
    if bool(wrong_R.any()):
        raise ValueError(
            f"Rays.label_R holds {rays.label_R[wrong_R].unique().tolist()[:8]}; expected 0..{classes - 1} but for "
            f"{free} (free), or {unknown} for unknown"
        )
    shifted_R = rays.label_R - ((rays.label_R > free) & (rays.label_R != unknown)).long()
    rays = replace(rays, label_R=shifted_R)
    parts = tuple[LossTerm, ...]()
    with torch.autocast(outputs.logits_BKXYZ.device.type, enabled=False):
        volume = density_volume(outputs, config.render, free=free)
        if any(getattr(config, name) for name in RENDERED_TERMS):
            drawn = _drawn(rays.select(rays.current_R) if config.current_only else rays, config.most_rays)
            rendered = volume_render(
                volume.density_BXYZ, volume.semantic_BXYZK, drawn, config.render, chunk_rays=config.chunk_rays
            )
            parts = rendering_losses(rendered, drawn, config, unknown=unknown).parts
        if config.ray_voxels:
            parts = (*parts, _ray_voxels(outputs.logits_BKXYZ, volume, rays, config, free=free, unknown=unknown))
    return parts


def _drawn(rays: Rays, most: int | None) -> Rays:
    if most is None or len(rays) <= most:
        return rays
    return rays.select(torch.randperm(len(rays))[:most].sort().values.to(rays.depth_R.device))


def _ray_voxels(
    logits_BKXYZ: Tensor, volume: DensityVolume, rays: Rays, config: RenderingLossConfig, *, free: int, unknown: int
) -> LossTerm:
    told = ray_voxels(
        rays,
        config.render,
        shape_BXYZ=volume.density_BXYZ.shape,
        unknown=unknown,
        least_crossings=config.least_crossings,
        chunk=config.chunk_rays,
    )
    value = ray_voxel_loss(
        logits_BKXYZ,
        volume.occupied_logits_BXYZ,
        volume.semantic_BXYZK,
        told,
        free=free,
        unknown=unknown,
        class_weights=config.class_weights,
    )
    labelled = int((told.ended_V | told.crossed_V).sum())
    if not labelled:
        logger.info("loss ray_voxels: no ray in this batch carries a depth; it is zero")
    return LossTerm(name="ray_voxels", value=value, weight=config.ray_voxels, labelled=labelled)


def silog_depth(depth_R: Tensor, target_R: Tensor, *, variance_focus: float) -> Tensor:
    """Scale-invariant error of logarithms (Eigen et al., 2014): sqrt(mean(e^2) - variance_focus * mean(e)^2).

    Over the rays with a target: finite and above zero. Zero, with zero gradients, where there is none or where nothing
    is wrong; the reference gives NaN.

    Args:
        depth_R: Rendered, metres, not negative.
        target_R: Measured, metres.
        variance_focus: In [0, 1).
    """
    measured = (target_R > 0) & target_R.isfinite()
    error_L = torch.log(depth_R[measured].float() + _TINY) - torch.log(target_R[measured].float())
    count = max(len(error_L), 1)
    square = (error_L**2).sum() / count - variance_focus * (error_L.sum() / count) ** 2
    return square.clamp(min=_LEAST_SQUARE).sqrt() * (square > _LEAST_SQUARE)


def ray_cross_entropy(
    scores_RK: Tensor, labels_R: Tensor, *, unknown: int, class_weights: Sequence[float] | None = None
) -> Tensor:
    """(Weighted) mean cross-entropy over the rays whose label is known.

    Zero, with zero gradients, where there is none; the reference gives NaN.

    Args:
        scores_RK: Rendered class scores, not normalised.
        labels_R: int64 class ids.
        unknown: Label of rays that do not count.
        class_weights: One for each of the K classes.
    """
    known = labels_R != unknown
    scores_LK, labels_L = scores_RK[known].float(), labels_R[known]
    weight_L = torch.ones_like(scores_LK[:, 0])
    if class_weights is not None:
        weight_L = scores_LK.new_tensor(class_weights)[labels_L]
    entropy_L = F.cross_entropy(scores_LK, labels_L, reduction="none")
    return (entropy_L * weight_L).sum() / weight_L.sum().clamp(min=torch.finfo(torch.float32).tiny)


def ray_entropy(transmittance_R: Tensor) -> Tensor:
    """Mean entropy of hitting something or nothing, in nats: rays should do the one or the other. Zero without rays."""
    through_R = transmittance_R.float().clamp(1e-6, 1 - 1e-6)
    entropy_R = -(through_R * through_R.log() + (1 - through_R) * (1 - through_R).log())
    return entropy_R.sum() / max(len(entropy_R), 1)


def ray_sight(near_R: Tensor) -> Tensor:
    """Mean of -ln(share of a ray that is stopped near what was measured + 1 %), in nats. Zero without rays."""
    return -torch.log(near_R.float() + _LEAST_SHARE).sum() / max(len(near_R), 1)


def rendering_losses(rendered: RenderedRays, rays: Rays, config: RenderingLossConfig, *, unknown: int) -> Losses:
    """Every term that the config gives a weight: of each sample's rays, then the mean over the samples that have some.

    Args:
        rendered: What the rays see.
        rays: The same rays, with what was measured; Rays.within leaves out those too far away before rendering.
        config: Terms and weights.
        unknown: Label of rays without one.

    Raises:
        ValueError: rendered rays and rays that differ in number, or labels that are no class.
    """
    classes = rendered.semantic_RK.shape[1]
    _check(rendered, rays, config, unknown, classes)
    terms: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {}
    target_R = rays.range_R if config.target == "range" else rays.depth_R
    every_R = torch.ones_like(rays.label_R, dtype=torch.bool)
    if config.rendered_depth:
        terms["rendered_depth"] = (
            (target_R > 0) & target_R.isfinite(),
            lambda i: silog_depth(rendered.depth_R[i], target_R[i], variance_focus=config.variance_focus),
        )
    if config.rendered_semantic:
        terms["rendered_semantic"] = (
            rays.label_R != unknown,
            lambda i: ray_cross_entropy(
                rendered.semantic_RK[i], rays.label_R[i], unknown=unknown, class_weights=config.class_weights
            ),
        )
    if config.entropy:
        terms["entropy"] = every_R, lambda i: ray_entropy(rendered.transmittance_R[i])
    if config.sight:
        measured_R = (rays.range_R > 0) & rays.range_R.isfinite()
        terms["sight"] = measured_R, lambda i: ray_sight(rendered.near_R[i])
    if config.distortion:
        terms["distortion"] = every_R, lambda i: rendered.distortion_R[i].float().mean()
    with torch.autocast(rendered.depth_R.device.type, enabled=False):
        parts = [_term(name, *term, rays.sample_R, rendered, getattr(config, name)) for name, term in terms.items()]
    return Losses(parts=tuple(parts))


def _term(
    name: str,
    labelled_R: Tensor,
    loss: Callable[[Tensor], Tensor],
    sample_R: Tensor,
    rendered: RenderedRays,
    weight: float,
) -> LossTerm:
    """Mean of ``loss(index of a sample's rays)`` over the samples with a labelled ray."""
    samples = sample_R[labelled_R].unique().tolist()
    if not samples:
        logger.info("loss %s: no ray in this batch carries a label for it; it is zero", name)
        value = 0.0 * (rendered.depth_R.sum() + rendered.semantic_RK.sum())  # so that backward() has its way
    else:
        values = [loss((labelled_R & (sample_R == b)).nonzero()[:, 0]) for b in samples]
        value = torch.stack(values).mean()
    return LossTerm(name=name, value=value, weight=weight, labelled=int(labelled_R.sum()))


def _check(rendered: RenderedRays, rays: Rays, config: RenderingLossConfig, unknown: int, classes: int) -> None:
    if len(rendered.depth_R) != len(rays):
        raise ValueError(f"rendering_losses: {len(rendered.depth_R)} rendered rays, but {len(rays)} rays")
    if config.class_weights is not None and len(config.class_weights) != classes:
        raise ValueError(
            f"RenderingLossConfig.class_weights: {len(config.class_weights)} weights for {classes} classes"
        )
    wrong_R = (rays.label_R != unknown) & ((rays.label_R < 0) | (rays.label_R >= classes))
    if bool(wrong_R.any()):
        raise ValueError(
            f"Rays.label_R holds {rays.label_R[wrong_R].unique().tolist()[:8]}; expected 0..{classes - 1}, or "
            f"{unknown} for unknown"
        )
