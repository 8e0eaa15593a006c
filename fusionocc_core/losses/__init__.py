"""Losses as pure functions on tensors, and the weighted sums that recipes train with."""

from fusionocc_core.losses.affinity import geometric_affinity, semantic_affinity
from fusionocc_core.losses.centers import CenterTargets, draw_centers, heatmap_loss, position_loss
from fusionocc_core.losses.combine import (
    LossConfig,
    compute_losses,
    flashocc_losses,
    fusionocc_losses,
    gaussianformer_losses,
    panoptic_flashocc_losses,
    renderocc_recipe_losses,
)
from fusionocc_core.losses.image import depth_loss, segmentation_loss
from fusionocc_core.losses.lovasz import lovasz_softmax
from fusionocc_core.losses.rendering import RenderingLossConfig, rendering_losses, renderocc_losses
from fusionocc_core.losses.targets import Targets, collate_targets
from fusionocc_core.losses.terms import Losses, LossTerm
from fusionocc_core.losses.voxels import (
    OCC3D_VOXEL_COUNTS,
    balancing_weights,
    distance_weights,
    voxel_cross_entropy,
    voxel_focal,
)

__all__ = [
    "OCC3D_VOXEL_COUNTS",
    "CenterTargets",
    "LossConfig",
    "LossTerm",
    "Losses",
    "RenderingLossConfig",
    "Targets",
    "balancing_weights",
    "collate_targets",
    "compute_losses",
    "depth_loss",
    "distance_weights",
    "draw_centers",
    "flashocc_losses",
    "fusionocc_losses",
    "gaussianformer_losses",
    "geometric_affinity",
    "heatmap_loss",
    "lovasz_softmax",
    "panoptic_flashocc_losses",
    "position_loss",
    "rendering_losses",
    "renderocc_losses",
    "renderocc_recipe_losses",
    "segmentation_loss",
    "semantic_affinity",
    "voxel_cross_entropy",
    "voxel_focal",
]
