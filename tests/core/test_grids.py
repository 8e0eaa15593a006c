import numpy as np
import pytest

from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, SURROUNDOCC_GRID, DepthBins, LabelSet, VoxelGrid


def grid(**changes):
    values = {"frame": "ego", "lower": (0.0, 0.0, 0.0), "upper": (2.4, 1.0, 1.0), "voxel_size": (0.1, 0.5, 1.0)}
    return VoxelGrid(**{**values, **changes})


def test_shapes_are_rounded_not_truncated():
    assert grid().shape == (24, 2, 1)  # int(2.4 / 0.1) would be 23
    assert grid().shape_zyx == (1, 2, 24)
    assert OCC3D_GRID.shape == SURROUNDOCC_GRID.shape == (200, 200, 16)


def test_indices_floor_and_centers_are_inside():
    points = np.array([[-39.99, 39.99, -1.0], [-40.1, 0.0, 0.0], [0.0, 0.0, 5.39]])
    indices = OCC3D_GRID.indices(points)
    assert indices.tolist() == [[0, 199, 0], [-1, 100, 2], [100, 100, 15]]
    assert OCC3D_GRID.contains(indices).tolist() == [True, False, True]
    np.testing.assert_array_equal(OCC3D_GRID.indices(OCC3D_GRID.centers(indices)), indices)


def test_two_grids_of_one_shape_differ():
    assert OCC3D_GRID != SURROUNDOCC_GRID


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"upper": (2.45, 1.0, 1.0)}, "24.5000 voxels of 0.1 m"),
        ({"upper": (-1.0, 1.0, 1.0)}, "must lie above lower"),
        ({"voxel_size": (0.1, 0.0, 1.0)}, r"voxel_size.y: expected a positive length"),
    ],
)
def test_bad_grids_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        grid(**changes)


def test_depth_bins():
    assert DepthBins(start=1.0, stop=45.0, step=0.5).num == 88
    for start, stop, step in [(1.0, 45.2, 0.5), (0.0, 10.0, 1.0), (1.0, 1.0, 0.5), (1.0, 2.0, 0.0)]:
        with pytest.raises(ValueError, match="DepthBins"):
            DepthBins(start=start, stop=stop, step=step)


def test_bins_of_growing_width():
    log = DepthBins(start=1.0, stop=45.0, step=0.5, spacing="log")
    assert log.num == 88
    assert log.edges[0] == 1.0
    assert log.edges[-1] == pytest.approx(45.0)
    widths = np.diff(log.edges)
    np.testing.assert_allclose(widths[1:] / widths[:-1], np.exp(log.log_step))
    official = DepthBins(start=1.0, stop=45.0, step=0.5, spacing="log_official")
    assert official.edges[-2] == pytest.approx(44.0)
    with pytest.raises(ValueError, match="spacing='sid': expected one of"):
        DepthBins(start=1.0, stop=45.0, step=0.5, spacing="sid")
    with pytest.raises(ValueError, match="two bins or more"):
        DepthBins(start=1.0, stop=2.0, step=1.0, spacing="log_official")
    with pytest.raises(ValueError, match="linear bins have no factor"):
        _ = DepthBins(start=1.0, stop=2.0, step=1.0).log_step


def test_occ3d_labels():
    assert OCC3D_LABELS.num == 18
    assert OCC3D_LABELS.names[4] == "car"
    assert OCC3D_LABELS.names[OCC3D_LABELS.free] == "free"
    assert len(set(OCC3D_LABELS.colors)) == 18


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colors": ((0, 0, 0),)}, "2 names but 1 colors"),
        ({"free": 2}, "free=2"),
        ({"unknown": 1}, "unknown=1"),
        ({"unknown": 256}, "unknown=256"),
    ],
)
def test_bad_label_sets_are_refused(changes, words):
    values = {"name": "two", "names": ("a", "free"), "colors": ((0, 0, 0), (1, 1, 1)), "free": 1}
    with pytest.raises(ValueError, match=words):
        LabelSet(**{**values, **changes})
