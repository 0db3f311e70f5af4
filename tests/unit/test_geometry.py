"""Track arithmetic against counting bytes one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdplugin import geometry
from nbdplugin.errors import BadRequest
from nbdplugin.geometry import Geometry, Span

TRACK = 8
SIZES = st.integers(1, 100)


@given(size=SIZES, data=st.data())
def test_spans_ranges_and_edges_agree_with_counting(size: int, data: st.DataObject) -> None:
    shape = Geometry(size, TRACK, 32)
    offset = data.draw(st.integers(0, size - 1))
    length = data.draw(st.integers(1, size - offset))
    touched = sorted({byte // TRACK for byte in range(offset, offset + length)})
    span = shape.get_span(offset, length)
    assert list(range(span.first, span.end)) == touched
    whole = {
        t for t in touched if all(offset <= b < offset + length for b in range(t * TRACK, min(t * TRACK + TRACK, size)))
    }
    assert {t for t in touched if shape.is_covered(t, offset, length)} == whole
    assert set(shape.get_edges(offset, length)) == set(touched) - whole
    start, count = shape.get_range(span)
    assert start == touched[0] * TRACK
    assert start + count == min(touched[-1] * TRACK + TRACK, size)
    assert list(shape.get_extents(span)) == sorted({t * TRACK // 32 for t in touched})


@given(size=SIZES, piece=st.sampled_from([1, 7, 8, 64]))
def test_cutting_loses_nothing(size: int, piece: int) -> None:
    pieces = list(Geometry(size, TRACK, 32).cut(3, size, piece))
    assert [byte for offset, length in pieces for byte in range(offset, offset + length)] == list(range(3, 3 + size))
    assert all((offset + length) % piece == 0 for offset, length in pieces[:-1])


def test_an_empty_range_touches_nothing() -> None:
    shape = Geometry(100, TRACK, 32)
    assert shape.get_span(16, 0) == Span(2, 0)
    assert shape.get_edges(16, 0) == ()
    assert list(shape.get_extents(Span(2, 0))) == []


@pytest.mark.parametrize(
    ("size", "track_size"),
    [(0, 4096), (-512, 4096), (513, 4096), (1 << 61, 4096), (512, 2048), (512, 8 << 20), (512, 5000), (512, 0)],
)
def test_what_cannot_be_a_volume_is_refused(size: int, track_size: int) -> None:
    with pytest.raises(BadRequest):
        geometry.check(size, track_size)


def test_the_smallest_and_the_largest_are_taken() -> None:
    geometry.check(512, 4096)
    geometry.check(1 << 60, 4 << 20)
