"""Named corruptions of a SensorFrame, graded 1 to 5, for robustness work: `corrupt(frame, name, severity, seed)`.

The same picture or cloud is spoilt in the same way wherever it turns up (as the current one, or in the history of a
later frame): random numbers depend on the seed, the corruption, the sensor and its stamp.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fusionocc_core.geometry import inverse, transform
from fusionocc_core.simulation import camera_corruptions, lidar_corruptions
from fusionocc_core.simulation.randomness import rng_for
from fusionocc_core.structures import CameraImage, LidarSweep, SensorFrame

CAMERA_CORRUPTIONS = (
    "camera_crash",
    "frame_lost",
    "motion_blur",
    "brightness",
    "low_light",
    "color_quantization",
    "fog",
    "snow",
    "calibration_error",
    "camera_delay",
)
LIDAR_CORRUPTIONS = ("beam_missing", "lidar_fog", "cross_talk", "lidar_motion_blur", "wet_ground")
CORRUPTIONS = CAMERA_CORRUPTIONS + LIDAR_CORRUPTIONS
"""All names."""
TILT_DEG = (0.25, 0.5, 1.0, 2.0, 3.0)
SHIFT_M = (0.01, 0.02, 0.04, 0.07, 0.10)
"""Standard deviations of a wrong extrinsic calibration, each axis."""
DELAY_S = (0.04, 0.08, 0.12, 0.20, 0.30)
_SHORTEST_S = 0.005


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """One corruption at one severity."""

    name: str
    severity: int

    def __post_init__(self) -> None:
        """Refuse unknown names and grades."""
        if self.name not in CORRUPTIONS:
            near = difflib.get_close_matches(self.name, CORRUPTIONS, n=2, cutoff=0.5)
            hint = f"nearest: {', '.join(near)}; " if near else ""
            raise ValueError(f"corruption {self.name!r} is not known; {hint}all: {', '.join(CORRUPTIONS)}")
        if not 1 <= self.severity <= 5:
            raise ValueError(f"corruption {self.name}: severity={self.severity}, expected 1 (mild) to 5 (severe)")

    @classmethod
    def parse(cls, text: str) -> Corruption:
        """From NAME:SEVERITY."""
        name, colon, severity = text.partition(":")
        if not colon or not severity.strip().isdigit():
            raise ValueError(f"corruption {text!r}: expected NAME:SEVERITY with a severity of 1 to 5, such as fog:3")
        return cls(name=name.strip(), severity=int(severity))


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a corruption of one camera needs to know of the rest."""

    seed: int
    scene: str
    names: tuple[str, ...]
    """All cameras of the rig."""
    pose_after: Callable[[CameraImage, float], NDArray[np.float64]]
    """ego2global (4, 4) some seconds after a camera's stamp."""


def corrupt(frame: SensorFrame, name: str, severity: int, seed: int = 0) -> SensorFrame:
    """A spoilt copy of a frame, its history included.

    camera_crash and frame_lost give black pictures, in the same cameras for a whole scene or anew for every picture.
    calibration_error tilts and shifts cam2ego, the same for a camera everywhere. camera_delay reports pictures later
    than they were taken, with the ego pose of the reported time, extrapolated from the frame's own poses.

    Args:
        frame: any frame, real or simulated; it is not changed.
        name: one of CORRUPTIONS.
        severity: 1 (mild) to 5 (severe).
        seed: another seed, other random numbers.

    Raises:
        ValueError: unknown name or severity; a LiDAR corruption for a frame without LiDAR; camera_delay for a frame
        whose
            poses are all of one time.
    """
    corruption = Corruption(name=name, severity=severity)
    if name in LIDAR_CORRUPTIONS:
        if frame.lidar is None:
            raise ValueError(f"corruption {name}: the frame {frame.token or frame.stamp_ns} has no LiDAR sweep")
        lidar = corrupt_lidar(frame.lidar, corruption, seed)[0]
        history = tuple(corrupt_lidar(sweep, corruption, seed)[0] for sweep in frame.lidar_history)
        return replace(frame, lidar=lidar, lidar_history=history)
    around = Surroundings(
        seed=seed,
        scene=frame.scene,
        names=tuple(camera.name for camera in frame.cameras),
        pose_after=_extrapolator(frame) if name == "camera_delay" else _unmoved,
    )
    cameras = tuple(corrupt_camera(camera, corruption, around) for camera in frame.cameras)
    past = tuple(tuple(corrupt_camera(c, corruption, around) for c in group) for group in frame.camera_history)
    return replace(frame, cameras=cameras, camera_history=past)


def corrupt_camera(camera: CameraImage, corruption: Corruption, around: Surroundings) -> CameraImage:
    """One picture, spoilt; ValueError for the name of a LiDAR corruption."""
    name, severity = corruption.name, corruption.severity
    rng = rng_for(around.seed, name, camera.name, camera.stamp_ns)
    if name == "calibration_error":
        return replace(camera, cam2ego=miscalibrated(camera.cam2ego, camera.name, severity, around.seed))
    if name == "camera_delay":
        late = DELAY_S[severity - 1]
        pose = around.pose_after(camera, late)
        return replace(camera, stamp_ns=camera.stamp_ns + round(late * 1e9), ego2global=pose)
    return replace(camera, image=_spoilt_image(camera, corruption, around, rng))


def _spoilt_image(
    camera: CameraImage, corruption: Corruption, around: Surroundings, rng: np.random.Generator
) -> NDArray[np.uint8]:
    name, severity, image = corruption.name, corruption.severity, camera.image
    if name == "camera_crash":
        order = rng_for(around.seed, name, around.scene).permutation(sorted(around.names))
        crashed = order[: camera_corruptions.CRASHED_CAMERAS[severity - 1]]
        return camera_corruptions.black(image) if camera.name in crashed else image
    if name == "frame_lost":
        lost = rng.random() < camera_corruptions.LOST_SHARE[severity - 1]
        return camera_corruptions.black(image) if lost else image
    if name == "motion_blur":
        return camera_corruptions.motion_blur(image, severity, rng)
    if name == "brightness":
        return camera_corruptions.brightness(image, severity)
    if name == "low_light":
        return camera_corruptions.low_light(image, severity, rng)
    if name == "color_quantization":
        return camera_corruptions.color_quantization(image, severity)
    if name == "fog":
        return camera_corruptions.fog(camera, severity, rng)
    if name == "snow":
        return camera_corruptions.snow(image, severity, rng)
    raise ValueError(f"corruption {name!r} is not one of cameras: {', '.join(CAMERA_CORRUPTIONS)}")


def corrupt_lidar(sweep: LidarSweep, corruption: Corruption, seed: int) -> tuple[LidarSweep, NDArray[np.int64]]:
    """One sweep, spoilt, and for every point the row that it comes from (lidar_corruptions.NEW: none)."""
    name, severity, points = corruption.name, corruption.severity, sweep.points
    rng = rng_for(seed, name, sweep.stamp_ns)
    if name == "beam_missing":  # which rings are broken does not change from sweep to sweep
        out, rows = lidar_corruptions.beam_missing(points, severity, rng_for(seed, name))
    elif name == "lidar_fog":
        out, rows = lidar_corruptions.fog(points, severity, rng)
    elif name == "cross_talk":
        out, rows = lidar_corruptions.cross_talk(points, severity, rng)
    elif name == "lidar_motion_blur":
        out, rows = lidar_corruptions.motion_blur(points, severity, rng)
    elif name == "wet_ground":
        out, rows = lidar_corruptions.wet_ground(points, severity, rng, sweep.lidar2ego)
    else:
        raise ValueError(f"corruption {name!r} is not one of the LiDAR: {', '.join(LIDAR_CORRUPTIONS)}")
    return replace(sweep, points=np.ascontiguousarray(out, np.float32)), rows


def miscalibrated(cam2ego: NDArray[np.float64], camera: str, severity: int, seed: int) -> NDArray[np.float64]:
    """A wrong cam2ego (4, 4), always the same for one camera, severity and seed."""
    rng = rng_for(seed, "calibration_error", camera)
    turn = rotation_from_vector(np.deg2rad(TILT_DEG[severity - 1]) * rng.standard_normal(3))
    shift = SHIFT_M[severity - 1] * rng.standard_normal(3)
    return cam2ego @ transform(turn, shift)


def rotation_from_vector(vector: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rotation matrix (3, 3) about an axis by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = np.asarray(vector, np.float64) / max(angle, 1e-12)
    k = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * (k @ k)


def vector_from_rotation(rotation: NDArray[np.floating]) -> NDArray[np.float64]:
    """Axis times angle (3,) of a rotation by less than half a turn."""
    r = np.asarray(rotation, np.float64)
    skew = np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]) / 2
    sine = float(np.linalg.norm(skew))
    angle = float(np.arctan2(sine, (np.trace(r) - 1) / 2))
    return skew * (angle / sine if sine > 1e-12 else 1.0)


def _unmoved(camera: CameraImage, seconds: float) -> NDArray[np.float64]:
    return camera.ego2global


def _extrapolator(frame: SensorFrame) -> Callable[[CameraImage, float], NDArray[np.float64]]:
    """Constant velocity and turn rate from the two poses of the frame that lie farthest apart in time."""
    known: Sequence[tuple[int, NDArray[np.float64]]] = sorted(
        [(frame.stamp_ns, frame.ego2global), *((c.stamp_ns, c.ego2global) for c in frame.cameras)],
        key=lambda entry: entry[0],
    )
    span = (known[-1][0] - known[0][0]) * 1e-9
    if span < _SHORTEST_S:
        raise ValueError(
            f"corruption camera_delay: all ego poses of frame {frame.token or frame.stamp_ns} lie within "
            f"{span * 1e3:.1f} ms; the ego's motion cannot be told from them"
        )
    step = inverse(known[0][1]) @ known[-1][1]
    velocity, turn = step[:3, 3] / span, vector_from_rotation(step[:3, :3]) / span

    def pose_after(camera: CameraImage, seconds: float) -> NDArray[np.float64]:
        return np.asarray(camera.ego2global @ transform(rotation_from_vector(turn * seconds), velocity * seconds))

    return pose_after
