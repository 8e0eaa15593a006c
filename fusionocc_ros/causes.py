"""Why a sweep gave no occupancy: every cause has one name, used in counters, logs, diagnostics and the docs."""

from __future__ import annotations

from fusionocc_ros.sync import SYNC_CAUSES

SUPERSEDED = "superseded"
STOPPED_IN_WORK = "stopped_in_work"
NO_CAMERA_INFO = "no_camera_info"
UNCALIBRATED = "uncalibrated"
DISTORTED = "distorted"
BAD_CALIBRATION = "bad_calibration"
BAD_ENCODING = "bad_encoding"
BAD_IMAGE = "bad_image"
BAD_CLOUD = "bad_cloud"
EMPTY_CLOUD = "empty_cloud"
TOO_LARGE = "too_large"
NO_TRANSFORM = "no_transform"
NO_EGO_POSE = "no_ego_pose"
PREDICTION_FAILED = "prediction_failed"
INTERNAL_ERROR = "internal_error"

NO_MESSAGE = "no_message"
"""Not why a set was dropped, but why a sensor is not in one: it sent nothing within sync.tolerance by the deadline."""

WORK_CAUSES: dict[str, str] = {
    SUPERSEDED: "a newer set was complete before the worker was free",
    STOPPED_IN_WORK: "the node was deactivated before the result was published",
    NO_CAMERA_INFO: "a camera of the set has sent no CameraInfo",
    UNCALIBRATED: "K[0] (or P[0]) in CameraInfo is zero: the camera is not calibrated",
    DISTORTED: "the pictures are distorted and parameter `distortion` refuses that, or the model is not handled",
    BAD_CALIBRATION: "CameraInfo is not finite, or contradicts itself or the picture (size, binning, stereo offset)",
    BAD_ENCODING: "the encoding of an Image or the format of a CompressedImage is not handled",
    BAD_IMAGE: "a picture is truncated, empty, or shorter than its header says",
    BAD_CLOUD: "a PointCloud2 lacks x, y or z, is truncated, or has fields that cannot be read",
    EMPTY_CLOUD: "a PointCloud2 has no point, or no point that is finite",
    TOO_LARGE: "a picture or a cloud is larger than the node takes (64 million pixels, lidar.max_points)",
    NO_TRANSFORM: "a sensor's transform to the base frame is not known",
    NO_EGO_POSE: "the vehicle's pose at a sensor's stamp is not known although /tf or odometry is there",
    PREDICTION_FAILED: "the network refused the frame or ran out of memory",
    INTERNAL_ERROR: "an error in fusionocc itself: please report it with the traceback from the log",
}
"""Why a set that the synchroniser released gave no message, and what each word means."""

CAUSES: dict[str, str] = {**SYNC_CAUSES, **WORK_CAUSES}
"""All of them."""


class DropFrame(ValueError):
    """This frame cannot be used; the next one may.

    Args:
        cause: one of CAUSES, under which it is counted.
        message: what is wrong, with the value, what was expected and what to do.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        if cause not in CAUSES:
            raise ValueError(f"cause {cause!r} is not one of {sorted(CAUSES)}")
        self.cause = cause
