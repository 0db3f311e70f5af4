"""coverage - which fault can meet which state, and where a seed aims so that each meets each often enough."""

from __future__ import annotations

from tests.sim.machine import FAULTS

STATES = (
    "unpaired",
    "connected",
    "suspended",
    "not ready",
    "halted",
    "refused",
    "push",
    "pull",
    "synchronized",
    "quiescing",
    "checkpointing",
    "greeting",
)
Cell = tuple[str, str]
_REASONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "only a session syncs, reads or writes there": (("sync B", "read B", "write B"), ("unpaired",)),
    "the destination's half is dropped first, which closes its session": (("lease",), ("unpaired",)),
    "only a committed pair opens a session": (("lease", "read B", "write B"), ("connected",)),
    "only a committed pair has a session to be older than": (("roll back A", "roll back B"), ("unpaired", "connected")),
    "a session that is up has woken who waited for it": (("fetch time-out",), ("push", "pull", "synchronized")),
    "one failure: of what a side forgot, the other one's copy is the only one": (
        ("sync A", "write A", "roll back A", "roll back B"),
        ("refused",),
    ),
}
IMPOSSIBLE: dict[Cell, str] = {
    (fault, state): reason for reason, (faults, states) in _REASONS.items() for fault in faults for state in states
}
# Possible, but only in the few events between two that nearly always come together: met or not, and not aimed at.
_SELDOM: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a greeting that was under way when its pair was deleted": (
        ("delay", "duplicate", "refusal", "link time-out"),
        ("unpaired",),
    ),
    "who waited for the path is woken when the pair is dropped": (("fetch time-out",), ("unpaired",)),
    "a resolve has greeted, and the link was quicker": (("duplicate",), ("push", "pull", "synchronized")),
    "the peer still carries out what a session that is over had sent": (
        ("read B", "write B"),
        ("suspended", "not ready", "halted", "refused", "greeting", "quiescing"),
    ),
    "a write that was under way when its session ended; later ones wait": (("write A",), ("halted",)),
    "a pair is deleted that is refused": (("table B",), ("refused",)),
    "something becomes owed while the peer is told that all is done": (("table B",), ("push",)),
}
SELDOM: dict[Cell, str] = {
    (fault, state): reason for reason, (faults, states) in _SELDOM.items() for fault in faults for state in states
}
_WEIGHTS = {"synchronized": 5, "pull": 4, "unpaired": 3, "suspended": 3, "halted": 2, "refused": 2, "quiescing": 2}
_WEIGHTS |= {"read A": 3, "write A": 4, "sync A": 2, "sync B": 2, "read B": 4, "write B": 3, "table A": 2, "table B": 4}
_WEIGHTS |= {"roll back A": 3, "roll back B": 3, "command time-out": 3, "lease": 2, "freeze A": 2, "freeze B": 2}
CELLS = [(f, s) for s in STATES for f in FAULTS if (f, s) not in IMPOSSIBLE and (f, s) not in SELDOM]
_AIMS = [cell for cell in CELLS for _ in range(_WEIGHTS.get(cell[0], 1) * _WEIGHTS.get(cell[1], 1))]
# What leads into a state that lasts a short while only, or to a fault's occasion, as rates of other faults.
LEADS: dict[str, dict[str, float]] = {
    "not ready": {"cut": 0.02},
    "halted": {"cut": 0.02},
    "greeting": {"cut": 0.03},
    "refused": {"roll back A": 0.02, "roll back B": 0.02, "cut": 0.01},
    "read B": {"read A": 0.3},
}


def get_aim(seed: int) -> Cell:
    """Neighbours differ; cells that are met seldom by chance are aimed at more often."""
    return _AIMS[seed * 7919 % len(_AIMS)]


def sum_hits(results: list[dict[Cell, int]]) -> dict[Cell, int]:
    total: dict[Cell, int] = {}
    for hits in results:
        for cell, count in hits.items():
            total[cell] = total.get(cell, 0) + count
    return total


def draw_table(hits: dict[Cell, int]) -> str:
    """A dash stands for what is impossible."""
    lines = [" " * 17 + "".join(f"{state:>14}" for state in STATES)]
    for fault in FAULTS:
        cells = [hits.get((fault, state), "-" if (fault, state) in IMPOSSIBLE else 0) for state in STATES]
        lines.append(f"{fault:17}" + "".join(f"{count:>14}" for count in cells))
    return "\n".join(lines)


def choose_aims(hits: dict[Cell, int], least: int, seeds: int) -> list[Cell]:
    """For seeds beyond the planned ones: the cells that were not met often enough, those most behind more often."""
    behind = {cell: least - hits.get(cell, 0) for cell in CELLS if hits.get(cell, 0) < least}
    total = sum(behind.values()) or 1
    return [cell for cell, lack in behind.items() for _ in range(max(1, round(seeds * lack / total)))]


def find_missing(hits: dict[Cell, int], least: int) -> list[str]:
    """The cells met less often than they should be, or met although that was thought impossible."""
    missing = [f"{cell}: {hits.get(cell, 0)}" for cell in CELLS if hits.get(cell, 0) < least]
    return missing + [f"{cell}: {hits[cell]}, though {IMPOSSIBLE[cell]}" for cell in IMPOSSIBLE if cell in hits]
