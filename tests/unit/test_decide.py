"""Every row of the request table, written down from DESIGN section 4 and not from the code."""

from __future__ import annotations

import itertools

import pytest

from nbdplugin import decide
from nbdplugin.decide import Cover, Kind, Path, Step

# DESIGN's table: path ready, path not ready.  A volume without a pair: as not ready, but nothing is owed to anybody
# and nobody will bring what is invalid.  A pair whose copies must not part (policy stop): lost, ready.
ROWS = """
read   valid   here               | here                     | here | here | here
read   owed    here               | here                     | here | here | here
read   part    fetch              | wait                     | fail | wait | fetch
read   whole   fetch              | wait                     | fail | wait | fetch
write  valid   both               | here and owed            | here | wait | both
write  owed    here               | here and owed            | here | wait | both
write  part    fetch              | wait                     | fail | wait | fetch
write  whole   both               | here and owed            | here | wait | both
trim   valid   both               | here and owed            | here | wait | both
trim   owed    here               | here and owed            | here | wait | both
trim   part    skip               | skip                     | skip | skip | skip
trim   whole   both               | here and owed            | here | wait | both
"""
PATHS = (Path.READY, Path.NOT_READY, Path.ALONE, Path.HALTED, Path.STRICT)
MEANING = {
    "here": Step.LOCAL,
    "both": Step.BOTH,
    "here and owed": Step.OWE,
    "fetch": Step.FETCH,
    "wait": Step.WAIT,
    "fail": Step.FAIL,
    "skip": Step.SKIP,
}


def read_rows() -> dict[tuple[Kind, Cover, Path], Step]:
    table = {}
    for line in ROWS.strip().splitlines():
        kind, cover, rest = line.split(maxsplit=2)
        for path, word in zip(PATHS, rest.split("|"), strict=True):
            table[Kind[kind.upper()], Cover[cover.upper()], path] = MEANING[word.strip()]
    return table


@pytest.mark.parametrize(
    "case", list(itertools.product(Kind, Cover, Path)), ids=lambda c: "-".join(item.name for item in c)
)
def test_a_request_is_dealt_with_as_the_design_says(case: tuple[Kind, Cover, Path]) -> None:
    assert decide.decide(*case) is read_rows()[case]


def test_the_table_has_no_row_that_the_design_has_not() -> None:
    assert set(decide.TABLE) == set(read_rows())
