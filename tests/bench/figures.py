"""figures - what a benchmark has found: one line each, ours and a peer's of the same rounds.

A Figure keeps every round's value, so that medians, spread and the bar can be told from it and nothing else.
"""

from __future__ import annotations

import dataclasses
import statistics


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """What issue and README promise of a ratio, or of ours alone where there is no peer."""

    limit: float
    at_most: bool = False  # else at least

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.limit:g}"


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """`ours` and `theirs`: a value a round, in `unit`; `theirs` is empty where ours stands alone."""

    group: str  # throughput, copy, on demand, scale
    name: str
    unit: str
    ours: tuple[float, ...]
    peer: str = ""
    theirs: tuple[float, ...] = ()
    bar: Bar | None = None

    @property
    def values(self) -> tuple[float, ...]:
        """What the bar is about, a value a round: ours over theirs, or ours."""
        if not self.theirs:
            return self.ours
        return tuple(one / other for one, other in zip(self.ours, self.theirs, strict=True))

    @property
    def value(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most of `values`."""
        return min(self.values), max(self.values)

    @property
    def holds(self) -> bool | None:
        """None without a bar."""
        return None if self.bar is None else self.bar.holds(self.value)
