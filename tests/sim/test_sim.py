"""What the design promises holds under every order of events and every fault that the seeds try.

Each seed runs in a process of its own pool: the simulator makes pages and runs small for its whole process.  The full
run is `python -m tests.sim.run --full`; here is a fixed share of it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import pytest
from conftest import SAY

from tests.sim import coverage, run
from tests.sim.world import Result

SEEDS = 700
STEPS = 1_000
LIVE_SEEDS = 60
LIVE_STEPS = 500
LEAST_MET = 0.9  # of the cells that are possible; the full run meets each of them often


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return run.run_seeds(range(SEEDS), STEPS)


def describe(results: list[Result], options: str) -> str:
    bad = [f"seed {result.seed} step {result.steps}: {result.violation}" for result in results if result.violation]
    return "\n".join([f"replay with: python -m tests.sim.run {options} --trace --seed N", *bad]) if bad else ""


@pytest.mark.timeout(600)
def test_no_seed_breaks_a_rule(results: list[Result]) -> None:
    assert not describe(results, f"--steps {STEPS}")


@pytest.mark.timeout(600)
def test_each_fault_met_each_state_it_can_meet(
    results: list[Result], record_property: Callable[[str, object], None]
) -> None:
    hits = coverage.sum_hits([result.hits for result in results])
    steps = sum(result.steps for result in results)
    record_property(SAY, f"{len(results)} seeds, {steps} steps; faults met by state:\n{coverage.draw_table(hits)}")
    assert not [cell for cell in coverage.IMPOSSIBLE if cell in hits]
    met = [cell for cell in coverage.CELLS if cell in hits]
    assert len(met) >= LEAST_MET * len(coverage.CELLS), coverage.find_missing(hits, 1)


@pytest.mark.timeout(600)
def test_what_can_go_on_goes_on_while_one_thing_stays_broken() -> None:
    assert not describe(run.run_seeds(range(LIVE_SEEDS), LIVE_STEPS, is_live=True), f"--live --steps {LIVE_STEPS}")


def test_a_seed_replays_exactly() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_trace, (7, 7))
    assert first == second
    assert len(first) > run.STEPS / 4


def _trace(seed: int) -> list[str]:
    trace: list[str] = []
    run.run_seed(seed, trace=trace)
    return trace
