"""The node under its sensors for a long time: does memory grow, does it slow down?

python tests/ros/soak.py [--minutes 30] [--preset NAME] [--out FILE]

20 Hz LiDAR, six cameras at 12 Hz with their phases (JPEG, 800x450), transforms at 50 Hz; occupancy, voxels and the map
are listened to. Prints a verdict; exit code 1: a figure was missed. Wants an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from observed_run import HERE, Observation, observe, slope_an_hour

MOST_SLOPE = 20.0
"""MiB an hour."""
MOST_SLOWDOWN = 1.2
"""Median latency of the last third against the first, after warm-up ..."""
SLACK_MS = 5.0
""".. or so many milliseconds, whichever is more."""
IDLE = "idle"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What is asked of a soak."""

    minutes: float
    slope_mib_h: float
    first_ms: float
    last_ms: float
    p99_first_ms: float
    p99_last_ms: float
    results: int
    unaccounted: int
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every figure was met."""
        flat = self.last_ms <= max(MOST_SLOWDOWN * self.first_ms, self.first_ms + SLACK_MS)
        return self.slope_mib_h < MOST_SLOPE and flat and not self.unaccounted and not self.problems


def judge(seen: Observation, *, warm_up_s: float) -> Verdict:
    """The figures after a warm-up."""
    if not seen.total_ms or not seen.values:
        problems = (*seen.problems, "no result was seen")
        nothing = float("nan")
        return Verdict(
            minutes=0.0,
            slope_mib_h=nothing,
            first_ms=nothing,
            last_ms=nothing,
            p99_first_ms=nothing,
            p99_last_ms=nothing,
            results=0,
            unaccounted=0,
            problems=problems,
        )
    start = seen.total_ms[0][0] + warm_up_s
    memory = [sample for sample in seen.memory if sample[0] >= start]
    latency = np.array([ms for at, ms in seen.total_ms if at >= start])
    thirds = np.array_split(latency, 3)
    return Verdict(
        minutes=(seen.total_ms[-1][0] - seen.total_ms[0][0]) / 60,
        slope_mib_h=slope_an_hour(memory),
        first_ms=float(np.median(thirds[0])),
        last_ms=float(np.median(thirds[-1])),
        p99_first_ms=float(np.percentile(thirds[0], 99)),
        p99_last_ms=float(np.percentile(thirds[-1], 99)),
        results=len(seen.total_ms),
        unaccounted=seen.unaccounted,
        problems=tuple(seen.problems),
    )


def run(*, seconds: float, preset: str, size: str = "800x450", every_s: float = 1.0) -> Observation:
    """One soak."""
    if preset == IDLE:
        node = [sys.executable, str(HERE / "fast_node.py"), "30000"]
    else:
        node = [sys.executable, "-m", "fusionocc_ros.node"]
    return observe(
        [*node, *(() if preset == IDLE else ("--ros-args", "-p", f"preset:={preset}"))],
        ["compressed", str(seconds), "--size", size],
        every_s=every_s,
    )


def report(verdict: Verdict, seen: Observation, preset: str) -> str:
    """For people."""
    dropped = {key: value for key, value in seen.values.items() if key.startswith("dropped: ")}
    memory = [mib for _, mib in seen.memory]
    return "\n".join(
        [
            f"{verdict.minutes:.1f} minutes, network {preset}, {verdict.results} results, sender late by "
            f"{1e3 * seen.sent.get('late_s', 0):.0f} ms at most, {platform.processor() or platform.machine()}, "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
            f"memory: {memory[0]:.0f} MiB at first, {memory[-1]:.0f} at the end, "
            f"slope {verdict.slope_mib_h:+.1f} MiB/h after warm-up (under {MOST_SLOPE:.0f} is asked)",
            f"latency p50 {verdict.first_ms:.1f} -> {verdict.last_ms:.1f} ms, p99 {verdict.p99_first_ms:.1f} -> "
            f"{verdict.p99_last_ms:.1f} ms, first third -> last third after warm-up",
            f"dropped: {dropped or 'nothing'}; sweeps unaccounted for: {verdict.unaccounted}",
            *(f"problem: {problem}" for problem in verdict.problems),
            "passed" if verdict.passed else "FAILED",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="The node under its sensors for a long time.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--preset", default="fusionocc-tiny", help=f"or {IDLE} for no network (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="where figures and samples go, as JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the node must not outlive this process
    seconds = 60 * arguments.minutes
    seen = run(seconds=seconds, preset=arguments.preset)
    verdict = judge(seen, warm_up_s=min(300.0, seconds / 4))
    sys.stdout.write(report(verdict, seen, arguments.preset) + "\n")
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"verdict": vars(verdict), "memory": seen.memory, "total_ms": seen.total_ms}
        arguments.out.write_text(json.dumps(content | {"values": seen.values, "sent": seen.sent}) + "\n")
    return int(not verdict.passed)


if __name__ == "__main__":
    sys.exit(main())
