"""Tables of a data set in nuScenes format, as many rows as wanted, without pictures or clouds: to measure opening."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
RADARS = ("RADAR_FRONT", "RADAR_FRONT_LEFT", "RADAR_FRONT_RIGHT", "RADAR_BACK_LEFT", "RADAR_BACK_RIGHT")
SENSORS = {**dict.fromkeys(CAMERAS, "camera"), "LIDAR_TOP": "lidar", **dict.fromkeys(RADARS, "radar")}
ROWS_A_KEYFRAME = 77
"""Of sample_data, as in v1.0-trainval: 2,631,083 for 34,149 keyframes, 12 of them the keyframe's own."""
BOXES_A_KEYFRAME = 34
"""As in v1.0-trainval: 1,166,187 annotations."""
KEYFRAMES_A_SCENE = 40

Row = dict[str, Any]


def write_tables(root: Path, rows: int, version: str = "v1.0-made-up") -> int:
    """Write the 13 tables with about ``rows`` rows of sample_data; gives the number of keyframes."""
    keyframes = max(1, rows // ROWS_A_KEYFRAME)
    folder = root / version
    folder.mkdir(parents=True)
    (root / "maps").mkdir()
    (root / "maps" / "none.png").write_bytes(b"")
    rng = np.random.default_rng(0)
    starts = range(0, keyframes, KEYFRAMES_A_SCENE)
    samples = [list(range(start, min(start + KEYFRAMES_A_SCENE, keyframes))) for start in starts]
    tables: dict[str, list[Row]] = {
        "attribute": [],
        "visibility": [],
        "category": [{"token": token("category"), "name": "vehicle.car", "description": "", "index": 17}],
        "log": [{"token": token("log"), "logfile": "n015", "vehicle": "n015", "date_captured": "", "location": ""}],
        "map": [{"token": token("map"), "log_tokens": [token("log")], "category": "", "filename": "maps/none.png"}],
        "sensor": [{"token": token(c), "channel": c, "modality": m} for c, m in SENSORS.items()],
        "calibrated_sensor": [calibration(c, m, rng) for c, m in SENSORS.items()],
        "scene": [scene(n, [token("sample", k) for k in numbers]) for n, numbers in enumerate(samples)],
        "sample": [
            {
                "token": token("sample", k),
                "timestamp": stamp(k),
                "prev": "",
                "next": "",
                "scene_token": token("scene", n),
            }
            for n, numbers in enumerate(samples)
            for k in numbers
        ],
        "sample_data": list(sample_data(keyframes)),
        "instance": [instance(n) for n in range(len(samples))],
        "sample_annotation": list(annotations(samples, rng)),
    }
    tables["ego_pose"] = [
        {"token": row["ego_pose_token"], "timestamp": row["timestamp"], **pose(rng)} for row in tables["sample_data"]
    ]
    for name, content in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=0))
    return keyframes


def token(*parts: object) -> str:
    """32 hexadecimal digits, as in nuScenes."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def stamp(keyframe: int) -> int:
    """Microseconds; half a second between keyframes, a minute between scenes."""
    return 1_532_402_927_612_460 + keyframe * 500_000 + keyframe // KEYFRAMES_A_SCENE * 60_000_000


def pose(rng: np.random.Generator) -> Row:
    """Any place, any heading."""
    half = rng.uniform(-np.pi, np.pi) / 2
    return {"rotation": [np.cos(half), 0.0, 0.0, np.sin(half)], "translation": [*rng.uniform(300, 2000, 2), 0.0]}


def calibration(channel: str, modality: str, rng: np.random.Generator) -> Row:
    k = [[1266.4, 0.0, 816.3], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]] if modality == "camera" else []
    return {"token": token("calibrated", channel), "sensor_token": token(channel), **pose(rng), "camera_intrinsic": k}


def scene(number: int, samples: list[str]) -> Row:
    return {
        "token": token("scene", number),
        "log_token": token("log"),
        "nbr_samples": len(samples),
        "first_sample_token": samples[0],
        "last_sample_token": samples[-1],
        "name": f"scene-{number:04d}",
        "description": "",
    }


def sample_data(keyframes: int) -> Iterator[Row]:
    """The keyframe's own twelve files, then sweeps of the sensors in turn."""
    channels = list(SENSORS)
    for k in range(keyframes):
        for n in range(ROWS_A_KEYFRAME):
            channel, key = channels[n % len(channels)], n < len(channels)
            camera = channel in CAMERAS
            time = stamp(k) + n * 6_000
            suffix = "jpg" if camera else "pcd.bin" if channel == "LIDAR_TOP" else "pcd"
            folder = "samples" if key else "sweeps"
            yield {
                "token": token("data", k, n),
                "sample_token": token("sample", k),
                "ego_pose_token": token("data", k, n),
                "calibrated_sensor_token": token("calibrated", channel),
                "timestamp": time,
                "fileformat": "jpg" if camera else "pcd",
                "is_key_frame": key,
                "height": 900 if camera else 0,
                "width": 1600 if camera else 0,
                "filename": f"{folder}/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__{time}.{suffix}",
                "prev": token("data", k - 1, n),
                "next": token("data", k + 1, n),
            }


def instance(number: int) -> Row:
    first, last = (token("annotation", number, n) for n in (0, 1))
    return {
        "token": token("instance", number),
        "category_token": token("category"),
        "nbr_annotations": 2,
        "first_annotation_token": first,
        "last_annotation_token": last,
    }


def annotations(samples: list[list[int]], rng: np.random.Generator) -> Iterator[Row]:
    for number, keyframes in enumerate(samples):
        for n, keyframe in enumerate(k for k in keyframes for _ in range(BOXES_A_KEYFRAME)):
            yield {
                "token": token("annotation", number, n),
                "sample_token": token("sample", keyframe),
                "instance_token": token("instance", number),
                "visibility_token": "4",
                "attribute_tokens": [],
                **pose(rng),
                "size": [1.9, 4.6, 1.7],
                "prev": "",
                "next": "",
                "num_lidar_pts": 5,
                "num_radar_pts": 0,
            }
