"""Where the vehicle was at a sensor's stamp: from /tf, from odometry, or unknown. No ROS."""

from __future__ import annotations

import time
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from fusionocc_ros.causes import NO_EGO_POSE, DropFrame
from fusionocc_ros.tf_store import TfStore, TransformError

Matrix = NDArray[np.float64]

GRACE_S = 1.0
"""How long the first frame waits for a source of motion before it is taken for missing."""


class Source(Enum):
    """Where the motion comes from; the values are those of SemanticOccupancy.ego_motion."""

    NONE = 0
    TF = 1
    ODOMETRY = 2


class EgoMotion:
    """Poses of the base frame in a frame that does not move.

    Args:
        policy: "auto", "tf", "odometry" or "none" (parameter ego_motion).
        base_frame: the vehicle's frame.
        fixed_frame: the frame that does not move, in ``transforms``.
        transforms: what /tf and /tf_static say.
        odometry: what the odometry says, as edges from the frame that it moves to its own fixed frame.
        timeout_s: longest wait for a pose.
    """

    def __init__(
        self,
        *,
        policy: str,
        base_frame: str,
        fixed_frame: str,
        transforms: TfStore,
        odometry: TfStore,
        timeout_s: float,
    ) -> None:
        self._policy = policy
        self._base = base_frame
        self._fixed = fixed_frame
        self._transforms = transforms
        self._odometry = odometry
        self._timeout_s = timeout_s
        self._grace_s = GRACE_S if policy == "auto" else 0.0
        self._odometry_frames: tuple[str, str] | None = None

    def odometry_frames(self, moved: str, fixed: str) -> None:
        """Tell which frame the odometry moves, and in which."""
        self._odometry_frames = (moved, fixed)

    def source(self) -> Source:
        """Where motion comes from now; with "auto" the first call waits a moment for something to come."""
        if self._policy != "auto":
            return Source[self._policy.upper()]
        deadline = time.monotonic() + self._grace_s
        while (found := self._available()) is Source.NONE and time.monotonic() < deadline:
            time.sleep(0.01)
        self._grace_s = 0.0
        return found

    def locate(self, stamp_ns: int) -> tuple[Source, Matrix]:
        """Where motion comes from now, and the vehicle's pose at a stamp.

        With "auto", odometry stands in for /tf where that has no pose.

        Raises:
            DropFrame: the pose is not known at that stamp; names both frames.
        """
        source = self.source()
        try:
            return source, self.base2fixed(source, stamp_ns)
        except DropFrame:
            if self._policy != "auto" or source is not Source.TF or self._odometry_frames is None:
                raise
            return Source.ODOMETRY, self.base2fixed(Source.ODOMETRY, stamp_ns)

    def base2fixed(self, source: Source, stamp_ns: int) -> Matrix:
        """The vehicle's pose at a stamp; the identity where the source is NONE, which the caller has to say.

        Raises:
            DropFrame: the pose is not known at that stamp; names both frames.
        """
        if source is Source.NONE:
            return np.eye(4)
        try:
            if source is Source.TF:
                return self._transforms.lookup(self._base, self._fixed, stamp_ns, timeout_s=self._timeout_s)
            return self._from_odometry(stamp_ns)
        except TransformError as error:
            raise DropFrame(NO_EGO_POSE, f"vehicle pose from {source.name.lower()}: {error}") from error

    def _available(self) -> Source:
        if self._fixed and self._base != self._fixed and self._transforms.connected(self._base, self._fixed):
            return Source.TF
        return Source.ODOMETRY if self._odometry_frames is not None else Source.NONE

    def _from_odometry(self, stamp_ns: int) -> Matrix:
        if self._odometry_frames is None:
            raise TransformError(
                f"no Odometry has come, so {self._base!r} has no pose: check odometry_topic, or set ego_motion to none"
            )
        moved, fixed = self._odometry_frames
        moved2fixed = self._odometry.lookup(moved, fixed, stamp_ns, timeout_s=self._timeout_s)
        if moved == self._base:
            return moved2fixed
        return np.asarray(moved2fixed @ self._transforms.lookup(self._base, moved, stamp_ns, timeout_s=self._timeout_s))
