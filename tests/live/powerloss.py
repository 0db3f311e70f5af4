"""powerloss - power lost at every point of real runs: scripts/power-loss.

Each run is recorded once, and then every sync point of it and torn states before each are looked at; of some, real
processes are started on both images.  Prints the seed of each run: `--seed` does it again, though not to the byte,
for a real run has its own timing.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from live.powercheck import Checker
from live.powerrevive import is_paired, revive
from live.powerrun import PowerRun, Ran
from live.powerstates import Replay, State

INVALID = ("destination", "source")


@dataclasses.dataclass(slots=True)
class Figures:
    """What was looked at."""

    runs: int = 0
    entries: int = 0
    sync_points: int = 0
    states: int = 0
    differing: int = 0
    whole: int = 0
    revived: int = 0

    def __str__(self) -> str:
        return (
            f"{self.runs} runs, {self.entries} writes and syncs, {self.sync_points} sync points looked at, "
            f"{self.states} states opened and checked with {self.differing} differing tracks found marked and "
            f"{self.whole} destinations that are complete, "
            f"{self.revived} of them revived with real processes"
        )


def try_run(ran: Ran, folder: Path, figures: Figures, share: float, torn: int, revived: int) -> None:
    """All checks of one run; raises AssertionError at the first fault.

    `share` of the sync points, `torn` states before each; real processes on `revived` of the states.
    """
    rng = random.Random(ran.seed)
    replay, checker = Replay(ran.entries, ran.made_ns, rng), Checker(ran)
    kept: list[State] = []
    seen = 0
    for state in replay.walk(share, torn):
        checker.check(state)
        if is_paired(ran, state) and revived:
            seen += 1
            if len(kept) < revived:
                kept.append(state)
            elif rng.random() < revived / seen:
                kept[rng.randrange(revived)] = state
    for number, state in enumerate(kept):
        revive(folder / f"r{number}", ran, state)
    figures.runs += 1
    figures.entries += len(ran.entries)
    figures.sync_points += replay.sync_points
    figures.states += checker.states
    figures.differing += checker.differing
    figures.whole += checker.whole
    figures.revived += len(kept)


def main() -> int:
    parser = argparse.ArgumentParser(prog="power-loss", description=__doc__)
    parser.add_argument("--runs", type=int, default=4)
    parser.add_argument("--faults", type=int, default=12, help="kills, cuts, suspensions in each run")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20), help="of the first run")
    parser.add_argument("--share", type=float, default=1.0, help="of the sync points that is looked at")
    parser.add_argument("--torn", type=int, default=4, help="torn states before each sync point")
    parser.add_argument("--revived", type=int, default=10, help="states of each run that real processes are started on")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started ends, what was written goes
    figures, start = Figures(), time.monotonic()
    for number in range(options.runs):
        seed = options.seed + number
        invalid = INVALID[seed % 2]
        print(f"power-loss: run with seed {seed}, {invalid} invalid", flush=True)
        with tempfile.TemporaryDirectory(prefix="pl.") as name:
            ran = PowerRun(Path(name), seed, invalid, options.faults).run()
            try:
                try_run(ran, Path(name), figures, options.share, options.torn, options.revived)
            except AssertionError as error:
                print(f"power-loss: seed {seed}, {invalid} invalid: {error}", file=sys.stderr)
                return 1
        print(f"power-loss: {figures}; {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
