"""The weighted sum of losses that a network is trained with.

Legend: B samples, N cameras, D depth bins, K classes, H W picture, h w feature map, X Y Z voxels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from fusionocc_core.losses.affinity import geometric_affinity, semantic_affinity
from fusionocc_core.losses.centers import (
    CenterPredictions,
    CenterTargets,
    collate_centers,
    heatmap_loss,
    position_loss,
)
from fusionocc_core.losses.image import cell_labels, depth_loss, segmentation_loss
from fusionocc_core.losses.lovasz import lovasz_softmax
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


class SpecialIds(Protocol):
    """The part of a label set that losses look at."""

    @property
    def free(self) -> int: ...  # noqa: D102
    @property
    def unknown(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What a batch should have given. None where a data set has no such labels."""

    labels_BXYZ: Tensor
    """uint8 class ids, augmented like the batch; the label set's ``unknown`` where nothing is known."""
    mask_camera_BXYZ: Tensor | None = None
    """Bool: voxels that a camera observed."""
    mask_lidar_BXYZ: Tensor | None = None
    """Bool: voxels that the LiDAR observed."""
    depth_bins_BNhw: Tensor | None = None
    """int64: 0 where nothing was measured, else 1 + the index of the depth bin."""
    segmentation_BNHW: Tensor | None = None
    """uint8 class of each pixel of the network's current pictures; ``free`` or ``unknown`` where there is no label."""
    centers: CenterTargets | None = None
    """Where objects are."""

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        shape = self.labels_BXYZ.shape
        if len(shape) != 4:
            raise ValueError(f"Targets.labels_BXYZ: shape {tuple(shape)}, expected (B, X, Y, Z)")
        for name in ("mask_camera_BXYZ", "mask_lidar_BXYZ"):
            mask = getattr(self, name)
            if mask is not None and (mask.shape != shape or mask.dtype != torch.bool):
                raise ValueError(f"Targets.{name}: {mask.dtype} {tuple(mask.shape)}, expected bool {tuple(shape)}")
        for name in ("depth_bins_BNhw", "segmentation_BNHW"):
            tensor = getattr(self, name)
            if tensor is not None and (tensor.dim() != 4 or len(tensor) != len(self.labels_BXYZ)):
                raise ValueError(f"Targets.{name}: shape {tuple(tensor.shape)}, expected 4 axes, {shape[0]} samples")

    def to(self, device: torch.device | str) -> Targets:
        """The same targets on another device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in tensors.items() if t is not None})


def collate_targets(samples: Sequence[Targets]) -> Targets:
    """One batch out of several, sample after sample.

    Raises:
        ValueError: some have a kind of label that others lack.
    """
    joined: dict[str, Any] = {}
    for name in (f.name for f in fields(Targets)):
        parts = [getattr(sample, name) for sample in samples]
        missing = sum(part is None for part in parts)
        if missing not in (0, len(parts)):
            raise ValueError(f"Targets.{name}: {missing} of {len(parts)} samples of a batch lack it")
        if not missing:
            joined[name] = collate_centers(parts) if name == "centers" else torch.cat(parts)
    return replace(samples[0], **joined)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the terms; zero leaves a term out."""

    cross_entropy: float = 1.0
    focal: float = 0.0
    semantic_affinity: float = 0.0
    geometric_affinity: float = 0.0
    lovasz: float = 0.0
    depth: float = 0.0
    segmentation: float = 0.0
    center_heatmap: float = 0.0
    center_position: float = 0.0
    mask: str = "none"
    """Voxels of the cross-entropy: "none" (all that are known), "camera" or "lidar" (observed by these)."""
    class_weights: tuple[float, ...] | None = None
    """Of cross-entropy and focal loss; see balancing_weights."""
    focal_by_distance: bool = True
    """Weight the focal loss of a column of voxels by its distance, from 1 in the middle to 2 in the corners."""
    center_classes: tuple[str, ...] = ()
    """Classes of the objects whose centres the network finds, in the order of its heatmaps."""

    def __post_init__(self) -> None:
        """Refuse a choice that does not exist, negative weights, and sums of nothing."""
        if self.mask not in MASKS:
            raise ValueError(f"LossConfig.mask={self.mask!r}: expected one of {MASKS}")
        weights = {name: getattr(self, name) for name in TERMS}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"LossConfig: weights must not be negative, and one must be positive; got {weights}")
        if (self.center_heatmap or self.center_position) and not self.center_classes:
            raise ValueError("LossConfig.center_classes=(): the losses of centres need the classes of the heatmaps")


TERMS = (
    "cross_entropy",
    "focal",
    "semantic_affinity",
    "geometric_affinity",
    "lovasz",
    "depth",
    "segmentation",
    "center_heatmap",
    "center_position",
)
"""Names of the weights in LossConfig and of the terms in Losses."""

_VOXEL_TERMS = TERMS[:5]


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


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One named term."""

    name: str
    value: Tensor
    """Scalar, not weighted."""
    weight: float
    labelled: int
    """Voxels or cells that it is a mean over; with 0 the term is zero and so are its gradients."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The terms of one batch."""

    parts: tuple[LossTerm, ...]

    @property
    def terms(self) -> dict[str, Tensor]:
        """Weighted values by name, as they enter the sum."""
        return {part.name: part.value * part.weight for part in self.parts}

    @property
    def total(self) -> Tensor:
        """The weighted sum, to call backward() on."""
        return torch.stack(list(self.terms.values())).sum()


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
    return Losses(
        parts=tuple(
            LossTerm(name=name, value=value, weight=getattr(config, name), labelled=labelled[name])
            for name, value in values.items()
        )
    )


def _term(name: str, outputs: Predictions, targets: Targets, config: LossConfig, label_set: SpecialIds) -> Tensor:
    logits, labels, unknown = outputs.logits_BKXYZ, targets.labels_BXYZ, label_set.unknown
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
    if name == "lovasz":
        return lovasz_softmax(logits, labels, unknown=unknown)
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
    if mask is not None and "cross_entropy" in wanted:
        counts["cross_entropy"] = (known & mask).sum()
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
