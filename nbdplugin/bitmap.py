"""bitmap - a fixed number of bits with a count, and fast scans over long even stretches.

Bit i lives in byte i // 8 at value 1 << (i % 8), the order in which the track table stores it.  All bits are set or
cleared by starting from fresh zeroes that stand for either value, in memory that the kernel gives out as it is
touched: a plane of ten tebibytes (20 MiB) costs nothing to make or to fill.  Not locked: its owner is.
"""

from __future__ import annotations

import mmap
import re

_NONZERO = re.compile(rb"[^\x00]")
_NOT_FULL = re.compile(rb"[^\xff]")
_LARGE = 1 << 20  # bytes from which on untouched memory is worth a mapping of its own


class Bitmap:
    """`count` is always the number of set bits.  `_flip`: a stored 0 stands for a set bit."""

    __slots__ = ("_bytes", "_flip", "count", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.fill(False)

    def get(self, index: int) -> bool:
        return bool(self._bytes[index >> 3] & (1 << (index & 7))) is not self._flip

    def is_any(self, first: int, count: int) -> bool:
        """Whether a bit of the run is set."""
        if count == 1:
            return self.get(first)
        return self.count > 0 and self._read(first, count) != 0

    def is_all(self, first: int, count: int) -> bool:
        """Whether every bit of the run is set; true for an empty run."""
        return self._read(first, count) == (1 << count) - 1

    def set(self, first: int, count: int = 1) -> int:
        """Sets a run; returns how many bits were clear before."""
        before = self._read(first, count)
        mask = (1 << count) - 1
        self._write(first, count, mask)
        added = count - before.bit_count()
        self.count += added
        return added

    def clear(self, first: int, count: int = 1) -> int:
        """Clears a run; returns how many bits were set before."""
        before = self._read(first, count).bit_count()
        if before:
            self._write(first, count, 0)
            self.count -= before
        return before

    def fill(self, value: bool) -> None:
        """Sets or clears every bit."""
        length = -(-self.size // 8)
        self._bytes: bytearray | mmap.mmap = bytearray(length) if length < _LARGE else mmap.mmap(-1, length)
        self._flip = value
        self.count = self.size if value else 0

    def find(self, start: int) -> int | None:
        """The first set bit at or after `start`."""
        return self._scan(start, self.size, True) if self.count else None

    def find_clear(self, start: int, stop: int) -> int | None:
        """The first clear bit from `start` up to, not including, `stop`."""
        return self._scan(start, min(stop, self.size), False)

    def find_run(self, start: int, most: int) -> tuple[int, int] | None:
        """(first, count) of the first run of set bits at or after `start`, cut to `most` bits."""
        first = self.find(start)
        if first is None:
            return None
        end = min(first + most, self.size)
        stop = self.find_clear(first, end)
        return first, (end if stop is None else stop) - first

    def read_bits(self, first: int, count: int) -> int:
        """The run as an integer, bit 0 the first."""
        return self._read(first, count)

    def write_bits(self, first: int, count: int, bits: int) -> None:
        """Stores an integer as the run."""
        self.count += bits.bit_count() - self._read(first, count).bit_count()
        self._write(first, count, bits)

    def _scan(self, start: int, stop: int, value: bool) -> int | None:
        if start >= stop:
            return None
        pattern, even = (_NONZERO, 0) if value is not self._flip else (_NOT_FULL, 0xFF)
        head = (self._bytes[start >> 3] ^ even) >> (start & 7)
        if head:
            found = start + (head & -head).bit_length() - 1
            return found if found < stop else None
        match = pattern.search(self._bytes, (start >> 3) + 1, (stop + 7) >> 3)
        if match is None:
            return None
        byte = self._bytes[match.start()] ^ even
        found = match.start() * 8 + (byte & -byte).bit_length() - 1
        return found if found < stop else None

    def _read(self, first: int, count: int) -> int:
        if count <= 0:
            return 0
        low, high, mask = first >> 3, (first + count + 7) >> 3, (1 << count) - 1
        stored = (int.from_bytes(self._bytes[low:high], "little") >> (first & 7)) & mask
        return stored ^ mask if self._flip else stored

    def _write(self, first: int, count: int, bits: int) -> None:
        low, high, shift = first >> 3, (first + count + 7) >> 3, first & 7
        mask = ((1 << count) - 1) << shift
        stored = bits << shift ^ mask if self._flip else bits << shift
        whole = int.from_bytes(self._bytes[low:high], "little") & ~mask | stored
        self._bytes[low:high] = whole.to_bytes(high - low, "little")
