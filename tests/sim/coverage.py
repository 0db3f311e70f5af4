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
IMPOSSIBLE: dict[Cell, str] = {}
CELLS = [(fault, state) for state in STATES for fault in FAULTS if (fault, state) not in IMPOSSIBLE]
# What leads into a state that lasts a short while only, as rates of other faults.
LEADS: dict[str, dict[str, float]] = {
    "not ready": {"cut": 0.02},
    "halted": {"cut": 0.02},
    "greeting": {"cut": 0.03},
    "refused": {"roll back A": 0.02, "roll back B": 0.02, "cut": 0.01},
}


def get_aim(seed: int) -> Cell:
    """Each run of as many seeds as there are cells aims once at each; neighbours differ in their state."""
    return CELLS[seed * 61 % len(CELLS)]


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


def find_missing(hits: dict[Cell, int], least: int) -> list[str]:
    """The cells met less often than they should be, or met although that was thought impossible."""
    missing = [f"{cell}: {hits.get(cell, 0)}" for cell in CELLS if hits.get(cell, 0) < least]
    return missing + [f"{cell}: {hits[cell]}, though {IMPOSSIBLE[cell]}" for cell in IMPOSSIBLE if cell in hits]
