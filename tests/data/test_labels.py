"""Readers of Occ3D and SurroundOcc labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fusionocc_core.data.occ3d import occ3d_path, read_occ3d
from fusionocc_core.data.surroundocc import SURROUNDOCC_LABELS, read_surroundocc, surroundocc_path
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, SURROUNDOCC_GRID

SHAPE = OCC3D_GRID.shape


def occ3d_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    lidar = rng.integers(0, 2, SHAPE, dtype=np.uint8)
    return {
        "semantics": rng.integers(0, 18, SHAPE, dtype=np.uint8),
        "mask_lidar": lidar,
        "mask_camera": lidar * rng.integers(0, 2, SHAPE, dtype=np.uint8),
    }


def test_occ3d_labels_and_masks(tmp_path: Path) -> None:
    arrays = occ3d_arrays()
    path = occ3d_path(tmp_path, "scene-0061", "abc")
    assert path == tmp_path / "gts" / "scene-0061" / "abc" / "labels.npz"
    path.parent.mkdir(parents=True)
    np.savez_compressed(path, **arrays)
    truth = read_occ3d(path)
    np.testing.assert_array_equal(truth.labels, arrays["semantics"])
    np.testing.assert_array_equal(truth.mask_camera, arrays["mask_camera"] == 1)
    np.testing.assert_array_equal(truth.mask_lidar, arrays["mask_lidar"] == 1)
    assert (truth.grid, truth.label_set) == (OCC3D_GRID, OCC3D_LABELS)


@pytest.mark.data
def test_the_genuine_occ3d_label(shared: Path) -> None:
    truth = read_occ3d(shared / "data" / "occ3d_sample" / "labels.npz")
    counts = np.bincount(truth.labels.ravel(), minlength=18)
    assert counts[:17].sum() == 39_092
    named = {"others": 169, "barrier": 82, "bus": 974, "car": 1749, "motorcycle": 83, "driveable_surface": 8433}
    named |= {"sidewalk": 2610, "terrain": 1007, "manmade": 5286, "vegetation": 18_699}
    assert {OCC3D_LABELS.names[k]: int(n) for k, n in enumerate(counts[:17]) if n} == named
    assert (truth.mask_lidar.sum(), truth.mask_camera.sum()) == (56_601, 43_355)
    assert not (truth.mask_camera & ~truth.mask_lidar).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_camera": None}, "lacks mask_camera"),
        ({"semantics": np.zeros((200, 200, 8), np.uint8)}, r"semantics is uint8 \(200, 200, 8\)"),
        ({"semantics": np.full(SHAPE, 18, np.uint8)}, "semantics holds 18 to 18; expected 0 to 17"),
        ({"mask_lidar": np.full(SHAPE, 2, np.uint8)}, "mask_lidar holds 2 to 2; expected 0 to 1"),
        ({"mask_lidar": np.zeros(SHAPE, np.float32)}, "mask_lidar is float32"),
    ],
)
def test_occ3d_files_that_do_not_fit(tmp_path: Path, change: dict, message: str) -> None:
    arrays = {name: array for name, array in (occ3d_arrays() | change).items() if array is not None}
    np.savez_compressed(tmp_path / "labels.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_occ3d(tmp_path / "labels.npz")


def test_occ3d_files_that_are_absent_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    with pytest.raises(FileNotFoundError, match="gts/<scene name>"):
        read_occ3d(path)
    np.savez_compressed(path, **occ3d_arrays())
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2], np.zeros(3).tobytes()):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"\({len(damaged)} bytes\) is not a whole \.npz file"):
            read_occ3d(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"not a whole \.npz"):
        read_occ3d(tmp_path / "array.npy")


def test_surroundocc_labels(tmp_path: Path) -> None:
    path = surroundocc_path(tmp_path, "samples/LIDAR_TOP/n008__LIDAR_TOP__1.pcd.bin")
    assert path == tmp_path / "surroundocc" / "samples" / "n008__LIDAR_TOP__1.pcd.bin.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.array([[0, 0, 0, 4], [199, 199, 15, 16], [5, 6, 7, 0]]))
    truth = read_surroundocc(path)
    assert (truth.grid, truth.label_set) == (SURROUNDOCC_GRID, SURROUNDOCC_LABELS)
    assert (truth.labels[0, 0, 0], truth.labels[199, 199, 15], truth.labels[5, 6, 7]) == (4, 16, 255)
    assert (truth.labels == SURROUNDOCC_LABELS.free).sum() == 200 * 200 * 16 - 3
    np.save(path, np.zeros((0, 4), np.int64))
    assert (read_surroundocc(path).labels == 17).all()


@pytest.mark.parametrize("row", [[200, 0, 0, 4], [0, -1, 0, 4], [0, 0, 0, 17], [0, 0, 0, -1]])
def test_surroundocc_rows_that_are_no_voxel(tmp_path: Path, row: list[int]) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2, 3, 4], row]))
    with pytest.raises(ValueError, match=r"1 of 2 rows, the first \["):
        read_surroundocc(tmp_path / "a.npy")


def test_surroundocc_files_that_are_absent_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with pytest.raises(FileNotFoundError, match="surroundocc/samples"):
        read_surroundocc(path)
    np.save(path, np.zeros((3, 5)))
    with pytest.raises(ValueError, match=r"float64 \(3, 5\); expected rows"):
        read_surroundocc(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"not a whole \.npy"):
        read_surroundocc(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"not a whole \.npy"):
        read_surroundocc(path)
