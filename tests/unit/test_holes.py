"""What a side tells of its holes, byte by byte, becomes what is known of whole tracks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nbdplugin.geometry import Geometry
from nbdplugin.holes import build_view

TRACK = 4096
GEOMETRY = Geometry(10 * TRACK - 512, TRACK)  # the last track is short


def test_even_pieces_are_found_from_any_track_on() -> None:
    view = build_view(GEOMETRY, 2, [(2 * TRACK, True), (TRACK, False), (TRACK, False), (3 * TRACK, True)])
    assert [view.find(track) for track in range(2, 9)] == [
        (2, True),
        (1, True),
        (2, False),
        (1, False),
        (3, True),
        (2, True),
        (1, True),
    ]


def test_beyond_what_was_looked_at_nothing_is_known() -> None:
    view = build_view(GEOMETRY, 2, [(2 * TRACK, True)])
    assert view.find(1) is None
    assert view.find(4) is None


def test_a_track_that_is_a_hole_in_part_counts_as_data() -> None:
    view = build_view(GEOMETRY, 0, [(TRACK + 512, True), (TRACK, False), (2 * TRACK - 512, True)])
    assert view.find(0) == (1, True)
    assert view.find(1) == (2, False)
    assert view.find(3) == (1, True)


def test_a_hole_up_to_the_end_holds_the_short_last_track() -> None:
    view = build_view(GEOMETRY, 8, [(2 * TRACK - 512, True)])
    assert view.find(8) == (2, True)


def test_pieces_smaller_than_a_track_tell_of_the_first_track_nevertheless() -> None:
    assert build_view(GEOMETRY, 5, [(512, True)]).find(5) == (1, False)
    assert build_view(GEOMETRY, 5, []).find(5) == (1, False)


@given(
    st.integers(0, 9),
    st.lists(st.tuples(st.integers(1, 24).map(lambda sectors: sectors * 512), st.booleans()), max_size=12),
)
def test_a_track_is_a_hole_if_all_its_bytes_are(first: int, pieces: list[tuple[int, bool]]) -> None:
    start = first * TRACK
    told = b"".join(bytes([is_hole]) * length for length, is_hole in pieces)[: GEOMETRY.size - start]
    cut, left = [], len(told)
    for length, is_hole in pieces:
        if left > 0:
            cut.append((min(length, left), is_hole))
        left -= length
    view = build_view(GEOMETRY, first, cut)
    for track in range(first, GEOMETRY.tracks):
        end = min((track + 1) * TRACK, GEOMETRY.size) - start
        bits = told[track * TRACK - start : end]
        found = view.find(track)
        if found is None:
            assert end > len(told)  # a track of which all is told is known
            continue
        count, is_hole = found
        assert count > 0
        if is_hole:
            assert end <= len(told)
            assert all(bits)
        elif end <= len(told):
            assert not all(bits)
