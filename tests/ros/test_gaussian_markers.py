"""Gaussians as markers: places, axes, turns, colours, and no more than asked for. No nodes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rclpy.serialization import deserialize_message
from visualization_msgs.msg import Marker, MarkerArray

from fusionocc_core.gaussians import GaussianCloud
from fusionocc_core.geometry import rotation_from_quaternion_xyzw
from fusionocc_core.grids import OCC3D_LABELS, VoxelGrid
from fusionocc_core.structures import Occupancy
from fusionocc_ros.gaussian_markers import FAINTEST, gaussian_markers, gaussians_to_markers

GRID = VoxelGrid(frame="ego", lower=(-4.0, -4.0, -1.0), upper=(4.0, 4.0, 3.0), voxel_size=(1.0, 1.0, 1.0))
RNG = np.random.default_rng(0)


def occupancy(num: int = 5) -> Occupancy:
    rotations = RNG.normal(size=(num, 4))
    cloud = GaussianCloud(
        means_G3=RNG.normal(size=(num, 3)).astype(np.float32),
        scales_G3=RNG.uniform(0.1, 1, (num, 3)).astype(np.float32),
        rotations_G4=(rotations / np.linalg.norm(rotations, axis=1, keepdims=True)).astype(np.float32),
        opacities_G=np.linspace(0, 0.8, num, dtype=np.float32),
        labels_G=(np.arange(num) % 17).astype(np.uint8),
    )
    labels = np.full(GRID.shape, OCC3D_LABELS.free, np.uint8)
    return Occupancy(labels=labels, grid=GRID, label_set=OCC3D_LABELS, stamp_ns=3_000_000_007, gaussians=cloud)


def test_each_marker_is_the_ellipsoid_of_its_gaussian() -> None:
    shown = occupancy()
    markers = deserialize_message(gaussians_to_markers(shown, "base", most=100, deviations=1.5), MarkerArray).markers
    cloud = shown.gaussians.most_opaque(100)
    assert markers[0].action == Marker.DELETEALL
    assert len(markers) == 1 + len(cloud)
    axes_G33 = cloud.local2frame_G33()
    for n, marker in enumerate(markers[1:]):
        p, q, s = marker.pose.position, marker.pose.orientation, marker.scale
        assert (marker.type, marker.action, marker.header.frame_id) == (Marker.SPHERE, Marker.ADD, "base")
        assert (marker.header.stamp.sec, marker.header.stamp.nanosec) == (3, 7)
        assert [p.x, p.y, p.z] == pytest.approx(cloud.means_G3[n])
        assert [s.x, s.y, s.z] == pytest.approx(3 * cloud.scales_G3[n])
        turn = rotation_from_quaternion_xyzw((q.x, q.y, q.z, q.w))
        np.testing.assert_allclose(turn, axes_G33[n], atol=1e-5)
        assert marker.ns == OCC3D_LABELS.names[cloud.labels_G[n]]
        assert marker.color.a == pytest.approx(max(cloud.opacities_G[n], FAINTEST))
        rgb = [255 * marker.color.r, 255 * marker.color.g, 255 * marker.color.b]
        assert rgb == pytest.approx(OCC3D_LABELS.colors[cloud.labels_G[n]], abs=0.01)
    assert len({(marker.ns, marker.id) for marker in markers[1:]}) == len(cloud)


def test_the_most_opaque_are_kept() -> None:
    markers = gaussian_markers(occupancy(50), "base", most=7, deviations=1.0)
    opacities = [marker.color.a for marker in markers[1:]]
    assert len(opacities) == 7
    assert opacities == sorted(opacities, reverse=True)
    assert min(opacities) > 0.68


def test_nothing_to_show() -> None:
    assert len(gaussian_markers(occupancy(0), "base", most=10, deviations=1.0)) == 1
    with pytest.raises(ValueError, match="the network has no Gaussians"):
        gaussian_markers(replace(occupancy(), gaussians=None), "base", most=10, deviations=1.0)
    few = replace(OCC3D_LABELS, name="small", names=("a", "b"), colors=((0, 0, 0), (1, 1, 1)), free=1)
    with pytest.raises(ValueError, match="class 4: small has 2 classes"):
        gaussian_markers(replace(occupancy(), label_set=few), "base", most=10, deviations=1.0)
