"""FlashFusion as a graph of fixed shapes, and what is computed outside of it.

Inside: everything that has weights, the lift, the argmax. Outside: preparation, the LiDAR's raster, and where each cell
of the map lies in the pictures, which depends on the calibration alone and is kept while that does not change.

Legend: N cameras, C channels, D depth bins, S channels of the raster, P points of the lift (cells times heights),
R rows (pairs of a point and a camera that sees it), K cameras that see a point, 4 the feature cells around a pixel,
H W picture, h w feature map, X Y cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fusionocc_core.export.graph import (
    Kept,
    Layout,
    check_cameras,
    heights_last,
    labels_of,
    names_of,
    padded,
    take,
    tensors_of,
)
from fusionocc_core.layers.bev_fusion import LidarRaster
from fusionocc_core.layers.presence import only_present
from fusionocc_core.layers.pull_lift import PullLift, ray_channels
from fusionocc_core.layers.view_transform import Cameras, calibration_key, cameras_at, measured_depth_bins
from fusionocc_core.models.flashfusion import FlashFusion, FlashFusionConfig
from fusionocc_core.ops.pull_lift import PullPlan, two_cells
from fusionocc_core.side_by_side import two_on
from fusionocc_core.structures import Batch, cameras_present, lidar_present

HEADROOM = 1.1
"""Rows of a graph over those of the calibrations it was exported with, so that a rig may be calibrated anew."""


@dataclass(frozen=True, kw_only=True)
class LiftTables:
    """What the graph is told about a calibration."""

    rays_NRhw: Tensor
    """float32, see layers.pull_lift.ray_channels."""
    cell_4R: Tensor
    """int32: the four feature cells (N * h * w) around the pixel."""
    near_4R: Tensor
    """int32: the probability (N * h * w * D) of the depth bin in front of the point, in each of the cells."""
    far_4R: Tensor
    """int32: of the bin behind it."""
    near_share_4R: Tensor
    """float32: bilinear weight of the cell times that of the bin; zero outside the picture or the bins."""
    far_share_4R: Tensor
    camera_R: Tensor
    """int32: the camera of the row; N for rows that are not used."""
    row_PK: Tensor
    """int32: the rows of a point; R for none."""


@dataclass(frozen=True, kw_only=True)
class FlashFusionInputs:
    """What the graph takes, of one sample."""

    images_NCHW: Tensor
    """float32, normalised."""
    measured_Nhw: Tensor
    """int32: 1 + the depth bin of the nearest LiDAR point of each feature cell; 0 for none."""
    raster_1YXS: Tensor
    """float32, see layers.bev_fusion.LidarRaster; channels last, as they are in memory."""
    camera_present_N: Tensor
    """float32, 1 or 0; what absent cameras hold means nothing."""
    lidar_present_1: Tensor
    """float32, 1 or 0; likewise for the raster and ``measured_Nhw``."""
    rays_NRhw: Tensor
    cell_4R: Tensor
    near_4R: Tensor
    far_4R: Tensor
    near_share_4R: Tensor
    far_share_4R: Tensor
    camera_R: Tensor
    row_PK: Tensor


class FlashFusionFeed:
    """A Batch to FlashFusionInputs.

    Args:
        config: the network's.
        layout: the graph's.
    """

    names = names_of(FlashFusionInputs)

    def __init__(self, config: FlashFusionConfig, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self._lift = lift_of(config)
        self._raster = LidarRaster(config.raster_lower, config.raster_cell, config.raster_shape)
        self._tables: Kept[LiftTables] = Kept()

    def __call__(self, batch: Batch) -> tuple[Tensor, ...]:
        """The tensors in the order of ``names``.

        Raises:
            ValueError: more cameras than the graph has, or a calibration whose pictures overlap more than it can take.
        """
        check_cameras(batch, self.layout, fewer=True)
        count, config = self.layout.cameras, self.config
        camera_BN, lidar_B = cameras_present(batch), lidar_present(batch)
        cameras = only_present(cameras_at(batch, 0), camera_BN)
        key = (*calibration_key(cameras), camera_BN.cpu().numpy().tobytes())
        cloud = batch.points[0] if bool(lidar_B[0]) else batch.points[0].new_zeros(0, 4)
        tables, (raster_1SYX, bins_BNhw) = two_on(batch.depth_BNHW.device)(
            lambda: self._tables.get(key, lambda: self.tables(cameras, camera_BN)),
            lambda: (
                self._raster([cloud]),
                measured_depth_bins(batch.depth_BNHW, config.depth_bins, config.feature_stride),
            ),
        )
        return tensors_of(
            FlashFusionInputs(
                images_NCHW=padded(batch.images_BTNCHW[0, 0], count),
                measured_Nhw=padded(bins_BNhw[0], count).int(),
                raster_1YXS=raster_1SYX.permute(0, 2, 3, 1),
                camera_present_N=padded(camera_BN[0].float(), count),
                lidar_present_1=lidar_B.float(),
                **{name: getattr(tables, name) for name in names_of(LiftTables)},
            )
        )

    def tables(self, cameras: Cameras, camera_BN: Tensor) -> LiftTables:
        """What depends on the calibration.

        Raises:
            ValueError: the pictures overlap more than the graph can take.
        """
        plan = self._lift.plan(cameras, camera_BN)
        rays_NRhw = ray_channels(cameras, self.config.inputs.image_size, self.config.feature_stride)[0]
        self._check_room(plan)
        cell_4Q, share_4Q = self._cells(plan, camera_BN)
        bins, rows = self.config.depth_bins.num, self.layout.rows
        bin_2Q, bin_share_2Q = _two_around(plan.depth_bin_Q, bins)
        first_4Q, unused = cell_4Q * bins, (0, rows - len(plan.point_Q))
        return LiftTables(
            rays_NRhw=padded(rays_NRhw, self.layout.cameras),
            cell_4R=F.pad(cell_4Q, unused),
            near_4R=F.pad(first_4Q + bin_2Q[0], unused),
            far_4R=F.pad(first_4Q + bin_2Q[1], unused),
            near_share_4R=F.pad(share_4Q * bin_share_2Q[0], unused),
            far_share_4R=F.pad(share_4Q * bin_share_2Q[1], unused),
            camera_R=F.pad(_camera(plan, camera_BN), unused, value=self.layout.cameras).int(),
            row_PK=_rows_of_points(plan, self.layout).int(),
        )

    def _check_room(self, plan: PullPlan) -> None:
        rows, overlap = len(plan.point_Q), overlap_of(plan)
        if rows > self.layout.rows or overlap > self.layout.overlap:
            raise ValueError(
                f"with this calibration {overlap} cameras see the same point and {rows} pairs of point and camera have "
                f"to be looked up; the graph was exported for {self.layout.overlap} and {self.layout.rows}: export "
                "again with data of this rig"
            )

    def _cells(self, plan: PullPlan, camera_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Index of the four feature cells around each pixel and their bilinear weights, zero outside the picture."""
        h, w = (edge // self.config.feature_stride for edge in self.config.inputs.image_size)
        (u_2Q, u_share_2Q), (v_2Q, v_share_2Q) = (
            _two_around(plan.uv_Q2[:, axis], size) for axis, size in enumerate((w, h))
        )
        row_2Q = (_camera(plan, camera_BN).int() * h + v_2Q) * w
        return (row_2Q[:, None] + u_2Q).flatten(0, 1), (v_share_2Q[:, None] * u_share_2Q).flatten(0, 1)


class FlashFusionGraph(nn.Module):
    """FlashFusion on FlashFusionInputs: the answer of ``FlashFusion.forward``, absent sensors included; no memory."""

    def __init__(self, network: FlashFusion, layout: Layout) -> None:
        super().__init__()
        self.network, self.layout = network, layout
        self.lift = lift_of(network.config)
        self.head = heights_last(network.head, "scores", network.config.label_set.num)

    def forward(
        self,
        images_NCHW: Tensor,
        measured_Nhw: Tensor,
        raster_1YXS: Tensor,
        camera_present_N: Tensor,
        lidar_present_1: Tensor,
        rays_NRhw: Tensor,
        cell_4R: Tensor,
        near_4R: Tensor,
        far_4R: Tensor,
        near_share_4R: Tensor,
        far_share_4R: Tensor,
        camera_R: Tensor,
        row_PK: Tensor,
    ) -> tuple[Tensor, ...]:
        """See FlashFusionInputs; labels (1, X, Y, Z) uint8, and their confidence where the layout has it."""
        network, lidar = self.network, lidar_present_1.view(1, 1, 1, 1) > 0
        raster_1SYX = torch.where(lidar, raster_1YXS, 0.0).permute(0, 3, 1, 2)
        skip_BCYX, lidar_BCyx = (torch.where(lidar, x, 0.0) for x in network.lidar_map(raster_1SYX))
        seen = network.pictures(torch.where(camera_present_N.view(-1, 1, 1, 1) > 0, images_NCHW, 0.0), rays_NRhw)
        depth_NDhw = self._depth(seen.depth_logits_MDhw, torch.where(lidar_present_1 > 0, measured_Nhw, 0))
        share_4R = take(depth_NDhw.permute(0, 2, 3, 1).reshape(-1, 1), near_4R)[..., 0] * near_share_4R
        share_4R = share_4R + take(depth_NDhw.permute(0, 2, 3, 1).reshape(-1, 1), far_4R)[..., 0] * far_share_4R
        rows_RC = self._rows(seen.context_MChw, cell_4R, share_4R)
        present_R = take(F.pad(camera_present_N, (0, 1))[:, None], camera_R)
        lifted_PC, seen_P1 = self._points(rows_RC, present_R, row_PK)
        camera_BCyx, covered_B1yx = self._from_above(lifted_PC, seen_P1)
        here = [lidar.expand_as(lidar_BCyx[:, :1]), covered_B1yx > 0]
        fused_BCyx = network.fusion([lidar_BCyx, camera_BCyx], here)
        scores_BKXYZ = self.head(network.bev(fused_BCyx), skip_BCYX, network.config.margin)
        scores_BYXS = scores_BKXYZ.permute(0, 3, 2, 4, 1).flatten(3)  # as they lie in memory
        answer_BYXZ = labels_of(scores_BYXS, network.config.label_set.num, self.layout.confidence)
        return tuple(of_cells_BYXZ.transpose(1, 2) for of_cells_BYXZ in answer_BYXZ)

    def _depth(self, logits_NDhw: Tensor, measured_Nhw: Tensor) -> Tensor:
        """The measured depth where there is one, else the predicted distribution."""
        bins_D11 = torch.arange(1, logits_NDhw.shape[1] + 1, dtype=torch.int32)[:, None, None]
        one_hot_NDhw = (measured_Nhw[:, None] == bins_D11).to(logits_NDhw.dtype)
        return torch.where(measured_Nhw[:, None] > 0, one_hot_NDhw, logits_NDhw.softmax(dim=1))

    def _rows(self, context_NChw: Tensor, cell_4R: Tensor, share_4R: Tensor) -> Tensor:
        table_IC = context_NChw.permute(0, 2, 3, 1).flatten(0, 2)
        rows_RC = take(table_IC, cell_4R[0]) * share_4R[0][:, None]
        for i in range(1, 4):
            rows_RC = rows_RC + take(table_IC, cell_4R[i]) * share_4R[i][:, None]
        return rows_RC

    def _points(self, rows_RC: Tensor, present_R1: Tensor, row_PK: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over the present cameras that see a point, and how many these are."""
        rows_RC = F.pad(rows_RC * present_R1, (0, 0, 0, 1))
        present_R1 = F.pad(present_R1, (0, 0, 0, 1))
        count_P1, sum_PC = (take(table, row_PK[:, 0]) for table in (present_R1, rows_RC))
        for k in range(1, row_PK.shape[1]):
            count_P1, sum_PC = count_P1 + take(present_R1, row_PK[:, k]), sum_PC + take(rows_RC, row_PK[:, k])
        return sum_PC / count_P1.clamp(min=1.0), count_P1

    def _from_above(self, lifted_PC: Tensor, seen_P1: Tensor) -> tuple[Tensor, Tensor]:
        """The pictures' map, and how much of each cell's height a present camera sees (1, 1, y, x)."""
        (x, y), heights = self.lift.bev.shape, len(self.lift.heights)
        lifted_BCyx = lifted_PC.view(1, y, x, -1).permute(0, 3, 1, 2)
        covered_B1yx = (seen_P1 > 0).to(lifted_PC.dtype).view(1, y, x, heights).mean(dim=3)[:, None]
        camera_BCyx = self.network.camera_map(torch.cat([lifted_BCyx, covered_B1yx], dim=1))
        return self.network.camera_blocks(camera_BCyx), covered_B1yx


def lift_of(config: FlashFusionConfig) -> PullLift:
    """The lift of a network, which has no weights."""
    lift = PullLift(
        bev=config.bev_map,
        heights=config.lift_heights,
        bins=config.depth_bins,
        image_size=config.inputs.image_size,
        stride=config.feature_stride,
    )
    return lift.eval()


def overlap_of(plan: PullPlan) -> int:
    """Most cameras that see one point."""
    return int(torch.bincount(plan.point_Q).max()) if len(plan.point_Q) else 0


def flashfusion_layout(config: FlashFusionConfig, batches: Sequence[Batch], *, confidence: bool) -> Layout:
    """Room for the calibrations of these batches, with HEADROOM."""
    lift, rows, overlap, cameras = lift_of(config), 1, 1, 0
    for batch in batches:
        present_BN = cameras_present(batch)
        plan = lift.plan(only_present(cameras_at(batch, 0), present_BN), present_BN)
        rows, overlap = max(rows, len(plan.point_Q)), max(overlap, overlap_of(plan))
        cameras = max(cameras, present_BN.shape[1])
    return Layout(cameras=cameras, rows=int(rows * HEADROOM), overlap=overlap, confidence=confidence)


def _two_around(place_Q: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two cells of a line around each place (2, Q) int32, and their linear weights: zero beside the line."""
    cells, shares = two_cells(place_Q, size)
    return torch.stack(cells).int(), torch.stack(shares)


def _camera(plan: PullPlan, camera_BN: Tensor) -> Tensor:
    """The camera of each row as a place in the rig; the plan counts present ones alone."""
    return camera_BN[0].nonzero()[:, 0][plan.camera_Q]


def _rows_of_points(plan: PullPlan, layout: Layout) -> Tensor:
    """(P, K): the plan's rows are sorted by point."""
    seen_P = torch.bincount(plan.point_Q, minlength=plan.num_points)
    number_Q = torch.arange(len(plan.point_Q), device=plan.point_Q.device)
    turn_Q = number_Q - (seen_P.cumsum(0) - seen_P)[plan.point_Q]
    row_PK = torch.full((plan.num_points, layout.overlap), layout.rows, device=plan.point_Q.device)
    row_PK[plan.point_Q, turn_Q] = number_Q
    return row_PK
