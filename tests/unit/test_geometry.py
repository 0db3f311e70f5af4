"""Track arithmetic against the byte-by-byte definition."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdplugin import geometry
from nbdplugin.errors import BadRequest
from nbdplugin.geometry import Geometry, Span

TRACK = 4


@st.composite
def ranges(draw: st.DrawFn) -> tuple[Geometry, int, int]:
    size = draw(st.integers(1, 60))
    offset = draw(st.integers(0, size))
    return Geometry(size, TRACK, 3 * TRACK), offset, draw(st.integers(0, size - offset))


@given(ranges())
def test_a_span_holds_the_tracks_of_every_byte_and_no_other(case: tuple[Geometry, int, int]) -> None:
    shape, offset, length = case
    span = shape.get_span(offset, length)
    assert set(range(span.first, span.end)) == {byte // TRACK for byte in range(offset, offset + length)}


@given(ranges())
def test_edges_are_the_tracks_covered_in_part(case: tuple[Geometry, int, int]) -> None:
    shape, offset, length = case
    covered = set(range(offset, offset + length))
    expected = []
    for track in range(shape.tracks):
        whole = set(range(track * TRACK, min((track + 1) * TRACK, shape.size)))
        if whole & covered and not whole <= covered:
            expected.append(track)
        assert shape.is_covered(track, offset, length) == (whole <= covered)
    assert list(shape.get_edges(offset, length)) == expected


@given(ranges())
def test_extents_are_those_of_the_tracks(case: tuple[Geometry, int, int]) -> None:
    shape, offset, length = case
    span = shape.get_span(offset, length)
    assert set(shape.get_extents(span)) == {track // 3 for track in range(span.first, span.end)}


@given(ranges())
def test_the_extents_part_the_tracks(case: tuple[Geometry, int, int]) -> None:
    shape = case[0]
    spans = [shape.get_extent_span(extent) for extent in range(shape.extents)]
    assert [track for span in spans for track in range(span.first, span.end)] == list(range(shape.tracks))


@given(ranges(), st.integers(1, 9))
def test_pieces_end_at_multiples_and_leave_nothing_out(case: tuple[Geometry, int, int], piece: int) -> None:
    shape, offset, length = case
    pieces = list(shape.cut(offset, length, piece))
    assert [byte for start, count in pieces for byte in range(start, start + count)] == list(
        range(offset, offset + length)
    )
    assert all((start + count) % piece == 0 for start, count in pieces[:-1])
    assert all(0 < count <= piece for _, count in pieces)


def test_whole_tracks_end_with_the_volume() -> None:
    assert Geometry(10, TRACK, 3 * TRACK).get_range(Span(1, 2)) == (4, 6)


@pytest.mark.parametrize(
    ("size", "track_size"),
    [
        (0, 4096),
        (-512, 4096),
        (513, 4096),
        (geometry.SIZE_MAX + 512, 4096),
        (4096, 2048),
        (4096, 8 << 20),
        (4096, 5000),
    ],
)
def test_a_shape_that_makes_no_volume_is_refused(size: int, track_size: int) -> None:
    with pytest.raises(BadRequest):
        geometry.check(size, track_size)


@pytest.mark.parametrize(("size", "track_size"), [(512, 4096), (geometry.SIZE_MAX, 4 << 20)])
def test_the_ends_of_what_is_allowed_are_allowed(size: int, track_size: int) -> None:
    geometry.check(size, track_size)
