"""Label maps of pictures: the recorded maps, a painter that goes point by point, the reading of lidarseg."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelled_tree import NAMES, add_lidarseg, lidarseg_file

from fusionocc_core.data.imgseg import (
    class_table,
    imgseg_jobs,
    imgseg_path,
    is_painted,
    lidarseg_files,
    map_shape,
    paint_pictures,
    read_lidarseg,
    run_job,
)
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.nuscenes_tables import SensorRecord
from fusionocc_core.geometry import rotation_from_yaw, transform, transform_from_wxyz
from fusionocc_core.grids import LIDARSEG_TO_OCC3D, OCC3D_LABELS


def record(channel, sensor2ego, ego2global, intrinsics=None, size=(0, 0)):
    return SensorRecord(
        token=channel,
        channel=channel,
        modality="lidar" if intrinsics is None else "camera",
        path=Path(f"{channel}.jpg"),
        stamp_ns=0,
        is_key_frame=True,
        sensor2ego=sensor2ego,
        ego2global=ego2global,
        intrinsics=intrinsics,
        width=size[0],
        height=size[1],
    )


def paint_point_by_point(points, classes, lidar, camera):
    """The rule as it is written: a canvas, a rectangle for each point, every eighth pixel."""
    xyz = points[:, :3].T.copy()
    for pose in (lidar.sensor2ego, lidar.ego2global):
        xyz = (pose[:3, :3] @ xyz).astype(np.float32)
        xyz = xyz + pose[:3, 3].astype(np.float32)[:, None]
    for pose in (camera.ego2global, camera.sensor2ego):
        xyz = xyz - pose[:3, 3].astype(np.float32)[:, None]
        xyz = (pose[:3, :3].T @ xyz).astype(np.float32)
    u, v, z = camera.intrinsics @ xyz.astype(np.float64)
    canvas = np.full((camera.height, camera.width), 17, np.uint8)
    for n in np.flatnonzero(z > 0.1):
        x, y = u[n] / z[n], v[n] / z[n]
        if 0 <= x < camera.width and 0 <= y < camera.height:
            x, y = int(x), int(y)
            rows = slice(max(0, y - 8), min(y + 8, camera.height - 1))
            canvas[rows, max(0, x - 4) : min(x + 4, camera.width - 1)] = classes[n]
    return canvas[::8, ::8]


def test_recorded_maps(goldens):
    file = np.load(goldens / "imgseg_map.npz")
    lidar = record(
        "LIDAR_TOP",
        transform_from_wxyz(file["lidar2ego_rotation"], file["lidar2ego_translation"]),
        transform_from_wxyz(file["ego2global_rotation"], file["ego2global_translation"]),
    )
    names = [name.removeprefix("seg_") for name in file.files if name.startswith("seg_")]
    assert len(names) == 6
    cameras = [
        record(
            name,
            transform_from_wxyz(file[f"{name}.sensor2ego_rotation"], file[f"{name}.sensor2ego_translation"]),
            transform_from_wxyz(file[f"{name}.ego2global_rotation"], file[f"{name}.ego2global_translation"]),
            file[f"{name}.cam_intrinsic"],
            (1600, 900),
        )
        for name in names
    ]
    for name, labels in zip(names, paint_pictures(file["points"], file["labels"].ravel(), lidar, cameras), strict=True):
        np.testing.assert_array_equal(labels, file[f"seg_{name}"])


def rig(seed, size, place):
    """A LiDAR and three cameras at their own times, anywhere on a map."""
    rng = np.random.default_rng(seed)
    ego2global = [
        transform(rotation_from_yaw(0.3 + 0.01 * n), [place + 0.4 * n, place / 2 - 0.1 * n, 0.02 * n]) for n in range(4)
    ]
    optical = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    lidar = record("LIDAR_TOP", transform(rotation_from_yaw(-np.pi / 2), [0.94, 0.0, 1.84]), ego2global[0])
    cameras = []
    for n, yaw in enumerate(rng.uniform(-np.pi, np.pi, 3)):
        focal = rng.uniform(0.4, 0.9) * size[0]
        intrinsics = np.array([[focal, 0, rng.uniform(0.4, 0.6) * size[0]], [0, focal, size[1] / 2], [0, 0, 1]])
        pose = transform(rotation_from_yaw(yaw) @ optical, rng.uniform((-1, -1, 0.5), (1, 1, 2.5)))
        cameras.append(record(f"CAM_{n}", pose, ego2global[n + 1], intrinsics, size))
    return lidar, cameras


def cloud(seed, count=700):
    """Points all around, dense near the sensor, where a millimetre is a pixel."""
    rng = np.random.default_rng(seed)
    points = np.zeros((count, 5), np.float32)
    points[:, :3] = rng.normal(size=(count, 3)) * rng.choice([0.3, 3.0, 30.0], (count, 1)) * (1, 1, 0.2)
    return points, rng.integers(0, 17, count).astype(np.uint8)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([(160, 90), (200, 117), (64, 48), (1600, 900), (33, 40)]),
    place=st.sampled_from([0.0, 700.0, 3000.0]),
)
def test_equals_painting_point_by_point(seed, size, place):
    lidar, cameras = rig(seed, size, place)
    points, classes = cloud(seed)
    for camera, labels in zip(cameras, paint_pictures(points, classes, lidar, cameras), strict=True):
        np.testing.assert_array_equal(labels, paint_point_by_point(points, classes, lidar, camera))


def test_a_far_map_origin_costs_nothing():
    """In coordinates of 4000 km float32 steps are half a metre wide."""
    points, classes = cloud(3)
    near, far = (paint_pictures(points, classes, *rig(3, (1600, 900), place)) for place in (0.0, 4e6))
    different = np.mean([np.mean(a != b) for a, b in zip(near, far, strict=True)])
    assert different < 1e-3
    assert any((labels != 17).any() for labels in far)


def test_map_equals_the_real_keyframes_point_by_point(shared):
    frames = NuScenesFrames(shared / "data" / "nuscenes_scene0061")
    keyframe = frames.keyframe(0)
    lidar, cameras = keyframe.records["LIDAR_TOP"], [keyframe.records[name] for name in frames.cameras]
    points = np.fromfile(lidar.path, np.float32).reshape(-1, 5)
    classes = np.random.default_rng(0).integers(0, 17, len(points)).astype(np.uint8)
    for camera, labels in zip(cameras, paint_pictures(points, classes, lidar, cameras), strict=True):
        np.testing.assert_array_equal(labels, paint_point_by_point(points, classes, lidar, camera))


def test_all_32_categories_have_a_class():
    assert len(LIDARSEG_TO_OCC3D) == 32
    assert set(LIDARSEG_TO_OCC3D.values()) == set(range(17))
    names = OCC3D_LABELS.names
    expected = {
        "flat.other": "other_flat",
        "flat.terrain": "terrain",
        "static.other": "others",
        "vehicle.ego": "others",
    }
    assert {raw: names[LIDARSEG_TO_OCC3D[raw]] for raw in expected} == expected


def test_labels_follow_the_data_sets_own_table(fresh_tree):
    tree = fresh_tree()
    add_lidarseg(tree)
    table = class_table(tree.root, tree.version)
    assert [table[n] for n in range(32)] == [LIDARSEG_TO_OCC3D[name] for name in NAMES]
    raw = np.fromfile(lidarseg_file(tree), np.uint8)
    np.testing.assert_array_equal(read_lidarseg(lidarseg_file(tree), table, len(raw)), table[raw])


def test_damaged_labels_are_named(fresh_tree):
    tree = fresh_tree()
    with pytest.raises(FileNotFoundError, match=r"lidarseg\.json is not there.*nuscenes\.org"):
        lidarseg_files(tree.root, tree.version)
    kept = tree.rows("category")
    tree.write("category", [{k: v for k, v in row.items() if k != "index"} for row in kept])
    with pytest.raises(ValueError, match="has no index"):
        class_table(tree.root, tree.version)
    tree.write("category", kept)
    add_lidarseg(tree)
    table, path = class_table(tree.root, tree.version), lidarseg_file(tree)
    count = path.stat().st_size
    with pytest.raises(ValueError, match=f"holds {count} labels, the cloud {count + 1} points"):
        read_lidarseg(path, table, count + 1)
    path.write_bytes(bytes([77]) * count)
    with pytest.raises(ValueError, match="holds 77, an index"):
        read_lidarseg(path, table, count)
    rows = tree.rows("category")
    tree.write("category", [{**rows[0], "name": "spaceship"}, *rows[1:]])
    with pytest.raises(ValueError, match="'spaceship' is none of the 32"):
        class_table(tree.root, tree.version)
    tree.table_path("lidarseg").write_text('[{"token": 1}]')
    with pytest.raises(ValueError, match=r"damaged.*sample_data_token"):
        lidarseg_files(tree.root, tree.version)


def test_a_job_writes_whole_files_of_every_camera(fresh_tree):
    tree = fresh_tree()
    add_lidarseg(tree)
    frames = NuScenesFrames(tree.root)
    jobs = imgseg_jobs(frames)
    assert [job.token for job in jobs] == [frames.keyframe(n).token for n in range(5)]
    job, table = jobs[0], class_table(tree.root, tree.version)
    assert job.outputs[0].relative_to(tree.root).parts[:3] == ("imgseg", "samples", "CAM_FRONT_LEFT")
    assert job.outputs[0].name == f"{job.cameras[0].path.name}.npy"
    assert job.outputs == tuple(imgseg_path(tree.root, camera) for camera in job.cameras)
    assert not is_painted(job.outputs[0], job.cameras[0])
    assert run_job(job, table) == 6
    points = np.fromfile(job.lidar.path, np.float32).reshape(-1, 5)
    classes = read_lidarseg(job.lidarseg, table, len(points))
    for path, camera in zip(job.outputs, job.cameras, strict=True):
        labels = np.load(path)
        assert labels.shape == map_shape(camera) == (12, 20)
        np.testing.assert_array_equal(labels, paint_point_by_point(points, classes, job.lidar, camera))
        assert is_painted(path, camera)
        assert [other.name for other in path.parent.iterdir()] == [path.name]
    path = job.outputs[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_painted(path, job.cameras[0])


def test_clouds_without_labels_are_refused(fresh_tree):
    tree = fresh_tree()
    add_lidarseg(tree)
    frames = NuScenesFrames(tree.root)
    tree.write("lidarseg", tree.rows("lidarseg")[1:])
    with pytest.raises(ValueError, match="has no row for cloud"):
        imgseg_jobs(frames)
