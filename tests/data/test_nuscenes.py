"""The nuScenes reader on a tiny data set made here."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from nuscenes_tree import LIDAR2EGO, SIX_CAMERAS, Tree, camera_pose, ego_pose_at
from PIL import Image

from fusionocc_core.data.files import decode_image, read_cloud, read_image
from fusionocc_core.data.nuscenes import CAMERA_ORDER, NuScenesFrames, read_camera


def test_a_frame_carries_stamps_poses_and_calibration_of_every_sensor(tree: Tree) -> None:
    frames = NuScenesFrames(tree.root)
    assert len(frames) == 5
    frame = frames[2]
    start = 1_532_402_900_000_000 + 2 * 500_000
    assert frame.stamp_ns == frame.lidar.stamp_ns == start * 1000
    assert (frame.scene, frame.token) == ("scene-0061", frames.keyframe(2).token)
    np.testing.assert_allclose(frame.ego2global, ego_pose_at(start, 0), atol=1e-9)
    np.testing.assert_allclose(frame.lidar.lidar2ego, LIDAR2EGO, atol=1e-9)
    assert tuple(c.name for c in frame.cameras) == CAMERA_ORDER
    for camera in frame.cameras:
        lead = 5_000 * (list(SIX_CAMERAS).index(camera.name) + 1)
        assert camera.stamp_ns == (start - lead) * 1000
        np.testing.assert_allclose(camera.ego2global, ego_pose_at(start - lead, 0), atol=1e-9)
        np.testing.assert_allclose(camera.cam2ego, camera_pose(SIX_CAMERAS[camera.name]), atol=1e-9)
        assert camera.image.shape == (90, 160, 3)
        assert camera.intrinsics[0, 0] == pytest.approx(0.79 * 160)
    stored = np.fromfile(tree.file("LIDAR_TOP", 2), dtype="<f4").reshape(-1, 5)
    np.testing.assert_array_equal(frame.lidar.points, stored)


def test_history_is_newest_first_and_ends_at_the_start_of_the_scene(tree: Tree) -> None:
    frames = NuScenesFrames(tree.root, camera_history=1, lidar_history=7)
    for index, expected in enumerate([0, 1, 2, 3, 0]):
        frame = frames[index]
        assert len(frame.lidar_history) == expected
        assert len(frame.camera_history) == min(expected, 1)
        stamps = [frame.stamp_ns, *(sweep.stamp_ns for sweep in frame.lidar_history)]
        assert stamps == [frame.stamp_ns - k * 500_000_000 for k in range(expected + 1)]
        for k, sweep in enumerate(frame.lidar_history):
            np.testing.assert_array_equal(sweep.points, frames[index - k - 1].lidar.points)
    before, now = frames[1].cameras, frames[2].camera_history[0]
    assert [c.stamp_ns for c in before] == [c.stamp_ns for c in now]
    np.testing.assert_array_equal(before[3].image, now[3].image)


def test_scenes_are_found_by_name_and_slices_keep_their_history(tree: Tree) -> None:
    frames = NuScenesFrames(tree.root, lidar_history=2)
    assert frames.scenes == ("scene-0061", "scene-0103")
    assert frames.scene_indices("scene-0061") == range(0, 4)
    assert frames.scene_indices("scene-0103") == range(4, 5)
    tail = frames[3:]
    assert isinstance(tail, NuScenesFrames)
    assert (len(tail), tail.scenes) == (2, frames.scenes)
    assert len(tail[0].lidar_history) == 2
    assert tail[-1].token == frames[4].token
    with pytest.raises(ValueError, match=r"scene-0000.*scene-0061, scene-0103"):
        frames.scene_indices("scene-0000")
    with pytest.raises(IndexError):
        frames[5]


def test_the_length_of_history_can_be_changed_without_reading_the_tables_again(tree: Tree) -> None:
    frames = NuScenesFrames(tree.root)
    longer = frames.with_history(cameras=1, lidar=2)
    assert (len(longer[3].camera_history), len(longer[3].lidar_history)) == (1, 2)
    assert (len(frames[3].camera_history), len(frames[3].lidar_history)) == (0, 0)
    with pytest.raises(ValueError, match="lidar_history=-1"):
        frames.with_history(cameras=0, lidar=-1)


def test_scene_of_length_one(tree: Tree) -> None:
    frames = NuScenesFrames(tree.root, scenes=["scene-0103"], camera_history=1, lidar_history=7)
    assert (len(frames), frames.scenes) == (1, ("scene-0103",))
    assert (frames[0].camera_history, frames[0].lidar_history) == ((), ())


def test_official_and_own_splits(fresh_tree) -> None:
    tree = fresh_tree(scenes={"scene-0061": 2, "scene-0103": 1, "scene-9001": 1})
    assert NuScenesFrames(tree.root, split="mini_train").scenes == ("scene-0061",)
    assert NuScenesFrames(tree.root, split="mini_val").scenes == ("scene-0103",)
    (tree.root / tree.version / "splits.json").write_text(json.dumps({"mine": ["scene-9001"]}))
    assert NuScenesFrames(tree.root, split="mine").scenes == ("scene-9001",)
    with pytest.raises(ValueError, match=r"split='nope'.*mini_val.*mine"):
        NuScenesFrames(tree.root, split="nope")
    with pytest.raises(ValueError, match=r"none of its 150 scenes is in.*scene-0061, scene-0103, scene-9001"):
        NuScenesFrames(tree.root, split="test")
    with pytest.raises(ValueError, match="choose one"):
        NuScenesFrames(tree.root, split="mini_val", scenes=["scene-0103"])
    with pytest.raises(ValueError, match="scene-0007"):
        NuScenesFrames(tree.root, scenes=["scene-0007"])


def test_any_version_folder_and_several(fresh_tree) -> None:
    tree = fresh_tree(version="v9.9-custom", scenes={"a": 1})
    assert NuScenesFrames(tree.root).version == "v9.9-custom"
    fresh_tree(version="v1.0-mini", scenes={"a": 1})
    with pytest.raises(ValueError, match=r"several versions: v1\.0-mini, v9\.9-custom"):
        NuScenesFrames(tree.root)
    assert len(NuScenesFrames(tree.root, version="v9.9-custom")) == 1
    with pytest.raises(FileNotFoundError, match=r"version='v2'.*v9\.9-custom"):
        NuScenesFrames(tree.root, version="v2")
    with pytest.raises(ValueError, match=r"give its parent as root and version='v1.0-mini'"):
        NuScenesFrames(tree.root / "v1.0-mini")
    (tree.root / "other" / "a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds a"):
        NuScenesFrames(tree.root / "other")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        NuScenesFrames(tree.root / "absent")


def test_rigs_with_other_cameras(fresh_tree) -> None:
    rig = {"CAM_TOP": 90.0, "CAM_BACK": 180.0, "CAM_FRONT": 0.0, "CAM_EXTRA": -90.0}
    tree = fresh_tree(cameras=rig, lidars=("LIDAR_A",), scenes={"a": 1})
    frames = NuScenesFrames(tree.root)
    assert frames.cameras == ("CAM_FRONT", "CAM_BACK", "CAM_EXTRA", "CAM_TOP")
    assert frames.lidar == "LIDAR_A"
    chosen = NuScenesFrames(tree.root, cameras=["CAM_TOP", "CAM_FRONT"])[0]
    assert [c.name for c in chosen.cameras] == ["CAM_TOP", "CAM_FRONT"]
    assert NuScenesFrames(tree.root, cameras=[])[0].cameras == ()
    for bad in (["CAM_NOPE"], ["CAM_TOP", "CAM_TOP"], "CAM_TOP"):
        with pytest.raises(ValueError, match="expected distinct channels of CAM_BACK, CAM_EXTRA"):
            NuScenesFrames(tree.root, cameras=bad)


def test_several_lidars_need_a_choice(fresh_tree) -> None:
    tree = fresh_tree(lidars=("LIDAR_A", "LIDAR_B"), scenes={"a": 1})
    with pytest.raises(ValueError, match="expected one of the LiDARs LIDAR_A, LIDAR_B"):
        NuScenesFrames(tree.root)
    assert NuScenesFrames(tree.root, lidar="LIDAR_B").keyframe(0).records["LIDAR_B"].modality == "lidar"


def test_without_lidar_the_nearest_camera_gives_the_reference(fresh_tree) -> None:
    tree = fresh_tree(lidars=(), scenes={"a": 1})
    frames = NuScenesFrames(tree.root)
    frame = frames[0]
    nearest = max(frame.cameras, key=lambda c: c.stamp_ns)
    assert frames.lidar is None
    assert frame.lidar is None
    assert frame.stamp_ns == nearest.stamp_ns
    np.testing.assert_array_equal(frame.ego2global, nearest.ego2global)


def test_a_keyframe_may_lack_a_camera(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 2})
    path = tree.file("CAM_FRONT", 0).relative_to(tree.root).as_posix()
    tree.write("sample_data", [row for row in tree.rows("sample_data") if row["filename"] != path])
    frames = NuScenesFrames(tree.root, camera_history=1)
    assert "CAM_FRONT" not in [c.name for c in frames[0].cameras]
    assert len(frames[1].cameras) == 6
    assert len(frames[1].camera_history[0]) == 5


def test_all_files_of_a_scene_in_the_order_of_time(tree: Tree) -> None:
    frames = NuScenesFrames(tree.root)
    records = list(frames.sensor_records("scene-0061"))
    assert len(records) == 7 * (4 + 3)
    stamps = [r.stamp_ns for r in records]
    assert stamps == sorted(stamps)
    assert sum(r.is_key_frame for r in records) == 28
    assert all(r.path.is_file() for r in records)
    assert {r.path.relative_to(tree.root).parts[0] for r in records if not r.is_key_frame} == {"sweeps"}
    with_radar = list(frames.sensor_records("scene-0061", ("camera", "lidar", "radar")))
    assert {r.modality for r in with_radar} == {"camera", "lidar", "radar"}
    front = list(NuScenesFrames(tree.root, cameras=["CAM_FRONT"]).sensor_records("scene-0061"))
    assert {r.channel for r in front} == {"CAM_FRONT", "LIDAR_TOP"}
    with pytest.raises(ValueError, match="scene='x'"):
        frames.sensor_records("x")


def test_boxes_in_three_frames_hold_the_annotated_points(tree: Tree) -> None:
    frames = NuScenesFrames(tree.root)
    annotated = 0
    for index in range(len(frames)):
        sweep = frames[index].lidar
        (in_lidar,), (in_ego,), (in_global,) = (frames.boxes(index, f) for f in ("lidar", "ego", "global"))
        np.testing.assert_allclose(in_ego.center, [10.0, 1.0, 0.75], atol=1e-9)
        np.testing.assert_allclose(in_ego.size_lwh, [4.0, 2.0, 1.5])
        assert int(in_lidar.contains(sweep.points).sum()) == in_lidar.num_lidar_pts
        center = sweep.ego2global @ np.append(in_ego.center, 1.0)
        np.testing.assert_allclose(in_global.center, center[:3], atol=1e-9)
        assert in_ego.name == "vehicle.car"
        annotated += in_ego.num_lidar_pts
    assert annotated > 0
    with pytest.raises(ValueError, match="frame='map'"):
        frames.boxes(0, "map")


def test_pickles_without_the_tables(tree: Tree) -> None:
    frames = NuScenesFrames(tree.root, lidar_history=1)
    packed = pickle.dumps(frames)
    assert len(packed) < 40_000
    again = pickle.loads(packed)
    np.testing.assert_array_equal(again[1].cameras[0].image, frames[1].cameras[0].image)
    assert again.boxes(1)[0].token == frames.boxes(1)[0].token


def test_threads_do_not_change_the_order_of_cameras(tree: Tree) -> None:
    one, four = (NuScenesFrames(tree.root, camera_history=1, threads=n)[1] for n in (1, 4))
    for a, b in zip((*one.cameras, *one.camera_history[0]), (*four.cameras, *four.camera_history[0]), strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(a.image, b.image)


def test_reduced_pictures_show_the_same_and_scale_the_intrinsics(tree: Tree) -> None:
    whole = NuScenesFrames(tree.root)[0].cameras[1]
    half = NuScenesFrames(tree.root, reduce=2)[0].cameras[1]
    assert half.image.shape == (45, 80, 3)
    np.testing.assert_allclose(half.intrinsics[:2], whole.intrinsics[:2] / 2)
    mean = whole.image.reshape(45, 2, 80, 2, 3).mean(axis=(1, 3))
    assert np.abs(half.image - mean).mean() < 2.0


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_is_decoded_as_by_pillow_whatever_its_orientation_tag(
    tmp_path: Path, subsampling: str, progressive: bool
) -> None:
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8), (67, 45))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees for display
    path = tmp_path / "turned.jpg"
    Image.fromarray(picture).save(path, quality=90, exif=exif, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(read_image(path), np.array(Image.open(path).convert("RGB")))


def test_png_is_lossless_and_other_bytes_are_no_picture(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    np.testing.assert_array_equal(read_image(tmp_path / "picture.png"), picture)
    with pytest.raises(ValueError, match=r"begins with 6e 6f 20 .* expected a JPEG or PNG file"):
        decode_image(b"no picture")
    with pytest.raises(ValueError, match="reduce=3"):
        decode_image(b"", reduce=3)


@pytest.mark.parametrize("options", [{"camera_history": -1}, {"reduce": 3}, {"threads": 0}])
def test_bad_arguments(tree: Tree, options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        NuScenesFrames(tree.root, **options)


def test_missing_tables_are_named(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 1})
    tree.table_path("ego_pose").unlink()
    tree.table_path("visibility").unlink()
    with pytest.raises(FileNotFoundError, match=r"2 of the 13 tables are missing: ego_pose\.json, visibility\.json"):
        NuScenesFrames(tree.root)


@pytest.mark.parametrize("table", ["sample_data", "map"])
def test_a_truncated_table_is_named(fresh_tree, table: str) -> None:
    tree = fresh_tree(scenes={"a": 1})
    text = tree.table_path(table).read_text()
    tree.table_path(table).write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=rf"{table}\.json.*not valid JSON"):
        NuScenesFrames(tree.root)


@pytest.mark.parametrize(("table", "message"), [("ego_pose", "names ego_pose"), ("sensor", "do not fit together")])
def test_tables_that_lack_each_other_are_named(fresh_tree, table: str, message: str) -> None:
    tree = fresh_tree(scenes={"a": 1})
    tree.write(table, tree.rows(table)[1:])
    with pytest.raises(ValueError, match=message):
        NuScenesFrames(tree.root)


def test_a_missing_map_picture_is_named(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 1})
    (tree.root / "maps" / "empty.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"maps/empty\.png.*blank PNG"):
        NuScenesFrames(tree.root)


def test_no_keyframes(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 1})
    for table in ("sample", "sample_data", "sample_annotation"):
        tree.write(table, [])
    with pytest.raises(ValueError, match="no keyframe in the chosen scenes"):
        NuScenesFrames(tree.root)


def test_missing_and_truncated_files_are_named(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 1})
    frames = NuScenesFrames(tree.root)
    picture = tree.file("CAM_BACK")
    whole = picture.read_bytes()
    picture.unlink()
    with pytest.raises(FileNotFoundError, match=f"CAM_BACK picture.*{picture.name}.*not on disk"):
        frames[0]
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"{picture.name} is truncated"):
        frames[0]
    picture.write_bytes(b"\x00" * 100)
    with pytest.raises(ValueError, match="cannot be decoded; expected a JPEG or PNG"):
        frames[0]
    picture.write_bytes(b"")
    with pytest.raises(ValueError, match="empty"):
        frames[0]


def test_a_preview_inside_does_not_hide_a_truncated_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    preview = cv2.imencode(".jpg", rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))[1].tobytes()
    data = cv2.imencode(".jpg", rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))[1].tobytes()
    segment = b"\xff\xe1" + (len(preview) + 2).to_bytes(2, "big") + preview
    with_preview = data[:2] + segment + data[2:]
    (tmp_path / "whole.jpg").write_bytes(with_preview + b"padding")
    assert read_image(tmp_path / "whole.jpg").shape == (64, 64, 3)
    (tmp_path / "cut.jpg").write_bytes(with_preview[:-200])
    with pytest.raises(ValueError, match="truncated"):
        read_image(tmp_path / "cut.jpg")


def test_a_truncated_png_is_named(tmp_path: Path) -> None:
    data = cv2.imencode(".png", np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))[1].tobytes()
    (tmp_path / "cut.png").write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"cut\.png is truncated"):
        read_image(tmp_path / "cut.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_reduced_pictures_of_odd_size_are_no_error(fresh_tree, suffix: str) -> None:
    tree = fresh_tree(scenes={"a": 1}, image_size=(83, 45))
    path = tree.file("CAM_FRONT")
    whole = cv2.imread(str(path))
    path.write_bytes(cv2.imencode(suffix, whole)[1].tobytes())
    for reduce in (2, 4):
        front = NuScenesFrames(tree.root, cameras=["CAM_FRONT"], reduce=reduce)[0].cameras[0]
        assert abs(front.image.shape[1] - 83 / reduce) < 1


def test_pictures_of_another_size_than_the_tables_say(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 1})
    cv2.imwrite(str(tree.file("CAM_FRONT")), np.zeros((45, 80, 3), np.uint8))
    with pytest.raises(ValueError, match="80x45 pixels, the tables say 160x90"):
        NuScenesFrames(tree.root)[0]
    record = NuScenesFrames(tree.root).keyframe(0).records["CAM_FRONT"]
    assert read_camera(replace(record, width=0, height=0)).image.shape == (45, 80, 3)


def test_bad_clouds_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cloud.pcd.bin"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"cloud\.pcd\.bin is empty"):
        read_cloud(path)
    path.write_bytes(b"\0" * 110)
    with pytest.raises(ValueError, match=r"110 bytes, which is no multiple of 20"):
        read_cloud(path)
    points = np.zeros((7, 5), np.float32)
    points[3, 1] = np.nan
    path.write_bytes(points.tobytes())
    with pytest.raises(ValueError, match="1 of 7 points are not finite, the first at row 3"):
        read_cloud(path)


def test_a_camera_without_calibration_is_named_and_can_be_left_out(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 1})
    rows = tree.rows("calibrated_sensor")
    rows[0]["camera_intrinsic"][0][0] = 0.0
    tree.write("calibrated_sensor", rows)
    with pytest.raises(ValueError, match=r"of CAM_FRONT: camera_intrinsic=\[\[0\.0.*leave it out with cameras="):
        NuScenesFrames(tree.root)
    others = [c for c in CAMERA_ORDER if c != "CAM_FRONT"]
    assert len(NuScenesFrames(tree.root, cameras=others)[0].cameras) == 5


def test_a_pose_without_rotation_is_named(fresh_tree) -> None:
    tree = fresh_tree(scenes={"a": 1})
    rows = tree.rows("ego_pose")
    rows[0]["rotation"] = [0.0, 0.0, 0.0, 0.0]
    tree.write("ego_pose", rows)
    with pytest.raises(ValueError, match=f"ego_pose {rows[0]['token']} of CAM_FRONT: quaternion_wxyz: length is zero"):
        NuScenesFrames(tree.root)


def test_without_the_devkit_the_install_line_is_named(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
        NuScenesFrames(tree.root)
