import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core import geometry

unit_floats = st.floats(-1, 1, allow_nan=False)
quaternions = st.tuples(unit_floats, unit_floats, unit_floats, unit_floats).filter(lambda q: np.linalg.norm(q) > 1e-3)
translations = st.tuples(*[st.floats(-1e4, 1e4, allow_nan=False)] * 3)


@given(quaternions)
def test_quaternion_round_trip(quaternion):
    rotation = geometry.rotation_from_quaternion_wxyz(quaternion)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    back = geometry.quaternion_wxyz_from_rotation(rotation)
    assert back[0] >= 0
    np.testing.assert_allclose(geometry.rotation_from_quaternion_wxyz(back), rotation, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quaternion_of_half_turns(axis):
    rotation = -np.eye(3)
    rotation[axis, axis] = 1.0
    expected = np.zeros(4)
    expected[1 + axis] = 1.0
    np.testing.assert_allclose(np.abs(geometry.quaternion_wxyz_from_rotation(rotation)), expected, atol=1e-12)


def test_quaternion_orders_and_yaw_agree():
    w, z = np.cos(np.pi / 6), np.sin(np.pi / 6)
    expected = geometry.rotation_from_yaw(np.pi / 3)
    np.testing.assert_allclose(geometry.rotation_from_quaternion_wxyz((w, 0, 0, z)), expected, atol=1e-12)
    np.testing.assert_allclose(geometry.rotation_from_quaternion_xyzw((0, 0, z, w)), expected, atol=1e-12)
    np.testing.assert_allclose(expected @ [1, 0, 0], [0.5, np.sqrt(3) / 2, 0], atol=1e-12)  # x turns towards y


@given(quaternions, translations)
@settings(max_examples=50)
def test_inverse_undoes_and_apply_matches_matrix(quaternion, translation):
    a2b = geometry.transform_from_wxyz(quaternion, translation)
    np.testing.assert_allclose(geometry.inverse(a2b) @ a2b, np.eye(4), atol=1e-7)
    points = np.array([[1.0, 2.0, 3.0], [-4.0, 0.5, 9.0]])
    homogeneous = (a2b @ np.c_[points, np.ones(2)].T).T[:, :3]
    np.testing.assert_allclose(geometry.apply(a2b, points), homogeneous, rtol=1e-12, atol=1e-9)


def test_inverse_takes_stacks():
    stack = np.stack([geometry.transform_from_wxyz((1, 0.1 * i, 0, 0.3), (i, 2, 3)) for i in range(4)])
    np.testing.assert_allclose(geometry.inverse(stack) @ stack, np.broadcast_to(np.eye(4), (4, 4, 4)), atol=1e-12)


def test_apply_keeps_float32():
    assert geometry.apply(np.eye(4), np.zeros((1, 3), np.float32)).dtype == np.float32


def test_project_value():
    intrinsics = [[100.0, 0, 50], [0, 200, 60], [0, 0, 1]]
    uvz = geometry.project(intrinsics, np.array([[1.0, 2.0, 4.0]]))
    np.testing.assert_allclose(uvz, [[75.0, 160.0, 4.0]])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: geometry.rotation_from_quaternion_wxyz((0, 0, 0, 0)), "length is zero"),
        (lambda: geometry.rotation_from_quaternion_wxyz((1, 0, 0)), "4 finite numbers"),
        (lambda: geometry.transform(np.eye(4), (0, 0, 0)), r"rotation: expected shape \(3, 3\)"),
        (lambda: geometry.transform(np.eye(3), (0, 0)), "translation"),
        (lambda: geometry.transform(np.eye(3), (0, np.nan, 0)), "not finite"),
        (lambda: geometry.check_rigid("cam2ego", np.eye(3)), "cam2ego: expected a 4x4"),
        (lambda: geometry.check_rigid("cam2ego", np.diag([1.0, 1, 2, 1])), "cam2ego: not a rigid transform"),
        (lambda: geometry.check_rigid("cam2ego", np.diag([1.0, 1, -1, 1])), "determinant -1"),
        (lambda: geometry.check_rigid("cam2ego", np.full((4, 4), np.inf)), "not finite"),
        (lambda: geometry.quaternion_wxyz_from_rotation(np.eye(4)), r"expected shape \(3, 3\)"),
    ],
)
def test_errors_name_the_thing(call, words):
    with pytest.raises(ValueError, match=words):
        call()
