"""planted - one fault of mutations.py at a time, and who finds it: the exhaustive run, or a seed of the simulator."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.pool import ApplyResult
from typing import NamedTuple

from tests.sim import exhaustive, faults, mutations, run, small
from tests.sim.mutations import Mutation
from tests.sim.world import World

RUNS = 30_000
SEEDS = 600
FIRST_SEEDS = 20
_FAVOUR = 4


class Caught(NamedTuple):
    """`by` is "seed N" or the path of a sequence; None: nobody found it."""

    mutation: Mutation
    by: str | None
    violation: str
    seconds: float


Hunts = Sequence["ApplyResult[Caught]"]


class Partial(World):
    """A World in which the faults of a mutation are frequent, and there are no others; threads are frozen often."""

    favoured: tuple[str, ...] = ()

    def choose_profile(self) -> None:
        super().choose_profile()
        self.p_freeze = self.rng.choice((0.0, 0.02, 0.1))
        self.machine.rates = {name: min(0.3, _FAVOUR * faults.RATES[name]) for name in self.favoured}


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
    if isinstance(mutation.hint, str):
        yield mutation.hint, exhaustive.try_path(exhaustive.parse_path(mutation.hint))
    elif mutation.hint is not None:
        yield try_seed(mutation.hint, mutation.faults)
    for seed in range(FIRST_SEEDS):
        yield try_seed(seed, mutation.faults)
    if not mutation.faults:  # the exhaustive run knows none of them
        found = exhaustive.hunt(RUNS)
        yield ("", "") if found is None else (str(found.path), found.text)
    for seed in range(FIRST_SEEDS, seeds):
        yield try_seed(seed, mutation.faults)


def try_seed(seed: int, favoured: tuple[str, ...] = ()) -> tuple[str, str]:
    """What `python -m tests.sim.run --seed` does, and with favoured faults what it does not."""
    small.grow()
    if not favoured:
        return f"seed {seed}", run.run_seed(seed).violation or ""
    Partial.favoured = favoured
    return f"seed {seed} with more of {', '.join(favoured)}", Partial(seed).run(run.STEPS).violation or ""


@contextlib.contextmanager
def hunting(indexes: Iterable[int], seeds: int = SEEDS, workers: int = 2) -> Iterator[Hunts]:
    """All at once, each in a process of its own."""
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        yield [pool.apply_async(hunt, (index, seeds)) for index in indexes]


def try_unbroken(mutation: Mutation) -> str:
    """What finds the fault finds nothing where there is none; the violation, or ""."""
    if isinstance(mutation.hint, str):
        return exhaustive.try_path(exhaustive.parse_path(mutation.hint))
    return "" if mutation.hint is None else try_seed(mutation.hint, mutation.faults)[1]
