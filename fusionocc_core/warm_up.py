"""The first frames of a process are its slowest: memory is fetched, kernels are chosen. Here they are made up."""

from __future__ import annotations

import math
import time

import numpy as np

from fusionocc_core.data.remembered import history_of
from fusionocc_core.geometry import rotation_from_yaw, transform
from fusionocc_core.predictor import Predictor
from fusionocc_core.structures import CameraImage, InputConfig, LidarSweep, SensorFrame

FRAMES = 2
"""After which a frame takes as long as the later ones."""
CAMERA_HEIGHT_M = 1.6
POINTS = 30_000
"""Of a made-up sweep: about as many as 32 beams give."""
FARTHEST_M = 50.0

_FORWARD_YAW2CAM = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Camera axes (right, down, ahead) in those of a vehicle that looks the same way."""


def made_up_frame(inputs: InputConfig, cameras: int, *, lidar: bool = True) -> SensorFrame:
    """A frame of noise from as many cameras in a ring, and a LiDAR; the same in every call.

    Args:
        inputs: of the network; earlier keyframes are those that it takes.
        cameras: how many.
        lidar: whether there is one.
    """
    rng, history = np.random.default_rng(0), history_of(inputs)
    height, width = inputs.image_size
    intrinsics = np.array([[0.8 * width, 0.0, width / 2], [0.0, 0.8 * width, height / 2], [0.0, 0.0, 1.0]])
    pictures = tuple(
        CameraImage(
            name=f"camera {number}",
            image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            intrinsics=intrinsics,
            cam2ego=transform(
                rotation_from_yaw(math.tau * number / cameras) @ _FORWARD_YAW2CAM, (0.0, 0.0, CAMERA_HEIGHT_M)
            ),
            ego2global=np.eye(4),
            stamp_ns=0,
        )
        for number in range(cameras)
    )
    points = rng.uniform(-1.0, 1.0, (POINTS, 5)) * (FARTHEST_M, FARTHEST_M, 2.0, 127.0, 0.0)
    points += (0.0, 0.0, 0.0, 127.0, 1.0)
    sweep = LidarSweep(points=points.astype(np.float32), lidar2ego=np.eye(4), ego2global=np.eye(4), stamp_ns=0)
    return SensorFrame(
        stamp_ns=0,
        ego2global=np.eye(4),
        cameras=pictures,
        lidar=sweep if lidar else None,
        camera_history=(pictures,) * history.cameras,
        lidar_history=(sweep,) * history.lidar if lidar else (),
    )


def warm_up(predictor: Predictor, *, cameras: int, lidar: bool = True) -> float:
    """Run a predictor on made-up frames; seconds that it took.

    Args:
        predictor: of any network.
        cameras: how many its frames will have.
        lidar: whether they will have a sweep.

    Raises:
        ValueError: the network cannot work on such frames.
    """
    frame = made_up_frame(predictor.inputs, cameras, lidar=lidar)
    began = time.perf_counter()
    for _ in range(FRAMES):
        predictor(frame)
    return time.perf_counter() - began
