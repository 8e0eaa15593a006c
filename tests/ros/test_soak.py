"""A short form of `make soak`, and what its verdict says about made-up observations."""

from __future__ import annotations

import numpy as np
import pytest
from observed_run import Observation, slope_an_hour
from soak import IDLE, judge, report, run

pytestmark = [pytest.mark.ros]


def observed(*, slope_mib_h: float = 0.0, slower: float = 1.0, jump_mib: float = 0.0, lost: int = 0) -> Observation:
    """1000 seconds of a made-up run with noise."""
    rng = np.random.default_rng(0)
    t = np.arange(1000.0)
    mib = 400 + slope_mib_h * t / 3600 + jump_mib * (t > 500) + rng.normal(0, 0.2, 1000)
    ms = rng.gamma(20, 1.0, 1000) * np.linspace(1.0, slower, 1000)
    mib[:100] -= np.linspace(150, 0, 100)  # warming up
    values = {
        "sweeps received": str(1000 + lost),
        "occupancy published": "990",
        "in hand": "1",
        "dropped: superseded": "9",
    }
    return Observation(
        memory=list(zip(t, mib, strict=True)),
        total_ms=list(zip(t, ms, strict=True)),
        values=values,
        sent={"late_s": 0.0},
    )


def test_a_slope_is_that_of_most_pairs() -> None:
    t = np.arange(100.0)
    y = 3.0 + t / 36
    y[40:45] += 50
    assert slope_an_hour(list(zip(t, y, strict=True))) == pytest.approx(100)


def test_a_verdict_is_about_growth_slowing_down_and_what_is_lost() -> None:
    good = judge(observed(), warm_up_s=100)
    assert good.passed
    assert abs(good.slope_mib_h) < 2
    assert report(good, observed(), IDLE).endswith("passed")
    assert not judge(observed(slope_mib_h=30), warm_up_s=100).passed
    assert judge(observed(slope_mib_h=12), warm_up_s=100).passed
    assert not judge(observed(slower=1.8), warm_up_s=100).passed
    assert judge(observed(lost=3), warm_up_s=100).unaccounted == 3
    assert not judge(observed(lost=3), warm_up_s=100).passed
    broken = observed()
    broken.problems.append("the node ended with -9")
    assert not judge(broken, warm_up_s=100).passed
    assert "problem: the node ended with -9" in report(judge(broken, warm_up_s=100), broken, IDLE)
    assert not judge(Observation(), warm_up_s=1).passed


@pytest.mark.slow
def test_the_node_under_its_sensors_for_a_moment_neither_grows_nor_loses_a_sweep() -> None:
    """Twelve seconds cannot tell a slope of 20 MiB an hour; they tell a picture that is kept of every set."""
    seen = run(seconds=12, preset=IDLE, size="400x224", every_s=0.25)
    verdict = judge(seen, warm_up_s=4)
    print(report(verdict, seen, IDLE))  # noqa: T201 (shown with -s, and where the test fails)
    assert verdict.problems == ()
    assert verdict.unaccounted == 0
    assert verdict.results >= 10
    assert set(seen.received) == {"occupancy", "voxels", "grid"}
    start = seen.total_ms[0][0] + 4
    late = [mib for at, mib in seen.memory if at >= start]
    assert max(late[-4:]) - min(late) < 60, "a frame of this run holds 2 MiB, and 200 pass in that time"
