"""powerhistory - what the host wrote and was told, sector by sector, and what each sector may hold after a crash.

Every sector of every write names the write and itself, so that what is found tells where it comes from.  A sector
belongs to one writer thread: its writes have one order.  Times are time.monotonic_ns, the record's clock.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import struct
import threading

SECTOR = 512
FOREVER = 1 << 62
_MARK = struct.Struct("<QQ")  # number of the write, sector; over and over


@functools.lru_cache(1 << 16)
def make_sector(number: int, sector: int) -> bytes:
    """Number 0: zeroes."""
    return _MARK.pack(number, sector) * (SECTOR // _MARK.size) if number else bytes(SECTOR)


def make_data(number: int, first: int, count: int) -> bytes:
    return b"".join(_MARK.pack(number, sector) * (SECTOR // _MARK.size) for sector in range(first, first + count))


def find_number(data: bytes | bytearray | memoryview, sector: int) -> int | None:
    """Which write the sector is of; None if it is none, or a mixture."""
    number, found = _MARK.unpack_from(data)
    if bytes(data) == make_sector(number, found if number else 0) and (found == sector or not number):
        return int(number)
    return None


@dataclasses.dataclass(slots=True)
class Wrote:
    """One write as far as one sector is concerned.  `acked_ns` None: nobody knows whether it was done."""

    number: int
    begun_ns: int
    acked_ns: int | None = None
    is_fua: bool = False
    is_trim: bool = False


class History:
    """Invariant: `sectors` maps each sector ever written to its writes, in order; the first is what it began with."""

    def __init__(self) -> None:
        self.sectors: dict[int, list[Wrote]] = {}
        self.flushes: list[tuple[int, int]] = []  # (begun, acked)
        self.numbers = itertools.count(1)
        self.lock = threading.Lock()
        self._ends: list[int] = []
        self._starts: list[int] = []

    def begin(self, first: int, count: int, wrote: Wrote) -> None:
        for sector in range(first, first + count):
            self.sectors.setdefault(sector, []).append(wrote)

    def note_flush(self, begun_ns: int, acked_ns: int) -> None:
        with self.lock:
            self.flushes.append((begun_ns, acked_ns))

    def settle(self) -> None:
        """All is noted: from here on get_allowed may be asked with is_killed False."""
        self.flushes.sort(key=lambda item: item[1])
        self._ends = [acked for _, acked in self.flushes]
        self._starts = list(itertools.accumulate((begun for begun, _ in self.flushes), max))

    def get_allowed(self, sector: int, instant_ns: int, is_killed: bool) -> set[int]:
        """Numbers that the sector may hold after everything stopped at the instant.

        `is_killed`: nothing but processes was lost, so that all that was acknowledged must be there.
        """
        at = bisect.bisect_left(self._ends, instant_ns) if not is_killed else 0
        flushed_ns = self._starts[at - 1] if at else 0
        allowed: set[int] = set()
        for wrote in reversed(self.sectors[sector]):
            if wrote.begun_ns >= instant_ns:
                continue
            allowed.add(wrote.number)
            is_acked = wrote.acked_ns is not None and wrote.acked_ns < instant_ns
            if is_acked and not wrote.is_trim and (is_killed or wrote.is_fua or (wrote.acked_ns or 0) < flushed_ns):
                break
        return allowed
