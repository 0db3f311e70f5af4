"""run - one seed, or many: `python -m tests.sim.run --seed 7 --steps 2000 --trace`."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterable

from tests.sim import coverage
from tests.sim.world import Result as Result
from tests.sim.world import World

STEPS = 2_000
SEEDS = 600
FULL_SEEDS, FULL_STEPS, LEAST = 2_000, 3_000, 100


def run_seed(seed: int, steps: int = STEPS, trace: list[str] | None = None, is_live: bool = False) -> Result:
    return World(seed, trace, is_live).run(steps)


def run_seeds(seeds: Iterable[int], steps: int = STEPS, workers: int = 2, is_live: bool = False) -> list[Result]:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return pool.starmap(run_seed, [(seed, steps, None, is_live) for seed in seeds], chunksize=4)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed instead of many")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--live", action="store_true", help="then heal all but one thing: what can go on must go on")
    parser.add_argument("--least", type=int, default=0, help="how often each fault is to meet each state")
    parser.add_argument("--trace", action="store_true", help="print every event of --seed")
    parser.add_argument("--errors", action="store_true", help="print what requests and commands were answered")
    parser.add_argument("--full", action="store_true", help="2,000 seeds, each cell of the coverage 100 times")
    options = parser.parse_args()
    if options.full:
        options.seeds, options.steps, options.least = FULL_SEEDS, FULL_STEPS, LEAST
    start = time.monotonic()
    if options.seed is not None:
        trace: list[str] | None = [] if options.trace else None
        try:
            results = [run_seed(options.seed, options.steps, trace, options.live)]
        finally:
            print("\n".join(trace or ()))
    else:
        results = run_seeds(range(options.first, options.first + options.seeds), options.steps, is_live=options.live)
        hits = coverage.sum_hits([result.hits for result in results])
        print(coverage.draw_table(hits))
        print("\n".join(coverage.find_missing(hits, options.least)))
    if options.errors:
        errors: dict[str, int] = {}
        for result in results:
            for key, count in result.errors.items():
                errors[key] = errors.get(key, 0) + count
        print("\n".join(f"{count:8} {key}" for key, count in sorted(errors.items())))
    bad = [result for result in results if result.violation]
    for result in bad:
        print(f"seed {result.seed} step {result.steps}: {result.violation}")
    steps = sum(result.steps for result in results)
    print(f"{len(results)} seeds, {steps} steps, {len(bad)} violations, {time.monotonic() - start:.1f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
