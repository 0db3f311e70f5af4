"""model - what the client may see: for each cell the values that are possible now.

A write is a candidate from its start on.  Acknowledged, it rules out everything that ended before it began; of
those that overlapped it in time either may be the later.  A write that failed may or may not have happened, once
and for all before its failure was told.  A read returns what was possible at some time between its start and its
end, and rules out what ended before it began and is something else; but what it saw of a write still in flight
may be gone after a crash, as with any disk.

A power loss may undo a write unless a flush that began after its end, or its own FUA, was acknowledged: each cell
holds one of the values that were possible since the last one that is surely durable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

FLIGHT = math.inf
PAST = 32


class Violation(Exception):
    """One of the rules does not hold."""


class Write:
    __slots__ = ("end", "is_acked", "is_durable", "lost", "start", "value")

    def __init__(
        self, value: int, start: float, end: float = FLIGHT, is_acked: bool = False, is_durable: bool = False
    ) -> None:
        self.value = value
        self.start = start
        self.end = end
        self.is_acked = is_acked
        self.is_durable = is_durable
        self.lost: dict[int, int] = {}


class Saved(NamedTuple):
    """All that `restore` brings back."""

    found: list[list[Write]]
    past: list[list[Write]]
    unknown: set[int]


class Read:
    __slots__ = ("allowed", "cells", "start")

    def __init__(self, cells: range, start: int, allowed: list[set[int]]) -> None:
        self.cells = cells
        self.start = start
        self.allowed = allowed


class Model:
    """`touched` collects the cells whose candidates became fewer."""

    def __init__(self, values: Iterable[int]) -> None:
        self.found = [[Write(value, 0, 0, True, True)] for value in values]
        self.unknown: set[int] = set()
        self.reads: list[Read] = []
        self.touched: set[int] = set()
        self.past: list[list[Write]] = [[] for _ in self.found]
        self.reverts: dict[int, tuple[int, float]] = {}  # by cell: when, and when the oldest write lost had ended
        self.flushed = -1.0

    def start_write(self, cells: range, value: int, now: int) -> Write:
        write = Write(value, now)
        for cell in cells:
            self.found[cell].append(write)
        for read in self.reads:
            for cell in range(max(cells.start, read.cells.start), min(cells.stop, read.cells.stop)):
                read.allowed[cell - read.cells.start].add(value)
        return write

    def ack(
        self,
        write: Write,
        cells: range,
        now: int,
        is_there: Callable[[int], bool] = lambda cell: False,
        is_durable: bool = False,
    ) -> None:
        """`is_there`: whether only the peer has the cell.  `is_durable`: written with FUA."""
        write.end, write.is_acked, write.is_durable = now, True, is_durable
        for cell in cells:
            self._keep(cell, [other for other in self.found[cell] if other.end >= write.start])
            self.reverts.pop(cell, None)  # whatever was lost there, this is newer
        for cell, value in write.lost.items():  # its only copy may have gone with a sync that failed just before
            if not is_there(cell):
                continue
            self.found[cell].append(Write(value, now, now))
            self.reverts[cell] = now, now
        self.touched.update(cells)
        self.unknown.difference_update(cells)

    def fail(self, write: Write, now: int) -> None:
        write.end = min(write.end, now)

    def start_read(self, cells: range, now: int) -> Read:
        read = Read(cells, now, [{write.value for write in self.found[cell]} for cell in cells])
        self.reads.append(read)
        return read

    def end_read(self, read: Read, values: tuple[int, ...] | None, is_failed: bool) -> None:
        """Rule 1; None stands for zeroes.  In a failed volume a read may see a write that was refused and goes away."""
        self.reads.remove(read)
        for index, cell in enumerate(read.cells):
            value = 0 if values is None else values[index]
            if value not in read.allowed[index]:
                raise Violation(f"rule 1: cell {cell} reads {value}, possible are {sorted(read.allowed[index])}")
            found = self.found[cell]
            same = [write for write in found if write.value == value]
            if same and not is_failed and all(write.end < FLIGHT for write in same):
                self._keep(cell, [write for write in found if write.value == value or write.end >= read.start])
        self.touched.update(read.cells)

    def drop_read(self, read: Read) -> None:
        self.reads.remove(read)

    def start_flush(self, now: int) -> int:
        return now

    def ack_flush(self, start: int) -> None:
        """Rule 5, as far as failed syncs can show it: a loss is told at least once, by a flush that fails."""
        for when, oldest in self.reverts.values():
            if oldest < start:
                text = f"a flush begun at {start} is acknowledged, but a write of {oldest} was lost at {when}"
                raise Violation(f"rule 5: {text}")
        self.flushed = max(self.flushed, start)

    def fail_flush(self) -> None:
        """The client knows now; a killed process cannot tell it, the broken connection does."""
        self.reverts.clear()

    def is_possible(self, cell: int, value: int) -> bool:
        return cell in self.unknown or any(write.value == value for write in self.found[cell])

    def revert(
        self, cell: int, value: int, now: int, why: str, is_excused: bool = False, fetched: int | None = None
    ) -> None:
        """The only copy lost this cell in a failed sync: as in a power loss it may be old, unless it was flushed.

        `is_excused`: the other copy had been lost before, after the flush.  `fetched`: what was lost, and may have been
        read before by a fetch that is under way.
        """
        found = self.found[cell]
        if not found:
            return
        if fetched is not None:
            for write in found:
                if write.end == FLIGHT and write.value == fetched:
                    write.lost[cell] = value
        if self.is_possible(cell, value):
            if fetched is None:
                self._keep(cell, [write for write in found if write.value == value or write.end == FLIGHT])
            return
        oldest = self.find_oldest_lost(cell, value)
        if oldest < self.flushed and not is_excused:
            raise Violation(f"rule 5: {why} lost cell {cell}, written at {oldest}, flushed at {self.flushed}")
        if not is_excused and self.is_durable_lost(cell, value):
            raise Violation(f"rule 5: {why} lost cell {cell}, which was written with FUA")
        self.reverts[cell] = now, oldest
        kept = [] if fetched is None else found
        self._replace(cell, value, now)
        self.found[cell] += [write for write in kept if write.end < FLIGHT]

    def _keep(self, cell: int, kept: list[Write]) -> None:
        if len(kept) < len(self.found[cell]):
            gone = [write for write in self.found[cell] if write not in kept]
            self.past[cell] = (self.past[cell] + gone)[-PAST:]
            self.found[cell] = kept

    def find_oldest_lost(self, cell: int, value: int) -> float:
        """When the first acknowledged write ended that came for certain after the last one of this value."""
        return min((write.end for write in self._find_lost(cell, value)), default=FLIGHT)

    def is_durable_lost(self, cell: int, value: int) -> bool:
        """Whether the cell cannot hold this value unless a write with FUA was lost."""
        return any(write.is_durable for write in self._find_lost(cell, value))

    def _find_lost(self, cell: int, value: int) -> list[Write]:
        known = self.past[cell] + self.found[cell]
        last = max((write.end for write in known if write.value == value), default=-1.0)
        return [write for write in known if write.is_acked and write.start > last]

    def save(self) -> Saved:
        """See restore."""
        return Saved([found[:] for found in self.found], [past[:] for past in self.past], set(self.unknown))

    def restore(self, saved: Saved) -> None:
        """A power loss undid what had changed the volume as a whole; nothing was acknowledged since."""
        for cell, found in enumerate(saved.found):
            self.found[cell] = found + [
                write for write in self.found[cell] if not write.is_acked and write not in found
            ]
            self.touched.add(cell)
        self.past, self.unknown = saved.past, saved.unknown

    def switch(self, values: list[int], now: int, undurable: Container[int]) -> None:
        """From now on the volume holds other data: the source was marked invalid, or put back to an older state."""
        for cell, value in enumerate(values):
            self._replace(cell, value, now, cell not in undurable)

    def _replace(self, cell: int, value: int, now: int, is_durable: bool = False) -> None:
        flying = [write for write in self.found[cell] if write.end == FLIGHT]
        self.past[cell] = []
        self.found[cell] = [Write(value, now, now, True, is_durable), *flying]
        self.touched.add(cell)
        self.unknown.discard(cell)
        for read in self.reads:
            if cell in read.cells:
                read.allowed[cell - read.cells.start].add(value)

    def forget(self, cells: range) -> None:
        """The data is nowhere any more: the pair that could have brought it was deleted.  No read may return it."""
        self.unknown.update(cells)
        for cell in cells:
            self.found[cell] = [write for write in self.found[cell] if write.end == FLIGHT]

    def doubt(self, cells: range) -> None:
        """What stands here may be lost without a breach: nothing of it counts as acknowledged."""
        for cell in cells:
            self.found[cell] = [
                write if write.end == FLIGHT else Write(write.value, write.start, write.end)
                for write in self.found[cell]
            ]
