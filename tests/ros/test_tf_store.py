"""Transform chains, interpolation, waiting, and what the errors say. No ROS needed."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionocc_core.geometry import (
    inverse,
    quaternion_wxyz_from_rotation,
    rotation_from_quaternion_wxyz,
    rotation_from_yaw,
    transform,
)
from fusionocc_ros.tf_store import S, TfStore, TransformError, TransformNotYetError, interpolate


def pose(x: float, y: float = 0.0, yaw: float = 0.0) -> np.ndarray:
    return transform(rotation_from_yaw(yaw), (x, y, 0.0))


@pytest.fixture
def store() -> TfStore:
    store = TfStore()
    store.set_static("base_link", "lidar", pose(1, 0, np.pi / 2))
    store.set_static("base_link", "mast", pose(0, 2))
    store.set_static("mast", "camera", pose(0, 0, -np.pi / 2))
    for k in range(11):
        store.add("map", "base_link", k * S // 10, pose(k * 1.0, yaw=0.1 * k))
    return store


def test_lookup_composes_up_and_down_the_tree(store: TfStore) -> None:
    lidar2camera = store.lookup("lidar", "camera", 0)
    expected = inverse(pose(0, 2) @ pose(0, 0, -np.pi / 2)) @ pose(1, 0, np.pi / 2)
    np.testing.assert_allclose(lidar2camera, expected, atol=1e-12)
    np.testing.assert_allclose(store.lookup("camera", "lidar", 0), inverse(expected), atol=1e-12)
    np.testing.assert_array_equal(store.lookup("lidar", "lidar", 0), np.eye(4))


def test_moving_edges_are_interpolated(store: TfStore) -> None:
    np.testing.assert_allclose(store.lookup("base_link", "map", S // 2), pose(5, yaw=0.5), atol=1e-12)
    np.testing.assert_allclose(store.lookup("base_link", "map", 525_000_000), pose(5.25, yaw=0.525), atol=1e-12)
    lidar2map = store.lookup("lidar", "map", 525_000_000)
    np.testing.assert_allclose(lidar2map, pose(5.25, yaw=0.525) @ pose(1, 0, np.pi / 2), atol=1e-12)


def test_what_happened_in_a_long_gap_is_not_made_up(store: TfStore) -> None:
    store.add("map", "base_link", 3 * S, pose(30))  # as after a jump of the clock
    np.testing.assert_allclose(store.lookup("base_link", "map", 3 * S), pose(30))
    for stamp in (S + S // 2, 3 * S - 1, S + 1):
        with pytest.raises(TransformError, match=r"known before and after, but not within 1 s .* transform_gap"):
            store.lookup("base_link", "map", stamp)
    patient = TfStore(gap_ns=2 * S)
    for stamp in (S, 3 * S):
        patient.add("map", "base_link", stamp, pose(stamp / S))
    np.testing.assert_allclose(patient.lookup("base_link", "map", 2 * S), pose(2))


def test_static_edges_that_change_are_counted(store: TfStore) -> None:
    store.set_static("base_link", "mast", pose(0, 2))
    assert store.static_changes == 0
    store.set_static("base_link", "mast", pose(0, 2.5))
    store.set_static("base_link", "new", pose(0, 2.5))
    assert store.static_changes == 1


def test_leading_slashes_do_not_matter(store: TfStore) -> None:
    np.testing.assert_array_equal(store.lookup("/lidar", "/base_link", 0), pose(1, 0, np.pi / 2))


@given(st.floats(-3, 3), st.floats(-0.2, 1.2), st.integers(0, 2**32 - 1))
def test_interpolation_follows_a_constant_turn(angle: float, fraction: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)

    def turn(a: float) -> np.ndarray:
        return rotation_from_quaternion_wxyz(np.r_[np.cos(a / 2), np.sin(a / 2) * axis])

    start = rotation_from_quaternion_wxyz(rng.normal(size=4))
    a, b = transform(start, rng.normal(size=3)), transform(start @ turn(angle), rng.normal(size=3))
    got = interpolate(a, b, fraction)
    np.testing.assert_allclose(got[:3, :3], start @ turn(fraction * angle), atol=1e-7)
    np.testing.assert_allclose(got[:3, 3], (1 - fraction) * a[:3, 3] + fraction * b[:3, 3], atol=1e-12)
    assert np.isfinite(quaternion_wxyz_from_rotation(got[:3, :3])).all()


def test_a_little_beyond_the_last_stamp_continues_the_motion(store: TfStore) -> None:
    np.testing.assert_allclose(store.lookup("base_link", "map", 1_040_000_000), pose(10.4, yaw=1.04), atol=1e-12)
    with pytest.raises(TransformNotYetError, match=r"'base_link' to 'map' at 1\.060 s.*known from 0\.000 to 1\.000 s"):
        store.lookup("base_link", "map", 1_060_000_000)


def test_continuing_does_not_blow_up_the_noise_of_two_close_stamps() -> None:
    store = TfStore()
    store.add("map", "base", S, pose(0))
    store.add("map", "base", S + 300_000, pose(0.01))
    for stamp, error in ((S + 40_000_000, TransformNotYetError), (S - 40_000_000, TransformError)):
        with pytest.raises(error):  # not even that it stands still is known
            store.lookup("base", "map", stamp)
    np.testing.assert_allclose(store.lookup("base", "map", S + 400_000), pose(0.01 * 4 / 3), atol=1e-9)
    store.add("map", "base", S - 100_000_000, pose(-1))
    np.testing.assert_allclose(store.lookup("base", "map", S + 50_000_000), pose(0.01 + 1.01 * 49.7 / 100.3), atol=1e-9)


def test_before_the_first_stamp_is_an_error_that_does_not_wait(store: TfStore) -> None:
    began = time.monotonic()
    with pytest.raises(TransformError, match=r"'lidar' to 'map' at -1\.000 s") as raised:
        store.lookup("lidar", "map", -S, timeout_s=5)
    assert not isinstance(raised.value, TransformNotYetError)
    assert time.monotonic() - began < 1


def test_unknown_frame_names_both_frames_and_what_is_known(store: TfStore) -> None:
    with pytest.raises(TransformNotYetError) as raised:
        store.lookup("cam_side", "base_link", 0)
    assert "'cam_side' to 'base_link'" in str(raised.value)
    assert "named 'cam_side'" in str(raised.value)
    assert "base_link, camera, lidar, map, mast" in str(raised.value)


def test_unjoined_trees_name_both_frames(store: TfStore) -> None:
    store.set_static("other_root", "radar", pose(1))
    assert not store.connected("radar", "lidar")
    assert store.connected("camera", "map")
    with pytest.raises(TransformNotYetError, match="'radar' to 'lidar': no chain of transforms joins them"):
        store.lookup("radar", "lidar", 0)


def test_empty_store_asks_for_tf_static() -> None:
    with pytest.raises(TransformNotYetError, match="is /tf_static published"):
        TfStore().lookup("a", "b", 0)


def test_a_static_edge_that_closes_a_loop_is_refused() -> None:
    store = TfStore()
    store.set_static("a", "b", pose(1))
    store.set_static("b", "c", pose(1))
    with pytest.raises(ValueError, match="it would close a loop: a -> c -> b -> a"):
        store.set_static("c", "a", pose(1))
    np.testing.assert_array_equal(store.lookup("c", "a", 0), pose(2))


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_wrong_moving_edge_that_closes_a_loop_is_outlived(when: str) -> None:
    store = TfStore()
    store.set_static("base", "camera", pose(1))
    if when == "before":
        store.set_static("base", "map", pose(7))
    store.add("map", "base", S, pose(2))
    if when == "between":
        store.add("camera", "map", S, pose(7))
        store.add("map", "base", 2 * S, pose(2))
    np.testing.assert_array_equal(store.lookup("camera", "map", 2 * S if when == "between" else S), pose(3))


@pytest.mark.parametrize("matrix", [np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3), pose(1e300)])
def test_what_is_not_rigid_or_beyond_all_measure_is_refused(matrix: np.ndarray) -> None:
    with pytest.raises(ValueError, match="transform from 'b' to 'a'"):
        TfStore().set_static("a", "b", matrix)
    with pytest.raises(ValueError, match="transform from 'b' to 'a'"):
        TfStore().add("a", "b", 0, matrix)


@pytest.mark.parametrize(("parent", "child"), [("a", "a"), ("", "a"), ("a", "/"), ("/a", "a")])
def test_edges_need_two_names(parent: str, child: str) -> None:
    with pytest.raises(ValueError, match="two different names"):
        TfStore().set_static(parent, child, np.eye(4))


def test_old_stamps_are_forgotten_and_a_jump_back_starts_anew() -> None:
    store = TfStore(buffer_ns=2 * S)
    for k in range(100):
        store.add("map", "base", 100 * S + k * S // 10, pose(k))
    with pytest.raises(TransformError, match=r"known from 107\.900 to 109\.900"):
        store.lookup("base", "map", 107 * S)
    store.add("map", "base", 100 * S, pose(-1))
    np.testing.assert_array_equal(store.lookup("base", "map", 100 * S), pose(-1))
    with pytest.raises(TransformNotYetError):
        store.lookup("base", "map", 109 * S)


def test_one_late_message_costs_nothing() -> None:
    store = TfStore()
    for k in range(100):
        store.add("map", "base", 100 * S + k * S // 10, pose(k))
        if k > 50 and k % 10 == 0:
            store.add("map", "base", 100 * S + (k - 30) * S // 10, pose(k - 30))
            store.add("map", "base", 100 * S + (k - 30) * S // 10, pose(k - 30))
    for k in range(99):
        np.testing.assert_allclose(store.lookup("base", "map", 100 * S + k * S // 10 + S // 20), pose(k + 0.5))


@pytest.mark.parametrize("first", [(0, 1), (1, 0)])
def test_a_loop_that_is_shorter_than_the_buffer_starts_anew_with_its_second_message(first: tuple[int, int]) -> None:
    store = TfStore()
    for k in range(50):
        store.add("map", "base", 100 * S + k * S // 10, pose(k))
    for k in first:
        store.add("map", "base", 100 * S + k * S // 10, pose(-k))
    np.testing.assert_allclose(store.lookup("base", "map", 100 * S + S // 20), pose(-0.5), atol=1e-12)
    with pytest.raises(TransformNotYetError, match=r"known from 100\.000 to 100\.100"):
        store.lookup("base", "map", 102 * S)


def test_messages_out_of_order_are_sorted_in() -> None:
    store = TfStore()
    for k in (0, 2, 1, 4, 3):
        store.add("map", "base", k * S // 10, pose(k))
    np.testing.assert_allclose(store.lookup("base", "map", S // 4), pose(2.5), atol=1e-12)


def test_a_frame_that_changes_its_parent_moves(store: TfStore) -> None:
    store.add("odom", "base_link", S, pose(7))
    np.testing.assert_array_equal(store.lookup("base_link", "odom", S), pose(7))
    assert not store.connected("base_link", "map")
    store.set_static("base_link", "odom2", pose(1))
    store.add("base_link", "odom2", S, pose(3))
    np.testing.assert_array_equal(store.lookup("odom2", "base_link", S), pose(3))


def test_lookup_waits_for_a_transform_that_comes_from_another_thread(store: TfStore) -> None:
    sender = threading.Timer(0.1, lambda: store.add("map", "base_link", 2 * S, pose(20)))
    sender.start()
    np.testing.assert_array_equal(store.lookup("base_link", "map", 2 * S, timeout_s=5), pose(20))
    sender.join()
    with pytest.raises(TransformNotYetError):
        store.lookup("base_link", "map", 9 * S, timeout_s=0.05)


def test_clear_forgets(store: TfStore) -> None:
    store.clear()
    assert store.frames() == []
