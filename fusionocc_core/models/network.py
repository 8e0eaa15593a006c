"""What every network of this package has in common: a config, a card, and Batch in, Outputs out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from fusionocc_core.checkpoints import ModelCard
from fusionocc_core.grids import DepthBins, LabelSet, VoxelGrid
from fusionocc_core.structures import UNTRAINED, Batch, InputConfig, Outputs


class NetworkConfig(Protocol):
    """What the data pipeline, training and evaluation read of a network's config."""

    @property
    def inputs(self) -> InputConfig:
        """What the network wants of a frame."""

    @property
    def grid(self) -> VoxelGrid:
        """The voxels of the answer."""

    @property
    def label_set(self) -> LabelSet:
        """The classes of the answer."""

    @property
    def depth_bins(self) -> DepthBins:
        """Of the depth scores in Outputs, and of the labels that supervise them."""

    @property
    def feature_stride(self) -> int:
        """Pixels of the network's picture a cell of its depth and segmentation scores."""


class OccupancyNetwork(nn.Module):
    """Base of the networks: ``config`` decides what it computes, ``card`` says where the weights come from.

    Fresh weights say "untrained weights".
    """

    config: Any
    """A NetworkConfig: each network's own frozen dataclass."""
    card: ModelCard
    config_class: ClassVar[type[Any] | None] = None
    """Set by networks outside of this package, so that recipes and files find them once they are imported."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.card = ModelCard(preset="", trained_on=UNTRAINED)

    def forward(self, batch: Batch) -> Outputs:
        """Class scores of every voxel, and what else the network says about the pictures."""
        raise NotImplementedError

    @classmethod
    def state_from_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of an official checkpoint under this network's names and in its layouts.

        Raises:
            ValueError: nobody has published weights of this network.
        """
        raise ValueError(f"{cls.__name__}: there are no official checkpoints of it; name a file of ours")

    def check_official_config(self, config_text: str, source: str) -> None:
        """Compare the config text that lies in an official checkpoint with this network's; default: nothing to say.

        Raises:
            ValueError: the checkpoint was made for something else.
        """


def check_depth_range(config: str, inputs: InputConfig, bins: DepthBins) -> None:
    """Depth maps must hold what the bins can tell apart, and no more.

    Raises:
        ValueError: the two ranges differ; ``config`` is the class that the message names.
    """
    if inputs.depth_range != (bins.start, bins.stop):
        raise ValueError(f"{config}: inputs.depth_range={inputs.depth_range} is not the range of {bins}")


def refuse_presence_masks(config: str, inputs: InputConfig) -> None:
    """For networks that have no way of leaving a sensor out.

    Raises:
        ValueError: the inputs ask for masks; ``config`` is the class that the message names.
    """
    if inputs.presence_masks:
        raise ValueError(f"{config}: inputs.presence_masks=True: this network does not obey masks; expected False")
