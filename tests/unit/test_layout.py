"""Pages of the metadata file: whatever happened to one, it is recognised or it is not that page."""

from __future__ import annotations

import random
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdplugin import layout
from nbdplugin.errors import TableDamaged
from nbdplugin.layout import Page

VOLUME = uuid.UUID(int=7)


def make(payload: bytes = b"payload", index: int = 3, sequence: int = 9) -> bytes:
    return layout.encode(layout.KIND_BITS, index, sequence, VOLUME, payload)


@given(st.binary(max_size=2 * layout.PLANE_BYTES), st.integers(0, 1 << 63), st.integers(1, 1 << 63))
def test_a_page_is_read_as_it_was_written(payload: bytes, index: int, sequence: int) -> None:
    raw = make(payload, index, sequence)
    assert len(raw) == layout.PAGE_SIZE
    assert layout.decode(raw, layout.KIND_BITS, index, VOLUME) == Page(index, sequence, payload)


def test_every_flipped_byte_is_noticed() -> None:
    raw = make(random.Random(1).randbytes(2 * layout.PLANE_BYTES))
    for at in range(len(raw)):
        bad = raw[:at] + bytes([raw[at] ^ 1 << at % 8]) + raw[at + 1 :]
        assert layout.decode(bad, layout.KIND_BITS, 3, VOLUME) is None, f"byte {at}"


def test_every_flipped_byte_of_a_header_is_noticed() -> None:
    raw = layout.encode(layout.KIND_HEADER, 0, 9, VOLUME, b"{}")
    assert len(raw) == layout.HEADER_SIZE
    for at in range(len(raw)):
        bad = raw[:at] + bytes([raw[at] ^ 0x80]) + raw[at + 1 :]
        assert layout.decode(bad, layout.KIND_HEADER, 0, None) is None, f"byte {at}"


@given(st.integers(1, layout.PAGE_SIZE - 1))
def test_a_page_written_in_part_over_its_predecessor_is_noticed(at: int) -> None:
    old, new = make(bytes(4032), sequence=1), make(b"\xff" * 4032, sequence=2)
    torn = new[:at] + old[at:]
    assert torn in (old, new) or layout.decode(torn, layout.KIND_BITS, 3, VOLUME) is None


@pytest.mark.parametrize(
    ("kind", "index", "volume"),
    [(layout.KIND_HEADER, 3, VOLUME), (layout.KIND_BITS, 4, VOLUME), (layout.KIND_BITS, 3, uuid.UUID(int=8))],
    ids=["another kind", "another place", "another volume"],
)
def test_a_good_page_from_elsewhere_is_not_taken(kind: int, index: int, volume: uuid.UUID) -> None:
    assert layout.decode(make(), kind, index, volume) is None


def test_a_page_of_zeroes_was_never_written() -> None:
    assert layout.decode(bytes(layout.PAGE_SIZE), layout.KIND_BITS, 5, VOLUME) == Page(5, 0, b"")


def test_a_sealed_page_of_another_format_is_refused_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "VERSION", 3)
    raw = make()
    monkeypatch.undo()
    with pytest.raises(TableDamaged, match="format 3"):
        layout.decode(raw, layout.KIND_BITS, 3, VOLUME)


def test_pages_of_the_format_before_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "VERSION", layout.OLDEST)
    raw = make()
    monkeypatch.undo()
    assert layout.decode(raw, layout.KIND_BITS, 3, VOLUME) == layout.decode(make(), layout.KIND_BITS, 3, VOLUME)


def test_a_payload_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TableDamaged):
        make(bytes(layout.PAGE_SIZE))


def test_of_twins_the_younger_good_one_counts() -> None:
    old, new = Page(0, 1, b"old"), Page(0, 2, b"new")
    assert layout.choose(old, new) is new
    assert layout.choose(new, old) is new
    assert layout.choose(None, old) is old
    assert layout.choose(old, None) is old
    assert layout.choose(None, None) is None


def test_no_two_pages_share_a_byte_of_the_file() -> None:
    tracks = 3 * layout.TRACKS_PER_PAGE + 1
    pages = layout.count_pages(tracks)
    parts = [(layout.get_header_offset(copy), layout.HEADER_SIZE) for copy in (0, 1)]
    parts += [(layout.get_page_offset(i, copy, pages), layout.PAGE_SIZE) for copy in (0, 1) for i in range(pages)]
    end = 0
    for offset, length in sorted(parts):
        assert offset == end
        end += length
    assert (pages, end) == (4, layout.get_file_size(tracks))


def test_the_table_is_a_hundred_thousandth_of_the_volume() -> None:
    size, track_size = 10 << 40, 64 << 10
    assert layout.get_file_size(size // track_size) <= size / 100_000
