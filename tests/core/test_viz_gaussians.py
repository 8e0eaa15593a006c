"""Gaussians as files and pictures: what goes there comes back, and every visible pixel can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian_splat_cases import some
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionocc_core.gaussians import NO_CLASS, GaussianCloud, cloud_of
from fusionocc_core.grids import OCC3D_LABELS, SURROUNDOCC_GRID, VoxelGrid
from fusionocc_core.structures import Occupancy, SensorFrame
from fusionocc_core.viz.canvas import PAPER
from fusionocc_core.viz.export import remove_results, results_in, write_result
from fusionocc_core.viz.gaussian_files import HARMONIC, read_ply, write_ply
from fusionocc_core.viz.gaussian_pictures import EllipsoidStyle, gaussians_from_above, gaussians_in_perspective
from fusionocc_core.viz.perspective import View

CAR, BUS = (OCC3D_LABELS.names.index(name) for name in ("car", "bus"))
GRID = VoxelGrid(frame="ego", lower=(-4.0, -6.0, -1.0), upper=(4.0, 6.0, 3.0), voxel_size=(0.5, 0.5, 0.5))


def cloud(*rows) -> GaussianCloud:
    """Of rows (means, scales, quaternion, opacity, label)."""
    means, scales, rotations, opacities, labels = (np.array(v) for v in zip(*rows, strict=True))
    return GaussianCloud(
        means_G3=means.astype(np.float32),
        scales_G3=scales.astype(np.float32),
        rotations_G4=rotations.astype(np.float32),
        opacities_G=opacities.astype(np.float32),
        labels_G=labels.astype(np.uint8),
    )


def occupancy(gaussians, grid=GRID) -> Occupancy:
    labels = np.full(grid.shape, OCC3D_LABELS.free, np.uint8)
    return Occupancy(labels=labels, grid=grid, label_set=OCC3D_LABELS, stamp_ns=7, gaussians=gaussians)


STRAIGHT = (1.0, 0.0, 0.0, 0.0)
QUARTER_ABOUT_Z = (0.5**0.5, 0.0, 0.0, 0.5**0.5)


@settings(max_examples=20, deadline=None)
@given(num=st.integers(0, 40), seed=st.integers(0, 1000))
def test_what_is_written_is_read_again(num, seed, tmp_path_factory):
    path = tmp_path_factory.mktemp("ply") / "a.ply"
    cloud_before = cloud_of(some(num=num, classes=17, seed=seed), 1)
    write_ply(path, cloud_before, OCC3D_LABELS, "ego")
    found = read_ply(path)
    for name, value in vars(cloud_before).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5, atol=2e-6, err_msg=name)


def test_the_file_holds_what_viewers_expect(tmp_path):
    """Read as a viewer does: by the names in the header, columns of the original layout."""
    path = tmp_path / "a.ply"
    write_ply(path, cloud(((1, 2, 3), (0.5, 1, 2), QUARTER_ABOUT_Z, 0.75, CAR)), OCC3D_LABELS, "ego")
    header, _, body = path.read_bytes().partition(b"end_header\n")
    lines = header.decode().splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "comment class 4 car" in lines
    assert "element vertex 1" in lines
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    values = dict(zip(names, np.frombuffer(body[: 4 * len(names)], "<f4"), strict=True))
    assert body[4 * len(names) :] == bytes([CAR])
    assert [values[name] for name in ("x", "y", "z")] == [1, 2, 3]
    assert np.exp([values[f"scale_{axis}"] for axis in range(3)]) == pytest.approx([0.5, 1, 2])
    assert [values[f"rot_{part}"] for part in range(4)] == pytest.approx(QUARTER_ABOUT_Z)
    assert 1 / (1 + np.exp(-values["opacity"])) == pytest.approx(0.75)
    color = [255 * (0.5 + HARMONIC * values[f"f_dc_{channel}"]) for channel in range(3)]
    assert color == pytest.approx(OCC3D_LABELS.colors[CAR], abs=1e-3)


def test_rotations_of_files_turn_the_ellipsoid_into_the_frame():
    """Covariance from the file's convention, R diag(s^2) R', equals that of the network's Gaussians."""
    gaussians = some(num=10)
    found = cloud_of(gaussians, 0)
    axes = found.local2frame_G33().astype(np.float64) * found.scales_G3[:, None, :]
    np.testing.assert_allclose(axes @ np.swapaxes(axes, 1, 2), gaussians.covariances_BG33()[0], rtol=1e-4, atol=1e-5)
    assert (found.labels_G == gaussians.semantics_BGC[0].argmax(1).numpy()).all()


def test_opaque_ones_come_first_and_huge_opacities_are_brought_to_one(tmp_path):
    gaussians = some(num=6, batch=1)
    gaussians = replace(gaussians, opacities_BG=torch.tensor([[0.2, 3.0, 0.5, 0.0, 0.9, 0.5]], dtype=torch.float64))
    found = cloud_of(gaussians)
    assert found.most_opaque(3).opacities_G == pytest.approx([1.0, 0.9, 0.5])
    assert len(found.most_opaque(100)) == 6
    write_ply(tmp_path / "a.ply", found, OCC3D_LABELS, "ego")
    assert read_ply(tmp_path / "a.ply").opacities_G == pytest.approx([0.2, 1, 0.5, 0, 0.9, 0.5], abs=1e-5)


def foreign(order: str, names: list[str], form: str = "binary_big_endian") -> bytes:
    header = ["ply", f"format {form} 1.0", "element vertex 2", *(f"property double {name}" for name in names)]
    values = np.arange(2 * len(names), dtype=np.float64) / 10
    return "\n".join([*header, "end_header\n"]).encode() + values.astype(order + "f8").tobytes()


NAMES = ["rot_1", "scale_2", "scale_0", "f_rest_3", "x", "y", "z", "opacity", "scale_1", "rot_0", "rot_2", "rot_3"]


def test_files_of_other_programs_are_read_whatever_their_columns(tmp_path):
    path = tmp_path / "other.ply"
    path.write_bytes(foreign(">", NAMES))
    found = read_ply(path)
    assert found.means_G3[1] == pytest.approx([1.6, 1.7, 1.8])
    assert found.scales_G3[0] == pytest.approx(np.exp([0.2, 0.8, 0.1]))
    assert (found.labels_G == NO_CLASS).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"jpeg\n", "no .ply file"),
        (b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "convert text files"),
        (foreign("<", NAMES[:-1]), "rot_3 missing"),
        (foreign("<", NAMES)[:-5], "cut off"),
        (b"ply\nformat binary_little_endian 1.0\nelement face 1\n", "'face' comes before"),
        (
            b"ply\nformat binary_little_endian 1.0\nelement vertex 1\nproperty list uchar int x\n",
            "cannot read the line",
        ),
        (b"ply\n", "the header has no end"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    (tmp_path / "a.ply").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_ply(tmp_path / "a.ply")


def test_bad_clouds_are_named():
    good = cloud(((0, 0, 0), (1, 1, 1), STRAIGHT, 0.5, 1))
    for name, value, message in (
        ("means_G3", np.zeros((1, 2), np.float32), "means_G3: float32"),
        ("scales_G3", np.zeros((1, 3), np.float32), "scales_G3: 0 m"),
        ("opacities_G", np.full(1, np.nan, np.float32), "opacities_G: 1 values are not finite"),
        ("rotations_G4", np.ones((1, 4), np.float32), "length 1"),
        ("labels_G", np.zeros(1, np.int64), "labels_G: int64"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(good, **{name: value})
    with pytest.raises(ValueError, match="not finite"):
        cloud_of(replace(some(), opacities_BG=torch.full((2, 25), torch.nan, dtype=torch.float64)))


def painted(picture, label) -> np.ndarray:
    """Where a picture without marks shows a class: its colour at any brightness."""
    color = np.array(OCC3D_LABELS.colors[label], float)
    pixels = picture.astype(float)
    with np.errstate(invalid="ignore"):
        cosine = pixels @ color / np.linalg.norm(pixels, axis=-1) / np.linalg.norm(color)
    return np.asarray(cosine > 0.995)


@pytest.mark.parametrize("frame", ["ego", "lidar"])
def test_from_above_forward_is_up_and_an_ellipse_has_its_size_and_turn(frame):
    """2 m forward by 1 m across, 1 m ahead and 3 m to the left; in the LiDAR's frame forward is y."""
    mean, rotation = ((1, 3, 0), STRAIGHT) if frame == "ego" else ((-3, 1, 0), QUARTER_ABOUT_Z)
    lower, upper = ((-4, -6, -1), (4, 6, 3)) if frame == "ego" else ((-6, -4, -1), (6, 4, 3))
    grid = replace(GRID, frame=frame, lower=lower, upper=upper)
    gaussians = cloud((mean, (1.0, 0.5, 0.3), rotation, 1, CAR), ((0, 0, -0.5), (1, 1, 1), STRAIGHT, 0.05, BUS))
    picture = gaussians_from_above(occupancy(gaussians, grid), voxel_pixels=10, marks=False)
    assert picture.shape == (160, 240, 3)
    shown = painted(picture, CAR)
    rows, columns = np.nonzero(shown)
    assert (rows.min(), rows.max()) == pytest.approx((60 - 20, 60 + 19), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((60 - 10, 60 + 9), abs=1)
    assert shown.sum() == pytest.approx(np.pi * 20 * 10, rel=0.07)  # the rim is mixed with the paper
    assert (picture[~shown] == PAPER).all(axis=-1).mean() > 0.9  # the other is too transparent


def test_in_perspective_a_ball_has_the_outline_that_geometry_says():
    view = View(eye=(-20.0, 0.0, 1.0), target=(0.0, 0.0, 1.0), field_of_view=20.0)
    ball = cloud(((0, 0, 1), (1, 1, 1), STRAIGHT, 1, BUS))
    picture = gaussians_in_perspective(occupancy(ball), height=400, width=400, view=view)
    rows, columns = np.nonzero(painted(picture, BUS))
    focal = 200 / np.tan(np.radians(10))
    radius = focal * np.tan(np.arcsin(1 / 20))
    assert (rows.min(), rows.max()) == pytest.approx((200 - radius, 199 + radius), abs=1.5)
    assert (columns.min(), columns.max()) == pytest.approx((200 - radius, 199 + radius), abs=1.5)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_nearer_one_hides_the_other_whatever_their_order(swapped):
    near, far = ((-2, 0, 1), (1, 1, 1), STRAIGHT, 1, CAR), ((2, 0, 1), (1, 1, 1), STRAIGHT, 1, BUS)
    both = cloud(far, near) if swapped else cloud(near, far)
    view = View(eye=(-20.0, 0.0, 1.0), target=(0.0, 0.0, 1.0), field_of_view=20.0)
    picture = gaussians_in_perspective(occupancy(both), height=100, width=100, view=view)
    assert painted(picture, CAR).sum() > 100
    assert painted(picture, BUS).sum() == 0
    above = gaussians_from_above(occupancy(both), marks=False)
    assert painted(above, CAR).sum() == pytest.approx(painted(above, BUS).sum(), rel=0.02)


def test_nothing_to_draw_and_wrong_arguments():
    empty = cloud_of(some(num=0))
    assert (gaussians_from_above(occupancy(empty), marks=False) == PAPER).all()
    assert gaussians_in_perspective(occupancy(empty), height=50, width=80).shape == (50, 80, 3)
    behind = cloud(((-3, 0, 1), (1, 1, 1), STRAIGHT, 1, BUS))
    view = View(eye=(-3.0, 0.0, 1.0), target=(0.0, 0.0, 1.0))
    assert not painted(gaussians_in_perspective(occupancy(behind), height=50, width=80, view=view), BUS).any()
    with pytest.raises(ValueError, match="makes no Gaussians"):
        gaussians_from_above(occupancy(None))
    with pytest.raises(ValueError, match="voxel_pixels=0"):
        gaussians_from_above(occupancy(empty), voxel_pixels=0)
    with pytest.raises(ValueError, match="height=0"):
        gaussians_in_perspective(occupancy(empty), height=0)
    with pytest.raises(ValueError, match="deviations=0"):
        EllipsoidStyle(deviations=0.0)
    with pytest.raises(ValueError, match="where forward is"):
        gaussians_from_above(occupancy(empty, replace(SURROUNDOCC_GRID, frame="map")))


def test_results_of_a_frame_hold_the_gaussians(tmp_path: Path):
    frame = SensorFrame(stamp_ns=7, ego2global=np.eye(4), cameras=(camera(),), lidar=None, scene="scene-1")
    with_gaussians = replace(
        occupancy(cloud(((1, 3, 0), (1.0, 0.5, 0.3), STRAIGHT, 1, CAR))), confidence=np.zeros(GRID.shape, np.uint8)
    )
    paths = write_result(tmp_path, frame, with_gaussians, pictures=False)
    assert read_ply(paths.gaussians).labels_G.tolist() == [CAR]
    assert len(results_in(tmp_path)) == 2
    remove_results(tmp_path / "scene-1")
    assert not results_in(tmp_path)


def camera():
    from fusionocc_core.structures import CameraImage

    return CameraImage(
        name="CAM_FRONT",
        image=np.zeros((9, 16, 3), np.uint8),
        intrinsics=np.array([[10.0, 0, 8], [0, 10, 4], [0, 0, 1]]),
        cam2ego=np.eye(4),
        ego2global=np.eye(4),
        stamp_ns=0,
    )
