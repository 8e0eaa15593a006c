"""FlashOcc as a graph of fixed shapes, and what is computed outside of it.

Inside: everything that has weights, the pooling, the argmax. Outside: preparation, and which cell of the map each
sample of the frustums falls into, which depends on the calibration alone: an input, so that no graph is bound to the
calibration that it was exported with.

Legend: N cameras, V camera vector, C channels, D depth bins, I samples of all frustums (N * D * h * w), M cells of the
map (Y * X), H W picture, h w feature map, X Y Z voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.export.graph import Kept, Layout, check_cameras, heights_last, labels_of, names_of, take, tensors_of
from fusionocc_core.layers.view_transform import (
    Cameras,
    Lift,
    calibration_key,
    camera_vectors,
    cameras_at,
)
from fusionocc_core.models.flashocc import FlashOcc, FlashOccConfig
from fusionocc_core.structures import Batch

BLOCK = 256
"""Rows that are summed up at a time where pooling goes by running sums, which lose digits with their length."""


@dataclass(frozen=True, kw_only=True)
class PoolTables:
    """What the graph is told about a calibration."""

    vectors_NV: Tensor
    """float32, see layers.view_transform.camera_vectors."""
    cell_I: Tensor
    """int32: the cell of each sample, M for none."""


@dataclass(frozen=True, kw_only=True)
class SortedTables:
    """The same for pooling without a scatter: the samples sorted by cell, in blocks."""

    vectors_NV: Tensor
    depth_I: Tensor
    """int32: the sample (N * D * h * w) of each row; samples outside of the map come last."""
    feature_I: Tensor
    """int32: its feature cell (N * h * w)."""
    start_M: Tensor
    """int32: the first row of each cell."""
    end_M: Tensor
    """int32: the row behind its last."""


@dataclass(frozen=True, kw_only=True)
class FlashOccInputs(PoolTables):
    """What the graph takes, of one sample."""

    images_NCHW: Tensor
    """float32, normalised."""


@dataclass(frozen=True, kw_only=True)
class SortedFlashOccInputs(SortedTables):
    """What the graph without scatter takes."""

    images_NCHW: Tensor


class FlashOccFeed:
    """A Batch to FlashOccInputs, or SortedFlashOccInputs where the layout is without scatter.

    Args:
        config: the network's.
        layout: the graph's.
    """

    def __init__(self, config: FlashOccConfig, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self.names = names_of(SortedFlashOccInputs if layout.scatter_free else FlashOccInputs)
        self._lift = Lift(
            config.lift,
            bins=config.depth_bins,
            grid=config.bev_grid,
            image_size=config.inputs.image_size,
            stride=config.feature_stride,
        )
        self._tables: Kept[PoolTables | SortedTables] = Kept()

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """The tensors in the order of ``names``.

        Raises:
            ValueError: another number of cameras than the graph's.
        """
        check_cameras(batch, self.layout, fewer=False)
        cameras = cameras_at(batch, 0)
        make = self._sorted_tables if self.layout.scatter_free else self._pool_tables
        tables = self._tables.get(calibration_key(cameras), lambda: make(cameras))
        return (*tensors_of(tables), batch.images_BTNCHW[0, 0])

    def _pool_tables(self, cameras: Cameras) -> PoolTables:
        plan = self._lift.plan(cameras)
        cell_I = torch.full((_samples(plan.frustum_shape),), len(plan.starts_V1) - 1, device=plan.voxels_P.device)
        cell_I[plan.depth_rows_P.long()] = plan.voxels_P
        return PoolTables(vectors_NV=_vectors(cameras), cell_I=cell_I.int())

    def _sorted_tables(self, cameras: Cameras) -> SortedTables:
        plan = self._lift.plan(cameras)
        _, _, d, h, w = plan.frustum_shape
        samples = _samples(plan.frustum_shape)
        outside_I = torch.ones(samples, dtype=torch.bool, device=plan.voxels_P.device)
        outside_I[plan.depth_rows_P.long()] = False
        depth_I = torch.cat([plan.depth_rows_P.long(), outside_I.nonzero()[:, 0]])
        return SortedTables(
            vectors_NV=_vectors(cameras),
            depth_I=depth_I.int(),
            feature_I=(depth_I // (d * h * w) * (h * w) + depth_I % (h * w)).int(),
            start_M=plan.starts_V1[:-1].int(),
            end_M=plan.starts_V1[1:].int(),
        )


class FlashOccGraph(nn.Module):
    """FlashOcc on FlashOccInputs or SortedFlashOccInputs: the same answer as the network's."""

    def __init__(self, network: FlashOcc, layout: Layout) -> None:
        super().__init__()
        check_flashocc(network.config)
        self.network, self.layout = network, layout
        self.head = heights_last(network.occ_head, "predicter.2", network.config.label_set.num)

    def forward(self, vectors_NV: Tensor, *tables_and_images: Tensor) -> tuple[Tensor, ...]:
        """See FlashOccInputs; labels (1, X, Y, Z) uint8, and their confidence where the layout has it."""
        *tables, images_NCHW = tables_and_images
        network = self.network
        features_NChw = network.img_neck(*network.img_backbone(images_NCHW))
        seen = network.img_view_transformer(features_NChw, vectors_NV)
        depth_NDhw = seen.depth_logits_BDhw.softmax(dim=1)
        pool = pool_by_running_sums if self.layout.scatter_free else pool_by_scatter
        x, y, _ = network.config.grid.shape
        bev_MC = pool(depth_NDhw, seen.context_BChw.permute(0, 2, 3, 1), tables, x * y)
        bev_BCYX = bev_MC.view(1, y, x, -1).permute(0, 3, 1, 2)
        if network.pre_process_net is not None:
            bev_BCYX = network.pre_process_net(bev_BCYX)[0]
        maps = network.img_bev_encoder_backbone(network.joined([bev_BCYX]))
        scores_BKXYZ = self.head(network.img_bev_encoder_neck(maps[0], maps[-1]))
        scores_BXYS = scores_BKXYZ.permute(0, 2, 3, 4, 1).flatten(3)  # as they lie in memory
        return tuple(labels_of(scores_BXYS, network.config.label_set.num, self.layout.confidence))


def pool_by_scatter(depth_NDhw: Tensor, feature_NhwC: Tensor, tables: Sequence[Tensor], cells: int) -> Tensor:
    """(M, C): sums over the samples in each cell; ``tables`` holds cell_I."""
    (cell_I,) = tables
    channels = feature_NhwC.shape[-1]
    weighted_IC = (depth_NDhw[..., None] * feature_NhwC[:, None]).reshape(-1, channels)
    return weighted_IC.new_zeros(cells + 1, channels).index_add(0, cell_I.long(), weighted_IC)[:cells]


def pool_by_running_sums(depth_NDhw: Tensor, feature_NhwC: Tensor, tables: Sequence[Tensor], cells: int) -> Tensor:
    """The same as differences of running sums over the sorted samples; ``tables`` holds depth_I to end_M."""
    depth_I, feature_I, start_M, end_M = tables
    channels = feature_NhwC.shape[-1]
    weighted_IC = take(depth_NDhw.reshape(-1, 1), depth_I) * take(feature_NhwC.reshape(-1, channels), feature_I)
    before = BLOCK - len(weighted_IC) % BLOCK  # at least one row: the end of the last cell may be the end of all
    blocks_LRC = F.pad(weighted_IC, (0, 0, 0, before)).view(-1, BLOCK, channels)
    in_block_IC = (blocks_LRC.cumsum(dim=1) - blocks_LRC).view(-1, channels)
    total_LC = blocks_LRC.sum(dim=1)
    of_blocks_LC = total_LC.cumsum(dim=0) - total_LC
    start, end = ((take(in_block_IC, row_M), take(of_blocks_LC, row_M // BLOCK)) for row_M in (start_M, end_M))
    return (end[0] - start[0]) + (end[1] - start[1])


def flashocc_layout(batches: Sequence[Batch], *, confidence: bool, scatter_free: bool) -> Layout:
    """The rig of these batches."""
    cameras = max(batch.depth_BNHW.shape[1] for batch in batches)
    return Layout(cameras=cameras, confidence=confidence, scatter_free=scatter_free)


def check_flashocc(config: FlashOccConfig) -> None:
    """Refuse networks whose graph would need more than one frame, or give more than labels.

    Raises:
        ValueError: says which part.
    """
    if config.inputs.camera_history:
        raise ValueError(
            f"FlashOcc with {config.inputs.camera_history} earlier keyframes cannot be exported: a graph takes one "
            "frame; flashocc-m0, flashocc-m1 and flashocc-tiny can"
        )
    if config.centers:
        raise ValueError(
            "FlashOcc with a head for centres cannot be exported: a graph gives labels alone; load its weights into "
            "the same config with centers=None, or take flashocc-m0, flashocc-m1 or flashocc-tiny"
        )


def _vectors(cameras: Cameras) -> Tensor:
    return camera_vectors(cameras, cameras.cam2keyego_BN44)[0]


def _samples(frustum_shape: tuple[int, int, int, int, int]) -> int:
    return prod(frustum_shape)
