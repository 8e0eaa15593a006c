"""--set key=value."""

from dataclasses import dataclass, field

import pytest

from fusionocc_core.engine.overrides import keys_of, nearest, override
from fusionocc_core.engine.trainer import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    size: tuple[int, int] = (1, 2)
    strides: tuple[int, ...] = (1,)
    name: str = "swin"
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Outer:
    rate: float = 0.1
    on: bool = True
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("rate=1e-4", lambda c: c.rate == 1e-4),
        ("rate=3", lambda c: c.rate == 3.0 and isinstance(c.rate, float)),
        ("on=false", lambda c: c.on is False),
        ("inner.size=256,704", lambda c: c.inner.size == (256, 704)),
        ("inner.size=(256, 704)", lambda c: c.inner.size == (256, 704)),
        ("inner.strides=1,2,2", lambda c: c.inner.strides == (1, 2, 2)),
        ("inner.name=resnet=18", lambda c: c.inner.name == "resnet=18"),
        ("inner.limit=7", lambda c: c.inner.limit == 7),
        ("inner.limit=none", lambda c: c.inner.limit is None),
    ],
)
def test_values_are_read_by_the_type_of_the_field(text, read):
    before = Outer()
    assert read(override(before, [text]))
    assert before == Outer()


def test_later_assignments_win_and_the_rest_stays():
    changed = override(Outer(), ["rate=1", "inner.limit=3", "rate=2"])
    assert changed == Outer(rate=2.0, inner=Inner(limit=3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rat=1", r"--set rat: no such key; did you mean rate"),
        ("inner.siz=1,2", r"no such key; did you mean inner\.size"),
        ("limit=3", r"did you mean .*inner\.limit"),
        ("rate.deep=3", "no such key"),
        ("rate=fast", "--set rate=fast: expected a number"),
        ("on=1", "expected true or false"),
        ("inner.limit=1.5", "expected a whole number"),
        ("inner.size=1", "expected 2 values separated by commas"),
        ("inner.size=1,2,3", "expected 2 values separated by commas"),
        ("inner.strides=a,b", "expected numbers separated by commas"),
        ("inner=3", "a group of fields; set one of inner.: size, strides, name, limit"),
        ("maybe.limit=3", "a part of it is none in this recipe"),
        ("rate", "expected key=value"),
        ("=3", "expected key=value"),
    ],
)
def test_mistakes_are_told_with_the_way_out(text, message):
    with pytest.raises(ValueError, match=message):
        override(Outer(), [text])


def test_fields_that_depend_on_each_other_are_changed_together():
    from fusionocc_core.grids import OCC3D_GRID

    grid = override(OCC3D_GRID, ["upper=40.0,40.0,5.5", "voxel_size=0.4,0.4,0.5"])  # either alone is refused
    assert grid.shape == (200, 200, 13)


def test_a_group_and_a_part_of_it_are_refused():
    with pytest.raises(ValueError, match="ema: given together with a part of it"):
        override(TrainConfig(), ["ema=none", "ema.decay=0.5"])


def test_what_the_config_itself_refuses_is_refused():
    with pytest.raises(ValueError, match="precision='fp8'"):
        override(TrainConfig(), ["precision=fp8"])


def test_averaging_can_be_switched_off():
    assert override(TrainConfig(), ["ema=none"]).ema is None


def test_keys_of_lists_every_level():
    assert keys_of(Outer()) == [
        "rate", "on", "inner", "inner.size", "inner.strides", "inner.name", "inner.limit", "maybe",
    ]  # fmt: skip


def test_nearest_lists_everything_when_nothing_is_near():
    assert nearest("zzz", ["alpha", "beta"]) == "there are alpha, beta"
