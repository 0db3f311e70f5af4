"""run - one seed, or many: `python -m tests.sim.run --seed 7 --steps 2000 --trace`, or all of it: `--full`."""

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
WORKERS = 2
FULL_SEEDS, FULL_STEPS, LEAST = 2_000, 1_000, 100
MORE_ROUNDS, MORE_SEEDS, MORE_STEPS = 25, 300, 1_500
LIVE_SEEDS, LIVE_STEPS = 100, 500


def run_seed(
    seed: int,
    steps: int = STEPS,
    trace: list[str] | None = None,
    is_live: bool = False,
    aim: coverage.Cell | None = None,
) -> Result:
    return World(seed, trace, is_live, aim).run(steps)


def run_seeds(seeds: Iterable[int], steps: int = STEPS, is_live: bool = False) -> list[Result]:
    return _run_all([(seed, steps, None, is_live, None) for seed in seeds])


def _run_all(tasks: list[tuple[int, int, None, bool, coverage.Cell | None]]) -> list[Result]:
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        return pool.starmap(run_seed, tasks, chunksize=4)


def run_missing(results: list[Result], first: int, least: int) -> list[Result]:
    """More seeds, each aimed at a cell of the coverage that was not met often enough so far."""
    more: list[Result] = []
    for _ in range(MORE_ROUNDS):
        aims = coverage.choose_aims(sum_hits(results + more), least, MORE_SEEDS)
        if not aims:
            break
        start = first + len(more)
        more += _run_all([(start + number, MORE_STEPS, None, False, aim) for number, aim in enumerate(aims)])
    return more


def sum_hits(results: list[Result]) -> dict[coverage.Cell, int]:
    return coverage.sum_hits([result.hits for result in results])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=__doc__)
    parser.add_argument("--seed", type=int, help="one seed instead of many")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--live", action="store_true", help="then heal all but one thing: what can go on must go on")
    parser.add_argument("--aim", nargs=2, metavar=("FAULT", "STATE"), help="of --seed: what it aims at")
    parser.add_argument("--trace", action="store_true", help="print every event of --seed")
    parser.add_argument("--errors", action="store_true", help="print what requests and commands were answered")
    parser.add_argument("--full", action="store_true", help="2,000 seeds, and more until the coverage is complete")
    return parser.parse_args()


def _run_one(options: argparse.Namespace) -> list[Result]:
    trace: list[str] | None = [] if options.trace else None
    try:
        aim = tuple(options.aim) if options.aim else None
        return [run_seed(options.seed, options.steps, trace, options.live, aim)]
    finally:
        print("\n".join(trace or ()))


def _run_full() -> list[Result]:
    results = run_seeds(range(FULL_SEEDS), FULL_STEPS)
    print(f"{len(results)} seeds, {sum(result.steps for result in results)} steps")
    more = run_missing(results, FULL_SEEDS, LEAST)
    print(f"{len(more)} more for the coverage, {sum(result.steps for result in more)} steps; faults met by state:")
    hits = sum_hits(results + more)
    print(coverage.draw_table(hits))
    print("\n".join(coverage.find_missing(hits, LEAST)) or f"each possible cell at least {LEAST} times")
    live = run_seeds(range(LIVE_SEEDS), LIVE_STEPS, is_live=True)
    print(f"{len(live)} with one thing that stays broken, {sum(result.steps for result in live)} steps")
    return results + more + live


def main() -> int:
    options = _parse()
    start = time.monotonic()
    if options.seed is not None:
        results = _run_one(options)
    elif options.full:
        results = _run_full()
    else:
        results = run_seeds(range(options.first, options.first + options.seeds), options.steps, options.live)
        print(coverage.draw_table(sum_hits(results)))
    if options.errors:
        errors: dict[str, int] = {}
        for result in results:
            for key, count in result.errors.items():
                errors[key] = errors.get(key, 0) + count
        print("\n".join(f"{count:8} {key}" for key, count in sorted(errors.items())))
    bad = [result for result in results if result.violation]
    for result in bad:
        print(f"seed {result.seed} aim {result.aim} step {result.steps}: {result.violation}")
    steps = sum(result.steps for result in results)
    print(f"{len(results)} seeds, {steps} steps, {len(bad)} violations, {time.monotonic() - start:.1f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
