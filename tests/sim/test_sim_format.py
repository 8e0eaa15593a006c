"""The data set loads in the tools for which it is made, and obeys nuScenes' schema."""

import json
import re

import cv2
import numpy as np
import pytest

from fusionocc_core.data.nuscenes import NuScenesFrames
from fusionocc_core.simulation.config import VERSION
from fusionocc_core.simulation.tables import TABLE_NAMES

FIELDS = {
    "attribute": {"token", "name", "description"},
    "calibrated_sensor": {"token", "sensor_token", "translation", "rotation", "camera_intrinsic"},
    "category": {"token", "name", "description", "index"},
    "ego_pose": {"token", "timestamp", "translation", "rotation"},
    "instance": {"token", "category_token", "nbr_annotations", "first_annotation_token", "last_annotation_token"},
    "log": {"token", "logfile", "vehicle", "date_captured", "location"},
    "map": {"token", "log_tokens", "category", "filename"},
    "sample": {"token", "timestamp", "scene_token", "next", "prev"},
    "sample_annotation": {
        "token",
        "sample_token",
        "instance_token",
        "attribute_tokens",
        "visibility_token",
        "translation",
        "size",
        "rotation",
        "num_lidar_pts",
        "num_radar_pts",
        "next",
        "prev",
    },
    "sample_data": {
        "token",
        "sample_token",
        "ego_pose_token",
        "calibrated_sensor_token",
        "filename",
        "fileformat",
        "width",
        "height",
        "timestamp",
        "is_key_frame",
        "next",
        "prev",
    },
    "scene": {"token", "name", "description", "log_token", "nbr_samples", "first_sample_token", "last_sample_token"},
    "sensor": {"token", "channel", "modality"},
    "visibility": {"token", "level", "description"},
    "lidarseg": {"token", "filename", "sample_data_token"},
}


@pytest.fixture(scope="module")
def tables(sim_root):
    return {name: json.loads((sim_root / VERSION / f"{name}.json").read_text()) for name in TABLE_NAMES}


@pytest.mark.parametrize("name", FIELDS)
def test_tables_have_the_schema_fields_and_unique_tokens(tables, name):
    rows = tables[name]
    assert rows
    assert all(set(row) == FIELDS[name] for row in rows)
    tokens = [row["token"] for row in rows]
    assert len(set(tokens)) == len(tokens)
    if name != "visibility":
        assert all(re.fullmatch("[0-9a-f]{32}", token) for token in tokens)


def test_references_resolve(tables):
    tokens = {name: {row["token"] for row in rows} for name, rows in tables.items()}
    for row in tables["sample_data"]:
        assert row["ego_pose_token"] == row["token"]
        assert row["ego_pose_token"] in tokens["ego_pose"]
        assert row["calibrated_sensor_token"] in tokens["calibrated_sensor"]
        assert row["sample_token"] in tokens["sample"]
    for row in tables["sample_annotation"]:
        assert row["instance_token"] in tokens["instance"]
        assert row["visibility_token"] in tokens["visibility"]
        assert set(row["attribute_tokens"]) <= tokens["attribute"]
    for row in tables["lidarseg"]:
        assert row["token"] == row["sample_data_token"]
        assert row["token"] in tokens["sample_data"]
    logs = {token for row in tables["map"] for token in row["log_tokens"]}
    assert logs == tokens["log"]


@pytest.mark.parametrize("name", ["sample", "sample_data", "sample_annotation"])
def test_linked_lists_run_forward_in_time(tables, name):
    rows = {row["token"]: row for row in tables[name]}
    stamps = {row["token"]: row["timestamp"] for row in tables["sample"]}
    for token, row in rows.items():
        if row["next"]:
            following = rows[row["next"]]
            assert following["prev"] == token
            times = [r.get("timestamp", stamps.get(r.get("sample_token"))) for r in (row, following)]
            assert times[0] < times[1]


def test_files_exist_and_have_their_sizes(sim_root, tables, sim_config):
    for row in tables["sample_data"]:
        path = sim_root / row["filename"]
        if row["fileformat"] == "jpg":
            assert cv2.imread(str(path)).shape == (*sim_config.image_size, 3)
            assert (row["height"], row["width"]) == sim_config.image_size
        else:
            assert path.stat().st_size == 32 * 1084 * 5 * 4
        assert row["filename"].startswith("samples/" if row["is_key_frame"] else "sweeps/")
    for row in tables["lidarseg"]:
        labels = np.fromfile(sim_root / row["filename"], np.uint8)
        assert len(labels) == 32 * 1084
        assert labels.max() <= 31


def test_the_devkit_loads_it(nusc, sim_config):
    assert len(nusc.scene) == sim_config.scenes
    assert len(nusc.sample) == sim_config.scenes * sim_config.keyframes
    sample = nusc.sample[1]
    assert set(sample["data"]) == {sensor["channel"] for sensor in nusc.sensor}
    assert len(sample["anns"]) > 5
    speeds = [np.linalg.norm(nusc.box_velocity(token)) for token in sample["anns"]]
    assert np.nanmax(speeds) > 1.0


def test_our_reader_loads_it(sim_root):
    frames = NuScenesFrames(sim_root)
    frame = frames[1]
    assert len(frame.cameras) == 6
    assert frame.lidar is not None
    assert frame.lidar.points.shape == (32 * 1084, 5)
