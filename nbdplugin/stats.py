"""stats - how long requests take: a histogram for each kind, cheap enough for every request.

Bounds are fixed, 1-2-5 in each decade from 20 us to 50 s; the last bucket is everything above.  A request costs two
looks at the clock and three additions, without a lock: under CPython's lock no other thread runs between reading
and storing one of these numbers (it changes threads at calls and loops only), and a statistic may be one off.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

BOUNDS_S = tuple(digit * 10.0**power for power in range(-5, 2) for digit in (1, 2, 5))[1:]
KINDS = ("read", "write", "zero", "flush", "fetch")


class Histogram:
    """`counts[i]` requests took up to BOUNDS_S[i], the last of them longer than all; `sum_s` is all their time."""

    __slots__ = ("counts", "errors", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0
        self.errors = 0

    def note(self, elapsed_s: float) -> None:
        self.counts[bisect_left(BOUNDS_S, elapsed_s)] += 1
        self.sum_s += elapsed_s


class Stats:
    """The histograms of one process."""

    __slots__ = KINDS

    def __init__(self) -> None:
        for kind in KINDS:
            setattr(self, kind, Histogram())

    read: Histogram
    write: Histogram
    zero: Histogram
    flush: Histogram
    fetch: Histogram

    def describe(self) -> dict[str, Any]:
        """As in the status: bounds once, and for each kind the errors, the sum and the counts."""
        kinds: dict[str, Any] = {}
        for kind in KINDS:
            found: Histogram = getattr(self, kind)
            kinds[kind] = {"errors": found.errors, "sum_s": round(found.sum_s, 6), "counts": list(found.counts)}
        return {"bounds_s": BOUNDS_S, "kinds": kinds}
