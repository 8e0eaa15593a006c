"""Tensor names and layouts of the official FlashOcc checkpoints, to and from ours.

All modules carry the official names, so that only what FusionOcc's translation does to a Swin backbone is left to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from fusionocc_core.layers.image_backbones import TimmBackboneConfig
from fusionocc_core.models import fusionocc_official
from fusionocc_core.models.fusionocc_official import check_official_grid as check_official_grid

if TYPE_CHECKING:
    from fusionocc_core.models.flashocc import FlashOcc


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names and in our layouts, from those of an official file.

    Raises:
        ValueError: a Swin's stored position index is not the usual one, so that its bias tables would be read wrongly.
    """
    return fusionocc_official.from_official(state)


def official_state_dict(model: FlashOcc) -> dict[str, Tensor]:
    """A network's tensors under the official names and in the official layouts.

    Raises:
        ValueError: the network has no official counterpart.
    """
    if isinstance(model.config.image_backbone, TimmBackboneConfig):
        raise ValueError(
            "official_state_dict: the official networks have a ResNet-50 or Swin backbone, this one "
            f"{model.config.image_backbone}"
        )
    return fusionocc_official.to_official(model.state_dict())
