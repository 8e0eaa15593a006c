"""Stereo cost volume: how badly each cell matches the earlier picture at each depth.

Shape suffixes: B pictures, C channels, H W feature map, R = H * W cells, D depths, 2 = (x, y).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BACKENDS = ("auto", "embedding_bag", "grid_sample")
OUT_OF_VIEW = ("position", "zero_channel")

GROUP = 4
"""Channels compared at a time by the reference form; bounds its memory. The official habit "zero_channel" depends on
it."""
NOWHERE = -1e4
"""In cells; where a position that is not a number is taken to lie. No map is that large."""


@torch.no_grad()
def cost_volume(
    current_BCHW: Tensor,
    earlier_BCHW: Tensor,
    cells_BDHW2: Tensor,
    *,
    out_of_view: str = "position",
    penalty: float = 5.0,
    backend: str = "auto",
) -> Tensor:
    """Softmax over depth of the negative L1 distance between each cell and what the earlier map shows at each depth.

    BEVStereo (Li et al., AAAI 2023) as BEVDet has it. No gradient flows, as there. The earlier map is read bilinearly
    and is zero outside its cells; a sample out of view costs ``penalty`` more.

    Args:
        current_BCHW: features of the current pictures.
        earlier_BCHW: of the same cameras' earlier pictures, same shape.
        cells_BDHW2: where each cell, were it at each depth, lies in the earlier map: (x, y) in cells, 0 = the centre of
            the first; far outside (or NaN) for what lies behind the earlier camera.
        out_of_view: "position": a sample is out of view where its position lies outside the centres of the border
            cells. "zero_channel" (official): where the first channel of the last group of four is read as exactly zero,
            which holds for many a cell in the picture whose features come out of a ReLU.
        penalty: added to the cost of samples out of view.
        backend: "grid_sample" (the readable form), "embedding_bag" (reads whole feature vectors), or "auto":
            embedding_bag on a CPU, grid_sample elsewhere.

    Returns:
        (B, D, H, W), not negative, sums to one over D.

    Raises:
        ValueError: shapes that do not fit, unknown names, or channels that are no whole number of groups with
            "zero_channel".
    """
    _check(current_BCHW, earlier_BCHW, cells_BDHW2, out_of_view, backend)
    if backend == "auto":
        backend = "embedding_bag" if current_BCHW.device.type == "cpu" else "grid_sample"
    form = _by_embedding_bag if backend == "embedding_bag" else _by_grid_sample
    cells_BDHW2 = cells_BDHW2.float().nan_to_num(nan=NOWHERE).clamp(NOWHERE, -NOWHERE)
    cost_BDHW, marked_BDHW = form(current_BCHW.float(), earlier_BCHW.float(), cells_BDHW2)
    if out_of_view == "position":
        size = cells_BDHW2.new_tensor([earlier_BCHW.shape[3], earlier_BCHW.shape[2]])
        marked_BDHW = ((cells_BDHW2 < 0) | (cells_BDHW2 > size - 1)).any(dim=-1)
    return (-(cost_BDHW + penalty * marked_BDHW)).softmax(dim=1).to(current_BCHW.dtype)


def _by_grid_sample(current_BCHW: Tensor, earlier_BCHW: Tensor, cells_BDHW2: Tensor) -> tuple[Tensor, Tensor]:
    """Cost, and where the marking channel was read as zero; both (B, D, H, W)."""
    b, channels, height, width = current_BCHW.shape
    grid = ((2 * cells_BDHW2 + 1) / cells_BDHW2.new_tensor([width, height]) - 1).flatten(1, 2)  # (B, D * H, W, 2)
    cost_BDHW = current_BCHW.new_zeros(cells_BDHW2.shape[:-1])
    for first in range(0, channels, GROUP):
        part = earlier_BCHW[:, first : first + GROUP]
        read = F.grid_sample(part, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        read = read.view(b, part.shape[1], *cost_BDHW.shape[1:])
        cost_BDHW += (current_BCHW[:, first : first + GROUP, None] - read).abs().sum(dim=1)
    return cost_BDHW, read[:, 0] == 0


def _by_embedding_bag(current_BCHW: Tensor, earlier_BCHW: Tensor, cells_BDHW2: Tensor) -> tuple[Tensor, Tensor]:
    """The same, one picture and depth at a time: each sample is a weighted sum of four whole feature vectors."""
    channels, width = current_BCHW.shape[1], current_BCHW.shape[3]
    marking = (channels - 1) // GROUP * GROUP
    cost_BDR, marked_BDR = [], []
    for current_CHW, earlier_CHW, cells_DHW2 in zip(current_BCHW, earlier_BCHW, cells_BDHW2, strict=True):
        current_RC = current_CHW.flatten(1).T.contiguous()
        # One border of zeros before the map and two behind it: no position needs a case of its own.
        earlier_RC = F.pad(earlier_CHW, (1, 2, 1, 2)).flatten(1).T.contiguous()
        for cells_HW2 in cells_DHW2:
            rows_R4, weights_R4 = _four_neighbours(cells_HW2.flatten(0, 1), earlier_CHW.shape[1], width)
            read_RC = F.embedding_bag(rows_R4, earlier_RC, mode="sum", per_sample_weights=weights_R4)
            marked_BDR.append(read_RC[:, marking] == 0)
            cost_BDR.append(torch.linalg.vector_norm(read_RC.sub_(current_RC), ord=1, dim=1))
    shape = cells_BDHW2.shape[:-1]
    return torch.stack(cost_BDR).view(shape), torch.stack(marked_BDR).view(shape)


def _four_neighbours(cells_R2: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Rows (R, 4) of the padded, flattened map around each position, and their bilinear weights."""
    x, y = cells_R2[:, 0].clamp(-1, width) + 1, cells_R2[:, 1].clamp(-1, height) + 1  # in the padded map, from 0 up
    left, top = x.int(), y.int()
    right, down = x - left, y - top
    first = top * (width + 3) + left
    rows_R4 = torch.stack([first, first + 1, first + width + 3, first + width + 4], dim=1)
    weights = [(1 - right) * (1 - down), right * (1 - down), (1 - right) * down, right * down]
    return rows_R4, torch.stack(weights, dim=1)


def _check(current: Tensor, earlier: Tensor, cells: Tensor, out_of_view: str, backend: str) -> None:
    if current.ndim != 4 or earlier.shape != current.shape:
        raise ValueError(
            f"cost_volume: current is {tuple(current.shape)}, earlier {tuple(earlier.shape)}; expected (B, C, H, W) "
            "twice: both pictures go through the same layers"
        )
    b, channels, height, width = current.shape
    if cells.ndim != 5 or (cells.shape[0], *cells.shape[2:]) != (b, height, width, 2):
        raise ValueError(f"cost_volume: cells are {tuple(cells.shape)}, expected {(b, 'D', height, width, 2)}")
    if out_of_view not in OUT_OF_VIEW:
        raise ValueError(f"cost_volume: out_of_view={out_of_view!r}; expected one of {OUT_OF_VIEW}")
    if out_of_view == "zero_channel" and channels % GROUP:
        raise ValueError(
            f"cost_volume: {channels} channels are no whole number of groups of {GROUP}, which "
            "out_of_view='zero_channel' looks at; use out_of_view='position'"
        )
    if backend not in BACKENDS:
        raise ValueError(f"cost_volume: backend={backend!r}; expected one of {BACKENDS}")
