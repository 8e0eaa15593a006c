"""The multiply-adds that `fusionocc presets` tells; test_flashfusion and test_flashocc count some of them anew."""

import pytest

from fusionocc_core.commands.presets import _short
from fusionocc_core.models.multiplications import GIGA_MACS
from fusionocc_core.presets import list_presets


def test_those_of_flashocc_are_the_published_ones():
    assert GIGA_MACS["flashocc-m0"] == pytest.approx(153.3, rel=0.01)
    assert GIGA_MACS["flashocc-m1"] == pytest.approx(247.7, rel=0.01)


def test_every_number_belongs_to_a_preset():
    assert set(GIGA_MACS) <= set(list_presets())
    assert min(GIGA_MACS.values()) > 0


@pytest.mark.parametrize(("giga", "text"), [(9.37, "9.4"), (999.96, "1000"), (12345.6, "12346"), (None, "-")])
def test_numbers_stay_short(giga, text):
    assert _short(giga) == text
