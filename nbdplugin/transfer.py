"""transfer - tracks on their way between the two sides: fetch on demand, pull and push of the copy.  Pure flows.

A fetched track is marked valid last, a pushed track stops being owed last; a crash before that costs a repetition.
"""

from __future__ import annotations

import contextlib
import errno

from nbdplugin import actions, checkpoint, holes
from nbdplugin.actions import AGAIN, Data, Flow
from nbdplugin.core import Core, Request
from nbdplugin.errors import PeerLost, PeerRefused, StoreFailed
from nbdplugin.gate import Ticket
from nbdplugin.geometry import Span

RUN_BYTES = 1 << 20
HOLE_BYTES = 64 << 20  # a range that a host request may have to wait for
LOOK_BYTES = 1 << 30


def fetch(core: Core, span: Span) -> Flow[None]:
    """Brings the span's invalid tracks; whoever waited at the gate meanwhile finds them valid.

    Returns early when the session ends: the caller decides anew.  Raises StoreFailed, PeerRefused.
    """
    core.fetching += 1
    try:
        ticket = yield from core.enter_gate(*core.table.geometry.get_range(span))
        try:
            track = span.first
            while core.session is not None and (run := _find_within(core, track, span.end)) is not None:
                if not (yield from _fetch_run(core, run, core.session)):
                    return
                track = run.end
        finally:
            core.leave_gate(ticket)
    finally:
        core.fetching -= 1


def _find_within(core: Core, track: int, end: int) -> Span | None:
    most = max(1, RUN_BYTES // core.table.geometry.track_size)
    found = core.table.invalid.find_run(track, most)
    if found is None or found[0] >= end:
        return None
    return Span(found[0], min(found[1], end - found[0]))


def read_peer(core: Core, offset: int, length: int, error: StoreFailed) -> Flow[Data]:
    """The bytes that cannot be read here, from the peer; they are written here anew if that works.

    AGAIN if the tracks are not what they were, or the session ended.  Raises the error if the peer cannot help.
    """
    span = core.table.geometry.get_span(offset, length)
    ticket = yield from core.enter_gate(offset, length)  # no write to them is under way: both sides hold the same
    try:
        session, invalid, owed = core.session, core.table.invalid, core.table.owed
        if session is None or invalid.is_any(span.first, span.count) or owed.is_any(span.first, span.count):
            return AGAIN
        try:
            data = yield actions.PeerRead(session, offset, length, True)
        except PeerLost as loss:
            yield from core.end_session(session, loss)
            return AGAIN
        except PeerRefused:
            raise error from None
        with contextlib.suppress(StoreFailed):  # the same bytes: a drive gives a bad sector up when it is written
            yield actions.StoreWrite(offset, length, data)
            core.counts.repaired_tracks += span.count
        return data
    finally:
        core.leave_gate(ticket)


def _fetch_run(core: Core, run: Span, session: int) -> Flow[bool]:
    """Reads a run from the peer and stores it; False if the session ended.

    Raises PeerRefused where the peer cannot read it: that endangers nothing else, so the session goes on.
    """
    offset, length = core.table.geometry.get_range(run)
    try:
        data = yield actions.PeerRead(session, offset, length, True)
    except PeerLost as error:
        yield from core.end_session(session, error)
        return False
    if not (yield from _store(core, run, session, data)):
        return False
    core.counts.fetched_tracks += run.count
    core.counts.fetched_bytes += length
    return True


def _store(core: Core, run: Span, session: int, data: Data) -> Flow[bool]:
    """Valid last; raises StoreFailed, also when a failed sync meanwhile may have lost what was written.

    False, and nothing is valid, if the session ended: what the peer had not flushed in it is not owed while invalid.
    """
    distrusts = core.distrusts
    yield actions.StoreWrite(*core.table.geometry.get_range(run), data)
    if core.distrusts != distrusts:
        raise StoreFailed("a sync", errno.EIO)
    if core.session != session:
        return False
    core.table.mark_valid(run)
    return True


def find_next(core: Core, cursor: int) -> tuple[Span, bool] | None:
    """(run, is_pull) for the copy at or after the cursor, long enough for a hole; None when nothing is left there.

    Invalid tracks first: the host waits for them.
    """
    if core.session is None:
        return None
    most = max(1, HOLE_BYTES // core.table.geometry.track_size)
    pull = core.table.invalid.find_run(cursor, most)
    if pull is not None:
        return Span(*pull), True
    if core.failed is not None:  # after a failed sync the store may not hold what was written: rule 7
        return None
    push = core.table.owed.find_run(cursor, most)
    return None if push is None else (Span(*push), False)


def find_even(core: Core, track: int, is_pull: bool) -> tuple[int, bool] | None:
    """(tracks, are they a hole) of the even piece from this track on, as the last look told; None: look anew.

    What the peer told stands while the turn does: it changes in no track that stays invalid.  What the store told
    may change with every host write.
    """
    view = core.views.get(is_pull)
    if view is None or view.session != core.session or view.turn != core.turn:
        return None
    return view.find(track)


def _look(core: Core, track: int, is_pull: bool, session: int) -> Flow[tuple[int, bool] | None]:
    """As find_even, after a look where none is known; None if the session ended.  One looks for all."""
    geometry = core.table.geometry
    while core.session == session:
        found = find_even(core, track, is_pull)
        if found is not None:
            return found
        if core.is_looking:
            yield from core.wait("look")
            continue
        core.is_looking, turn = True, core.turn
        try:
            offset = geometry.get_range(Span(track, 1))[0]
            length = min(LOOK_BYTES, geometry.size - offset)
            if is_pull:
                pieces = yield actions.PeerExtents(session, offset, length)
            else:
                pieces = yield actions.StoreExtents(offset, length)
            core.views[is_pull] = holes.build_view(geometry, track, pieces, session, turn)
        finally:
            core.is_looking = False
            core.wake_all("look")
    return None


def copy_run(
    core: Core, run: Span, is_pull: bool, most_bytes: int | None = None, buffer: memoryview | None = None
) -> Flow[tuple[int, int]]:
    """Copies the first even piece of the run, taken whole or not at all; at most `most_bytes` of data.

    `buffer`: of that length, for the data while the flow runs; else each run takes memory of its own.
    Result: (tracks the cursor may skip, bytes moved over the link); (0, 0) when a host request was there first or
    the session ended.  Raises StoreFailed, and PeerRefused where the peer cannot read what is to be pulled; that it
    cannot write what is pushed ends the session.
    """
    request = Request()
    yield from core.admit(request)
    try:
        session = core.session
        if session is None:
            return 0, 0
        found = yield from _look(core, run.first, is_pull, session)
        if found is None:
            return 0, 0
        turn = core.turn
        run, is_hole = _cut(core, run, *found, most_bytes or RUN_BYTES)
        ticket = core.gate.try_enter(*core.table.geometry.get_range(run))
        if ticket is None:
            return run.count, 0
        return (yield from _copy_in_gate(core, run, is_pull, is_hole, session, turn, ticket, buffer))
    except (PeerLost, PeerRefused) as error:
        if is_pull and isinstance(error, PeerRefused):
            raise
        assert session is not None
        yield from core.end_session(session, error)
        return 0, 0
    finally:
        core.depart(request)


def _cut(core: Core, run: Span, count: int, is_hole: bool, most_bytes: int) -> tuple[Span, bool]:
    """(run, is it a hole): as much of the even piece as belongs to the run, of data at most `most_bytes`."""
    most = run.count if is_hole else max(1, most_bytes // core.table.geometry.track_size)
    return Span(run.first, min(run.count, count, most)), is_hole


def _copy_in_gate(
    core: Core,
    run: Span,
    is_pull: bool,
    is_hole: bool,
    session: int,
    turn: int,
    ticket: Ticket,
    buffer: memoryview | None,
) -> Flow[tuple[int, int]]:
    try:
        plane = core.table.invalid if is_pull else core.table.owed
        if core.turn != turn or not plane.is_all(run.first, run.count):
            return 0, 0
        if is_pull:
            return (yield from _pull(core, run, is_hole, session, buffer))
        return (yield from _push(core, run, is_hole, session, buffer))
    finally:
        core.leave_gate(ticket)


def _pull(core: Core, run: Span, is_hole: bool, session: int, buffer: memoryview | None) -> Flow[tuple[int, int]]:
    offset, length = core.table.geometry.get_range(run)
    into = _get_part(buffer, length)
    data = None if is_hole else (yield actions.PeerRead(session, offset, length, False, into))
    if not (yield from _store(core, run, session, data)):
        return 0, 0
    count_copied(core, run, length, data is None)
    return run.count, 0 if data is None else length


def _get_part(buffer: memoryview | None, length: int) -> memoryview | None:
    """None where the buffer is too short: a track may be longer than a run."""
    return buffer[:length] if buffer is not None and length <= len(buffer) else None


def _push(core: Core, run: Span, is_hole: bool, session: int, buffer: memoryview | None) -> Flow[tuple[int, int]]:
    distrusts = core.distrusts
    if is_hole:  # as of the last look; host writes may have passed since
        pieces = yield actions.StoreExtents(*core.table.geometry.get_range(run))
        count, is_still = holes.build_view(core.table.geometry, run.first, pieces).find(run.first) or (0, False)
        if not is_still:
            core.views.pop(False, None)
            return 0, 0
        run = Span(run.first, min(run.count, count))
    offset, length = core.table.geometry.get_range(run)
    extents = core.table.geometry.get_extents(run)
    data = None if is_hole else (yield actions.StoreRead(offset, length, _get_part(buffer, length)))
    if core.distrusts != distrusts:
        return 0, 0
    checkpoint.touch_extents(core, extents)
    yield actions.PeerWrite(session, offset, length, data)
    if core.session != session:
        return 0, 0
    checkpoint.touch_extents(core, extents)
    core.note_sent(run)
    core.table.clear_owed(run)
    count_copied(core, run, length, data is None)
    return run.count, 0 if data is None else length


def count_copied(core: Core, run: Span, length: int, is_zero: bool) -> None:
    core.counts.copied_tracks += run.count
    core.counts.copied_bytes += length
    core.counts.zeroed_bytes += length if is_zero else 0
