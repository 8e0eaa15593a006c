"""A data set whose labels are known: a straight wall, a flat road, and one car that drives ahead of the ego vehicle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from labelled_tree import NAMES, add_lidarseg
from nuscenes_tree import KEYFRAME_US, LIDAR2EGO, Tree, ego_pose_at, write_tree
from scipy.spatial.transform import Rotation, Slerp

from fusionocc_core.geometry import apply, inverse, rotation_from_yaw, transform

SCENES = {"scene-0061": 3, "scene-0103": 2}
CAMERAS = {"CAM_FRONT": 0.0, "CAM_BACK": 180.0}
CAR2EGO = transform(rotation_from_yaw(0.5), [10.0, 1.0, 0.75])
"""Where write_tree puts its box, at every keyframe: the car drives along with the ego vehicle."""
CAR_LWH = np.array([4.0, 2.0, 1.5])
WALL_Y = 8.0


def raster(*axes: np.ndarray) -> np.ndarray:
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def wall() -> np.ndarray:
    """(P, 3) in the axes of the scene's first ego pose."""
    return raster(np.arange(-2, 12, 0.1), np.array([WALL_Y]), np.arange(0.35, 3.0, 0.1))


def road() -> np.ndarray:
    return raster(np.arange(-8, 25, 0.2), np.arange(-6, 7.5, 0.2), np.array([0.0]))


def car_skin() -> np.ndarray:
    """(P, 3) in the car's axes: the faces that the LiDAR can see, 2 cm inside the box."""
    half = CAR_LWH / 2 - 0.02
    points = raster(*(np.linspace(-h, h, int(2 * h / 0.1) + 1) for h in half))
    on_face = (np.abs(np.abs(points) - half) < 1e-6).any(axis=1)
    skin = points[on_face & (points[:, 2] > -half[2] + 1e-6)]
    eye = apply(inverse(CAR2EGO), LIDAR2EGO[None, :3, 3])[0]
    return skin[~hidden(eye, skin, np.eye(4))]


def first_pose(stamp_us: int, scene: int) -> np.ndarray:
    """The ego pose at the scene's first keyframe, without its roll."""
    start = stamp_us - stamp_us % 20_000_000
    pose = ego_pose_at(start, scene)
    yaw = np.arctan2(pose[1, 0], pose[0, 0])
    return transform(rotation_from_yaw(yaw), pose[:3, 3])


def car2global(stamp_us: int, scene: int) -> np.ndarray:
    """Straight from keyframe to keyframe, as an annotator's tool would interpolate."""
    before = stamp_us - stamp_us % KEYFRAME_US
    poses = [ego_pose_at(us, scene) @ CAR2EGO for us in (before, before + KEYFRAME_US)]
    share = (stamp_us - before) / KEYFRAME_US
    turn = Slerp([0, 1], Rotation.from_matrix([pose[:3, :3] for pose in poses]))(share).as_matrix()
    return transform(turn, (1 - share) * poses[0][:3, 3] + share * poses[1][:3, 3])


def hidden(eye: np.ndarray, points: np.ndarray, car2frame: np.ndarray) -> np.ndarray:
    """Which points (P, 3) are hidden from ``eye`` by the car, which stands at ``car2frame``."""
    steps = np.linspace(0, 1, 60)[None, :, None]
    way = eye + steps * (points[:, None] - eye)
    local = apply(inverse(car2frame), way.reshape(-1, 3)).reshape(way.shape)
    return (np.abs(local) < CAR_LWH / 2 - 0.05).all(axis=2).any(axis=1)


def cloud_at(stamp_us: int, scene: int) -> tuple[np.ndarray, list[str]]:
    """(P, 5) in the LiDAR's axes, and the lidarseg category of each point."""
    lidar2global = ego_pose_at(stamp_us, scene) @ LIDAR2EGO
    street2global, car = first_pose(stamp_us, scene), car2global(stamp_us, scene)
    still = apply(street2global, np.concatenate([wall(), road()]))
    names = np.array(["static.manmade"] * len(wall()) + ["flat.driveable_surface"] * len(road()))
    shown = ~hidden(lidar2global[:3, 3], still, car)
    skin = apply(car, car_skin())
    own = apply(lidar2global, np.array([[0.0, 0.0, 0.0], [0.1, -0.5, -0.6]]))
    points = apply(inverse(lidar2global), np.concatenate([still[shown], skin, own]))
    categories = [*names[shown], *["vehicle.car"] * len(skin), "noise", "vehicle.ego"]
    return np.concatenate([points, np.zeros((len(points), 2))], axis=1).astype("<f4"), categories


def write_scene(root: Path, *, sweeps: int = 4, lidarseg: bool = True) -> Tree:
    """Two scenes; every sweep sees wall, road and car, only keyframes have point labels."""
    tree = write_tree(root, scenes=SCENES, cameras=CAMERAS, image_size=(64, 36), sweeps=sweeps)
    start = {name: index for index, name in enumerate(SCENES)}
    scene_of = {row["token"]: row["name"] for row in tree.rows("scene")}
    of_sample = {row["token"]: start[scene_of[row["scene_token"]]] for row in tree.rows("sample")}
    labels: dict[str, list[str]] = {}
    for row in tree.rows("sample_data"):
        if tree.channel_of(row) == "LIDAR_TOP":
            points, labels[row["token"]] = cloud_at(row["timestamp"], of_sample[row["sample_token"]])
            (tree.root / row["filename"]).write_bytes(points.tobytes())
    if lidarseg:
        add_lidarseg(tree)
        for row in tree.rows("lidarseg"):
            index = [NAMES.index(name) for name in labels[row["sample_data_token"]]]
            (tree.root / row["filename"]).write_bytes(np.array(index, np.uint8).tobytes())
    return tree
