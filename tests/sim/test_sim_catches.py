"""The simulator can fail: it finds each fault of mutations.py."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest

from tests.sim import mutations, run

SEEDS = 600


def find(index: int) -> tuple[int, str] | None:
    """(seed, violation) of the first seed that finds the mutation; ends this process's innocence."""
    mutation = mutations.MUTATIONS[index]
    mutations.apply(mutation)
    for seed in (mutation.hint, *range(SEEDS)):
        violation = run.run_seed(seed).violation
        if violation is not None:
            return seed, violation
    return None


@pytest.fixture(scope="module")
def hunts() -> Any:
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        yield [pool.apply_async(find, (index,)) for index in range(len(mutations.MUTATIONS))]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("index", range(len(mutations.MUTATIONS)), ids=lambda i: mutations.MUTATIONS[i].name)
def test_the_simulator_finds(hunts: Any, index: int) -> None:
    found = hunts[index].get()
    assert found is not None, f"{SEEDS} seeds do not find: {mutations.MUTATIONS[index].name}"
    print(f"seed {found[0]}: {found[1]}")
