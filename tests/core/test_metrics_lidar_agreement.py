"""Agreement of an answer with its sweep, on worlds whose answer is known."""

import numpy as np
import pytest

from fusionocc_core.data.nuscenes_tables import Box
from fusionocc_core.grids import LIDARSEG_TO_OCC3D, OCC3D_GRID, OCC3D_LABELS
from fusionocc_core.metrics.lidar_agreement import lidar_agreement
from fusionocc_core.structures import LidarSweep, Occupancy

CAR = OCC3D_LABELS.names.index("car")
LIDAR2EGO = np.array([[0, -1, 0, 0.9], [1, 0, 0, 0.0], [0, 0, 1, 1.8], [0, 0, 0, 1.0]])
EGO2GLOBAL = np.array([[1, 0, 0, 700.0], [0, 1, 0, -30.0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def wall(x: float = 20.1) -> np.ndarray:
    """Returns (P, 3) of a wall across the road, in the ego frame."""
    y, z = np.meshgrid(np.arange(-8, 8, 0.3), np.arange(0.1, 3, 0.3))
    return np.stack([np.full(y.size, x), y.ravel(), z.ravel()], axis=1)


def seen(points_ego: np.ndarray) -> LidarSweep:
    local = (points_ego - LIDAR2EGO[:3, 3]) @ LIDAR2EGO[:3, :3]
    cloud = np.concatenate([local, np.zeros((len(local), 2))], axis=1).astype(np.float32)
    return LidarSweep(points=cloud, lidar2ego=LIDAR2EGO, ego2global=EGO2GLOBAL, stamp_ns=0)


def answer(points_ego: np.ndarray, label: int = CAR) -> Occupancy:
    labels = np.full(OCC3D_GRID.shape, OCC3D_LABELS.free, dtype=np.uint8)
    labels[tuple(OCC3D_GRID.indices(points_ego).T)] = label
    return Occupancy(labels=labels, grid=OCC3D_GRID, label_set=OCC3D_LABELS, stamp_ns=0)


def agreement(occupancy, sweep, boxes=(), **options):
    return lidar_agreement(occupancy, sweep, EGO2GLOBAL, boxes, box_classes=LIDARSEG_TO_OCC3D, **options)


def test_the_truth_agrees_wholly():
    result = agreement(answer(wall()), seen(wall()))
    assert (result.points, result.points_occupied, result.ray_free) == (len(wall()), 1.0, 1.0)
    assert 0 < result.grid_occupied < 0.01
    assert np.isnan(result.box_points_right)


@pytest.mark.parametrize(("shift", "occupied"), [(0.4, 1.0), (0.8, 0.0)])
def test_one_voxel_beside_counts_and_two_do_not(shift, occupied):
    assert agreement(answer(wall(20.1 + shift)), seen(wall())).points_occupied == occupied


def test_everything_occupied_is_found_out():
    labels = np.full(OCC3D_GRID.shape, CAR, dtype=np.uint8)
    result = agreement(Occupancy(labels=labels, grid=OCC3D_GRID, label_set=OCC3D_LABELS, stamp_ns=0), seen(wall()))
    assert (result.points_occupied, result.ray_free, result.grid_occupied) == (1.0, 0.0, 1.0)


def test_unknown_is_neither_occupied_nor_free():
    result = agreement(answer(wall(), label=OCC3D_LABELS.unknown), seen(wall()))
    assert (result.points_occupied, result.grid_occupied, result.ray_free) == (0.0, 0.0, 1.0)
    labels = np.full(OCC3D_GRID.shape, OCC3D_LABELS.unknown, dtype=np.uint8)
    blind = Occupancy(labels=labels, grid=OCC3D_GRID, label_set=OCC3D_LABELS, stamp_ns=0)
    assert agreement(blind, seen(wall())).ray_free == 0.0


def test_half_the_way_blocked():
    """A second wall at half the distance leaves the rays free but for the voxel that it takes up."""
    result = agreement(answer(np.concatenate([wall(), wall(10.1)])), seen(wall()))
    assert result.ray_free == pytest.approx(1 - 0.4 / 18.4, abs=0.004)


def test_boxes_of_known_classes_count():
    def box(name, x):
        return Box(
            center=np.array([x, 0.0, 1.0]),
            size_lwh=np.array([1.0, 6.0, 4.0]),
            rotation=np.eye(3),
            name=name,
            token=name,
            instance=name,
            num_lidar_pts=0,
        )

    cloud = np.concatenate([wall(), wall(12.1)])
    occupancy = answer(cloud)
    boxes = [box("vehicle.car", 20.1), box("human.pedestrian.adult", 12.1), box("no.such.thing", 5.0)]
    result = agreement(occupancy, seen(cloud), boxes)
    inside = int((np.abs(wall()[:, 1]) <= 3).sum())
    assert result.box_points == 2 * inside
    assert result.box_points_right == 0.5
    assert result.box_classes == {"car": (inside, 1.0), "pedestrian": (inside, 0.0)}


def test_the_vehicles_own_returns_are_left_out():
    own = np.array([[1.0, 0.5, 1.0]])
    assert agreement(answer(wall()), seen(np.concatenate([wall(), own]))).points == len(wall())


def test_refusals():
    with pytest.raises(ValueError, match="none of 1 returns lies in the grid"):
        agreement(answer(wall()), seen(np.array([[500.0, 0, 0]])))
    with pytest.raises(ValueError, match="no ray is longer than margin=90"):
        agreement(answer(wall()), seen(wall()), margin=90.0)
