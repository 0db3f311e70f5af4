"""The table against two plain dictionaries: what memory says and what the disk says."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdplugin import layout, tracks
from nbdplugin.errors import TableDamaged
from nbdplugin.geometry import Span
from nbdplugin.tracks import Bits, Change, Header, Table

TRACKS = 21
PER_PAGE = 8
VALID, INVALID, OWED = "valid", "invalid", "owed"


@pytest.fixture(autouse=True, scope="module")
def _small_pages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "PLANE_BYTES", 1)
        patch.setattr(layout, "TRACKS_PER_PAGE", PER_PAGE)
        yield


def make_header() -> Header:
    return Header(volume=str(uuid.UUID(int=1)), size=TRACKS * 4096 - 512, track_size=4096, generation="g")


class Disk:
    """The bytes, and the table next to a dictionary for what memory says."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.table = Table(make_header())
        self.memory = dict.fromkeys(range(TRACKS), VALID)
        self.marked = 0
        self.claimed: set[int] = set()
        self.kept: set[int] = set()  # tracks that memory had cleared and the disk owed when they were claimed
        self.header = b""
        self.pages: dict[int, bytes] = {}
        self.put(self.table.build_fill(False, False))

    def put(self, change: Change) -> None:
        self.land(change)
        self.table.note_written(change)

    def land(self, change: Change) -> None:
        self.pages |= {index: raw for index, raw, _ in change.pages}
        self.header = change.header or self.header

    def load(self) -> Table:
        page = layout.decode(self.header, layout.KIND_HEADER, 0, None)
        assert page is not None
        table = Table(tracks.decode_header(page.payload), page.sequence)
        for index, raw in self.pages.items():
            found = layout.decode(raw, layout.KIND_BITS, index, table.volume)
            assert found is not None
            table.restore_page(found)
        return table

    def get_span(self) -> Span:
        first = self.rng.randrange(TRACKS)
        return Span(first, self.rng.randint(1, TRACKS - first))

    def mark(self, what: str, span: Span) -> None:
        for track in range(span.first, span.end):
            self.marked += self.memory[track] == VALID and what in ("invalid", "owed")
            if what == "invalid":
                self.memory[track] = INVALID
            elif what == "valid" and self.memory[track] == INVALID:
                self.memory[track] = VALID
            elif what == "owed" and self.memory[track] == VALID:
                self.memory[track] = OWED
            elif what == "clear" and self.memory[track] == OWED:
                self.memory[track] = VALID
        {
            "invalid": self.table.mark_invalid,
            "valid": self.table.mark_valid,
            "owed": self.table.mark_owed,
            "clear": self.table.clear_owed,
        }[what](span)

    def claim(self) -> None:
        before = read(self.load())
        pages = {page for page in range(self.table.pages) if self.rng.random() < 0.5} - self.claimed
        self.kept |= {t for t in range(TRACKS) if t // PER_PAGE in pages and before[t] == OWED != self.memory[t]}
        change = self.table.build_claim(pages, header=self.rng.random() < 0.5)
        assert self.table.owed_pages_on_disk == self.claimed, "not before it is written"
        self.put(change)
        self.claimed |= pages

    def unclaim(self) -> None:
        """As long as it lasted there was no session, so that nothing was cleared."""
        before = read(self.load())
        change = self.table.build_unclaim()
        assert not self.table.owed_pages_on_disk, "before it is written"
        self.put(change)
        after = read(self.load())
        for track, old in before.items():
            is_claimed, memory = track // PER_PAGE in self.claimed, self.memory[track]
            if not is_claimed or old == INVALID or track in self.kept:
                assert after[track] in (old, memory, INVALID)
            else:
                assert after[track] == memory
        self.claimed, self.kept = set(), set()

    def fill(self, value: str | None) -> None:
        self.claimed, self.kept = set(), set()
        invalid = None if value is None else value == INVALID
        left = sum(old != VALID for old in self.memory.values())
        self.marked += TRACKS - left if value in (INVALID, OWED) else 0
        self.put(self.table.build_fill(invalid, value == OWED))
        for track, old in self.memory.items():
            if value is not None:
                self.memory[track] = value
            elif old == OWED:
                self.memory[track] = VALID


def read(table: Table) -> dict[int, str]:
    both = [track for track in range(TRACKS) if table.invalid.get(track) and table.owed.get(track)]
    assert not both, "invalid and owed"
    return {
        track: INVALID if table.invalid.get(track) else OWED if table.owed.get(track) else VALID
        for track in range(TRACKS)
    }


def read_shadow(table: Table) -> dict[int, str]:
    """What the table believes of the disk."""
    found = {}
    for track in range(TRACKS):
        page, bit = divmod(track, PER_PAGE)
        bits = table.get_disk(page)
        found[track] = INVALID if bits.invalid >> bit & 1 else OWED if bits.owed >> bit & 1 else VALID
    return found


def write(disk: Disk) -> None:
    """One change of some pages with some bits allowed to be cleared; marks may be made while it is under way."""
    rng, table = disk.rng, disk.table
    before, at_build = read(disk.load()), dict(disk.memory)
    pages = rng.sample(range(table.pages), rng.randint(1, table.pages))
    clear = {page: Bits(rng.getrandbits(PER_PAGE), rng.getrandbits(PER_PAGE)) for page in pages}
    change = table.build_change(pages, clear, header=rng.random() < 0.5)
    for _ in range(rng.randrange(3)):
        disk.mark(rng.choice(["invalid", "valid", "owed", "clear"]), disk.get_span())
    disk.put(change)
    after = read(disk.load())
    for track in range(TRACKS):
        page, bit = divmod(track, PER_PAGE)
        if page not in pages:
            assert after[track] == before[track]
            continue
        may_clear = {INVALID: clear[page].invalid, OWED: clear[page].owed, VALID: -1}[before[track]] >> bit & 1
        expected = at_build[track]
        if not may_clear and before[track] != expected and INVALID not in (expected,):
            expected = before[track]
        assert after[track] == expected, f"track {track}: {before[track]} -> {at_build[track]}, cleared {may_clear}"


@given(st.integers(0, 1 << 32))
def test_memory_and_disk_are_what_they_are_told_to_be(seed: int) -> None:
    disk = Disk(seed)
    for _ in range(25):
        choice = disk.rng.random()
        if choice < 0.6:
            disk.mark(disk.rng.choice(["invalid", "valid", "owed", "clear"]), disk.get_span())
        elif choice < 0.9:
            write(disk)
        else:
            disk.fill(disk.rng.choice([VALID, INVALID, OWED, None]))
        assert read(disk.table) == disk.memory
        assert disk.table.marked == disk.marked
        on_disk = read(disk.load())
        assert read_shadow(disk.table) == on_disk
        differing = {track // PER_PAGE for track in range(TRACKS) if on_disk[track] != disk.memory[track]}
        assert differing <= disk.table.get_differing()


@given(st.integers(0, 1 << 32))
def test_what_is_noted_as_clearer_is_what_the_disk_has_and_memory_has_not(seed: int) -> None:
    disk = Disk(seed)
    for _ in range(8):
        disk.mark(disk.rng.choice(["invalid", "valid", "owed", "clear"]), disk.get_span())
        if disk.rng.random() < 0.4:
            write(disk)
    on_disk, noted = read(disk.load()), disk.table.note_clearer()
    for track in range(TRACKS):
        page, bit = divmod(track, PER_PAGE)
        bits = noted.get(page, Bits(0, 0))
        assert bool(bits.invalid >> bit & 1) == (on_disk[track] == INVALID != disk.memory[track])
        assert bool(bits.owed >> bit & 1) == (on_disk[track] == OWED != disk.memory[track])


@given(st.integers(0, 1 << 32))
def test_settled_means_that_no_valid_track_is_invalid_on_disk(seed: int) -> None:
    disk = Disk(seed)
    disk.fill(INVALID)
    for _ in range(8):
        disk.mark(disk.rng.choice(["invalid", "valid", "owed"]), disk.get_span())
        if disk.rng.random() < 0.4:
            write(disk)
        span, on_disk = disk.get_span(), read(disk.load())
        unsettled = [t for t in range(span.first, span.end) if on_disk[t] == INVALID != disk.memory[t]]
        assert disk.table.is_settled(span) == (not unsettled)


@given(st.integers(0, 1 << 32))
def test_a_claimed_page_is_owed_or_invalid_whatever_else_is_written(seed: int) -> None:
    disk = Disk(seed)
    for _ in range(25):
        choice = disk.rng.random()
        if choice < 0.5:
            disk.mark(disk.rng.choice(["invalid", "valid", "owed", "clear"]), disk.get_span())
        elif choice < 0.65:
            pages = disk.rng.sample(range(disk.table.pages), disk.rng.randint(1, disk.table.pages))
            clear = {page: Bits(disk.rng.getrandbits(PER_PAGE), disk.rng.getrandbits(PER_PAGE)) for page in pages}
            disk.put(disk.table.build_change(pages, clear, header=False))
        elif choice < 0.85:
            disk.claim()
        elif choice < 0.95:
            disk.unclaim()
        else:
            disk.fill(disk.rng.choice([VALID, INVALID, OWED, None]))
        on_disk = read(disk.load())
        assert read(disk.table) == disk.memory
        assert read_shadow(disk.table) == on_disk
        assert disk.table.owed_pages_on_disk == disk.claimed
        assert not [t for t in range(TRACKS) if t // PER_PAGE in disk.claimed and on_disk[t] == VALID]


def test_the_end_of_a_claim_keeps_what_memory_had_cleared_before_it() -> None:
    disk = Disk(1)
    disk.mark("owed", Span(0, 3))
    disk.put(disk.table.build_change([0], {}, header=False))
    disk.mark("clear", Span(0, 1))
    disk.put(disk.table.build_claim({0, 1}, header=False))
    disk.mark("owed", Span(9, 1))
    assert disk.table.get_differing() == {0, 1}
    assert disk.table.get_behind() == set()
    disk.put(disk.table.build_unclaim())
    assert {track for track, value in read(disk.load()).items() if value == OWED} == {0, 1, 2, 9}


def test_the_pages_behind_are_those_whose_marks_the_disk_lacks() -> None:
    disk = Disk(1)
    disk.mark("owed", Span(0, 1))
    disk.put(disk.table.build_change([0], {}, header=False))
    disk.mark("clear", Span(0, 1))
    disk.mark("owed", Span(8, 1))
    disk.mark("invalid", Span(16, 1))
    assert disk.table.get_behind() == {1, 2}


@pytest.mark.parametrize(("extent", "pages"), [(0, [0]), (1, [0, 1]), (2, [1]), (3, [1, 2]), (4, [2])])
def test_an_extent_lies_in_one_page_or_in_two(extent: int, pages: list[int]) -> None:
    header = make_header()
    table = Table(header, extent_size=5 * 4096)
    assert list(table.get_extent_pages(extent)) == pages


def test_a_page_under_way_that_says_invalid_is_not_settled() -> None:
    disk = Disk(1)
    disk.mark("invalid", Span(0, 1))
    change = disk.table.build_change([0], {}, header=False)
    disk.mark("valid", Span(0, 1))
    assert not disk.table.is_settled(Span(0, 1))
    disk.put(change)
    assert not disk.table.is_settled(Span(0, 1))
    disk.put(disk.table.build_change([0], disk.table.get_clear_mask([Span(0, 1)]), header=False))
    assert disk.table.is_settled(Span(0, 1))


def test_a_clear_mask_touches_its_spans_only() -> None:
    disk = Disk(1)
    disk.fill(INVALID)
    disk.mark("valid", Span(0, TRACKS))
    disk.put(disk.table.build_change(range(3), disk.table.get_clear_mask([Span(2, 3), Span(7, 2)]), header=False))
    valid = {track for track, value in read(disk.load()).items() if value == VALID}
    assert valid == {2, 3, 4, 7, 8}


def test_what_memory_cleared_ahead_of_the_disk_can_be_set_again() -> None:
    disk = Disk(1)
    disk.mark("invalid", Span(0, 4))
    disk.mark("owed", Span(4, 4))
    disk.put(disk.table.build_change([0], {}, header=False))
    disk.mark("valid", Span(0, 3))
    disk.mark("owed", Span(0, 1))
    disk.mark("clear", Span(4, 2))
    disk.table.restore_owed()
    assert [read(disk.table)[track] for track in range(8)] == [OWED, VALID, VALID, INVALID, OWED, OWED, OWED, OWED]
    for page, bits in disk.table.note_clearer().items():
        disk.table.restore_invalid(page, bits)
    assert [read(disk.table)[track] for track in range(4)] == [INVALID] * 4
    assert disk.table.marked == 8 + 1 + 2 + 2, "the first marks; track 0 owed; tracks 4, 5 again; tracks 1, 2 again"


def test_a_lineage_is_on_disk_once_it_is_written() -> None:
    disk = Disk(1)
    disk.table.header.take_generation("g2")
    change = disk.table.build_change((), {}, header=True)
    assert disk.table.generation_on_disk == "g"
    disk.put(change)
    assert disk.table.generation_on_disk == "g2"
    assert disk.load().header.ancestors == ["g"]


def test_a_new_lineage_remembers_its_last_ancestors_once_each() -> None:
    header = make_header()
    for number in range(12):
        header.take_generation(f"g{number}", "peer")
    assert header.generation == "g11"
    assert len(header.ancestors) == tracks.ANCESTORS == len(set(header.ancestors))
    assert header.ancestors[:2] == ["g10", "peer"]


def test_active_extents_end_with_a_fill_and_are_on_disk_once_written() -> None:
    disk = Disk(1)
    change = disk.table.build_change((), {}, header=True, active=frozenset({0}))
    assert disk.table.active_on_disk == frozenset()
    disk.put(change)
    assert disk.table.active_on_disk == {0}
    assert disk.load().active_on_disk == {0}
    disk.fill(OWED)
    assert disk.table.active_on_disk == disk.load().active_on_disk == frozenset()


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"planes":{}}', b'{"planes":{"invalid":1}}', b"\xff"])
def test_what_is_no_header_is_refused(payload: bytes) -> None:
    with pytest.raises(TableDamaged):
        tracks.decode_header(payload)


def test_a_header_of_the_format_before_is_read() -> None:
    fields = json.loads(make_header().encode())
    for name in ("on_path_loss", "last_write", "pages", "pages_since"):
        del fields[name]
    assert tracks.decode_header(json.dumps(fields).encode()) == make_header()


def test_a_header_with_other_planes_is_refused() -> None:
    header = make_header()
    header.planes["more"] = tracks.Fill()
    with pytest.raises(TableDamaged, match="planes"):
        tracks.decode_header(header.encode())
