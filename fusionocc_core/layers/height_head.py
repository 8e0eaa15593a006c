"""Channel to height: a bird's-eye view to the voxels above each of its cells (FlashOcc, Yu et al., 2023).

Legend: B samples, C channels, K classes, X Y Z voxels.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn


class ChannelToHeight(nn.Module):
    """Class scores of every voxel from 2D features: the voxels above a cell share its features.

    A 3x3 convolution with ReLU, and two linear layers with a Softplus between on each cell. Their result holds height
    after height the scores of all classes (channel = z * K + class), which is the memory layout of the logits: nothing
    is copied. The paper's figure has it the other way round; the official code and checkpoints have this order.
    """

    def __init__(self, in_channels: int, *, heights: int, num_classes: int) -> None:
        super().__init__()
        self.heights, self.num_classes = heights, num_classes
        conv = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.final_conv = nn.Sequential(OrderedDict(conv=conv))
        self.predicter = nn.Sequential(
            nn.Linear(in_channels, 2 * in_channels), nn.Softplus(), nn.Linear(2 * in_channels, heights * num_classes)
        )

    def forward(self, bev_BCYX: Tensor) -> Tensor:
        """(B, C, Y, X) to logits (B, K, X, Y, Z), a view of memory that holds the classes last."""
        cells_BXYC = torch.relu(self.final_conv(bev_BCYX)).permute(0, 3, 2, 1)
        columns_BXY = self.predicter(cells_BXYC)
        return columns_BXY.unflatten(-1, (self.heights, self.num_classes)).permute(0, 4, 1, 2, 3)
