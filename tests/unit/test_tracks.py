"""The table: what the disk may say, whatever memory did meanwhile."""

from __future__ import annotations

import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdplugin import layout, tracks
from nbdplugin.errors import TableDamaged
from nbdplugin.geometry import Span
from nbdplugin.tracks import Change, Header, Table

COUNT = 2 * layout.TRACKS_PER_PAGE
NEAR_THE_SEAM = layout.TRACKS_PER_PAGE - 20


def make_table() -> Table:
    return Table(Header(str(uuid.UUID(int=1)), COUNT * 4096, 4096, generation="g"))


class Disk:
    """What a metadata file would hold."""

    def __init__(self, table: Table) -> None:
        self.header = table.build_change((), {}, header=True).header
        self.pages: dict[int, bytes] = {}

    def write(self, table: Table, change: Change) -> None:
        self.pages |= {page: raw for page, raw, _ in change.pages}
        self.header = change.header or self.header
        table.note_written(change)

    def load(self) -> Table:
        assert self.header is not None
        page = layout.decode(self.header, layout.KIND_HEADER, 0, None)
        assert page is not None
        table = Table(tracks.decode_header(page.payload), page.sequence)
        for index, raw in self.pages.items():
            found = layout.decode(raw, layout.KIND_BITS, index, table.volume)
            assert found is not None
            table.restore_page(found)
        return table


def get_states(table: Table) -> list[str]:
    return [
        "i" if table.invalid.get(t) else "o" if table.owed.get(t) else "-"
        for t in range(NEAR_THE_SEAM, NEAR_THE_SEAM + 40)
    ]


@given(seed=st.integers(0, 1 << 32))
def test_the_disk_never_forgets_a_mark_that_it_was_not_allowed_to(seed: int) -> None:
    rng, table = random.Random(seed), make_table()
    disk = Disk(table)
    marked = ["-"] * 40  # what the disk must at least say
    for _ in range(40):
        first = rng.randrange(40)
        span = Span(NEAR_THE_SEAM + first, rng.randrange(1, 41 - first))
        rng.choice([table.mark_invalid, table.mark_valid, table.mark_owed, table.clear_owed])(span)
        choice = rng.random()
        if choice < 0.4:  # marks only
            disk.write(table, table.build_change(table.get_differing(), {}, header=False))
            before, now = marked, get_states(table)
            marked = ["i" if "i" in (a, b) else b if b != "-" else a for a, b in zip(before, now, strict=True)]
        elif choice < 0.6:  # a checkpoint: everything that is clear now may be cleared
            disk.write(table, table.build_change(table.get_differing(), table.note_clearer(), header=False))
            marked = get_states(table)
        elif choice < 0.65:
            disk.write(table, table.build_fill(invalid=rng.choice([None, True, False]), owed=False))
            marked = get_states(disk.load())
        loaded = disk.load()
        assert get_states(loaded) == marked
        assert not any(loaded.invalid.get(t) and loaded.owed.get(t) for t in range(NEAR_THE_SEAM, NEAR_THE_SEAM + 40))
        assert not any(table.invalid.get(t) and table.owed.get(t) for t in range(NEAR_THE_SEAM, NEAR_THE_SEAM + 40))


def test_owed_marks_leave_invalid_tracks_alone() -> None:
    table = make_table()
    table.mark_invalid(Span(5, 2))
    table.mark_owed(Span(4, 4))
    assert [table.owed.get(t) for t in range(4, 8)] == [True, False, False, True]


def test_the_header_comes_back_as_it_was() -> None:
    header = Header(str(uuid.UUID(int=1)), 1 << 20, 4096, generation="g", pair="p", active=[3, 5], session=9)
    assert tracks.decode_header(header.encode()) == header


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"planes": {}}', b"\xff", b'{"volume": 1}'])
def test_what_is_no_header_is_refused(payload: bytes) -> None:
    with pytest.raises(TableDamaged, match=r"cannot be read|planes"):
        tracks.decode_header(payload)


def test_a_lineage_keeps_eight_ancestors_the_youngest_first() -> None:
    header = Header(str(uuid.UUID(int=1)), 1 << 20, 4096, generation="g0")
    for number in range(1, 12):
        header.take_generation(f"g{number}")
    assert (header.generation, header.ancestors) == ("g11", [f"g{n}" for n in range(10, 2, -1)])
