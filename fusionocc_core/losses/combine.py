"""The weighted sum of losses that a network is trained with.

Legend: B samples, N cameras, D depth bins, K classes, H W picture, h w feature map, X Y Z voxels.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fusionocc_core.losses.affinity import geometric_affinity, semantic_affinity
from fusionocc_core.losses.centers import CenterPredictions, CenterTargets, heatmap_loss, position_loss
from fusionocc_core.losses.gaussian_rays import RayPredictions, ray_occupancy
from fusionocc_core.losses.image import cell_labels, depth_loss, segmentation_loss
from fusionocc_core.losses.lovasz import lovasz_softmax
from fusionocc_core.losses.occupied import occupied_class_loss, occupied_loss
from fusionocc_core.losses.rendering import (
    NUSCENES_RAY_COUNTS,
    DensityPredictions,
    RenderingLossConfig,
    rendered_terms,
    renderocc_losses,
)
from fusionocc_core.losses.targets import Targets
from fusionocc_core.losses.terms import Losses, LossTerm
from fusionocc_core.losses.voxels import (
    OCC3D_VOXEL_COUNTS,
    balancing_weights,
    distance_weights,
    voxel_cross_entropy,
    voxel_focal,
)

logger = logging.getLogger(__name__)

MASKS = ("none", "camera", "lidar")


class Predictions(Protocol):
    """The part of a network's outputs that losses look at."""

    @property
    def logits_BKXYZ(self) -> Tensor: ...  # noqa: D102
    @property
    def depth_logits_BNDhw(self) -> Tensor | None: ...  # noqa: D102
    @property
    def seg_logits_BNKhw(self) -> Tensor | None: ...  # noqa: D102
    @property
    def centers(self) -> CenterPredictions | None: ...  # noqa: D102
    @property
    def density(self) -> DensityPredictions | None: ...  # noqa: D102
    @property
    def earlier_logits(self) -> tuple[Tensor, ...]: ...  # noqa: D102
    @property
    def rays(self) -> RayPredictions | None: ...  # noqa: D102


class SpecialIds(Protocol):
    """The part of a label set that losses look at."""

    @property
    def free(self) -> int: ...  # noqa: D102
    @property
    def unknown(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms; zero leaves a term out."""

    cross_entropy: float = 1.0
    focal: float = 0.0
    semantic_affinity: float = 0.0
    geometric_affinity: float = 0.0
    lovasz: float = 0.0
    lovasz_occupied: float = 0.0
    """Lovasz-Softmax over the voxels that are not free (GaussianFormer)."""
    depth: float = 0.0
    segmentation: float = 0.0
    center_heatmap: float = 0.0
    center_position: float = 0.0
    occupied: float = 0.0
    """Is a voxel occupied: for networks with Outputs.density."""
    occupied_class: float = 0.0
    """By what, of occupied voxels: for networks with Outputs.density."""
    ray_occupancy: float = 0.0
    """Which points along the rays of pixels are occupied: for networks with Outputs.rays (GaussianFormer-2)."""
    mask: str = "none"
    """Voxels of cross_entropy, occupied and occupied_class: "none" (all that are known), "camera" or "lidar" (observed
    by these)."""
    class_weights: tuple[float, ...] | None = None
    """Of cross_entropy, focal and occupied_class (which leaves out that of free space); see balancing_weights."""
    focal_by_distance: bool = True
    """Weight the focal loss of a column of voxels by its distance, from 1 in the middle to 2 in the corners."""
    center_classes: tuple[str, ...] = ()
    """Classes of the objects whose centres the network finds, in the order of its heatmaps."""
    rendering: RenderingLossConfig | None = None
    """What rays see of the answer is held against what was measured along them; for every network."""

    def __post_init__(self) -> None:
        """Refuse a choice that does not exist, negative weights, and sums of nothing."""
        if self.mask not in MASKS:
            raise ValueError(f"LossConfig.mask={self.mask!r}: expected one of {MASKS}")
        weights = {name: getattr(self, name) for name in TERMS}
        if min(weights.values()) < 0 or not (any(weights.values()) or self.rendering):
            raise ValueError(f"LossConfig: weights must not be negative, and one must be positive; got {weights}")
        if (self.center_heatmap or self.center_position) and not self.center_classes:
            raise ValueError("LossConfig.center_classes=(): the losses of centres need the classes of the heatmaps")

    @property
    def needs_voxel_labels(self) -> bool:
        """Whether any term looks at labels of voxels; with none, no such labels are needed to train."""
        return any(getattr(self, name) for name in _VOXEL_TERMS)


TERMS = (
    "cross_entropy",
    "focal",
    "semantic_affinity",
    "geometric_affinity",
    "lovasz",
    "lovasz_occupied",
    "depth",
    "segmentation",
    "center_heatmap",
    "center_position",
    "occupied",
    "occupied_class",
    "ray_occupancy",
)
"""Names of the weights in LossConfig and of the terms in Losses."""

_MASKED_TERMS = ("cross_entropy", "occupied", "occupied_class")
_SCORE_TERMS = TERMS[:6]
"""Those that look at class scores: means over the last and the earlier scores, where a network gives some."""
_VOXEL_TERMS = (*_SCORE_TERMS, "occupied", "occupied_class", "ray_occupancy")


def fusionocc_losses(*, mask: str = "camera") -> LossConfig:
    """What FusionOcc is trained with; mask="none" is its fine-tuning without mask."""
    return LossConfig(mask=mask, depth=0.1, segmentation=0.1)


def flashocc_losses(*, mask: str = "camera", balanced: bool = False, depth: float = 0.0) -> LossConfig:
    """What FlashOcc M0 to M3 are trained with; ``depth`` is 0.05 for those with depth supervision."""
    return LossConfig(mask=mask, class_weights=balancing_weights(OCC3D_VOXEL_COUNTS) if balanced else None, depth=depth)


def panoptic_flashocc_losses(*, depth: float = 0.0, center_classes: tuple[str, ...] = ()) -> LossConfig:
    """What Panoptic-FlashOcc is trained with: no mask, balanced classes; with ``center_classes`` its centres, too."""
    return LossConfig(
        cross_entropy=0.0,
        focal=100.0,
        semantic_affinity=1.0,
        geometric_affinity=1.0,
        lovasz=1.0,
        class_weights=balancing_weights(OCC3D_VOXEL_COUNTS),
        depth=depth,
        center_heatmap=1.0 if center_classes else 0.0,
        center_position=0.25 if center_classes else 0.0,
        center_classes=center_classes,
    )


def renderocc_recipe_losses(*, voxels: float = 0.0, rendering: float = 1.0, mask: str = "none") -> LossConfig:
    """What RenderOcc is trained with; with ``voxels`` = 1 by labels of voxels as well.

    Where those are used, the code that calls itself UniOcc (FlashOCC_on_UniOcc_and_RenderOCC) has mask="camera" and
    rendering=0.1.
    """
    weights = (*balancing_weights(NUSCENES_RAY_COUNTS), 1.0)
    return LossConfig(
        cross_entropy=0.0,
        occupied=voxels,
        occupied_class=voxels,
        depth=0.05,
        mask=mask,
        class_weights=weights,
        rendering=renderocc_losses(weight=rendering) if rendering else None,
    )


SURROUNDOCC_WEIGHTS = (
    1.01552756,
    1.06897009,
    1.30013094,
    1.07253735,
    0.94637502,
    1.10087012,
    1.26960524,
    1.06258364,
    1.189019,
    1.06217292,
    1.00595144,
    0.85706115,
    1.03923299,
    0.90867526,
    0.8936431,
    0.85486129,
    0.8527829,
    0.5,
)
"""Of the 18 classes in the cross-entropy that GaussianFormer is trained with."""


def gaussianformer_losses(*, ray_occupancy: float = 0.0) -> LossConfig:
    """What both GaussianFormers are trained with; the first part of the second one with ``ray_occupancy``."""
    return LossConfig(
        cross_entropy=10.0, lovasz_occupied=1.0, class_weights=SURROUNDOCC_WEIGHTS, ray_occupancy=ray_occupancy
    )


def compute_losses(outputs: Predictions, targets: Targets, config: LossConfig, label_set: SpecialIds) -> Losses:
    """Every term that the config gives a weight.

    Raises:
        ValueError: a term is wanted whose labels or outputs are missing, or labels hold ids that are no class.
    """
    labelled = _check(outputs, targets, config, label_set)
    values = {name: _term(name, outputs, targets, config, label_set) for name in labelled}
    for name, count in labelled.items():
        if not count:
            logger.info("loss %s: nothing in this batch carries a label for it; it is zero", name)
    parts = tuple(
        LossTerm(name=name, value=value, weight=getattr(config, name), labelled=labelled[name])
        for name, value in values.items()
    )
    if config.rendering:
        parts += rendered_terms(outputs, targets.rays, config.rendering, free=label_set.free, unknown=label_set.unknown)
    return Losses(parts=parts)


def _term(name: str, outputs: Predictions, targets: Targets, config: LossConfig, label_set: SpecialIds) -> Tensor:
    if name not in _SCORE_TERMS:
        return _other_term(name, outputs, targets, config, label_set)
    scores = (*outputs.earlier_logits, outputs.logits_BKXYZ)
    return torch.stack([_score_term(name, logits, targets, config, label_set) for logits in scores]).mean()


def _score_term(name: str, logits: Tensor, targets: Targets, config: LossConfig, label_set: SpecialIds) -> Tensor:
    labels, unknown = targets.labels_BXYZ, label_set.unknown
    if name == "cross_entropy":
        mask = _mask(targets, config)
        return voxel_cross_entropy(logits, labels, unknown=unknown, mask_BXYZ=mask, class_weights=config.class_weights)
    if name == "focal":
        columns = distance_weights(*labels.shape[1:3], device=logits.device) if config.focal_by_distance else None
        return voxel_focal(
            logits, labels, unknown=unknown, class_weights=config.class_weights, column_weights_XY=columns
        )
    if name == "semantic_affinity":
        return semantic_affinity(logits, labels, unknown=unknown, free=label_set.free)
    if name == "geometric_affinity":
        return geometric_affinity(logits, labels, unknown=unknown, free=label_set.free)
    if name == "lovasz_occupied":
        labels = labels.masked_fill(labels == label_set.free, unknown)
    return lovasz_softmax(logits, labels, unknown=unknown)


def _other_term(name: str, outputs: Predictions, targets: Targets, config: LossConfig, label_set: SpecialIds) -> Tensor:
    labels, unknown = targets.labels_BXYZ, label_set.unknown
    if name == "ray_occupancy":
        return ray_occupancy(_rays(outputs), labels, free=label_set.free, unknown=unknown)
    if name in ("occupied", "occupied_class"):
        density = _density(outputs, name)
        known = labels != unknown
        if (mask := _mask(targets, config)) is not None:
            known = known & mask
        if name == "occupied":
            return occupied_loss(density.occupied_logits_BXYZ, labels != label_set.free, known)
        return occupied_class_loss(
            density.semantic_BXYZK, labels, known, free=label_set.free, class_weights=config.class_weights
        )
    if name in ("center_heatmap", "center_position"):
        said, wanted = _centers(outputs, targets, name)
        if name == "center_heatmap":
            return heatmap_loss(said.heatmap_logits_BKXY, wanted.heatmap_BKXY)
        return position_loss(said, wanted)
    if name == "depth":
        return depth_loss(_need(outputs, "depth_logits_BNDhw", name), _need(targets, "depth_bins_BNhw", name))
    return segmentation_loss(
        _need(outputs, "seg_logits_BNKhw", name),
        _need(targets, "segmentation_BNHW", name),
        ignored=(label_set.free, unknown),
    )


def _density(outputs: Predictions, term: str) -> DensityPredictions:
    if outputs.density is None:
        raise ValueError(
            f"loss {term} has a weight, but outputs.density is None: only RenderOcc and UniOcc have it; set "
            f"LossConfig.{term}=0 and LossConfig.cross_entropy instead"
        )
    return outputs.density


def _rays(outputs: Predictions) -> RayPredictions:
    if outputs.rays is None:
        raise ValueError(
            "loss ray_occupancy has a weight, but outputs.rays is None: only networks that draw Gaussians along rays "
            "have it (GaussianFormer-2); set LossConfig.ray_occupancy=0"
        )
    return outputs.rays


def _mask(targets: Targets, config: LossConfig) -> Tensor | None:
    return None if config.mask == "none" else _need(targets, f"mask_{config.mask}_BXYZ", "cross_entropy")


def _centers(outputs: Predictions, targets: Targets, term: str) -> tuple[CenterPredictions, CenterTargets]:
    if outputs.centers is None or targets.centers is None:
        holder = "outputs" if outputs.centers is None else "targets"
        raise ValueError(
            f"loss {term} has a weight, but {holder}.centers is None: the network or the data has no such thing; set "
            f"LossConfig.{term}=0"
        )
    said, wanted = outputs.centers.heatmap_logits_BKXY.shape, targets.centers.heatmap_BKXY.shape
    if said != wanted:
        raise ValueError(
            f"targets.centers: heatmaps {tuple(wanted)} do not fit the network's {tuple(said)}; LossConfig."
            "center_classes must be those of the network's CenterHeadConfig"
        )
    return outputs.centers, targets.centers


def _need(holder: Predictions | Targets, name: str, term: str) -> Tensor:
    tensor = getattr(holder, name)
    if not isinstance(tensor, Tensor):
        raise ValueError(
            f"loss {term} has a weight, but {type(holder).__name__}.{name} is None: the network or the data has no "
            f"such thing; set LossConfig.{term}=0, or LossConfig.mask='none' where a mask is missing"
        )
    return tensor


def _check(outputs: Predictions, targets: Targets, config: LossConfig, label_set: SpecialIds) -> dict[str, int]:
    """How much is labelled for each wanted term; refuses ids that are no class. Waits once for the device."""
    wanted = [name for name in TERMS if getattr(config, name)]
    labels, classes = targets.labels_BXYZ, outputs.logits_BKXYZ.shape[1]
    if labels.shape != (outputs.logits_BKXYZ.shape[0], *outputs.logits_BKXYZ.shape[2:]):
        raise ValueError(
            f"targets.labels_BXYZ: shape {tuple(labels.shape)} does not fit logits {tuple(outputs.logits_BKXYZ.shape)}"
        )
    if config.class_weights is not None and len(config.class_weights) != classes:
        raise ValueError(f"LossConfig.class_weights: {len(config.class_weights)} weights for {classes} classes")
    known = labels != label_set.unknown
    counts = {name: known.sum() for name in wanted if name in _VOXEL_TERMS}
    highest = {"targets.labels_BXYZ": (labels.where(known, 0).amax(), classes)}
    mask = _mask(targets, config)
    observed = known if mask is None else known & mask
    counts |= {name: observed.sum() for name in wanted if name in _MASKED_TERMS}
    if "lovasz_occupied" in wanted:
        counts["lovasz_occupied"] = (known & (labels != label_set.free)).sum()
    if "occupied_class" in wanted:
        counts["occupied_class"] = (observed & (labels != label_set.free)).sum()
    if "depth" in wanted:
        bins = _need(targets, "depth_bins_BNhw", "depth")
        counts["depth"] = (bins > 0).sum()
        highest["targets.depth_bins_BNhw"] = (bins.amax(), _need(outputs, "depth_logits_BNDhw", "depth").shape[2] + 1)
    if "segmentation" in wanted:
        logits = _need(outputs, "seg_logits_BNKhw", "segmentation")
        cells = cell_labels(_need(targets, "segmentation_BNHW", "segmentation"), tuple(logits.shape[-2:]))
        valid = (cells != label_set.free) & (cells != label_set.unknown)
        counts["segmentation"] = valid.sum()
        highest["targets.segmentation_BNHW"] = (cells.where(valid, 0).amax(), logits.shape[2])
    if "center_heatmap" in wanted:
        heatmap = _centers(outputs, targets, "center_heatmap")[1].heatmap_BKXY
        counts["center_heatmap"] = heatmap.new_tensor(heatmap.numel(), dtype=torch.int64)
    if "center_position" in wanted:
        counts["center_position"] = (_centers(outputs, targets, "center_position")[1].columns_BM2[..., 0] >= 0).sum()
    numbers = torch.stack([*counts.values(), *(h.long() for h, _ in highest.values())]).tolist()
    for (name, (_, limit)), value in zip(highest.items(), numbers[len(counts) :], strict=True):
        if value >= limit:
            raise ValueError(f"{name} holds {value}; expected 0..{limit - 1}, or {label_set.unknown} for unknown")
    return dict(zip(counts, numbers, strict=False))
