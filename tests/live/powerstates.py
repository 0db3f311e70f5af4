"""powerstates - what the disks of both hosts may hold after power was lost at an instant of a recorded run.

A write is on the disk for good from the next sync of its file on; until then it may be there, or not, or in part.
After a sync that failed some of them never will be, whatever later syncs say; only who reads before finds them.
Replay goes through the record and keeps, of each file, what is durable and what is pending; a State is one choice
among the pending entries.  Of the backings only the spots are kept: everything beside them is zero and stays so.
"""

from __future__ import annotations

import bisect
import dataclasses
import random
from collections.abc import Callable, Iterator

from live.faultdisk import FAILED, PUNCH, SIZE, SYNC, WRITE, Entry
from live.powerhistory import SECTOR
from live.powerrun import NAMES, SPOT, SPOTS

_STARTS = sorted(SPOTS)
_INDEX = {start: SPOTS.index(start) for start in _STARTS}
METADATA, BACKING = ".meta", ".img"
FILES = tuple(name + suffix for name in NAMES for suffix in (METADATA, BACKING))


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one entry that go to one place of a kept image."""

    at: int
    data: bytes | memoryview


def find_pieces(entry: Entry) -> list[Piece]:
    """Where in the kept image of its file an entry goes; raises AssertionError if data lies beside the spots."""
    if entry.kind not in (WRITE, PUNCH):
        return []
    data = entry.data if entry.kind == WRITE else bytes(min(entry.length, SPOT))
    if entry.name.endswith(METADATA):
        return [Piece(entry.offset, data if entry.kind == WRITE else bytes(entry.length))]
    pieces, end, kept = [], entry.offset + entry.length, 0
    for start in _STARTS[max(0, bisect.bisect_right(_STARTS, entry.offset) - 1) :]:
        low, high = max(entry.offset, start), min(end, start + SPOT)
        if start >= end:
            break
        if low < high:
            at = _INDEX[start] * SPOT + low - start
            skip = low - entry.offset if entry.kind == WRITE else 0
            pieces.append(Piece(at, data[skip : skip + high - low]))
            kept += high - low
    if entry.kind == WRITE and kept != entry.length:
        rest = bytearray(entry.data)
        for start in _STARTS:
            low, high = max(entry.offset, start) - entry.offset, min(end, start + SPOT) - entry.offset
            if low < high:
                rest[low:high] = bytes(high - low)
        assert not any(rest), f"data beside the spots at {entry.offset}"
    return pieces


class Disk:
    """One file: what is durable, the pieces of each pending entry in order, and what its readers find now."""

    def __init__(self, name: str, rng: random.Random) -> None:
        self.name = name
        self._rng = rng
        self.durable = bytearray(0 if name.endswith(METADATA) else len(SPOTS) * SPOT)
        self.now = bytearray(self.durable)
        self.pending: list[list[Piece]] = []

    def take(self, entry: Entry) -> None:
        if entry.kind == SYNC:
            apply(self.durable, self.pending)
            self.pending = []
        elif entry.kind == FAILED:
            apply(self.durable, [pieces for pieces in self.pending if self._rng.random() < 0.5])
            self.pending = []
        elif entry.kind == SIZE and self.name.endswith(METADATA):
            for image in (self.durable, self.now):  # the creation is tested apart
                image.extend(bytes(max(0, entry.offset - len(image))))
        elif pieces := find_pieces(entry):
            self.pending.append(pieces)
            apply(self.now, [pieces])

    def build(self, chosen: list[list[Piece]]) -> bytearray:
        image = bytearray(self.durable)
        apply(image, chosen)
        return image


def apply(image: bytearray, entries: list[list[Piece]]) -> None:
    for pieces in entries:
        for piece in pieces:
            image[piece.at : piece.at + len(piece.data)] = piece.data


@dataclasses.dataclass(frozen=True, slots=True)
class State:
    """What is on both disks.  `lost`: the hosts that lost power; at the other one only processes may have died."""

    what: str
    instant_ns: int
    lost: tuple[str, ...]
    images: dict[str, bytearray]


Choose = Callable[[Disk], list[list[Piece]]]


class Replay:
    """Walks through the record of a run; at each cut it gives some of the states that may be found."""

    def __init__(self, entries: list[Entry], begun_ns: int, rng: random.Random) -> None:
        """States from `begun_ns` on: before that the files were made."""
        self._entries, self._begun_ns, self._rng = entries, begun_ns, rng
        self._disks = {name: Disk(name, rng) for name in FILES}
        self.sync_points = 0

    def walk(self, share: float, most_torn: int, only: str | None = None) -> Iterator[State]:
        """At each sync point, and `most_torn` more before it; `share` of all (of file `only`) are looked at."""
        for number, entry in enumerate(self._entries):
            disk = self._disks.get(entry.name.removesuffix(".new"))  # a metadata file before it has its name
            if disk is None:
                continue
            is_point = entry.kind == SYNC and entry.stamp_ns > self._begun_ns and only in (None, entry.name)
            is_looked_at = is_point and self._rng.random() < share
            if is_looked_at:
                yield from self._cut(number, entry.stamp_ns, most_torn)
            disk.take(entry)
            if is_looked_at:
                self.sync_points += 1
                following = self._entries[number + 1].stamp_ns if number + 1 < len(self._entries) else entry.stamp_ns
                for lost in (NAMES[:1], NAMES[1:], NAMES):
                    yield self._build(f"after {number}: nothing of what is not synced", following, lost, self._none)

    def _cut(self, number: int, instant_ns: int, most: int) -> Iterator[State]:
        """Just before a sync ends: what is pending is there in part."""
        whats: list[tuple[str, Choose]] = [
            ("everything", self._all),
            ("only metadata", lambda disk: disk.pending if disk.name.endswith(METADATA) else []),
            ("only data", lambda disk: [] if disk.name.endswith(METADATA) else disk.pending),
            ("some", self._some),
            ("a prefix", self._prefix),
            ("the last one torn", self._torn),
            ("each torn", self._all_torn),
        ]
        yield self._build(f"before {number}: processes killed", instant_ns, (), self._all)
        for what, choose in self._rng.sample(whats, min(most, len(whats))):
            lost = self._rng.choice((NAMES[:1], NAMES[1:], NAMES))
            yield self._build(f"before {number}: {what}", instant_ns, lost, choose)
        yield from self._prefixes(number, instant_ns, most)

    def _prefixes(self, number: int, instant_ns: int, most: int) -> Iterator[State]:
        """Each prefix of what is pending in the file that is synced; `most` of them, if there are more."""
        synced = self._disks[self._entries[number].name]
        counts = range(1, len(synced.pending))
        for count in self._rng.sample(counts, min(most, len(counts))):

            def choose(disk: Disk, count: int = count) -> list[list[Piece]]:
                return disk.pending[:count] if disk is synced else self._some(disk)

            what = f"before {number}: {count} of {len(synced.pending)} in {synced.name}"
            lost = self._rng.choice(((synced.name.split(".")[0],), NAMES))
            yield self._build(what, instant_ns, lost, choose)

    def _build(self, what: str, instant_ns: int, lost: tuple[str, ...], choose: Choose) -> State:
        images = {}
        for name, disk in self._disks.items():
            is_lost = name.split(".")[0] in lost
            images[name] = disk.build(choose(disk)) if is_lost else bytearray(disk.now)
        return State(f"{what}; power lost at {' and '.join(lost) or 'neither'}", instant_ns, lost, images)

    # --- choices among what is pending ---

    @staticmethod
    def _none(_disk: Disk) -> list[list[Piece]]:
        return []

    @staticmethod
    def _all(disk: Disk) -> list[list[Piece]]:
        return disk.pending

    def _some(self, disk: Disk) -> list[list[Piece]]:
        return [entry for entry in disk.pending if self._rng.random() < 0.5]

    def _prefix(self, disk: Disk) -> list[list[Piece]]:
        return disk.pending[: self._rng.randint(0, len(disk.pending))]

    def _torn(self, disk: Disk) -> list[list[Piece]]:
        """The last entry in part: to a byte of metadata, to a sector of data, from the start or from the end."""
        if not disk.pending:
            return []
        return [*disk.pending[:-1], self._tear(disk, disk.pending[-1])]

    def _all_torn(self, disk: Disk) -> list[list[Piece]]:
        return [self._tear(disk, entry) for entry in disk.pending]

    def _tear(self, disk: Disk, entry: list[Piece]) -> list[Piece]:
        unit = 1 if disk.name.endswith(METADATA) else SECTOR
        torn = []
        for piece in entry:
            cut = self._rng.randint(0, len(piece.data) // unit) * unit
            is_head = self._rng.random() < 0.5
            torn.append(Piece(piece.at, piece.data[:cut]) if is_head else Piece(piece.at + cut, piece.data[cut:]))
        return torn
