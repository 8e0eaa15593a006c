"""SemanticOccupancy, clouds and markers: messages in every form, their values, their costs. No nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from output_cases import PROVENANCE, occupancy
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import PointCloud2
from synthetic_sensors import GRID, LABELS
from visualization_msgs.msg import Marker, MarkerArray

from fusionocc_core.structures import Occupancy
from fusionocc_msgs.msg import SemanticOccupancy
from fusionocc_ros import marker_bytes
from fusionocc_ros.clouds import BeamLayout
from fusionocc_ros.convert import cloud_to_points, stamp_to_ns
from fusionocc_ros.drawing import marker_parts, occupancy_to_cloud, occupancy_to_markers
from fusionocc_ros.occupancy_messages import message_to_occupancy, occupancy_to_message
from fusionocc_ros.voxels import packed_colors, surface_mask

ENCODINGS = ("dense", "sparse", "run_length")


# ---- SemanticOccupancy -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("confidence", [False, True])
def test_occupancy_goes_through_a_message_and_back(encoding: str, confidence: bool) -> None:
    before = occupancy(confidence=confidence)
    sent = occupancy_to_message(before, PROVENANCE, encoding=encoding)
    message = deserialize_message(serialize_message(sent), SemanticOccupancy)
    after = message_to_occupancy(message)
    np.testing.assert_array_equal(after.labels, before.labels)
    assert (after.grid, after.label_set, after.stamp_ns) == (before.grid, before.label_set, before.stamp_ns)
    assert (after.model, after.trained_on) == ("m", "untrained weights")
    if confidence:
        kept = before.labels != LABELS.free if encoding == "sparse" else np.ones(GRID.shape, bool)
        np.testing.assert_array_equal(after.confidence[kept], before.confidence[kept])
    else:
        assert after.confidence is None
    assert message.header.frame_id == "base_link"
    assert list(message.cameras) == ["A", "B"]
    assert (list(message.missing), list(message.missing_causes)) == (["C"], ["no_message"])
    np.testing.assert_allclose(message.camera_ages, [0.04, -0.001], atol=1e-7)
    assert (message.ego_motion, message.camera_history, message.lidar_history) == (1, 1, 7)
    assert (message.total_time, message.network_time, message.queue_time) == (0.25, 0.125, 0.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_runs_are_as_long_as_can_be(seed: int, fill: float) -> None:
    before = occupancy(seed=seed, fill=fill, confidence=False)
    message = occupancy_to_message(before, PROVENANCE, encoding="run_length")
    labels = np.frombuffer(message.labels, np.uint8)
    assert (labels[1:] != labels[:-1]).all()
    assert min(message.indices) >= 1
    np.testing.assert_array_equal(message_to_occupancy(message).labels, before.labels)


def test_the_memory_order_is_the_one_that_the_message_documents() -> None:
    before = occupancy()
    message = occupancy_to_message(before, PROVENANCE)
    for x, y, z in ((0, 0, 1), (0, 1, 0), (1, 0, 0), (7, 7, 3), (3, 5, 2)):
        index = (x * message.size_y + y) * message.size_z + z
        assert message.labels[index] == before.labels[x, y, z]
    assert (message.size_x, message.size_y, message.size_z) == (8, 8, 4)
    assert (message.origin.position.x, message.origin.position.z, message.origin.orientation.w) == (-4.0, -1.0, 1.0)
    assert (message.voxel_size.x, message.voxel_size.z) == (1.0, 0.5)
    np.testing.assert_array_equal(np.frombuffer(message.class_colors, np.uint8).reshape(-1, 3), LABELS.colors)


def test_messages_that_do_not_fit_themselves_are_refused() -> None:
    dense = occupancy_to_message(occupancy(), PROVENANCE)
    dense.labels = dense.labels[:-1]
    with pytest.raises(ValueError, match="255 values"):
        message_to_occupancy(dense)
    sparse = occupancy_to_message(occupancy(), PROVENANCE, encoding="sparse")
    sparse.indices[-1] = 256
    with pytest.raises(ValueError, match="index 256 is not below 256"):
        message_to_occupancy(sparse)
    runs = occupancy_to_message(occupancy(), PROVENANCE, encoding="run_length")
    runs.indices[-1] += 1
    with pytest.raises(ValueError, match="add up to the voxels"):
        message_to_occupancy(runs)
    runs.encoding = 7
    with pytest.raises(ValueError, match="encoding 7"):
        message_to_occupancy(runs)
    colors = occupancy_to_message(occupancy(), PROVENANCE)
    colors.class_colors = colors.class_colors[:-3]
    with pytest.raises(ValueError, match=r"class_colors has 9 values for 4 class_names; expected three"):
        message_to_occupancy(colors)
    with pytest.raises(ValueError, match="encoding: 'zip' is not one of dense, sparse, run_length"):
        occupancy_to_message(occupancy(), PROVENANCE, encoding="zip")


@pytest.mark.parametrize("encoding", ["sparse", "run_length"])
def test_sizes_from_the_wire_do_not_decide_how_much_memory_is_taken(encoding: str) -> None:
    message = occupancy_to_message(occupancy(fill=0.0), PROVENANCE, encoding=encoding)
    message.size_x, message.size_y = 2**31, 2**31
    with pytest.raises(ValueError, match="at most 268435456 voxels"):
        message_to_occupancy(message)


def test_a_grid_that_is_turned_is_refused_and_the_other_identity_is_not() -> None:
    before = occupancy()
    message = occupancy_to_message(before, PROVENANCE)
    message.origin.orientation.w = -1.0
    np.testing.assert_array_equal(message_to_occupancy(message).labels, before.labels)
    message.origin.orientation.z = message.origin.orientation.w = 0.5**0.5
    with pytest.raises(
        ValueError, match=r"orientation is \(x=0, y=0, z=0\.707107, w=0\.707107\): expected the identity"
    ):
        message_to_occupancy(message)


# ---- clouds and markers ----------------------------------------------------------------------------------------------


def read(message: PointCloud2) -> Any:
    return cloud_to_points(message, beams=BeamLayout(), intensity_scale=1.0, name="lidar")


def test_voxels_as_a_cloud_have_centres_colours_and_labels() -> None:
    before = occupancy()
    message = occupancy_to_cloud(before, "base_link")
    got = read(message).points[:, :3]
    indices = before.occupied()
    np.testing.assert_allclose(got, before.grid.centers(indices), atol=1e-6)
    raw = np.frombuffer(message.data, np.uint8).reshape(-1, 20)
    labels = before.labels[tuple(indices.T)]
    np.testing.assert_array_equal(raw[:, 16], labels)
    np.testing.assert_array_equal(raw[:, 17], before.confidence[tuple(indices.T)])
    # Little-endian 0x00RRGGBB.
    np.testing.assert_array_equal(raw[:, 14:11:-1], np.array(LABELS.colors, np.uint8)[labels])
    assert message.is_dense
    assert packed_colors(LABELS)[1] == 150 << 8 | 245


def markers_of(before: Occupancy, **how: Any) -> MarkerArray:
    made = occupancy_to_markers(before, "base_link", **{"alpha": 1.0, "surface_only": False} | how)
    return deserialize_message(made, MarkerArray)


def test_nothing_occupied_gives_an_empty_cloud_and_deletes_every_marker() -> None:
    empty = occupancy(fill=0.0)
    assert occupancy_to_cloud(empty, "base_link").width == 0
    assert [m.action for m in markers_of(empty).markers] == [Marker.DELETE] * 3


def corners(markers: MarkerArray) -> dict[int, set[tuple[float, float, float]]]:
    return {m.id: {(p.x, p.y, p.z) for p in m.points} for m in markers.markers if m.action == Marker.ADD}


def test_markers_are_one_list_of_cubes_a_class_at_the_voxels_centres() -> None:
    for seed in (0, 1):
        before = occupancy(seed=seed)
        message = markers_of(before, alpha=0.5)
        expected = {
            label: {tuple(c) for c in before.grid.centers(np.argwhere(before.labels == label)).tolist()}
            for label in range(LABELS.free)
        }
        assert corners(message) == expected
        first = message.markers[1]
        assert (first.type, first.ns, first.header.frame_id) == (Marker.CUBE_LIST, "test", "base_link")
        assert stamp_to_ns(first.header.stamp) == before.stamp_ns
        assert (first.scale.x, first.scale.z) == (1.0, 0.5)
        np.testing.assert_allclose([first.color.g, first.color.b, first.color.a], [150 / 255, 245 / 255, 0.5])
        assert len({(m.ns, m.id) for m in message.markers}) == LABELS.num - 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=7), st.integers(-5, 5), st.integers(0, 3), st.booleans(), st.floats(-1e9, 1e9)),
        max_size=4,
    )
)
def test_markers_written_as_bytes_are_what_rclpy_would_have_written(entries: list[Any]) -> None:
    parts = []
    for text, number, count, flag, value in entries:
        text = text.replace("\0", "")
        marker = Marker(ns=text, id=number, text=text[::-1], mesh_resource=text, frame_locked=flag)
        marker.header.frame_id, marker.pose.position.y, marker.lifetime.sec = text, value, number
        marker.texture.format, marker.mesh_file.filename, marker.texture_resource = text, text, text
        marker.color.b = 0.25
        parts.append((marker, np.full((count, 3), value)))
    ours, theirs = marker_bytes._write(parts), marker_bytes._serialise(parts)
    assert deserialize_message(ours, MarkerArray) == deserialize_message(theirs, MarkerArray)
    assert len(ours) == len(theirs)


def test_where_the_marker_has_another_layout_the_slow_way_is_taken(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = occupancy()
    expected = markers_of(before)
    monkeypatch.setattr(marker_bytes, "_write", lambda parts: b"\x00\x01\x00\x00\xff\xff\xff\x7f")
    marker_bytes._layout_fits.cache_clear()
    try:
        assert markers_of(before) == expected
    finally:
        marker_bytes._layout_fits.cache_clear()
    assert "markers are made the slow way" in caplog.text


def test_markers_leave_out_what_is_hidden_on_all_sides() -> None:
    solid = np.zeros((5, 5, 5), dtype=bool)
    solid[1:4, 1:4, 1:4] = True
    surface = surface_mask(solid)
    assert surface.sum() == 26
    assert not surface[2, 2, 2]
    full = np.ones((3, 3, 3), dtype=bool)
    assert surface_mask(full).sum() == 26
    labels = np.where(np.pad(np.ones((6, 6, 2), bool), 1), 1, LABELS.free).astype(np.uint8)
    labels[1:-1, 1:-1, 1:-1] = 1
    before = replace(occupancy(), labels=labels)
    assert sum(len(points) for _, points in marker_parts(before, "f", alpha=1.0, surface_only=True)) < labels.size


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_voxel_is_on_the_surface_exactly_where_a_neighbour_is_missing(seed: int, fill: float) -> None:
    occupied = np.random.default_rng(seed).random((4, 3, 5)) < fill
    expected = np.zeros_like(occupied)
    for index in np.argwhere(occupied):
        for axis in range(3):
            for step in (-1, 1):
                other = index.copy()
                other[axis] += step
                inside = (other >= 0).all() and (other < occupied.shape).all()
                expected[tuple(index)] |= not inside or not occupied[tuple(other)]
    np.testing.assert_array_equal(surface_mask(occupied), expected)
