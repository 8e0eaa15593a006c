"""What the node counts, and how it says so on /diagnostics."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from fusionocc_ros.causes import CAUSES
from fusionocc_ros.convert import ns_to_stamp
from fusionocc_ros.ego_motion import Source
from fusionocc_ros.sync import SyncCounters

LEFT_OUT = "left out "
"""How counters begin that tell of messages that could not be used; the sensor and the cause follow."""
SILENT_AFTER_S = 2.0
"""A sensor that sent nothing for so long is reported."""
CLOCK_STANDS_AFTER_S = 5.0
"""Simulated time that stands still for so long, in real time and while nothing is worked on, is reported."""
LATENCIES = 200
"""How many of the last latencies the percentiles are taken from."""
PERCENTILES = (50, 95, 99)


class Statistics:
    """Counts what happens to sets behind the synchroniser. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._dropped: Counter[str] = Counter()
        self._published = 0
        self._total_s: deque[float] = deque(maxlen=LATENCIES)
        self._network_s: deque[float] = deque(maxlen=LATENCIES)
        self._source: Source | None = None

    def drop(self, cause: str) -> None:
        """Count a set that gave no message."""
        with self._lock:
            self._dropped[cause] += 1

    def follow(self, source: Source) -> bool:
        """Note where ego motion comes from; True where that is new."""
        with self._lock:
            changed, self._source = source is not self._source, source
            return changed

    def publish(self, *, total_s: float, network_s: float) -> None:
        """Count a message."""
        with self._lock:
            self._published += 1
            self._total_s.append(total_s)
            self._network_s.append(network_s)

    def snapshot(self) -> WorkCounters:
        """The counts as they are now."""
        with self._lock:
            return WorkCounters(
                published=self._published,
                dropped=Counter(self._dropped),
                total_s=tuple(self._total_s),
                network_s=tuple(self._network_s),
                source=self._source,
            )


@dataclass(frozen=True, kw_only=True)
class WorkCounters:
    """What happened to the sets that the synchroniser released."""

    published: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    total_s: tuple[float, ...] = ()
    network_s: tuple[float, ...] = ()
    source: Source | None = None


class Throttle:
    """Lets a message of each kind through once in a while, so that a broken sensor does not flood the log.

    Safe to use from several threads.

    Args:
        period_s: time between two messages of a kind.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._held: Counter[str] = Counter()

    def __call__(self, kind: str, message: str) -> str | None:
        """The message, with how many of its kind were held back before it; None where it is held back itself."""
        now = time.monotonic()
        with self._lock:
            if now - self._last.get(kind, -self._period_s) < self._period_s:
                self._held[kind] += 1
                return None
            self._last[kind] = now
            held = self._held.pop(kind, 0)
        return f"{message} ({held} more like this since the last report)" if held else message


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that goes into one DiagnosticArray."""

    node: str
    stamp_ns: int
    period_s: float
    """Time since the report before."""
    state: str
    model: str
    trained_on: str
    device: str
    sync: SyncCounters
    sync_before: SyncCounters
    work: WorkCounters
    work_before: WorkCounters
    in_hand: int
    """Sweeps that wait in the synchroniser, in the mailbox, or are worked on."""
    silence_s: dict[str, float]
    """Time since the last message of the LiDAR ("lidar") and of each camera; infinite where none came."""
    silence_reasons: dict[str, str] = field(default_factory=dict)
    """Of the sensors that are silent: what may be the matter."""
    clock_problem: str = ""
    """What is wrong with simulated time, if something is."""
    extra: dict[str, int] = field(default_factory=dict)
    extra_before: dict[str, int] = field(default_factory=dict)
    model_hash: str = ""
    memory_mib: dict[str, float] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    """Messages by topic."""
    failed: dict[str, int] = field(default_factory=dict)
    """Results that could not be shown, by topic."""


def report_to_message(report: Report) -> DiagnosticArray:
    """Four statuses: inputs, sets, inference, ego motion."""
    out = DiagnosticArray()
    out.header.stamp = ns_to_stamp(report.stamp_ns)
    out.status = [_inputs(report), _sets(report), _inference(report), _ego_motion(report)]
    return out


def _status(
    report: Report, name: str, problems: list[str], values: dict[str, object], level: bytes
) -> DiagnosticStatus:
    out = DiagnosticStatus(name=f"{report.node}: {name}", hardware_id=report.node)
    out.level = level if problems else DiagnosticStatus.OK
    out.message = "; ".join(problems) if problems else "OK"
    out.values = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return out


def silent_sensors(silence_s: dict[str, float]) -> list[str]:
    """Those that sent nothing for SILENT_AFTER_S."""
    return [name for name, silence in silence_s.items() if silence > SILENT_AFTER_S]


def _inputs(report: Report) -> DiagnosticStatus:
    values: dict[str, object] = {"state": report.state}
    for name, count in {**dict.fromkeys(report.silence_s, 0), **report.sync.messages}.items():
        values[f"{name} received"] = count
        values[f"{name} rate [Hz]"] = f"{(count - report.sync_before.messages[name]) / report.period_s:.1f}"
    for name, silence in report.silence_s.items():
        values[f"{name} last message [s ago]"] = f"{silence:.2f}" if np.isfinite(silence) else "never"
    for (sensor, cause), count in report.sync.not_kept.items():
        values[f"{sensor} messages not kept: {cause}"] = count
    problems = [report.clock_problem] if report.clock_problem else []
    problems += [f"nothing from {name}: {reason}" for name, reason in report.silence_reasons.items()]
    problems += _gone_without(report)
    level = DiagnosticStatus.ERROR if "lidar" in report.silence_reasons else DiagnosticStatus.WARN
    return _status(report, "inputs", problems, values, level)


def _gone_without(report: Report) -> list[str]:
    """The sensors that sets had to do without since the last report, and are not silent."""
    sets = report.sync.released - report.sync_before.released
    missing = report.sync.missing - report.sync_before.missing
    told = [
        f"{count} of {sets} sets without {sensor}"
        for sensor, count in missing.items()
        if sensor not in report.silence_reasons
    ]
    new = Counter(report.extra) - Counter(report.extra_before)
    return told + [f"{key} ({count} times)" for key, count in new.items() if key.startswith(LEFT_OUT)]


def _sets(report: Report) -> DiagnosticStatus:
    dropped = report.sync.dropped + report.work.dropped
    new = dropped - (report.sync_before.dropped + report.work_before.dropped)
    values: dict[str, object] = {
        "sweeps received": report.sync.received,
        "sets released": report.sync.released,
        "sets with every camera": report.sync.complete,
        "occupancy published": report.work.published,
        "in hand": report.in_hand,
        "time jumps": report.sync.resets,
        **{f"dropped: {cause}": dropped[cause] for cause in CAUSES if dropped[cause]},
        **{f"sets without {sensor}": count for sensor, count in report.sync.missing.items()},
        **{f"sets late for {sensor}": count for sensor, count in report.sync.late.items()},
        **report.extra,
    }
    # Overtaken sets are the normal life of a network that is slower than the LiDAR.
    bad = {cause: count for cause, count in new.items() if cause != "superseded"}
    problems = [f"{count} dropped: {cause} ({CAUSES[cause]})" for cause, count in bad.items()]
    return _status(report, "sets", problems, values, DiagnosticStatus.WARN)


def _inference(report: Report) -> DiagnosticStatus:
    count = report.work.published - report.work_before.published
    values: dict[str, object] = {
        "model": report.model,
        "trained on": report.trained_on,
        "model hash": report.model_hash,
        "device": report.device,
        "rate [Hz]": f"{count / report.period_s:.2f}",
    }
    for name, seconds in (("latency", report.work.total_s), ("network", report.work.network_s)):
        for percentile in PERCENTILES:
            value = f"{1000 * float(np.percentile(seconds, percentile)):.1f}" if seconds else "none yet"
            values[f"{name} p{percentile} [ms]"] = value
    for name, mebibytes in report.memory_mib.items():
        values[f"{name} memory [MiB]"] = f"{mebibytes:.0f}"
    values |= {f"messages on {topic}": sent for topic, sent in report.sent.items()}
    values |= {f"could not be made: {topic}": failed for topic, failed in report.failed.items()}
    return _status(report, "inference", [], values, DiagnosticStatus.WARN)


def _ego_motion(report: Report) -> DiagnosticStatus:
    source = report.work.source
    problems = (
        ["unknown: pictures and sweep are treated as taken from one place, and no earlier keyframes are used"]
        if source is Source.NONE
        else []
    )
    values: dict[str, object] = {"source": source.name.lower() if source else "nothing published yet"}
    return _status(report, "ego motion", problems, values, DiagnosticStatus.WARN)
