"""Labels of a scene whose answer is known, and what a run does when it is stopped, repeated or asked for nonsense."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from labelling_scene import CAMERAS, CAR2EGO, CAR_LWH, WALL_Y, car_skin, first_pose, road, wall, write_scene
from nuscenes_tree import LIDAR2EGO, Tree, camera_pose, ego_pose_at

from fusionocc_core.cli import main
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.occ3d import occ3d_path, read_occ3d
from fusionocc_core.data.surroundocc import read_surroundocc, surroundocc_path
from fusionocc_core.geometry import apply, inverse
from fusionocc_core.grids import OCC3D_GRID, OCC3D_LABELS, VoxelGrid
from fusionocc_core.labelling.config import LabelConfig
from fusionocc_core.labelling.files import NOTE, claim
from fusionocc_core.metrics.truth import OccupancyTruth

CAR, ROAD, WALL, OTHERS, FREE = (
    OCC3D_LABELS.names.index(n) for n in ("car", "driveable_surface", "manmade", "others", "free")
)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return write_scene(tmp_path_factory.mktemp("known") / "data")


@pytest.fixture(scope="module")
def out(known: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    assert main(["label", str(known.root), "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def frames(known: Tree) -> NuScenesFrames:
    return NuScenesFrames(known.root)


def read(folder: Path, frames: NuScenesFrames, index: int) -> OccupancyTruth:
    keyframe = frames.keyframe(index)
    return read_occ3d(occ3d_path(folder, keyframe.scene, keyframe.token))


def scene_of(frames: NuScenesFrames, index: int) -> int:
    return frames.scenes.index(frames.keyframe(index).scene)


def in_ego(points: np.ndarray, frames: NuScenesFrames, index: int) -> np.ndarray:
    """Points in the axes of the scene's first pose, as the keyframe's ego vehicle sees them."""
    stamp = frames.keyframe(index).stamp_ns // 1000
    scene = scene_of(frames, index)
    return apply(inverse(ego_pose_at(stamp, scene)) @ first_pose(stamp, scene), points)


def voxels_of(points: np.ndarray, grid: VoxelGrid = OCC3D_GRID) -> np.ndarray:
    out = np.zeros(grid.shape, bool)
    ijk = grid.indices(points)
    out[tuple(ijk[grid.contains(ijk)].T)] = True
    return out


def near(points: np.ndarray, reach: float = 0.1, grid: VoxelGrid = OCC3D_GRID) -> np.ndarray:
    """Voxels within ``reach`` metres of a point: aggregated points are thinned to cells of 0.1 m."""
    steps = np.stack(np.meshgrid(*[(-reach, 0.0, reach)] * 3), axis=-1).reshape(-1, 3)
    return np.any([voxels_of(points + step, grid) for step in steps], axis=0)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("index", range(5))
def test_wall_road_and_car_are_where_they_are_at_that_keyframe(out: Path, frames: NuScenesFrames, index: int) -> None:
    labels = read(out, frames, index).labels
    car, wall_now = apply(CAR2EGO, car_skin()), in_ego(wall(), frames, index)
    assert iou(labels == WALL, voxels_of(wall_now)) > 0.9
    assert not ((labels == WALL) & ~near(wall_now)).any()
    # Above the road's level nothing but the car's own voxels: eight metres a second over five sweeps would smear it.
    above = np.zeros(OCC3D_GRID.shape, bool)
    above[:, :, 3:] = True
    assert iou((labels == CAR) & above, voxels_of(car) & above) > 0.95
    assert not ((labels == CAR) & ~near(car)).any()
    assert not ((labels == ROAD) & ~near(in_ego(road(), frames, index))).any()
    # What the car hides from every sweep is missing: more of it in the shorter scene.
    assert iou(labels == ROAD, voxels_of(in_ego(road(), frames, index)) & (labels != CAR)) > (0.9 if index < 3 else 0.8)
    assert set(np.unique(labels)) == {CAR, ROAD, WALL, FREE}


@pytest.mark.parametrize("index", range(5))
def test_free_is_what_pulses_passed_and_nothing_is_known_behind(out: Path, frames: NuScenesFrames, index: int) -> None:
    truth = read(out, frames, index)
    occupied, observed = truth.labels != FREE, truth.mask_lidar
    assert observed[occupied].all()
    eye, hits = LIDAR2EGO[:3, 3], in_ego(wall(), frames, index)
    way = eye + np.linspace(0.02, 0.98, 50)[:, None, None] * (hits - eye)
    local = apply(inverse(CAR2EGO), way.reshape(-1, 3)).reshape(way.shape)
    clear = ~(np.abs(local) < CAR_LWH / 2).all(axis=2).any(axis=0)
    passed = voxels_of(way[:, clear].reshape(-1, 3))
    # All of it but the voxels at the road's level, in which a pulse may have grazed the road.
    passed[:, :, :4] = False
    assert passed.sum() > 1000
    assert observed[passed].all()
    behind = voxels_of(in_ego(wall()[wall()[:, 2] < 2.0] + (0, 1.5, 0), frames, index))
    assert not observed[behind].any()
    inside_car = near(apply(CAR2EGO, np.array([[0.3, 0.0, 0.0], [-0.8, 0.0, 0.1]])), 0.1)
    assert not (observed & inside_car & (truth.labels == FREE)).any(), "the car was elsewhere when pulses passed here"


@pytest.mark.parametrize("index", [1, 3])
def test_cameras_see_no_more_than_lies_open_to_them(out: Path, frames: NuScenesFrames, index: int) -> None:
    truth = read(out, frames, index)
    occupied, seen = truth.labels != FREE, truth.mask_camera
    assert not (seen & ~truth.mask_lidar).any()
    ijk = np.argwhere(seen)[::37]
    steps = np.stack(np.meshgrid(*[np.linspace(-0.18, 0.18, 5)] * 3), axis=-1).reshape(-1, 3)
    points = OCC3D_GRID.centers(ijk)[:, None] + steps
    open_to = np.zeros(len(ijk), bool)
    for yaw in CAMERAS.values():
        cam2ego = camera_pose(yaw)
        x, y, z = np.moveaxis(apply(inverse(cam2ego), points.reshape(-1, 3)).reshape(points.shape), -1, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = 0.79 * 64 * x / z + 0.51 * 64, 0.79 * 64 * y / z + 0.54 * 36
        in_picture = (z > 0) & (u > -0.5) & (u < 64.5) & (v > -0.5) & (v < 36.5)
        for n in range(len(ijk)):
            way = cam2ego[:3, 3] + np.linspace(0, 1, 250)[:, None, None] * (points[n] - cam2ego[:3, 3])
            cells = OCC3D_GRID.indices(way.reshape(-1, 3))
            cells[~OCC3D_GRID.contains(cells)] = ijk[n]
            blocks = occupied[tuple(cells.T)] & (cells != ijk[n]).any(axis=1)
            open_to[n] |= (~blocks.reshape(250, -1).any(axis=0) & in_picture[n]).any()
    assert len(ijk) > 50
    assert open_to.mean() > 0.97
    assert seen[truth.labels == CAR].any()


def test_a_run_goes_on_where_it_was_and_gives_the_same_bytes(
    known: Tree, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "part"
    shutil.copytree(out, part)
    files = sorted(part.glob("gts/*/*/labels.npz"))
    whole = {path: path.read_bytes() for path in files}
    assert len(files) == 5
    files[1].unlink()
    kept = {path: path.stat().st_mtime_ns for path in files if path.exists()}
    assert main(["label", str(known.root), "--out", str(part)]) == 0
    assert "labelled: 1" in " ".join(capsys.readouterr().out.split())
    assert {path: path.read_bytes() for path in files} == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_processes_change_nothing_and_a_failure_leaves_what_was_finished(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = write_scene(tmp_path / "data")
    last = tree.file("LIDAR_TOP", 4)
    cloud = last.read_bytes()
    last.write_bytes(cloud[:-3])
    arguments = ["label", str(tree.root), "--workers", "2"]
    assert main(arguments) == 2
    assert "truncated" in capsys.readouterr().err
    last.write_bytes(cloud)
    assert main(arguments) == 0
    for path in out.glob("gts/*/*/labels.npz"):
        assert (tree.root / path.relative_to(out)).read_bytes() == path.read_bytes()
    index = json.loads((tree.root / "gts" / "annotations.json").read_bytes())
    assert index == json.loads((out / "gts" / "annotations.json").read_bytes())
    assert (index["train_split"], index["val_split"]) == (["scene-0061"], ["scene-0103"])
    infos = [info for scene in index["scene_infos"].values() for info in scene.values()]
    assert all((tree.root / info["gt_path"]).is_file() for info in infos)
    assert all((tree.root / "samples" / c["img_path"]).is_file() for i in infos for c in i["camera_sensor"].values())
    assert [info["prev"] == "EOF" for info in infos] == [True, False, False, True, False]


def test_boxes_alone_tell_what_moves_and_that_the_rest_is_something(tmp_path: Path) -> None:
    tree = write_scene(tmp_path / "data", lidarseg=False)
    arguments = ["label", str(tree.root), "--scenes", "scene-0061", "--boxes-only"]
    assert main(arguments) == 0
    frames = NuScenesFrames(tree.root, scenes=["scene-0061"])
    for index in range(3):
        labels = read(tree.root, frames, index).labels
        car = apply(CAR2EGO, car_skin())
        high = car[car[:, 2] > 0.4]
        assert iou((labels == CAR)[:, :, 4:], voxels_of(high)[:, :, 4:]) > 0.9
        assert iou(labels == OTHERS, voxels_of(in_ego(np.concatenate([wall(), road()]), frames, index))) > 0.8
        assert set(np.unique(labels)) == {CAR, OTHERS, FREE}


def test_densify_fills_the_car_and_the_road_below_it(known: Tree, out: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    assert main(["label", str(known.root), "--out", str(dense), "--densify", "--scenes", "scene-0061"]) == 0
    frames = NuScenesFrames(known.root, scenes=["scene-0061"])
    sparse, filled = (read(folder, frames, 1) for folder in (out, dense))
    inside = voxels_of(apply(CAR2EGO, np.array([[x, 0.0, z] for x in (-1.0, 0.0, 1.0) for z in (-0.1, 0.3)])))
    assert (sparse.labels[inside] == FREE).all()
    assert (filled.labels[inside] == CAR).all()
    assert not ((sparse.labels != FREE) & (filled.labels == FREE)).any()
    assert ((filled.labels == ROAD).sum() > (sparse.labels == ROAD).sum()) & filled.mask_lidar[inside].all()
    assert not ((filled.labels == CAR) & ~near(apply(CAR2EGO, car_skin())) & ~inside)[:, :, 6:].any()


def test_surroundocc_has_the_wall_in_the_lidar_frame(known: Tree, tmp_path: Path) -> None:
    arguments = ["label", str(known.root), "--out", str(tmp_path), "--scenes", "scene-0061", "--layout", "surroundocc"]
    assert main(arguments) == 0
    frames = NuScenesFrames(known.root, scenes=["scene-0061"])
    record = frames.keyframe(2).records["LIDAR_TOP"]
    truth = read_surroundocc(surroundocc_path(tmp_path, record.path))
    expected = apply(inverse(LIDAR2EGO), in_ego(wall(), frames, 2))
    assert iou(truth.labels == WALL, voxels_of(expected, truth.grid)) > 0.85
    assert abs(expected[:, 0].mean() + WALL_Y) < 4, "the LiDAR's x points to the right, the wall is to the left"


def test_compare_gives_the_numbers_of_a_known_difference(
    known: Tree, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth"
    shutil.copytree(out, truth)
    missed = 0
    for path in truth.glob("gts/*/*/labels.npz"):
        arrays = dict(np.load(path))
        arrays["semantics"][arrays["semantics"] == CAR] = FREE
        missed += int((arrays["semantics"] != FREE).sum())
        arrays["mask_lidar"][:100] = 0
        np.savez_compressed(path, **arrays)
    assert main(["label", str(known.root), "--out", str(out), "--compare", str(truth)]) == 0
    scores = json.loads((out / "label_comparison.json").read_bytes())
    occupied = sum(int((np.load(p)["semantics"] != FREE).sum()) for p in out.glob("gts/*/*/labels.npz"))
    everywhere = scores["under_masks_of_truth"]["none"]
    assert everywhere["geometric_iou"] == pytest.approx(missed / occupied, abs=1e-5)
    assert everywhere["class_iou"]["car"] == 0.0
    assert everywhere["class_iou"]["manmade"] == 1.0
    assert everywhere["class_iou"]["bus"] is None
    assert everywhere["miou"] == pytest.approx(2 / 3, abs=1e-5)
    assert scores["masks"]["camera"] == {"precision": 1.0, "recall": 1.0}
    assert scores["masks"]["lidar"]["recall"] == 1.0
    assert scores["masks"]["lidar"]["precision"] < 0.9
    assert "manmade" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "--workers 0"),
        (["--scenes", "scene-7"], "scene-7"),
        (["--split", "test"], "split='test'"),
        (["--compare"], "where the labels go"),
        (["--out", "OTHER", "--compare"], "have no labels"),
        (["--compare", "."], "have no labels in .,"),
        (["--out", "FILE"], "FILE"),
    ],
)
def test_wrong_arguments_are_answered_before_the_work(
    known: Tree,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("a file, not a folder")
    words = [str(tmp_path / word) if word.isupper() else word for word in arguments]
    assert main(["label", str(known.root), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(known.root.glob("gts/*/*"))


def test_labels_of_others_and_other_settings_are_never_touched(
    known: Tree, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gts" / "scene-0061").mkdir(parents=True)
    assert main(["label", str(known.root), "--out", str(tmp_path)]) == 2
    assert "did not make" in capsys.readouterr().err
    assert main(["label", str(known.root), "--out", str(out), "--densify"]) == 2
    assert "densify: False, not True" in capsys.readouterr().err


def test_a_run_that_was_killed_before_its_note_was_whole_goes_on(frames: NuScenesFrames, tmp_path: Path) -> None:
    (tmp_path / "gts").mkdir()
    (tmp_path / "gts" / f".{NOTE}.123").write_text("{")
    claim(tmp_path, frames, LabelConfig())
    assert json.loads((tmp_path / "gts" / NOTE).read_bytes())["layout"] == "occ3d"


def test_data_that_cannot_be_labelled_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = write_scene(tmp_path / "data", lidarseg=False)
    label = ["label", str(tree.root)]
    assert main(label) == 2
    assert "--boxes-only" in capsys.readouterr().err
    sweep = next(row for row in tree.rows("sample_data") if row["filename"].startswith("sweeps/LIDAR_TOP"))
    (tree.root / sweep["filename"]).unlink()
    assert main([*label, "--boxes-only"]) == 2
    assert "--keyframes-only" in capsys.readouterr().err
    annotations = tree.rows("sample_annotation")
    tree.write("sample_annotation", [])
    tree.write("instance", [])
    assert main([*label, "--boxes-only", "--keyframes-only"]) == 2
    assert "no boxes" in capsys.readouterr().err
    assert len(annotations) == 5
    bare = [row for row in tree.rows("sample_data") if tree.channel_of(row) != "LIDAR_TOP"]
    tree.write("sample_data", bare)
    assert main([*label, "--boxes-only", "--keyframes-only"]) == 2
    assert "LIDAR_TOP" in capsys.readouterr().err
    assert not (tree.root / "gts").exists()


@pytest.mark.data
def test_the_real_keyframe_gets_labels_from_its_boxes(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "nuscenes_scene0061"
    assert main(["label", str(root), "--out", str(tmp_path), "--boxes-only"]) == 0
    frames = NuScenesFrames(root)
    truth = read(tmp_path, frames, 0)
    boxes = frames.boxes(0)
    counts = np.bincount(truth.labels[truth.labels != FREE], minlength=18)
    assert counts[CAR] > 20
    assert counts[OTHERS] > 3000
    for label in np.flatnonzero(counts[1:FREE]) + 1:
        centers = OCC3D_GRID.centers(np.argwhere(truth.labels == label))
        held = np.zeros(len(centers), bool)
        for box in boxes:
            local = (centers - box.center) @ box.rotation
            held |= (np.abs(local) <= box.size_lwh / 2 + 0.5).all(axis=1)
        assert held.all(), OCC3D_LABELS.names[label]
    # The road of nuScenes lies at z = 0: level 2, and next to nothing below.
    levels = np.bincount(np.argwhere(truth.labels[90:120, 90:110] == OTHERS)[:, 2], minlength=16)
    assert levels.argmax() == 2
    assert levels[:2].sum() < 0.05 * levels[2]
    assert not (truth.mask_camera & ~truth.mask_lidar).any()
    assert 0.02 < truth.mask_camera.mean() < truth.mask_lidar.mean() < 0.5
