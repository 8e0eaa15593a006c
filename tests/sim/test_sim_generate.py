"""Determinism, continuing after a kill, bad input, other rigs, the devkit's tools, the command."""

import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import sim_checks

from fusionocc_core.cli import main
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.simulation import SimulationConfig, generate
from fusionocc_core.simulation.config import list_scenes, scene_clock
from fusionocc_core.simulation.files import HIDDEN
from fusionocc_core.simulation.rigs import load_rig
from fusionocc_core.simulation.truth import FREE


def hashes(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and HIDDEN not in path.parts
    }


SCRIPT = """
import sys
from fusionocc_core.simulation import SimulationConfig, generate
if __name__ == "__main__":
    config = SimulationConfig(scenes=2, keyframes=3, seed=7, image_size=(90, 160), test_truth=True)
    generate(sys.argv[1], config, workers=2)
"""


def records(root):
    return sorted((root / HIDDEN / "records").rglob("*.json"))


@pytest.mark.slow
def test_a_killed_run_is_continued_and_workers_do_not_matter(sim_root, sim_config, tmp_path):
    """Two workers, killed in the middle; continued by one: byte for byte the data set of one undisturbed worker."""
    script, root = tmp_path / "run.py", tmp_path / "data"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen([sys.executable, str(script), str(root)], start_new_session=True, env=environment)
    deadline = time.monotonic() + 240
    while len(records(root)) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    reference = hashes(sim_root)
    left = hashes(root)
    assert not any(name.startswith("v1.0") for name in left)
    assert all(reference[name] == digest for name, digest in left.items())
    for path in records(root):
        for name in json.loads(path.read_text())["files"]:
            assert (root / name).is_file() or (root / HIDDEN / name).is_file()
    seen = []
    generate(root, sim_config, progress=lambda done, total: seen.append((done, total)))
    assert seen[0][0] >= 2
    assert seen[-1] == (6, 6)
    assert hashes(root) == reference
    assert not (root / HIDDEN / "partial").exists() or not any((root / HIDDEN / "partial").iterdir())


def test_a_finished_data_set_is_not_made_again(sim_root, sim_config):
    before = {path: path.stat().st_mtime_ns for path in (sim_root / "samples").rglob("*.jpg")}
    generate(sim_root, sim_config)
    assert before == {path: path.stat().st_mtime_ns for path in (sim_root / "samples").rglob("*.jpg")}


def test_content_depends_on_seed_split_and_index_alone():
    """More scenes leave those that are there as they are: names and clocks stay."""
    few, many = SimulationConfig(scenes=2, keyframes=4), SimulationConfig(scenes=10, keyframes=4)
    names = [scene.name for scene in list_scenes(few)]
    assert names == ["scene-9001", "scene-9501"]
    assert set(names) < {scene.name for scene in list_scenes(many)}
    by_name = {scene.name: scene for scene in list_scenes(many)}
    for scene in list_scenes(few):
        assert scene_clock(few, scene) == scene_clock(many, by_name[scene.name])
    assert scene_clock(few, list_scenes(few)[0]) != scene_clock(replace(few, seed=1), list_scenes(few)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scenes": 0}, "scenes=0"),
        ({"keyframes": 0}, "keyframes=0"),
        ({"keyframes": 500}, "at most 100"),
        ({"image_size": (4, 4)}, "image_size"),
        ({"val_scenes": 9}, "val_scenes=9"),
        ({"corruptions": ("fogg:3",)}, "fog"),
        ({"corruptions": ("fog:9",)}, "severity=9"),
        ({"corruptions": ("fog",)}, "NAME:SEVERITY"),
        ({"jpeg_quality": 5}, "jpeg_quality"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SimulationConfig(**{"scenes": 2, "keyframes": 2, **change})


def test_unknown_rig_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"nuscenes-sinagpore.*nuscenes-singapore"):
        generate(tmp_path / "a", SimulationConfig(scenes=1, keyframes=1, rig="nuscenes-sinagpore"))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        generate(tmp_path / "a", SimulationConfig(scenes=1, keyframes=1, rig="missing.yaml"))
    assert not (tmp_path / "a").exists()


EYE = "name: A, size: [100, 50], intrinsics: [9, 9, 2, 3]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cameras: []\nlidar: {}", "zero cameras"),
        ("- 1", "mapping"),
        ("cameras: [", "not valid YAML"),
        ("cameras: [{name: A, size: [10, 10]}]", "intrinsics"),
        ("cameras: [{name: A, size: [100, 50], intrinsics: [0, 1, 2, 3]}]", "positive"),
        (f"cameras: [{{{EYE}, translation: [0, 0], rotation: [1, 0, 0, 0]}}]", "translation"),
        (f"cameras: [{{{EYE}, translation: [0, 0, 1], rotation: [1, 0, 0, 0]}}]", "lidar"),
    ],
)
def test_bad_rig_files_are_refused(tmp_path, text, message):
    path = tmp_path / "rig.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_rig(str(path))


def test_a_folder_with_other_data_is_refused(sim_root, sim_config, tmp_path):
    with pytest.raises(ValueError, match=r"seed: 7, not 8"):
        generate(sim_root, replace(sim_config, seed=8))
    with pytest.raises(ValueError, match=r"keyframes: 3, not 4"):
        generate(sim_root, replace(sim_config, keyframes=4))
    with pytest.raises(ValueError, match="would be fewer"):
        generate(sim_root, replace(sim_config, scenes=1))
    (tmp_path / "v1.0-sim").mkdir()
    with pytest.raises(ValueError, match="not written by the simulation"):
        generate(tmp_path, sim_config)


def test_an_unwritable_folder_is_refused(tmp_path, sim_config):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PermissionError, match="choose another folder"):
        generate(tmp_path / "file" / "data", sim_config)


def test_workers_must_be_positive(tmp_path, sim_config):
    with pytest.raises(ValueError, match="workers=0"):
        generate(tmp_path / "a", sim_config, workers=0)


def test_the_command_reports_mistakes_in_one_line(tmp_path, capsys):
    assert main(["simulate", "--out", str(tmp_path / "a"), "--scenes", "0"]) == 2
    assert "scenes=0" in capsys.readouterr().err
    assert main(["simulate", "--out", str(tmp_path / "a"), "--corrupt", "rain:2"]) == 2
    assert "rain" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["simulate", "--out", str(tmp_path), "--image-size", "big"])


def test_the_command_writes_a_data_set(tmp_path, needs_embree, capsys):
    out = tmp_path / "data"
    arguments = [
        "simulate",
        "--out",
        str(out),
        "--scenes",
        "1",
        "--keyframes",
        "1",
        "--image-size",
        "48x32",
        "--seed",
        "5",
    ]
    assert main(arguments) == 0
    assert "wrote 1 scenes" in capsys.readouterr().out
    assert len(NuScenesFrames(out)) == 1


def test_another_rig(odd_root, odd_config):
    """A rig file: two cameras of different sizes, a LiDAR of 16 rings; sweeps; spoilt sensors; the other road level."""
    frames = list(NuScenesFrames(odd_root))
    assert [len(frame.cameras) for frame in frames] == [2, 2]
    assert {c.name: c.image.shape[:2] for c in frames[0].cameras} == {"CAM_WIDE": (36, 64), "CAM_TALL": (48, 24)}
    points = frames[0].lidar.points
    assert len(np.unique(points[:, 4])) == 12  # beam_missing:2 takes a quarter of 16
    assert len(sim_checks.lidarseg(odd_root, "v1.0-mini", frames[0].token)) == len(points)
    rig = odd_config.load_rig()
    for camera, mount in zip(
        sorted(frames[0].cameras, key=lambda c: c.name), sorted(rig.cameras, key=lambda c: c.name), strict=True
    ):
        assert not np.allclose(camera.cam2ego, mount.cam2ego, atol=1e-4)
        np.testing.assert_allclose(camera.cam2ego, mount.cam2ego, atol=0.2)
    clock = scene_clock(odd_config, list_scenes(odd_config)[0])[0]
    written = {camera.name: camera.stamp_ns // 1000 for camera in frames[0].cameras}
    for mount, stamp in zip(rig.cameras, clock.cameras_us, strict=True):
        assert written[mount.name] == stamp + 80_000


def test_sweeps_lie_between_keyframes(odd_root):
    rows = json.loads((odd_root / "v1.0-mini" / "sample_data.json").read_text())
    sweeps = [row for row in rows if not row["is_key_frame"]]
    assert 7 <= len(sweeps) <= 11
    chain = sorted((row for row in rows if row["fileformat"] == "pcd"), key=lambda row: row["timestamp"])
    gaps = np.diff([row["timestamp"] for row in chain])
    assert np.abs(gaps - 50_000).max() < 1500
    assert [row["is_key_frame"] for row in chain] == [True] + [False] * len(sweeps) + [True]
    for row, following in itertools.pairwise(chain):
        assert row["next"] == following["token"]
        assert (odd_root / row["filename"]).is_file()


def test_the_road_can_be_written_at_the_lowest_level(odd_root):
    for frame in NuScenesFrames(odd_root):
        labels = sim_checks.occupancy(odd_root, frame)
        road = np.argwhere(labels["semantics"] == 11)
        near = (np.abs(road[:, :2] - 100) < 50).all(axis=1)
        assert (road[near, 2] == 0).mean() > 0.95
        assert not (labels["mask_camera"].astype(bool) & ~labels["mask_lidar"].astype(bool)).any()
        with np.load(odd_root / "test_truth" / "volumes" / f"{frame.token}.npz") as file:
            plain = file["semantics"]
        assert (plain == 11).sum() >= 0.5 * len(road)
        assert np.median(np.argwhere(plain == 11)[:, 2]) == 2
        assert (labels["semantics"] != FREE).sum() >= (plain != FREE).sum() * 0.9


def test_the_devkit_renders(nusc, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    matplotlib = pytest.importorskip("matplotlib", reason="the devkit draws with matplotlib")
    matplotlib.use("Agg")
    sample = nusc.sample[1]
    for channel in ("CAM_FRONT", "LIDAR_TOP"):
        out = tmp_path / f"{channel}.png"
        nusc.render_sample_data(sample["data"][channel], out_path=str(out), verbose=False)
        assert out.stat().st_size > 5000
    out = tmp_path / "lidarseg.png"
    nusc.render_sample_data(
        sample["data"]["LIDAR_TOP"], show_lidarseg=True, underlay_map=True, out_path=str(out), verbose=False
    )
    assert out.stat().st_size > 5000
    nusc.render_pointcloud_in_image(sample["token"], out_path=str(tmp_path / "over.png"), verbose=False)


def test_the_devkit_knows_the_splits(nusc):
    splits = pytest.importorskip("nuscenes.utils.splits", reason="nuscenes-devkit is not installed")
    assert splits.get_scenes_of_split("sim_train", nusc) == ["scene-9001"]
    assert splits.get_scenes_of_split("sim_val", nusc) == ["scene-9501"]


def test_the_devkit_evaluates(odd_root, tmp_path):
    """Detection with the boxes of the tables as predictions: nearly perfect in every class that occurs."""
    pytest.importorskip("nuscenes", reason="nuscenes-devkit is not installed")
    from nuscenes import NuScenes
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.eval.detection.utils import category_to_detection_name

    nusc = NuScenes("v1.0-mini", str(odd_root), verbose=False)
    results = {}
    for sample in nusc.sample:
        results[sample["token"]] = rows = []
        for token in sample["anns"]:
            box = nusc.get("sample_annotation", token)
            name = category_to_detection_name(box["category_name"])
            if name is not None and box["num_lidar_pts"] > 0:
                attributes = [nusc.get("attribute", a)["name"] for a in box["attribute_tokens"]]
                rows.append(
                    {
                        "sample_token": sample["token"],
                        "translation": box["translation"],
                        "size": box["size"],
                        "rotation": box["rotation"],
                        "velocity": np.nan_to_num(nusc.box_velocity(token)[:2]).tolist(),
                        "detection_name": name,
                        "detection_score": 0.9,
                        "attribute_name": attributes[0] if attributes else "",
                    }
                )
    path = tmp_path / "results.json"
    sources = {f"use_{name}": name == "lidar" for name in ("camera", "lidar", "radar", "map", "external")}
    path.write_text(json.dumps({"meta": sources, "results": results}))
    evaluation = DetectionEval(
        nusc, config_factory("detection_cvpr_2019"), str(path), "mini_train", str(tmp_path / "out"), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    present = {box.detection_name for box in evaluation.gt_boxes.all}
    assert len(present) >= 6
    assert all(metrics.mean_dist_aps[name] > 0.95 for name in present)


def test_official_names():
    splits = pytest.importorskip("nuscenes.utils.splits", reason="nuscenes-devkit is not installed")
    small = list_scenes(SimulationConfig(scenes=4, official_names=True))
    assert {scene.version for scene in small} == {"v1.0-mini"}
    assert {scene.name for scene in small if scene.split == "val"} <= set(splits.mini_val)
    large = list_scenes(SimulationConfig(scenes=50, official_names=True))
    assert {scene.version for scene in large} == {"v1.0-trainval"}
    assert {scene.name for scene in large if scene.split == "train"} <= set(splits.train)


@pytest.mark.parametrize("name", ["nuscenes-singapore", "nuscenes-boston"])
def test_built_in_rigs(name):
    rig = load_rig(name)
    assert len(rig.cameras) == 6
    assert rig.left_hand_traffic == (name == "nuscenes-singapore")
    lead = {camera.name: 1000 * rig.camera_lead_s(camera) for camera in rig.cameras}
    assert lead["CAM_FRONT_LEFT"] == pytest.approx(-42.8, abs=0.2)
    assert lead["CAM_BACK_LEFT"] == pytest.approx(-0.3, abs=0.2)
    half = rig.resized((450, 800)).cameras[0]
    assert half.intrinsics[0] == pytest.approx(rig.cameras[0].intrinsics[0] / 2)
