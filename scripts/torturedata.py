"""torturedata - what the writers of the torture write, how they log it, and what may stand where.  Pure.

Each sector says of itself who wrote it, in which request and where, with a checksum over all of it:

    magic 8 | writer 2 | sequence 4 | sector 8 | body 486 | CRC-32 of what comes before 4

A cell of 4 KiB belongs to one writer, which has one request under way at a time: so after each acknowledged write
it is known what the cell holds.  A write that failed may have left its sectors, or not, each for itself.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SECTOR = 512
CELL = 4096
CHUNK = 4 * CELL  # in the shared half neighbouring chunks belong to different writers, four to a track
MIB = 1 << 20
MAGIC = b"TORTURE1"
ZEROES = 0  # in the place of a sequence number
_HEADER = struct.Struct("<8sHIQ")
_CRC = struct.Struct("<I")
_BODY = SECTOR - _HEADER.size - _CRC.size
_POOL = random.Random("torture").randbytes(1 << 16)
_NOTHING = bytes(SECTOR)
_SIZES = (CELL, CELL, CELL, 2 * CELL, 4 * CELL, 16 * CELL, 16 * CELL, 32 * CELL, 64 * CELL, 256 * CELL)

KINDS = {"w": "write", "z": "zeroes", "r": "read", "f": "flush", "c": "control"}
OK, FAILED, WRONG = "ok", "failed", "wrong"


class Record(NamedTuple):
    """One request: times by the machine's monotonic clock, outcome as its writer saw it."""

    writer: int
    sequence: int
    kind: str
    offset: int
    length: int
    start: float
    end: float
    outcome: str

    @property
    def is_change(self) -> bool:
        return self.kind in "wz"

    def get_tracks(self, track_size: int) -> range:
        return range(self.offset // track_size, -(-(self.offset + self.length) // track_size))

    def to_line(self) -> str:
        return (
            f"{self.writer} {self.sequence} {self.kind} {self.offset} {self.length} "
            f"{self.start:.6f} {self.end:.6f} {self.outcome}\n"
        )


def parse(line: str) -> Record:
    writer, sequence, kind, offset, length, start, end, outcome = line.split()
    return Record(int(writer), int(sequence), kind, int(offset), int(length), float(start), float(end), outcome)


def read_log(path: Path) -> list[Record]:
    return [parse(line) for line in path.read_text().splitlines()] if path.exists() else []


# -- sectors


def make(writer: int, sequence: int, offset: int, length: int) -> bytearray:
    """The bytes of one write."""
    data = bytearray(length)
    for at in range(0, length, SECTOR):
        number = (offset + at) // SECTOR
        body = (number * 31 + sequence * 487 + writer * 8191) % (len(_POOL) - _BODY)
        start = at + _HEADER.size
        _HEADER.pack_into(data, at, MAGIC, writer, sequence, number)
        data[start : start + _BODY] = _POOL[body : body + _BODY]
        _CRC.pack_into(data, start + _BODY, zlib.crc32(memoryview(data)[at : start + _BODY]))
    return data


def identify(sector: bytes, number: int) -> tuple[int, int] | str:
    """(writer, sequence) of an intact sector that belongs there, (any, ZEROES) of an empty one; else what is wrong."""
    if sector == _NOTHING:
        return -1, ZEROES
    magic, writer, sequence, found = _HEADER.unpack_from(sector)
    if magic != MAGIC:
        return f"no writer's data, it begins with {sector[:8].hex()}"
    if _CRC.unpack_from(sector, SECTOR - _CRC.size)[0] != zlib.crc32(sector[: -_CRC.size]):
        return f"a wrong checksum in a sector of writer {writer}, request {sequence}"
    if found != number:
        return f"what writer {writer} wrote in request {sequence} to sector {found}"
    return writer, sequence


# -- who may write where


class Area:
    """The cells of one of `count` writers: every count-th chunk of the first half, a piece of its own of the second."""

    def __init__(self, writer: int, count: int, size: int) -> None:
        self.writer = writer
        self._count = count
        self._shared = size // 2
        piece = (size - self._shared) // count // CELL * CELL  # its ends lie within tracks on purpose
        self._start = self._shared + writer * piece
        self._end = self._start + piece

    def choose(self, rng: random.Random) -> tuple[int, int]:
        """(offset, length) of a request; whole tracks now and then."""
        if rng.random() < 0.6:
            chunk = rng.randrange(self._shared // CHUNK // self._count) * self._count + self.writer
            first, last = sorted((rng.randrange(4), rng.randrange(4)))
            return chunk * CHUNK + first * CELL, (last - first + 1) * CELL
        length = min(rng.choice(_SIZES), self._end - self._start)
        unit = min(length, 16 * CELL) if rng.random() < 0.5 else CELL
        offset = self._start + rng.randrange(self._end - self._start - length + 1) // CELL * CELL
        return max(self._start, offset // unit * unit), length

    def owns(self, cell: int) -> bool:
        offset = cell * CELL
        if offset < self._shared:
            return offset // CHUNK % self._count == self.writer and offset // CHUNK < self._last_chunk
        return self._start <= offset < self._end

    @property
    def _last_chunk(self) -> int:
        return self._shared // CHUNK // self._count * self._count


class Model:
    """What may stand in each cell of one writer: its last acknowledged write, or one that failed since."""

    def __init__(self, writer: int) -> None:
        self.writer = writer
        self._known: dict[int, int] = {}
        self._maybe: dict[int, set[int]] = {}

    def note(self, record: Record) -> None:
        if not record.is_change:
            return
        tag = record.sequence if record.kind == "w" else ZEROES
        for cell in range(record.offset // CELL, (record.offset + record.length) // CELL):
            if record.outcome == OK:
                self._known[cell] = tag
                self._maybe.pop(cell, None)
            else:
                self._maybe.setdefault(cell, set()).add(tag)

    def find_fault(self, offset: int, data: memoryview | bytes) -> str | None:
        """What is wrong with these bytes of the writer's cells, read at `offset`; None if nothing is."""
        for at in range(0, len(data), SECTOR):
            number = (offset + at) // SECTOR
            found = identify(bytes(data[at : at + SECTOR]), number)
            if isinstance(found, str):
                return f"offset {offset + at} holds {found}; {self._tell(offset + at)}"
            writer, sequence = found
            cell = (offset + at) // CELL
            is_known = sequence == self._known.get(cell, ZEROES) or sequence in self._maybe.get(cell, ())
            if not is_known or writer not in (self.writer, -1):
                what = "zeroes" if sequence == ZEROES else f"request {sequence} of writer {writer}"
                return f"offset {offset + at} holds {what}; {self._tell(offset + at)}"
        return None

    def _tell(self, offset: int) -> str:
        cell = offset // CELL
        known = self._known.get(cell, ZEROES)
        text = f"writer {self.writer} was last acknowledged " + (f"request {known}" if known else "zeroes, or nothing")
        maybe = sorted(self._maybe.get(cell, ()))
        return text + (f", and these failed since: {maybe}" if maybe else "")


def replay(writer: int, records: Iterable[Record]) -> Model:
    model = Model(writer)
    for record in records:
        model.note(record)
    return model


def walk(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(cell, writer) of every cell that belongs to one."""
    areas = [Area(writer, count, size) for writer in range(count)]
    for cell in range(size // CELL):
        for area in areas:
            if area.owns(cell):
                yield cell, area.writer
                break
