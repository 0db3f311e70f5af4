"""The simulator and the exhaustive run can fail: they find the faults of mutations.py.

Here those that are known to be found quickly; `scripts/planted-faults` plants them all.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator

import pytest

from tests.sim import mutations, planted
from tests.sim.planted import Hunts

SEEDS = 60
KNOWN = [index for index, mutation in enumerate(mutations.MUTATIONS) if mutation.hint is not None]


@pytest.fixture(scope="module")
def hunts() -> Iterator[Hunts]:
    with planted.hunting(KNOWN, SEEDS) as found:
        yield found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", range(len(KNOWN)), ids=lambda number: mutations.MUTATIONS[KNOWN[number]].name)
def test_somebody_finds(hunts: Hunts, number: int) -> None:
    caught = hunts[number].get()
    assert caught.by is not None, f"neither {SEEDS} seeds nor the short sequences find: {caught.mutation.name}"
    print(f"{caught.by}: {caught.violation}")


@pytest.mark.timeout(300)
def test_unbroken_code_passes_where_faults_are_found() -> None:
    """Else what finds them would prove nothing."""
    known = [mutations.MUTATIONS[index] for index in KNOWN]
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=8) as pool:
        violations = pool.map(planted.try_unbroken, known)
    assert [text for text in violations if text] == []
