"""requests - the host's reads, writes and flushes.  Pure flows over decide's table.

Raises StoreFailed, PathNotReady, PeerRefused, VolumeFailed: each is EIO to the host.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno

from nbdplugin import actions, checkpoint, lane, transfer
from nbdplugin.actions import AGAIN, Data, Flow, Outcome
from nbdplugin.core import Core, Request
from nbdplugin.decide import Cover, Kind, Path, Step, decide
from nbdplugin.errors import PathError, PathNotReady, PeerLost, StoreFailed
from nbdplugin.gate import Ticket
from nbdplugin.geometry import Span


@dataclasses.dataclass(slots=True)
class HostWrite:
    """One write of at most a few extents.  `data` None: zeroes."""

    kind: Kind
    offset: int
    length: int
    data: Data
    is_fua: bool = False


def classify(core: Core, kind: Kind, offset: int, length: int) -> Cover:
    """What the range meets, for decide's table."""
    span = core.table.geometry.get_span(offset, length)
    if core.table.invalid.is_any(span.first, span.count):
        if kind is Kind.READ or get_invalid_edges(core, offset, length):
            return Cover.PART
        return Cover.WHOLE
    return Cover.OWED if core.table.owed.is_all(span.first, span.count) else Cover.VALID


def get_invalid_edges(core: Core, offset: int, length: int) -> tuple[int, ...]:
    """The invalid tracks that the range covers only in part."""
    return tuple(t for t in core.table.geometry.get_edges(offset, length) if core.table.invalid.get(t))


def read(core: Core, offset: int, length: int) -> Flow[Data]:
    """The local bytes, once every track of the range is valid."""
    request = Request()
    yield from core.admit(request)
    try:
        span = core.table.geometry.get_span(offset, length)
        while True:
            while (step := decide(Kind.READ, classify(core, Kind.READ, offset, length), core.path)) is not Step.LOCAL:
                yield from _bring(core, request, span, step)
            distrusts = core.distrusts
            try:
                data = yield actions.StoreRead(offset, length)
            except StoreFailed as error:
                data = yield from _read_elsewhere(core, request, offset, length, error)
                if data is AGAIN:
                    continue
            if core.distrusts == distrusts:  # else a failed sync may have taken the data back before it was read
                core.counts.read_bytes += length
                return data
    finally:
        core.depart(request)


def _read_elsewhere(core: Core, request: Request, offset: int, length: int, error: StoreFailed) -> Flow[Data]:
    """What cannot be read here, from the peer if it has the same; AGAIN if that has to be decided anew.

    Raises the error where nobody else has it.
    """
    core.counts.read_errors += 1
    span = core.table.geometry.get_span(offset, length)
    if not core.table.header.committed or core.table.owed.is_any(span.first, span.count):
        raise error
    if core.session is None:
        yield from core.await_path(request)
        return AGAIN
    data = yield from transfer.read_peer(core, offset, length, error)
    core.counts.peer_reads += data is not AGAIN
    return data


def write(core: Core, item: HostWrite) -> Flow[None]:
    """Returns when the write may be acknowledged."""
    if item.kind is Kind.WRITE and not item.is_fua:
        plain = lane.begin(core, item.offset, item.length)
        if plain is not None:
            yield from _write_plainly(core, item, plain)
            return
    request = Request()
    yield from core.admit(request)
    yield from _write_admitted(core, request, item)


def _write_plainly(core: Core, item: HostWrite, plain: lane.Pass) -> Flow[None]:
    """As the compiled lane does it."""
    try:
        if plain.is_mirrored and plain.session is not None:
            outcome: Outcome = yield actions.WriteBoth(plain.session, item.offset, item.length, item.data)
        else:
            outcome = yield from _write_here(item)
    except BaseException:
        _leave_plain(core, plain)
        core.leave()
        raise
    if outcome.local is not None or (plain.is_mirrored and outcome.peer is not None) or not lane.end(core, plain):
        yield from conclude_plain(core, item, plain, outcome)


def conclude_plain(core: Core, item: HostWrite, plain: lane.Pass, outcome: Outcome) -> Flow[None]:
    """A write of the lane that did not go plainly, from the outcome of its legs on; returns as `write` does.

    Outcome.peer is None only where a mirrored one was answered well.
    """
    request = Request()
    request.is_in = True
    is_done = False
    try:
        try:
            if plain.is_mirrored and plain.session is not None:
                outcome = yield from _note_mirrored(core, item, plain.span, plain.session, outcome)
            is_done = yield from _conclude_write(core, item, plain.span, plain.session, plain.distrusts, outcome)
        finally:
            _leave_plain(core, plain)
    except BaseException:
        core.depart(request)
        raise
    if is_done:
        core.depart(request)
    else:
        yield from _write_admitted(core, request, item)


def _leave_plain(core: Core, plain: lane.Pass) -> None:
    checkpoint.release_extents(core, core.table.geometry.get_extents(plain.span))
    core.leave_gate(plain.ticket)


def _write_admitted(core: Core, request: Request, item: HostWrite) -> Flow[None]:
    try:
        is_done = False
        while not is_done:
            core.check_writable()
            ticket = yield from _enter(core, request, item)
            if ticket is None:
                return
            try:
                is_done = yield from _write_in_gate(core, item)
            finally:
                core.leave_gate(ticket)
            if is_done and item.is_fua:
                has_waited = yield from _flush_both(core, request)
                is_done = not (has_waited and (core.is_strict or _is_gone(core, item)))  # the peer may lack the write
    finally:
        core.depart(request)


def _is_gone(core: Core, item: HostWrite) -> bool:
    """Whether what was written was at the peer only, and the pair has ended."""
    span = core.table.geometry.get_span(item.offset, item.length)
    return core.path is Path.ALONE and core.table.invalid.is_any(span.first, span.count)


def flush(core: Core) -> Flow[None]:
    """Everything acknowledged before is durable on both sides, or owed."""
    request = Request()
    yield from core.admit(request)
    try:
        yield from _flush_both(core, request)
    finally:
        core.depart(request)


def _flush_both(core: Core, request: Request) -> Flow[bool]:
    """Waits for the path while only the peer has something that it may not have flushed; raises PathNotReady.

    Result: whether it waited, so that commands may have come between.
    """
    has_waited = False
    while True:
        session = core.session
        yield from core.sync_store()
        if session is not None:
            yield from checkpoint.flush_peer(core, session)
        if core.session is not None or not core.table.header.doubtful or core.is_loss_untold:
            break
        has_waited = True
        yield from core.await_path(request)
    core.check_peer_durable()
    return has_waited


def _bring(core: Core, request: Request, span: Span, step: Step) -> Flow[None]:
    """One step towards valid tracks; raises PathNotReady when there is none."""
    if step is Step.FAIL:
        raise PathNotReady("the volume holds no valid data there and belongs to no pair that could bring it")
    if step is Step.WAIT:
        yield from core.await_path(request)
    else:
        yield from transfer.fetch(core, span)


def _enter(core: Core, request: Request, item: HostWrite) -> Flow[Ticket | None]:
    """Into the gate with no invalid track covered in part; None when nothing of a trim is left."""
    while True:
        step = decide(item.kind, classify(core, item.kind, item.offset, item.length), core.path)
        if step is Step.SKIP:
            _skip_edges(core, item)
            if item.length <= 0:
                return None
        elif step is Step.WAIT:
            yield from core.await_path(request)
        elif step in (Step.FETCH, Step.FAIL):
            edge = get_invalid_edges(core, item.offset, item.length)[0]
            yield from _bring(core, request, Span(edge, 1), step)
        else:
            ticket = yield from core.enter_gate(item.offset, item.length)
            if not get_invalid_edges(core, item.offset, item.length):
                return ticket
            core.leave_gate(ticket)


def _skip_edges(core: Core, item: HostWrite) -> None:
    """A trim keeps its hands off invalid tracks that it covers in part."""
    geometry = core.table.geometry
    for track in get_invalid_edges(core, item.offset, item.length):
        start, length = geometry.get_range(Span(track, 1))
        end = item.offset + item.length
        if start <= item.offset:
            item.offset, item.length = start + length, end - start - length
        else:
            item.length = start - item.offset


def _write_in_gate(core: Core, item: HostWrite) -> Flow[bool]:
    """False if it is to enter anew: a failed sync made a partly covered track invalid first, or the peer lacks it."""
    span = core.table.geometry.get_span(item.offset, item.length)
    extents = core.table.geometry.get_extents(span)
    while core.path is not Path.HALTED and not checkpoint.is_prepared(core, extents):
        yield from checkpoint.prepare(core, extents)
    if core.path is Path.HALTED or get_invalid_edges(core, item.offset, item.length):
        return False
    checkpoint.use_extents(core, extents)
    try:
        distrusts, session = core.distrusts, core.session
        outcome = yield from _carry_out(core, item, span)
        return (yield from _conclude_write(core, item, span, session, distrusts, outcome))
    finally:
        checkpoint.release_extents(core, extents)


def _conclude_write(
    core: Core, item: HostWrite, span: Span, session: int | None, distrusts: int, outcome: Outcome
) -> Flow[bool]:
    """As _write_in_gate; `session` and `distrusts` as they were when the write began."""
    if core.distrusts != distrusts and outcome.local is None:
        outcome = Outcome(StoreFailed("a sync", errno.EIO), outcome.peer)
    yield from _conclude(core, item, span, outcome)
    is_peers = outcome.peer is None and core.session == session
    if core.distrusts != distrusts and not (is_peers and not core.table.owed.is_any(span.first, span.count)):
        # what the failed sync took back, nobody has for sure
        raise StoreFailed("a sync", errno.EIO)
    if outcome.peer is not None and core.is_strict:
        return False
    core.counts.write_bytes += item.length
    return True


def _carry_out(core: Core, item: HostWrite, span: Span) -> Flow[Outcome]:
    """Both legs, or the local one; Outcome.peer is None only where the peer has the write for good."""
    step = decide(item.kind, classify(core, item.kind, item.offset, item.length), core.path)
    if step is Step.BOTH and core.session is not None:
        session = core.session
        outcome: Outcome = yield actions.WriteBoth(session, item.offset, item.length, item.data)
        return (yield from _note_mirrored(core, item, span, session, outcome))
    if core.path is not Path.ALONE:
        core.table.mark_owed(span)
    return (yield from _write_here(item))


def _note_mirrored(core: Core, item: HostWrite, span: Span, session: int, outcome: Outcome) -> Flow[Outcome]:
    """What the peer's answer to a mirrored write means now."""
    if outcome.peer is not None:
        yield from core.end_session(session, outcome.peer)
    elif core.session != session:
        return Outcome(outcome.local, PeerLost("the session ended meanwhile"))
    else:
        core.note_sent(span)
        core.counts.mirrored_bytes += item.length
    return outcome


def _write_here(item: HostWrite) -> Flow[Outcome]:
    try:
        yield actions.StoreWrite(item.offset, item.length, item.data)
    except StoreFailed as error:
        return Outcome(error, PeerLost("not sent"))
    return Outcome(None, PeerLost("not sent"))


def _get_covered(core: Core, item: HostWrite) -> Span:
    """The tracks of the write, but for invalid ones covered in part: a failed write beside it made them so."""
    span = core.table.geometry.get_span(item.offset, item.length)
    edges = get_invalid_edges(core, item.offset, item.length)
    first = span.first + (span.first in edges)
    return Span(first, max(0, span.end - (span.count > 1 and span.end - 1 in edges) - first))


def _conclude(core: Core, item: HostWrite, span: Span, outcome: Outcome) -> Flow[None]:
    """The marks that make the outcome true, durable where they must be; raises if it was a failure."""
    if outcome.local is not None:
        yield from _conclude_local_failure(core, span, outcome)
        return
    is_paired = core.path is not Path.ALONE
    core.table.mark_valid(_get_covered(core, item))
    if outcome.peer is not None and is_paired:
        core.table.mark_owed(span)
        yield from checkpoint.take_generation(core)
    yield from checkpoint.settle(core, span)
    if not core.table.invalid.is_any(span.first, span.count):
        return
    if outcome.peer is not None:
        raise StoreFailed("a sync", errno.EIO)
    if is_paired:  # a write beside it failed here: what counts is the peer's, which has not been flushed since
        session = core.session
        yield from core.write_marks([span])
        if core.session != session:
            raise StoreFailed("a write", errno.EIO)


def _conclude_local_failure(core: Core, span: Span, outcome: Outcome) -> Flow[None]:
    """Invalid if the peer has the tracks as they should be now, else owed."""
    assert outcome.local is not None
    is_paired = core.path is not Path.ALONE
    if outcome.peer is None and is_paired and not core.table.owed.is_any(span.first, span.count):
        session = core.session
        core.turn += 1
        core.table.mark_invalid(span)
        yield from core.write_marks([span])
        if core.session == session:
            return
        raise outcome.local  # the session ended: the peer may have lost the only copy
    if is_paired:
        core.table.mark_owed(span)
    with contextlib.suppress(PathError):  # so that a crash leaves what reads return from here on
        yield from checkpoint.settle(core, span)
    raise outcome.local
