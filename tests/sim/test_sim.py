"""What the design promises holds under every order of events and every fault that the seeds try.

Each seed runs in a process of its own pool: the simulator makes pages and runs small for its whole process.
"""

from __future__ import annotations

import multiprocessing

import pytest

from tests.sim import run
from tests.sim.machine import FAULTS
from tests.sim.run import Result
from tests.sim.world import STATES

IMPOSSIBLE = {
    ("sync B", "unpaired"): "only a session syncs the peer",
    ("write B", "unpaired"): "only a session writes there",
    ("write B", "connected"): "only a committed pair writes there",
    ("refusal", "unpaired"): "nothing is asked of the peer",
    ("fetch time-out", "push"): "a session that is up has woken who waited for it",
    ("fetch time-out", "pull"): "a session that is up has woken who waited for it",
    ("fetch time-out", "synchronized"): "a session that is up has woken who waited for it",
}
RARE = {
    ("table B", "push"): "the closing message is late, and something is owed again in the next session",
    (
        "write B",
        "suspended",
    ): "what a session that broke had sent arrives after the suspension: once in thousands of seeds",
    ("table B", "pull"): "the closing message of a push, while a failed local write is fetched back",
    ("fetch time-out", "unpaired"): "between the deletion of a pair and the end of those who waited for it",
}


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return run.run_seeds(range(run.SEEDS))


@pytest.mark.timeout(600)
def test_no_seed_breaks_a_rule(results: list[Result]) -> None:
    bad = [f"seed {result.seed} step {result.steps}: {result.violation}" for result in results if result.violation]
    assert not bad, "replay with: python -m tests.sim.run --trace --seed N\n" + "\n".join(bad)


@pytest.mark.timeout(600)
def test_each_fault_met_each_state_it_can_meet(results: list[Result], capsys: pytest.CaptureFixture[str]) -> None:
    hits = run.sum_hits(results)
    with capsys.disabled():  # the coverage belongs into CI's output, also when all is well
        print(f"\n{len(results)} seeds, {sum(result.steps for result in results)} steps; faults met by state:")
        print(run.draw_table(hits))
    cells = [(fault, state) for fault in FAULTS for state in STATES]
    missing = [cell for cell in cells if cell not in hits and cell not in IMPOSSIBLE and cell not in RARE]
    assert not missing
    assert not [cell for cell in IMPOSSIBLE if cell in hits]


def test_a_seed_replays_exactly() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        first, second = pool.map(_trace, (7, 7))
    assert first == second
    assert len(first) > run.STEPS / 4


def _trace(seed: int) -> list[str]:
    trace: list[str] = []
    run.run_seed(seed, trace=trace)
    return trace
