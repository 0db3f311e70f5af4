"""Which runs go over together: short ones that are owed and known to hold data."""

from __future__ import annotations

import uuid

import pytest

from nbdplugin import holes, scatter
from nbdplugin.core import Core
from nbdplugin.geometry import Span
from nbdplugin.tracks import Header, Table

TRACK = 4096
TRACKS = 100


@pytest.fixture
def core() -> Core:
    """In a session, and all of it known to be data but for the tracks 50 to 59."""
    header = Header(volume=str(uuid.uuid4()), size=TRACKS * TRACK, track_size=TRACK, generation="g")
    core = Core(Table(header), lambda: "name")
    core.session = 1
    pieces = [(50 * TRACK, False), (10 * TRACK, True), (40 * TRACK, False)]
    core.views[False] = holes.build_view(core.table.geometry, 0, pieces, 1, core.turn)
    return core


def mark(core: Core, *tracks: int) -> None:
    for track in tracks:
        core.table.mark_owed(Span(track, 1))


def test_short_runs_go_together_as_far_as_they_fit(core: Core) -> None:
    mark(core, 1, 4, 5, 9, 12)
    assert scatter.find_more(core, Span(1, 1), 8 * TRACK) == (Span(1, 1), Span(4, 2), Span(9, 1), Span(12, 1))
    assert scatter.find_more(core, Span(1, 1), 4 * TRACK) == (Span(1, 1), Span(4, 2), Span(9, 1))
    assert scatter.find_more(core, Span(1, 1), TRACK) == (Span(1, 1),)


def test_a_run_that_does_not_fit_goes_alone(core: Core) -> None:
    mark(core, 1, *range(4, 20))
    assert scatter.find_more(core, Span(1, 1), 8 * TRACK) == (Span(1, 1),)


def test_what_may_be_a_hole_goes_alone(core: Core) -> None:
    mark(core, 1, 55, 70)
    assert scatter.find_more(core, Span(1, 1), 8 * TRACK) == (Span(1, 1),)
    core.turn += 1
    mark(core, 4)
    assert scatter.find_more(core, Span(1, 1), 8 * TRACK) == (Span(1, 1),)


def test_there_is_an_end_to_how_many_go_together(core: Core) -> None:
    core.views[False] = holes.build_view(core.table.geometry, 0, [(TRACKS * TRACK, False)], 1, core.turn)
    mark(core, *range(0, TRACKS, 2))
    assert len(scatter.find_more(core, Span(0, 1), TRACKS * TRACK)) == scatter.RUNS_MOST
