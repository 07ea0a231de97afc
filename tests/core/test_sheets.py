"""Every check value of the method sheets, number by number, in float64 and to the digits printed."""

from functools import cache

import pytest
import torch
from sheet_losses import CORRECTED, DETAILS, GOLDEN
from sheet_margins import MARGINS
from sheet_rewards import APLOT, BASELINES
from sheets import Row, half_a_unit
from torch import Tensor

ROWS = (*GOLDEN, *CORRECTED, *DETAILS, *MARGINS, *APLOT, *BASELINES)
CASES = [case for row in ROWS for case in row.cases()]


@cache
def found_for(row: Row) -> Tensor:
    """The numbers of a row, computed once."""
    return row.find()


@pytest.mark.parametrize(("row", "i"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_number_is_the_one_printed(row: Row, i: int) -> None:
    """To half a unit of the last digit."""
    found, printed = found_for(row), row.printed.split()
    assert found.dtype == torch.float64
    assert found.shape == (len(printed),)
    assert found[i].item() == pytest.approx(float(printed[i]), rel=0, abs=half_a_unit(printed[i]) * (1 + 1e-6))


def test_no_row_is_there_twice() -> None:
    """A number has one place."""
    names = [name for name, _, _ in CASES]
    assert len(set(names)) == len(names)


def test_the_precision_is_that_of_the_last_digit() -> None:
    """A driver that compared nothing would pass everything."""
    for printed, half in (("0.371101", 5e-7), (".37", 5e-3), ("3.3401e-4", 5e-9), ("2.5e5", 5e3), ("-2.0", 0.05)):
        assert half_a_unit(printed) == pytest.approx(half, rel=1e-12)
    assert half_a_unit("0") < 1e-8
    assert half_a_unit("492040") < 1e-3
