"""plantedfaults - breaks one line of the production code at a time, and shows who finds it.

    scripts/planted-faults [--workers N] [--seeds N] [NUMBER...]     all faults, or these

Each fault of tests/sim/mutations.py is planted in a process of its own, and looked for first where it was found once,
then by twenty seeds of the simulator, by 12,000 runs of the exhaustive run, and by more seeds.  A seed is replayed
with `python -m tests.sim.run --seed N`, a sequence with `python -m tests.sim.exhaustive --replay`: unbroken code
passes both.  Exit code 1 if a fault is not found.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim import mutations, planted


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/planted-faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2, help="how many at a time (default: 2)")
    parser.add_argument("--seeds", type=int, default=planted.SEEDS, help=f"tried at most (default: {planted.SEEDS})")
    parser.add_argument("number", nargs="*", type=int, help="faults to plant, from 1 on (default: all)")
    options = parser.parse_args()
    count = len(mutations.MUTATIONS)
    numbers = options.number or range(1, count + 1)
    if not all(1 <= number <= count for number in numbers):
        parser.error(f"the faults have the numbers 1 to {count}")
    begin, missed = time.monotonic(), 0
    print(f"{'':>3}  {'SECONDS':>7}  FAULT, CAUGHT BY, WITH")
    indexes = [number - 1 for number in numbers]
    with planted.hunting(indexes, options.seeds, options.workers) as hunts:
        for number, one in zip(numbers, hunts, strict=True):
            caught = one.get()
            missed += caught.by is None
            print(f"{number:>3}  {caught.seconds:7.1f}  {caught.mutation.name}  ({caught.mutation.where})")
            print(f"{'':14}{caught.by or 'NOBODY'}\n{'':14}{caught.violation}", flush=True)
    total = f"{len(indexes)} faults, {len(indexes) - missed} caught, {time.monotonic() - begin:.0f} s"
    print(f"\n{total}: {'all are found' if not missed else f'{missed} slip through'}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
