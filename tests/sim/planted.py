"""planted - one fault of mutations.py at a time, and who finds it: the exhaustive run, or a seed of the simulator."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.pool import ApplyResult
from typing import NamedTuple

from tests.sim import exhaustive, faults, mutations, run, small
from tests.sim.model import Violation
from tests.sim.mutations import Mutation
from tests.sim.world import World

RUNS = 30_000
SEEDS = 600
FIRST_SEEDS = 20
SPIN_S = 10  # of processor time, some ten times what a seed needs
_FAVOUR = 4


class Caught(NamedTuple):
    """`by` is "seed N" or the path of a sequence; None: nobody found it."""

    mutation: Mutation
    by: str | None
    violation: str
    seconds: float


Hunts = Sequence["ApplyResult[Caught]"]


class Partial(World):
    """A World in which the faults of a mutation are frequent, and there are no others but those that lead to its aim.

    Threads are frozen often; the mutation's lazy ones, which others overtake at a wait, above all.
    """

    favoured: tuple[str, ...] = ()
    laziest = ""

    def choose_profile(self) -> None:
        super().choose_profile()
        machine = self.machine
        self.p_freeze = self.rng.choice((0.0, 0.02, 0.1))
        rates = {name: min(0.3, _FAVOUR * faults.RATES[name]) for name in self.favoured}
        machine.rates = machine.rates | rates if self.is_sharp else rates
        if self.laziest:
            self.lazy, self.p_lazy, machine.p_immediate = self.laziest, self.rng.choice((0.1, 0.3, 0.6)), 0.95


def hunt(index: int, seeds: int = SEEDS) -> Caught:
    """Ends this process's innocence.  Who found it once is asked first."""
    mutation = mutations.MUTATIONS[index]
    begin = time.monotonic()
    mutations.apply(mutation)
    for by, violation in _search(mutation, seeds):
        if violation:
            return Caught(mutation, by, violation, time.monotonic() - begin)
    return Caught(mutation, None, "", time.monotonic() - begin)


def _search(mutation: Mutation, seeds: int) -> Iterator[tuple[str, str]]:
    if mutation.hint is not None:
        yield try_hint(mutation)
    for seed in range(FIRST_SEEDS):
        yield try_seed(mutation, seed)
    if not mutation.faults and mutation.aim is None:  # the exhaustive run knows none of them
        found = exhaustive.hunt(RUNS)
        yield ("", "") if found is None else (str(found.path), found.text)
    for seed in range(FIRST_SEEDS, seeds):
        yield try_seed(mutation, seed)


def try_hint(mutation: Mutation) -> tuple[str, str]:
    """(by, violation), "" if there is none."""
    if isinstance(mutation.hint, str):
        return mutation.hint, exhaustive.try_path(exhaustive.parse_path(mutation.hint))
    return try_seed(mutation, mutation.hint or 0)


def try_seed(mutation: Mutation, seed: int) -> tuple[str, str]:
    """What `python -m tests.sim.run --seed` does, and with favoured faults or an aim what it does not."""
    small.grow()
    signal.signal(signal.SIGVTALRM, _end_spin)
    signal.setitimer(signal.ITIMER_VIRTUAL, SPIN_S)
    try:
        return _try_seed(mutation, seed)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _end_spin(number: int, frame: object) -> None:
    raise Violation(f"a flow runs on and on: the seed was not through after {SPIN_S} s of processor time")


def _try_seed(mutation: Mutation, seed: int) -> tuple[str, str]:
    if not mutation.faults and mutation.aim is None:
        return f"seed {seed}", run.run_seed(seed, mutation.steps).violation or ""
    Partial.favoured, Partial.laziest = mutation.faults, mutation.lazy
    by = [f"seed {seed}"]
    by += [f"with more of {', '.join(mutation.faults)}"] * bool(mutation.faults)
    by += [f"aiming at {mutation.aim[0]} in {mutation.aim[1]}"] if mutation.aim else []
    by += [f"with a lazy {mutation.lazy}"] * bool(mutation.lazy)
    return ", ".join(by), Partial(seed, aim=mutation.aim).run(mutation.steps).violation or ""


@contextlib.contextmanager
def hunting(indexes: Iterable[int], seeds: int = SEEDS, workers: int = 2) -> Iterator[Hunts]:
    """All at once, each in a process of its own."""
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        yield [pool.apply_async(hunt, (index, seeds)) for index in indexes]


def try_unbroken(mutation: Mutation) -> str:
    """What finds the fault finds nothing where there is none; the violation, or ""."""
    return try_hint(mutation)[1]
