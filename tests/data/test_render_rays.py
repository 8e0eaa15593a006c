"""Rays from labelled LiDAR points: against reference tensors, geometry, and how they are drawn."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fusionocc_core.data.render_rays import (
    NUSCENES_POINT_COUNTS,
    PixelDepths,
    RayCamera,
    RayConfig,
    camera_rays,
    join_rays,
    pixel_rays,
    points_rays,
    rendering_of,
    renderocc_rays,
    sample_rays,
    sampling_weights,
)
from fusionocc_core.geometry import rotation_from_yaw, transform
from fusionocc_core.grids import OCC3D_GRID
from fusionocc_core.ops.volume_render_rays import Rays, RenderConfig
from fusionocc_core.structures import CameraImage, LidarSweep

CAM_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
INTRINSICS = np.array([[120.0, 0.0, 80.0], [0.0, 120.0, 45.0], [0.0, 0.0, 1.0]])
KEY = transform(rotation_from_yaw(0.4), [600.0, 1200.0, 1.0])


def camera(ego2global=KEY) -> CameraImage:
    return CameraImage(
        name="FRONT",
        image=np.zeros((90, 160, 3), np.uint8),
        intrinsics=INTRINSICS,
        cam2ego=transform(rotation_from_yaw(0.1) @ CAM_AXES, [1.5, 0.2, 1.6]),
        ego2global=ego2global,
        stamp_ns=0,
    )


def sweep(xyz) -> LidarSweep:
    points = np.zeros((len(xyz), 5), np.float32)
    points[:, :3] = xyz
    lidar2ego = transform(rotation_from_yaw(-1.5), [0.9, 0.0, 1.8])
    return LidarSweep(
        points=points, lidar2ego=lidar2ego, ego2global=transform(rotation_from_yaw(0.38), [599.0, 1199.5, 1.0]),
        stamp_ns=0,
    )  # fmt: skip


def cloud(seed=0, count=4000) -> LidarSweep:
    return sweep(np.random.default_rng(seed).uniform([-60, -60, -2], [60, 60, 6], (count, 3)))


def plain_rays(labels, depth=10.0) -> Rays:
    count = len(labels)
    return Rays(
        origin_R3=torch.arange(count)[:, None].repeat(1, 3).float(),
        direction_R3=torch.ones(count, 3),
        depth_R=torch.full((count,), depth),
        label_R=torch.as_tensor(labels, dtype=torch.int64),
        sample_R=torch.zeros(count, dtype=torch.int64),
        current_R=torch.ones(count, dtype=torch.bool),
    )


def test_rays_end_in_the_points_that_they_were_made_from():
    lidar, frame = cloud(), camera(transform(rotation_from_yaw(0.45), [601.0, 1200.2, 1.1]))
    labels = np.arange(len(lidar.points))  # to know them again
    rays = camera_rays(lidar, labels, frame, KEY, RayConfig())
    assert 100 < len(rays) < len(labels)
    ends = rays.origin_R3.double() + rays.depth_R.double()[:, None] * rays.direction_R3.double()
    lidar2key = np.linalg.inv(KEY) @ lidar.ego2global @ lidar.lidar2ego
    points = lidar.points[rays.label_R.numpy(), :3] @ lidar2key[:3, :3].T + lidar2key[:3, 3]
    np.testing.assert_allclose(ends, points, atol=1e-4)
    distance = np.linalg.norm(points - rays.origin_R3.numpy(), axis=1)
    np.testing.assert_allclose(rays.range_R, distance, rtol=1e-5)
    pixel = camera_rays(lidar, labels, frame, KEY, replace(RayConfig(), whole_pixels=True))
    angle = torch.nn.functional.cosine_similarity(pixel.direction_R3.double(), rays.direction_R3.double()).acos()
    assert 1e-3 < angle.max() < math.sqrt(0.5) / 120 + 1e-4, "within half a pixel's diagonal"


def test_points_behind_beside_and_too_far_give_no_rays(caplog):
    frame = camera()
    ahead = (rotation_from_yaw(0.1) @ [1, 0, 0])[None] * np.array([[10.0], [-10.0], [51.9], [52.1]]) + [1.5, 0.2, 1.6]
    lidar = replace(sweep(ahead), lidar2ego=np.eye(4), ego2global=KEY)
    rays = camera_rays(lidar, np.arange(4), frame, KEY, RayConfig())
    assert rays.label_R.tolist() == [0, 2]
    with caplog.at_level(logging.INFO, "fusionocc_core.data.render_rays"):
        none = camera_rays(replace(lidar, points=lidar.points[1:2]), np.arange(1), frame, KEY, RayConfig())
    assert len(none) == 0
    assert "camera FRONT: sees none of 1 points" in caplog.text


def test_weights_by_class_and_frame():
    label = torch.tensor([15, 2, 2, 4, 11, 1])
    neighbour = torch.tensor([False, False, True, True, True, True])
    corrected = sampling_weights(label, neighbour, RayConfig())
    assert corrected[1] == 10, "bounded"
    assert corrected[2] == corrected[3] == 0, "bicycles and cars may have moved"
    assert corrected[4].item() == pytest.approx(0.3, rel=1e-3)
    assert corrected[5] > 0.3, "barriers stay"
    official = sampling_weights(label, neighbour, renderocc_rays())
    favour = math.exp(0.005 * (max(NUSCENES_POINT_COUNTS) / NUSCENES_POINT_COUNTS[2] - 1))
    assert favour > 900
    np.testing.assert_allclose(official[1:4], [favour, 0.3 * favour, 0])
    assert official[5] == 0


def test_drawn_rays_are_different_ones_of_the_right_kind():
    current, neighbours = plain_rays([11] * 400 + [7] * 20), plain_rays([11] * 400 + [4] * 50)
    neighbours.origin_R3[:] += 1000
    config = RayConfig(count=300)
    first = sample_rays(current, neighbours, config, torch.Generator().manual_seed(1))
    again = sample_rays(current, neighbours, config, torch.Generator().manual_seed(1))
    assert len(first) == len(first.origin_R3.unique(dim=0)) == 300
    assert torch.equal(first.origin_R3, again.origin_R3)
    share = (first.origin_R3[:, 0] >= 1000).float().mean()
    assert 0.15 < share < 0.35, "0.3 / 1.3 and a little more, as there are finitely many"
    assert not (first.label_R == 4).any()
    assert torch.equal(first.current_R, first.origin_R3[:, 0] < 1000)
    everything = sample_rays(current, neighbours, RayConfig(), torch.Generator())
    assert len(everything) == 820, "all but the cars of another frame"


def test_rare_classes_are_favoured_by_the_counts_at_hand():
    config = RayConfig(class_counts=None, balance=0.05, most_balance=None)
    weight = sampling_weights(torch.tensor([3] * 40 + [5]), torch.zeros(41, dtype=torch.bool), config)
    assert weight[0] == 1
    assert weight[-1].item() == pytest.approx(math.exp(0.05 * 39))


def test_no_rays_stay_no_rays_and_the_log_says_so(caplog):
    for config in (RayConfig(), RayConfig(class_counts=None)):
        caplog.clear()
        with caplog.at_level(logging.INFO, "fusionocc_core.data.render_rays"):
            drawn = sample_rays(plain_rays([11], depth=60.0), plain_rays([]), config, torch.Generator())
        assert len(drawn) == 0
        assert "none of 0 can be drawn" in caplog.text


def test_bad_input_is_named():
    lidar = cloud(count=50)
    skewed = KEY.copy()
    skewed[0, 0] = 2.0
    with pytest.raises(ValueError, match="keyego2global: not a rigid transform"):
        camera_rays(lidar, np.zeros(50, np.uint8), camera(), skewed, RayConfig())
    pixels = PixelDepths(uv_P2=np.zeros((1, 2)), depth_P=np.ones(1), label_P=np.zeros(1, int))
    with pytest.raises(ValueError, match="cam2keyego: holds numbers that are not finite"):
        pixel_rays(pixels, INTRINSICS, np.full((4, 4), np.nan))
    with pytest.raises(ValueError, match=r"labels_P: shape \(3,\), expected \(50,\)"):
        camera_rays(lidar, np.zeros(3, np.uint8), camera(), KEY, RayConfig())
    for wrong in (17, 255, -1):
        with pytest.raises(ValueError, match="expected 0 to 16"):
            sampling_weights(torch.tensor([4, wrong]), torch.zeros(2, dtype=torch.bool), RayConfig())
    for values in ({"count": 0}, {"most_balance": 0.5}, {"neighbour_weight": 2.0}, {"class_counts": (0, 1)}):
        with pytest.raises(ValueError, match=next(iter(values))):
            RayConfig(**values)
    with pytest.raises(ValueError, match="join_rays"):
        join_rays([])


def test_rays_and_weights_are_the_recorded_ones(shared):
    with np.load(shared / "goldens/renderocc/rays.npz") as arrays:
        data = {name: np.array(arrays[name]) for name in arrays.files}
    parts = []
    for i in range(18):
        frame, number = divmod(i, 6)
        # each camera's own pose at the key time, as upstream
        chain = [data["ego2global"][0, number], data["ego2global"][frame, number], data["sensor2ego"][frame, number]]
        key2global, ego2global, cam2ego = (matrix.astype(np.float64) for matrix in chain)
        cam2keyego = np.linalg.inv(key2global) @ ego2global @ cam2ego
        np.testing.assert_allclose(cam2keyego, data["sensor2keyego"][i], atol=1e-6)
        pixels = PixelDepths(uv_P2=data["coors"][i], depth_P=data["depths"][i], label_P=data["segs"][i].astype(int))
        parts.append(pixel_rays(pixels, data["intrins"][i], cam2keyego, whole_pixels=True))
    rays, recorded = join_rays(parts), data["rays"]
    np.testing.assert_array_equal(rays.depth_R, recorded[:, 2])
    np.testing.assert_array_equal(rays.label_R, recorded[:, 3])
    np.testing.assert_allclose(rays.origin_R3, recorded[:, 4:7], atol=1e-6)
    np.testing.assert_allclose(rays.direction_R3, recorded[:, 7:10], atol=1e-6)
    neighbour = torch.arange(len(rays)) >= 6 * 160
    for counts, name in ((NUSCENES_POINT_COUNTS, "wrs_weight"), (None, "wrs_weight_batchderived")):
        weights = sampling_weights(rays.label_R, neighbour, replace(renderocc_rays(), class_counts=counts))
        np.testing.assert_allclose(weights, data[name], rtol=1e-6)
    assert tuple(data["dynamic_class"]) == renderocc_rays().moving


def test_a_label_map_of_any_resolution_gives_the_class_of_the_pixel():
    lidar, frame = cloud(), camera()
    row, column = np.mgrid[0:9, 0:16]
    label_map = (row * 16 + column).astype(np.uint8)  # a cell every ten pixels
    view = RayCamera(
        name=frame.name, image_size=(90, 160), intrinsics=INTRINSICS, cam2global=frame.ego2global @ frame.cam2ego
    )
    nothing = np.full(len(lidar.points), 255)
    rays = points_rays(lidar, nothing, view, KEY, RayConfig(), label_map=label_map)
    assert len(rays) > 100
    keyego2cam = np.linalg.inv(np.linalg.inv(KEY) @ view.cam2global)
    u, v, z = INTRINSICS @ keyego2cam[:3, :3] @ rays.direction_R3.numpy().astype(float).T
    u, v = u / z / 10, v / z / 10
    clear = (np.abs(u - u.round()) > 0.01) & (np.abs(v - v.round()) > 0.01)  # elsewhere rounding decides
    assert (rays.label_R.numpy() == v.astype(int) * 16 + u.astype(int))[clear].all()


def test_rays_without_a_class_are_drawn_from_the_current_frame_alone():
    current, neighbours = plain_rays([255, 255, 4]), plain_rays([255, 11])
    weight = sampling_weights(
        torch.cat([current.label_R, neighbours.label_R]), torch.tensor([0, 0, 0, 1, 1]).bool(), RayConfig(), unknown=255
    )
    assert weight[:2].tolist() == [1.0, 1.0]
    assert weight[3] == 0
    assert 0 < weight[4] < 1
    drawn = sample_rays(current, neighbours, RayConfig(), torch.Generator(), unknown=255)
    assert drawn.label_R.tolist() == [255, 255, 4, 11]
    with pytest.raises(ValueError, match="expected 0 to 16"):
        sampling_weights(current.label_R, torch.zeros(3).bool(), RayConfig())


def test_how_a_grid_is_rendered():
    assert rendering_of(OCC3D_GRID) == RenderConfig(opacity="log_odds")
    half = replace(OCC3D_GRID, lower=(-20.0, -20.0, -1.0), upper=(20.0, 20.0, 5.4))
    assert rendering_of(half).threshold == pytest.approx(2 * RenderConfig().threshold)
    with pytest.raises(ValueError, match="square of square columns"):
        rendering_of(replace(half, upper=(40.0, 20.0, 5.4)))
