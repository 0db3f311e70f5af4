"""scatter - short runs of owed tracks that lie apart, many pushed in one turn of the copy.  Pure flows.

After a time without the path what is owed lies here and there.  Alone, each run would wait for its answer, and what
is done around it takes longer than the run itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbdplugin import actions, checkpoint, transfer
from nbdplugin.actions import Data, Flow
from nbdplugin.core import Core, Request
from nbdplugin.errors import PeerLost, PeerRefused
from nbdplugin.gate import Ticket
from nbdplugin.geometry import Span

RUNS_MOST = 32


def find_more(core: Core, run: Span, most_bytes: int) -> tuple[Span, ...]:
    """The run, of data that is owed, and the whole owed runs after it that one turn may move with it.

    Up to the next one that is long or a hole: those go alone.
    """
    left = most_bytes // core.table.geometry.track_size - run.count
    found = [run]
    while left > 0 and len(found) < RUNS_MOST:
        following = core.table.owed.find_run(found[-1].end, left + 1)
        if following is None or following[1] > left:
            break
        even = transfer.find_even(core, following[0], False)
        if even is None or even[1] or even[0] < following[1]:
            break
        found.append(Span(*following))
        left -= following[1]
    return tuple(found)


def push(core: Core, runs: Sequence[Span], buffer: memoryview | None = None) -> Flow[int]:
    """Those of the runs that no host request is at and that are still owed; each is taken whole or not at all.

    `buffer`: as in transfer.copy_run, as long as all together.  Result: bytes moved over the link.  Raises StoreFailed.
    """
    request = Request()
    yield from core.admit(request)
    tickets: list[Ticket] = []
    session = core.session
    try:
        if session is None:
            return 0
        held = [run for run in runs if _hold(core, run, tickets)]
        return (yield from _push_held(core, held, session, buffer)) if held else 0
    except (PeerLost, PeerRefused) as error:
        assert session is not None
        yield from core.end_session(session, error)
        return 0
    finally:
        for ticket in tickets:
            core.leave_gate(ticket)
        core.depart(request)


def _hold(core: Core, run: Span, tickets: list[Ticket]) -> bool:
    if not core.table.owed.is_all(run.first, run.count):
        return False
    ticket = core.gate.try_enter(*core.table.geometry.get_range(run))
    if ticket is not None:
        tickets.append(ticket)
    return ticket is not None


def _push_held(core: Core, runs: Sequence[Span], session: int, buffer: memoryview | None) -> Flow[int]:
    ranges = tuple(core.table.geometry.get_range(run) for run in runs)
    distrusts = core.distrusts
    pieces: list[Data] = yield actions.StoreReads(ranges, buffer)
    if core.distrusts != distrusts:
        return 0
    _touch(core, runs)
    yield actions.PeerWrites(session, ranges, pieces)
    if core.session != session:
        return 0
    _touch(core, runs)
    for run, (_, length) in zip(runs, ranges, strict=True):
        core.note_sent(run)
        core.table.clear_owed(run)
        transfer.count_copied(core, run, length, False)
    return sum(length for _, length in ranges)


def _touch(core: Core, runs: Sequence[Span]) -> None:
    for run in runs:
        checkpoint.touch_extents(core, core.table.geometry.get_extents(run))
