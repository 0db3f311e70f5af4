"""disk - what survives a killed process: the cells of both stores and one metadata file for each side.

A cell stands for CELL bytes and holds one small number, 0 for zeroes.  A failed sync loses any part of what was
written since the last good one, as Linux may; a killed process loses nothing that was written.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from nbdplugin import layout, tracks
from nbdplugin.errors import TableDamaged
from nbdplugin.tracks import Change, Header, Table

CELL = 1024
TRACK_SIZE = 4096
PER_TRACK = TRACK_SIZE // CELL
EXTENT_SIZE = 4 * TRACK_SIZE
A, B = 0, 1


class Stores:
    """Both sides' cells; `differing` has the bit of each track set in which they are not equal."""

    def __init__(self, count: int) -> None:
        self.cells: tuple[list[int], list[int]] = ([0] * count, [0] * count)
        self.dirty: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.touched: set[int] = set()
        self.syncs = [0, 0]
        self.differing = 0
        self._counts = [0] * (-(-count // PER_TRACK))

    def put(self, side: int, cell: int, value: int) -> None:
        mine, other = self.cells[side], self.cells[1 - side][cell]
        old = mine[cell]
        if old == value:
            return
        mine[cell] = value
        self.dirty[side].setdefault(cell, old)
        self.touched.add(cell)
        track = cell // PER_TRACK
        self._counts[track] += (value != other) - (old != other)
        if self._counts[track]:
            self.differing |= 1 << track
        else:
            self.differing &= ~(1 << track)

    def get(self, side: int, first: int, count: int) -> tuple[int, ...] | None:
        found = tuple(self.cells[side][first : first + count])
        return found if any(found) else None

    def sync(self, side: int) -> None:
        self.dirty[side].clear()
        self.syncs[side] += 1

    def lose(self, side: int, rng: random.Random) -> list[tuple[int, int]]:
        """A failed sync: some of what was not durable is gone, and the kernel calls the rest clean.

        Result: (cell, what it held).
        """
        lost = []
        share = rng.choice((0.0, 0.3, 1.0))
        for cell, durable in list(self.dirty[side].items()):
            if rng.random() < share:
                lost.append((cell, self.cells[side][cell]))
                self.put(side, cell, durable)
        self.dirty[side].clear()
        return lost


class Stage(NamedTuple):
    """One pwrite of the metadata file: page -1 is the header."""

    page: int
    copy: int
    raw: bytes


class View(NamedTuple):
    """What recovery would find now; `owed` includes the active extents, as Core makes it."""

    header: Header
    invalid: int
    owed: int
    raw_owed: int


class Meta:
    """One metadata file; `version` rises with every write to it."""

    def __init__(self, header: Header) -> None:
        self.version = 0
        self._is_repairing = True
        table = Table(header, 0, EXTENT_SIZE)
        self.tracks = table.geometry.tracks
        self.headers = [b"", b""]
        self.pages = [[bytes(layout.PAGE_SIZE)] * table.pages for _ in range(2)]
        self._view: View | None = None
        for stage in self.get_stages(table.build_fill(False, False)):
            self.write(stage)

    def get_stages(self, change: Change) -> list[Stage]:
        """In the order and with the barriers of actions.WriteTable."""
        stages = [Stage(index, copy, raw) for copy in (0, 1) for index, raw, _ in change.pages]
        return stages + [Stage(-1, copy, change.header) for copy in (0, 1) if change.header is not None]

    def write(self, stage: Stage) -> None:
        self.version += 1
        self._view = None
        if stage.page < 0:
            self.headers[stage.copy] = stage.raw
        else:
            self.pages[stage.copy][stage.page] = stage.raw

    def tear(self, stage: Stage) -> None:
        """Half of the write got there."""
        old = self.headers[stage.copy] if stage.page < 0 else self.pages[stage.copy][stage.page]
        at = 100  # behind the front, within the payload
        self.write(stage._replace(raw=stage.raw[:at] + old[at:]))

    def load(self) -> Table:
        """As nbdplugin.metafile does; raises TableDamaged."""
        page = layout.choose(*(layout.decode(raw, layout.KIND_HEADER, 0, None) for raw in self.headers))
        if page is None:
            raise TableDamaged("both headers are bad")
        table = Table(tracks.decode_header(page.payload), page.sequence, EXTENT_SIZE)
        for index in range(table.pages):
            found = layout.choose(*(self._decode(copy, index, table) for copy in (0, 1)))
            if found is None:
                raise TableDamaged(f"both copies of page {index} are bad")
            table.restore_page(found)
        return table

    def _decode(self, copy: int, index: int, table: Table) -> layout.Page | None:
        return layout.decode(self.pages[copy][index], layout.KIND_BITS, index, table.volume)

    def repair(self) -> list[Stage]:
        """The writes that make each page and its twin equal, as the loader does before it goes on."""
        stages = []
        found = [layout.decode(raw, layout.KIND_HEADER, 0, None) for raw in self.headers]
        if self.headers[0] != self.headers[1]:
            best = found.index(layout.choose(*found))
            stages.append(Stage(-1, 1 - best, self.headers[best]))
        for index in range(len(self.pages[0])):
            if self.pages[0][index] != self.pages[1][index]:
                pair = [layout.decode(self.pages[copy][index], layout.KIND_BITS, index, None) for copy in (0, 1)]
                best = pair.index(layout.choose(*pair))
                stages.append(Stage(index, 1 - best, self.pages[best][index]))
        return stages

    @property
    def view(self) -> View:
        if self._view is None:
            table = self.load()
            count = self.tracks
            invalid, owed = table.invalid.read_bits(0, count), table.owed.read_bits(0, count)
            active = mask_extents(table, table.header.active) if table.header.committed else 0
            self._view = View(table.header, invalid, owed | active & ~invalid, owed)
        return self._view


def mask_extents(table: Table, extents: frozenset[int] | list[int]) -> int:
    """The tracks of these extents as bits."""
    mask = 0
    for extent in extents:
        span = table.geometry.get_extent_span(extent)
        mask |= ((1 << span.count) - 1) << span.first
    return mask
