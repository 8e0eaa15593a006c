"""Tensor names and layouts of the official RenderOcc checkpoints, to and from ours.

All modules carry the official names. An official file also holds numbers that follow from its configuration: the
weights of the classes and where rays are sampled. They are compared with ours and left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusionocc_core.layers.image_backbones import TimmBackboneConfig
from fusionocc_core.layers.thin_image_net import ThinImageNetConfig
from fusionocc_core.losses.rendering import NUSCENES_RAY_COUNTS
from fusionocc_core.losses.voxels import balancing_weights
from fusionocc_core.models import fusionocc_official
from fusionocc_core.ops.volume_render_rays import OFFICIAL_SHIFT, renderocc_rendering

if TYPE_CHECKING:
    from fusionocc_core.models.renderocc import RenderOcc


def official_constants() -> dict[str, Tensor]:
    """The numbers of an official file that are no weights; positions are in radii of the sphere around the vehicle."""
    config = renderocc_rendering()
    lower, upper = (
        torch.tensor([(side - middle) / config.radius for side, middle in zip(box, config.center, strict=True)])
        for box in (config.box_lower, config.box_upper)
    )
    return {
        "semantic_loss.weight": torch.tensor(balancing_weights(NUSCENES_RAY_COUNTS)),
        "nerf_head.scene_center": torch.tensor(config.center),
        "nerf_head.scene_radius": torch.full((3,), config.radius),
        "nerf_head.xyz_min": lower,
        "nerf_head.xyz_max": upper,
        "nerf_head.act_shift": torch.tensor([OFFICIAL_SHIFT]),
    }


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names and in our layouts, from those of an official file.

    Raises:
        ValueError: the file samples rays in another space than renderocc_rendering(), so that its densities mean
            something else, or a Swin's position index is not the usual one.
    """
    constants = official_constants()
    for name in constants:
        if name.startswith("nerf_head.") and name in state:
            theirs, ours = state[name].float().cpu().flatten(), constants[name]
            if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=1e-4):
                raise ValueError(
                    f"{name} is {theirs.tolist()} in the file, {ours.tolist()} in renderocc_rendering(): its densities "
                    "belong to another space; train it with that RenderConfig or look for the released checkpoint"
                )
    weights = {name: tensor for name, tensor in state.items() if name not in constants}
    return fusionocc_official.from_official(weights)


def official_state_dict(model: RenderOcc) -> dict[str, Tensor]:
    """A network's tensors under the official names and in the official layouts, its constants included.

    Raises:
        ValueError: the network has no official counterpart.
    """
    config = model.config
    if isinstance(config.image_backbone, TimmBackboneConfig | ThinImageNetConfig) or config.head.density != "official":
        raise ValueError(
            "official_state_dict: the official networks have a ResNet-50 or Swin backbone and official densities, this "
            f"one has {config.image_backbone} and {config.head}"
        )
    return {**fusionocc_official.to_official(model.state_dict()), **official_constants()}
