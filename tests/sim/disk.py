"""disk - what survives a killed process or a power loss: the cells of both stores, a metadata file for each side.

A cell stands for CELL bytes and holds one small number, 0 for zeroes.  A killed process loses nothing that was
written.  A failed sync loses any part of what was written since the last good one, as Linux may; what it did not lose
is not durable either.  A power loss leaves in each cell what was durable, or anything written there since, and of each
page written since the last barrier the old one, the new one, or something torn between the two.
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


Lost = list[tuple[int, int]]  # (cell, what it held)


class Image(NamedTuple):
    """A side as it was, durably, at one time."""

    cells: list[int]
    headers: list[bytes]
    pages: list[list[bytes]]
    view: View


class Stores:
    """Both sides' cells; `differing` has the bit of each track set in which they are not equal.

    `dirty` has for each cell that is not durable what it held before, the durable value first.
    """

    def __init__(self, count: int) -> None:
        self.cells: tuple[list[int], list[int]] = ([0] * count, [0] * count)
        self.dirty: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
        self.undurable = [0, 0]  # by side, the bit of each track with a cell in `dirty`
        self.touched: set[int] = set()
        self.syncs = [0, 0]
        self.differing = 0
        self._counts = [0] * (-(-count // PER_TRACK))

    def put(self, side: int, cell: int, value: int) -> None:
        old = self.cells[side][cell]
        if old == value:
            return
        self.dirty[side].setdefault(cell, []).append(old)
        self.undurable[side] |= 1 << cell // PER_TRACK
        self._change(side, cell, value)

    def _change(self, side: int, cell: int, value: int) -> None:
        mine, other = self.cells[side], self.cells[1 - side][cell]
        old = mine[cell]
        mine[cell] = value
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
        self.undurable[side] = 0
        self.syncs[side] += 1

    def lose(self, side: int, rng: random.Random) -> Lost:
        """A failed sync: some of what was not durable is gone."""
        share = rng.choice((0.0, 0.3, 1.0))
        lost = []
        for cell, older in list(self.dirty[side].items()):
            if rng.random() < share:
                lost.append((cell, self.cells[side][cell]))
                self._change(side, cell, older[0])
                del self.dirty[side][cell]
        self.undurable[side] = 0
        for cell in self.dirty[side]:
            self.undurable[side] |= 1 << cell // PER_TRACK
        return lost

    def lose_power(self, side: int, rng: random.Random) -> Lost:
        """Each cell that was not durable keeps its value or takes an older one; what is there now is durable."""
        share = rng.choice((0.0, 0.3, 0.7, 1.0))
        is_mixed = rng.random() < 0.5
        chosen = {}
        for cell, older in self.dirty[side].items():
            if rng.random() < share:
                chosen[cell] = rng.choice(older) if is_mixed else older[0]
        return self._take_back(side, chosen)

    def lose_unsynced(self, side: int) -> Lost:
        """A power loss that leaves what was durable and nothing else."""
        return self._take_back(side, {cell: older[0] for cell, older in self.dirty[side].items()})

    def keep_unsynced(self, side: int) -> Lost:
        """A power loss that happens to lose nothing."""
        return self._take_back(side, {})

    def roll_back(self, side: int, cells: list[int]) -> None:
        """The cells are put back to an older state; that is durable."""
        for cell, value in enumerate(cells):
            if self.cells[side][cell] != value:
                self._change(side, cell, value)
        self.sync(side)

    def get_durable(self, side: int) -> list[int]:
        cells = self.cells[side][:]
        for cell, older in self.dirty[side].items():
            cells[cell] = older[0]
        return cells

    def _take_back(self, side: int, chosen: dict[int, int]) -> Lost:
        mine = self.cells[side]
        lost = [(cell, mine[cell]) for cell, value in chosen.items() if mine[cell] != value]
        for cell, _ in lost:
            self._change(side, cell, chosen[cell])
        self.dirty[side].clear()
        self.undurable[side] = 0
        return lost


BARRIER = -2
TORN_AT = 56  # within the digest, so that no page, however short, is whole


class Stage(NamedTuple):
    """One pwrite of the metadata file: page -1 is the header; page BARRIER is a sync."""

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
    """One metadata file; `version` rises with every change of it.

    `unsynced` has for each page and header copy that is not durable what was there before, the durable bytes first.
    """

    def __init__(self, header: Header) -> None:
        self.version = 0
        table = Table(header, 0, EXTENT_SIZE)
        self.tracks = table.geometry.tracks
        self.headers = [b"", b""]
        self.pages = [[bytes(layout.PAGE_SIZE)] * table.pages for _ in range(2)]
        self.unsynced: dict[tuple[int, int], list[bytes]] = {}
        self._view: View | None = None
        self._durable: View | None = None
        for stage in self.get_stages(table.build_fill(False, False)):
            self.write(stage)

    def get_stages(self, change: Change) -> list[Stage]:
        """In the order and with the barriers of actions.WriteTable."""
        stages = []
        for copy in (0, 1):
            stages += [Stage(index, copy, raw) for index, raw, _ in change.pages]
            stages += [Stage(BARRIER, copy, b"")] * bool(change.pages)
        if change.header is not None:
            for copy in (0, 1):
                stages += [Stage(-1, copy, change.header), Stage(BARRIER, copy, b"")]
        return stages

    def write(self, stage: Stage) -> None:
        if stage.page == BARRIER:
            self.unsynced.clear()
            self._durable = self._view
        else:
            self.unsynced.setdefault((stage.page, stage.copy), []).append(self.get_raw(stage.page, stage.copy))
            self._put(stage)

    def get_raw(self, page: int, copy: int) -> bytes:
        return self.headers[copy] if page < 0 else self.pages[copy][page]

    def _put(self, stage: Stage) -> None:
        self.version += 1
        self._view = None
        if stage.page < 0:
            self.headers[stage.copy] = stage.raw
        else:
            self.pages[stage.copy][stage.page] = stage.raw

    def tear(self, stage: Stage) -> None:
        """Half of the write got there."""
        if stage.page != BARRIER:
            self.write(stage._replace(raw=mix(stage.raw, self.get_raw(stage.page, stage.copy), TORN_AT)))

    def lose_power(self, rng: random.Random) -> None:
        """Each write since the last barrier got there, did not, or did in part; in any order."""
        for (page, copy), older in self.unsynced.items():
            old, new = rng.choice(older), self.get_raw(page, copy)
            at = rng.choice((20, 60, 100))  # within the front, the digest, the payload
            raw = rng.choice((new, older[0], old, mix(new, old, at), mix(old, new, at)))
            self._put(Stage(page, copy, raw))
        self.unsynced.clear()
        self._durable = None

    def lose_unsynced(self) -> None:
        """A power loss that leaves what was durable and nothing else."""
        for (page, copy), older in self.unsynced.items():
            self._put(Stage(page, copy, older[0]))
        self.unsynced.clear()

    def keep_unsynced(self) -> None:
        """A power loss that happens to lose nothing."""
        self.unsynced.clear()
        self._durable = None

    def tear_unsynced(self) -> None:
        """A power loss that leaves every page torn whose write had no barrier yet."""
        for (page, copy), older in self.unsynced.items():
            self._put(Stage(page, copy, mix(self.get_raw(page, copy), older[0], TORN_AT)))
        self.unsynced.clear()
        self._durable = None

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
        """The writes that make each page and its twin equal, between two syncs: what the loader does first of all."""
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
        barrier = Stage(BARRIER, 0, b"")
        return [barrier, *stages, barrier]

    @property
    def view(self) -> View:
        if self._view is None:
            self._view = self._build_view()
        return self._view

    @property
    def durable(self) -> View:
        """What recovery would find after a power loss that takes everything not durable."""
        if not self.unsynced:
            return self.view
        if self._durable is None:
            headers, pages = self.headers[:], [copy[:] for copy in self.pages]
            for (page, copy), older in self.unsynced.items():
                (self.headers if page < 0 else self.pages[copy])[copy if page < 0 else page] = older[0]
            self._durable = self._build_view()
            self.headers, self.pages = headers, pages
        return self._durable

    def take_image(self, cells: list[int]) -> Image:
        """What is durable now, and the cells that belong to it."""
        headers, pages = self.headers[:], [copy[:] for copy in self.pages]
        for (page, copy), older in self.unsynced.items():
            (headers if page < 0 else pages[copy])[copy if page < 0 else page] = older[0]
        return Image(cells, headers, pages, self.durable)

    def roll_back(self, image: Image) -> None:
        """The file is put back to an older state; that is durable."""
        self.headers, self.pages = image.headers[:], [copy[:] for copy in image.pages]
        self.unsynced.clear()
        self.version += 1
        self._view = self._durable = None

    def _build_view(self) -> View:
        table = self.load()
        count = self.tracks
        invalid, owed = table.invalid.read_bits(0, count), table.owed.read_bits(0, count)
        active = mask_extents(table, table.header.active) if table.header.committed else 0
        return View(table.header, invalid, owed | active & ~invalid, owed)


def mix(first: bytes, second: bytes, at: int) -> bytes:
    """A torn write: the first one up to a point, the second from there on."""
    return first[:at] + second[at:]


def mask_extents(table: Table, extents: frozenset[int] | list[int]) -> int:
    """The tracks of these extents as bits."""
    mask = 0
    for extent in extents:
        span = table.geometry.get_extent_span(extent)
        mask |= ((1 << span.count) - 1) << span.first
    return mask
