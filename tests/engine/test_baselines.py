"""Baselines: known answers on made-up data, what is kept on disk, and what is said where they cannot be fitted."""

import json
import logging
import os
import socket

import numpy as np
import pytest
import torch
from labelled_sample_tree import write_labelled_tree
from small_recipes import GRID

from fusionocc_core.baselines import BaselineConfig, Baselines, fit
from fusionocc_core.baselines.lidar_features import lidar_features
from fusionocc_core.baselines.position import PlaceCounts, PositionChoice
from fusionocc_core.baselines.tables import STRENGTH, BackoffTable, KeyCounts
from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.data.occ3d import occ3d_path
from fusionocc_core.engine import baseline_scores
from fusionocc_core.engine.baseline_scores import NoBaselinesError, score_baselines, training_split_of
from fusionocc_core.engine.distributed import World, joined_world
from fusionocc_core.engine.evaluation import LabelledFrames
from fusionocc_core.grids import OCC3D_LABELS
from fusionocc_core.metrics import OccupancyScore, OccupancyTruth
from fusionocc_core.structures import InputConfig, LidarSweep, SensorFrame

FREE, CAR, ROAD, HOUSE = OCC3D_LABELS.free, 4, 11, 15
ALONE = World(device=torch.device("cpu"))


class Streets:
    """Keyframes with a flat road, one low box and one tall one, each somewhere else in every keyframe."""

    def __init__(self, count, *, first=0, constant=False, mask=True):
        self.seeds = [0 if constant else first + k for k in range(count)]
        self.mask = mask

    def __len__(self):
        return len(self.seeds)

    def scene(self, index):
        return f"scene-{index // 2}"

    def boxes(self, index):
        rng = np.random.default_rng(self.seeds[index])
        low, high = rng.permutation([2, 14])
        return [(low, 2 + int(rng.integers(16)), CAR, 4), (high, 2 + int(rng.integers(16)), HOUSE, 10)]

    def truth(self, index):
        labels = np.full(GRID.shape, FREE, np.uint8)
        labels[:, :, 2] = ROAD
        for x, y, label, top in self.boxes(index):
            labels[x : x + 6, y : y + 6, 3:top] = label
        seen = np.zeros(GRID.shape, bool)
        seen[:, :, 1:12] = True
        return OccupancyTruth(
            labels=labels, grid=GRID, label_set=OCC3D_LABELS, mask_camera=seen if self.mask else None, mask_lidar=None
        )

    def frame(self, index):
        labels = self.truth(index).labels
        hit = np.argwhere((labels != FREE) & (labels != ROAD))
        hit = np.concatenate([hit, np.argwhere(labels == ROAD)])
        points = np.repeat(GRID.centers(hit), 3, axis=0)
        points += np.random.default_rng(index).uniform(-0.15, 0.15, points.shape)
        points[points[:, 2] < 0.2, 2] = 0.0
        cloud = np.column_stack([points, np.full(len(points), 20), np.zeros(len(points))]).astype(np.float32)
        pose = np.eye(4)
        pose[2, 3] = 20.0  # far above, so that no return is taken for the own car's
        cloud[:, 2] -= 20.0
        sweep = LidarSweep(points=cloud, lidar2ego=pose, ego2global=np.eye(4), stamp_ns=5)
        return SensorFrame(stamp_ns=5, ego2global=np.eye(4), cameras=(), lidar=sweep, token=str(index))


def fitted(source, **options):
    return fit(source, GRID, OCC3D_LABELS, BaselineConfig(), name="made-up", **options)


def score(predict, source):
    counted = OccupancyScore(GRID, OCC3D_LABELS, rays=False)
    for index in range(len(source)):
        counted.add(predict(source.frame(index)), source.truth(index))
    return counted.report()


def test_position_learns_a_constant_scene_by_heart():
    source = Streets(4, constant=True)
    baselines = fitted(source, lidar=False)
    assert list(baselines.predictors()) == ["majority", "position"]
    assert score(baselines.position, source).of_mask("camera").miou == 1.0
    answer = baselines.majority(source.frame(0))
    assert (answer.labels == FREE).all()
    assert (answer.stamp_ns, answer.model) == (5, "majority baseline")
    assert answer.trained_on == "made-up, 4 keyframes"


def test_geometry_tells_heights_where_position_cannot():
    baselines = fitted(Streets(24))
    held_out = Streets(6, first=1000)
    geometry = score(baselines.geometry, held_out).of_mask("camera")
    position = score(baselines.position, held_out).of_mask("camera")
    assert geometry.iou_K[[CAR, HOUSE, ROAD]].min() > 0.9
    assert position.iou_K[[CAR, HOUSE]].max() < 0.6


def test_the_same_data_gives_the_same_baselines_also_from_arrays():
    source = Streets(6, mask=False)
    first, second = fitted(source).arrays(), fitted(source).arrays()
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)
    again = Baselines.from_arrays(first, GRID, OCC3D_LABELS)
    frame = source.frame(0)
    for name, predict in fitted(source).predictors().items():
        assert np.array_equal(predict(frame).labels, again.predictors()[name](frame).labels)


def test_position_counts_mirror_spread_and_balance():
    counts = PlaceCounts(GRID, OCC3D_LABELS)
    labels = np.full(GRID.shape, FREE, np.uint8)
    labels[3, 5, 4] = CAR
    mask = labels == CAR
    mask[3, -6, 4] = mask[2, 5, 4] = True
    counts.add(OccupancyTruth(labels=labels, grid=GRID, label_set=OCC3D_LABELS, mask_camera=mask))
    assert np.argwhere(counts.labels(PositionChoice(balance=0.0), 0.02) == CAR).tolist() == [[3, 5, 4]]
    mirrored = counts.labels(PositionChoice(balance=1.0, mirror=True), 0.02)
    assert np.argwhere(mirrored == CAR).tolist() == [[3, 5, 4], [3, 18, 4]]
    wide = counts.labels(PositionChoice(balance=1.0, spread=1), 0.02)
    assert (wide[2:5, 4:7, 4] == CAR).all()
    assert counts.miou(labels) == 1.0


def test_keys_back_off_to_shorter_ones():
    counts = KeyCounts(3)
    key = lambda *features: np.array([sum(f << 4 * (len(features) - 1 - n) for n, f in enumerate(features))])  # noqa: E731
    for features, label, times in (((1, 2), 0, 30), ((1, 3), 1, 10), ((2, 1), 2, 40), ((1, 9), 2, 2)):
        counts.add(np.repeat(key(*features), times), np.full(times, label), np.ones(times))
    table = BackoffTable.fit(counts, 2)
    p = np.exp(table.look_up(np.concatenate([key(1, 2), key(1, 3), key(1, 9), key(7, 7)])).astype(float))
    root = np.array([30.5, 10.5, 42.5]) / 83.5
    one = (np.array([30, 10, 2]) + STRENGTH * root) / (42 + STRENGTH)
    expected = [([30, 0, 0] + STRENGTH * one) / (30 + STRENGTH), ([0, 10, 0] + STRENGTH * one) / (10 + STRENGTH)]
    assert p == pytest.approx(np.array([*expected, one, root]), rel=3e-3)  # stored in half precision


def test_clouds_without_a_point_in_range_and_without_lidar():
    far = np.array([[500, 0, 0, 1, 1]], np.float32)
    sweep = LidarSweep(points=far, lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=0)
    frame = SensorFrame(stamp_ns=0, ego2global=np.eye(4), cameras=(), lidar=sweep)
    features = lidar_features(frame, GRID, 2)
    assert set(np.unique(features.kind_XYZ)) <= {2, 3}
    own = np.zeros((1, 5), np.float32)  # a pulse without return
    nothing = LidarSweep(points=own, lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=0)
    baselines = fitted(Streets(4))
    answer = baselines.geometry(SensorFrame(stamp_ns=0, ego2global=np.eye(4), cameras=(), lidar=nothing))
    assert answer.labels.shape == GRID.shape
    with pytest.raises(ValueError, match="no keyframe"):
        fitted(Streets(0))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_labelled_tree(tmp_path_factory.mktemp("data") / "labelled")


def labelled_frames(root, split="mini_val", rays=False):
    inputs = InputConfig(image_size=(64, 96))
    return LabelledFrames(NuScenesFrames(root, split=split), inputs, GRID, OCC3D_LABELS, rays=rays, seed=0)


def held_against(root, cache, **options):
    options = {"split": "mini_train", "world": ALONE, "cache": cache, **options}
    return score_baselines(labelled_frames(root), **options)


def test_what_is_kept_is_used_until_something_changes(tree, tmp_path, monkeypatch, caplog):
    fits = []

    def counted_fit(*args, **options):
        fits.append(options["name"])
        return fit(*args, **options)

    monkeypatch.setattr(baseline_scores, "fit", counted_fit)
    first = held_against(tree.root, tmp_path)
    assert list(first.reports) == ["majority", "position", "geometry"]
    assert first.trained_on == "v1.0-mini mini_train, 4 keyframes (4 with their clouds)"
    again = held_against(tree.root, tmp_path)
    assert again.as_dict() == first.as_dict()
    assert len(fits) == 1
    held_against(tree.root, tmp_path, limit=1)  # other keyframes are scored with the same fit
    assert len(fits) == 1
    held_against(tree.root, tmp_path, config=BaselineConfig(cloud_keyframes=2))
    assert len(fits) == 2
    frames = NuScenesFrames(tree.root, split="mini_train")
    path = occ3d_path(tree.root, frames.keyframe(0).scene, frames.keyframe(0).token)
    os.utime(path, ns=(1, 1))
    held_against(tree.root, tmp_path)
    assert len(fits) == 3
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level(logging.WARNING):
        assert held_against(tree.root, tmp_path).as_dict() == first.as_dict()
    assert "is damaged and made again" in caplog.text
    assert len(fits) == 4
    assert not list(tmp_path.glob(".*"))


def test_no_place_to_keep_them_is_no_reason_to_fail(tree, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with caplog.at_level(logging.WARNING):
        assert held_against(tree.root, blocked / "cache", limit=1).reports
    assert "not kept for the next time" in caplog.text


def test_workers_change_nothing(tree):
    alone = held_against(tree.root, None)
    assert held_against(tree.root, None, workers=2).as_dict() == alone.as_dict()


def score_as_torchrun_would(rank, port, root, out):
    environment = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    with joined_world("cpu") as world:
        scores = held_against(root, None, world=world)
        (out / f"{rank}.json").write_text(json.dumps(scores.as_dict()))


def test_two_processes_give_the_numbers_of_one(tree, tmp_path, spawner):
    """Three keyframes over two processes; only the main one fits."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        spawner.Process(target=score_as_torchrun_would, args=(rank, port, tree.root, tmp_path)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    assert [process.exitcode for process in processes] == [0, 0]
    one = json.loads(json.dumps(held_against(tree.root, None).as_dict()))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [one, one]


def test_a_kept_file_with_any_byte_wrong_is_never_an_error(tmp_path):
    key = {"of": "a test"}
    baseline_scores._write(tmp_path, "fit", key, {"numbers": np.random.default_rng(0).integers(0, 5, 3000)})
    (path,) = tmp_path.iterdir()
    whole, damaged = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        damaged += baseline_scores._read(tmp_path, "fit", key) is None
    assert damaged == len(range(0, len(whole), 3)) > 100
    path.write_bytes(whole)
    assert (baseline_scores._read(tmp_path, "fit", key) or {})["numbers"].shape == (3000,)


def test_keyframes_without_cloud_cost_the_baselines_and_not_the_evaluation(tmp_path):
    root = write_labelled_tree(tmp_path / "data")
    frames = NuScenesFrames(root.root, split="mini_val")
    sweep = frames.keyframe(1).records[frames.lidar]
    rows = root.rows("sample_data")
    root.write("sample_data", [row for row in rows if row["token"] != sweep.token])
    with pytest.raises(NoBaselinesError, match=r"evaluation: 1 of 3 keyframes have no LIDAR_TOP cloud"):
        held_against(root.root, None)
    root.write("sample_data", rows)
    sweep.path.unlink()
    with pytest.raises(NoBaselinesError, match=r"evaluation: .*No such file .*--no-baselines"):
        held_against(root.root, None)


def test_no_training_split(tree):
    assert training_split_of("val") == "train"
    assert training_split_of("sim_val") == "sim_train"
    with pytest.raises(NoBaselinesError, match="Say --baseline-split"):
        training_split_of("test")
    with pytest.raises(NoBaselinesError, match="shares 1 scenes with the evaluation, such as scene-0103"):
        held_against(tree.root, None, split="mini_val")
    with pytest.raises(NoBaselinesError, match=r"put them into .* or leave them out with --no-baselines"):
        held_against(tree.root, None, split="test")
