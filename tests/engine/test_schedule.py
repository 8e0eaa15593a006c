"""The learning rate against numbers worked out by hand from mmcv's formulas."""

import math

import pytest

from fusionocc_core.engine.schedule import ScheduleConfig, rate_factor

OFFICIAL = ScheduleConfig()


def at(step, epoch, config=OFFICIAL):
    return rate_factor(config, step=step, epoch=epoch, epochs=24)


def test_warm_up_starts_at_a_third_and_ends_at_step_500():
    assert at(0, 0.0) == pytest.approx(1 / 3)
    assert at(250, 0.07) == pytest.approx(2 / 3)
    assert at(499, 0.14) == pytest.approx(1 - (1 / 500) * (2 / 3))
    assert at(500, 0.14) == 1.0


@pytest.mark.parametrize(("epoch", "factor"), [(6, 0.853699), (12, 0.5005), (18, 0.147301), (23, 0.005273)])
def test_cosine_of_the_epoch(epoch, factor):
    """0.001 + 0.999 (1 + cos(pi e / 24)) / 2."""
    assert at(10_000, float(epoch)) == pytest.approx(factor, abs=2e-6)


def test_official_rate_is_constant_within_an_epoch():
    assert at(10_000, 6.0) == at(11_000, 6.999)
    by_step = ScheduleConfig(every="step")
    assert at(11_000, 6.999, by_step) == pytest.approx(at(11_000, 7.0, by_step), abs=1e-3)
    assert at(11_000, 6.5, by_step) < at(11_000, 6.0, by_step)


def test_warm_up_scales_what_the_cosine_gives():
    early = at(100, 2.0)
    cosine = 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * 2 / 24)) / 2
    assert early == pytest.approx(cosine * (1 - 0.8 * 2 / 3))


def test_constant():
    config = ScheduleConfig(decay="constant", warmup_steps=0)
    assert {at(step, step / 10, config) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    "wrong",
    [{"decay": "linear"}, {"every": "batch"}, {"warmup_steps": -1}, {"warmup_ratio": 0.0}, {"final_ratio": 2.0}],
)
def test_wrong_values(wrong):
    with pytest.raises(ValueError, match=f"ScheduleConfig.*{next(iter(wrong))}"):
        ScheduleConfig(**wrong)
