"""What the synchroniser is told, what it hands out, and what it counts. Pure Python, no ROS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fusionocc_ros.streams import Stamped

S = 1_000_000_000
MS = 1_000_000

Item = TypeVar("Item")

LIDAR = "lidar"
"""The name of the first LiDAR; the others have names of their own, as cameras have."""

ZERO_STAMP = "zero_stamp"
DUPLICATE = "duplicate"
OUT_OF_ORDER = "out_of_order"
TOO_FEW_CAMERAS = "too_few_cameras"
OVERFLOW = "overflow"
TIME_JUMP = "time_jump"
STOPPED = "stopped"
UNMATCHED = "unmatched"
SYNC_CAUSES: dict[str, str] = {
    ZERO_STAMP: "the sweep's stamp is zero or negative: the driver does not stamp its messages",
    DUPLICATE: "a second sweep with the stamp of the one before",
    OUT_OF_ORDER: "the sweep is older than one that came before it",
    TOO_FEW_CAMERAS: "fewer than sync.min_cameras cameras had a picture within sync.tolerance by the deadline",
    OVERFLOW: "more than 20 sweeps were waiting for pictures: the oldest gave way",
    TIME_JUMP: "the stamps jumped back (a bag looped, a simulation restarted) while the sweep was waiting",
    STOPPED: "the node was deactivated while the sweep was waiting",
    UNMATCHED: "sync.policy approximate_time found no set for the sweep",
}
"""Why a set was dropped here, and what each word means."""


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """How messages are matched."""

    cameras: tuple[str, ...]
    lidars: tuple[str, ...] = (LIDAR,)
    reference: str = LIDAR
    """The camera or LiDAR whose messages begin the sets."""
    time_offset_ns: Mapping[str, int] = field(default_factory=dict)
    """Where a sensor's message is expected relative to the first LiDAR's stamp; 0 for sensors that are not listed."""
    tolerance_ns: int = 100 * MS
    """A message further than this from where it is expected is not used."""
    noise_window_ns: int = 0
    """A message this near to where it is expected is the one: a still nearer one is not waited for."""
    deadline_ns: int = 150 * MS
    """Longest wait after the arrival of the reference's message."""
    newest: bool = False
    """Wait for nothing: take what each sensor sent last."""
    min_cameras: int = 0
    """A set with fewer pictures is dropped; 0 lets the LiDAR through alone."""
    reference_timeout_ns: int = 0
    """After so long without the reference the first other sensor that speaks begins the sets; 0: none ever does."""
    give_up_after: int = 5
    """A sensor that missed so many sets in a row is no longer waited for until it speaks again."""
    expect_pace: bool = True
    """Do not wait for a message that, at the sensor's pace, cannot be nearer than the one at hand."""
    max_pictures: int = 20
    """Messages kept for each sensor."""
    max_pending: int = 20
    """Sets that may wait at the same time."""
    jump_back_ns: int = 200 * MS
    """A stamp further back than this is a jump in time (everything starts anew), not a late message."""

    @property
    def sensors(self) -> tuple[str, ...]:
        """All of them: LiDARs, then cameras."""
        return (*self.lidars, *self.cameras)

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if len(set(self.sensors)) != len(self.sensors):
            raise ValueError(f"SyncConfig.cameras and lidars: names must differ, got {list(self.sensors)}")
        if self.reference not in self.sensors:
            raise ValueError(f"SyncConfig.reference={self.reference!r}: expected one of {list(self.sensors)}")
        unknown = sorted(set(self.time_offset_ns) - set(self.sensors))
        if unknown:
            raise ValueError(f"SyncConfig.time_offset_ns names {unknown}; the sensors are {list(self.sensors)}")
        if not 0 <= self.min_cameras <= len(self.cameras):
            raise ValueError(
                f"SyncConfig.min_cameras={self.min_cameras}: expected 0 to {len(self.cameras)}, the number of cameras"
            )
        for name in ("tolerance_ns", "deadline_ns", "give_up_after", "max_pictures", "max_pending", "jump_back_ns"):
            if getattr(self, name) < 1:
                raise ValueError(f"SyncConfig.{name}={getattr(self, name)}: must be positive")
        for name in ("noise_window_ns", "reference_timeout_ns"):
            if getattr(self, name) < 0:
                raise ValueError(f"SyncConfig.{name}={getattr(self, name)}: must not be negative")


@dataclass(frozen=True, kw_only=True)
class SensorSet(Generic[Item]):
    """Messages that belong together."""

    stamp_ns: int
    """Of the message that began the set."""
    pictures: Mapping[str, Stamped[Item]]
    """By camera, in the order of SyncConfig.cameras; cameras without a picture are absent."""
    clouds: Mapping[str, Stamped[Item]] = field(default_factory=dict)
    """By LiDAR, in the order of SyncConfig.lidars, the first one among them; absent as above."""
    arrived_ns: int
    """When the message that began the set came, on the synchroniser's clock."""
    released_ns: int
    """When the set left."""
    epoch: int
    """Grows by one each time the stamps jump back: sets of different epochs must not be combined."""
    missing: tuple[str, ...] = ()
    """Sensors that have no message in the set."""

    @property
    def sweep(self) -> Item | None:
        """The first LiDAR's cloud."""
        found = self.clouds.get(LIDAR)
        return None if found is None else found.item


@dataclass(kw_only=True)
class SyncCounters:
    """What went in and where it went."""

    received: int = 0
    """Sets begun: messages of the reference, and of what stood in for it."""
    stood_in: int = 0
    """Those of them that another sensor than the reference began."""
    released: int = 0
    complete: int = 0
    """Released sets that hold every sensor."""
    resets: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)
    """Messages received, by sensor."""
    not_kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Messages of sensors other than the reference that were not kept, by (sensor, cause)."""
    missing: Counter[str] = field(default_factory=Counter)
    """Released or dropped sets that lacked this sensor."""
    late: Counter[str] = field(default_factory=Counter)
    """Sets that waited for this sensor until the deadline."""
