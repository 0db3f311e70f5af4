"""modes - commands and sessions: everything that changes what the volume is.  Pure flows.

Each change quiesces first (nothing in flight, waiters on invalid tracks aside), becomes durable, then admits again.
Repeating a command that already holds is an answer, not an error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from nbdplugin import actions, checkpoint, tracks
from nbdplugin.actions import Flow
from nbdplugin.core import Core, Request
from nbdplugin.errors import PathError, PeerLost, PeerRefused, Refused
from nbdplugin.lineage import Greeting
from nbdplugin.tracks import Change


def _quiesced(core: Core, change: Callable[[], Flow[None]]) -> Flow[None]:
    yield from core.quiesce()
    try:
        core.turn += 1
        yield from change()
    finally:
        core.resume_admission()


def connect(
    core: Core, operation: str, pair: str, peer: str, invalidate: str, on_path_loss: str = tracks.CONTINUE
) -> Flow[None]:
    """The source's half of a pair: recorded, not ready, not committed."""
    core.check_writable()
    header = core.table.header
    if header.pair == pair:
        return
    if header.pair is not None:
        raise Refused(f"the volume belongs to pair {header.pair} already; delete that pair first")
    if invalidate == "destination":
        _check_whole(core)

    def change() -> Flow[None]:
        header.side, header.pair, header.peer, header.operation = "source", pair, peer, operation
        header.invalidate, header.committed, header.ready = invalidate, False, False
        header.on_path_loss = on_path_loss
        header.session = header.accepted = 0
        header.peer_generation = header.epoch = None
        yield from core.write_header()

    yield from _quiesced(core, change)


def commit(core: Core, pair: str, count_clients: Callable[[], int], peer_line: tuple[str, ...]) -> Flow[None]:
    """THE COMMIT POINT: one side's tracks marked, path ready by command, in one durable header.

    `peer_line`: the destination's generation and its ancestors, from the greeting.
    """
    core.check_writable()  # before the answer to a repetition: memory may say what the disk does not
    header = core.table.header
    _check_pair(core, pair)
    if header.committed:
        return

    yield from _quiesced(core, lambda: _mark_side(core, header.invalidate or "", count_clients, peer_line))


def _mark_side(
    core: Core,
    side: str,
    count_clients: Callable[[], int],
    peer_line: tuple[str, ...],
    accepted: int | None = None,
    operation: str | None = None,
) -> Flow[None]:
    """Every track of the side invalid, and the path ready by command, in one durable header.

    `accepted`: the last session the peer says it accepted, where what was known of it before does not count any more.
    """
    header, is_source = core.table.header, side == "source"
    clients = count_clients()
    if is_source and clients:
        raise Refused(
            f"the source is in use by {clients} client(s) whose caches would be stale; "
            "detach it first (or --force: what they still write back then destroys the good copy)"
        )
    if not is_source:
        _check_whole(core)
        yield from core.sync_store()  # last: from here on neither marks nor extents vouch for what was written

    def build() -> Change:  # at once: neither another change of the table nor a greeting may say a part of this
        header.invalidate, header.committed, header.ready = side, True, True
        header.operation = operation or header.operation
        if accepted is not None:
            header.accepted, header.epoch, header.doubtful, core.is_loss_untold = accepted, None, False, False
        if is_source:
            header.incomplete = False  # the invalid bits say it now, track by track
            header.generation, header.ancestors = peer_line[0], list(peer_line[1:])
            header.peer_generation = header.generation
        else:
            header.take_generation(core.new_name(), peer_line[0])
            header.peer_generation = None
        core.extents.clear()
        return core.table.build_fill(invalid=is_source, owed=not is_source)

    yield from core.write_table(build)
    core.wake_all("path")


def resolve(
    core: Core,
    operation: str,
    pair: str,
    discard: str,
    count_clients: Callable[[], int],
    peer_line: tuple[str, ...],
    accepted: int,
) -> Flow[None]:
    """Ends a disagreement of the two sides: all that `discard` holds gives way to what the other one holds.

    As a commit, for a pair that is committed; the commit point of `pair resolve`.  `peer_line` and `accepted`: the
    destination's generation and ancestors, and the last session it accepted, from the greeting.
    """
    core.check_writable()
    _check_committed(core, pair)
    header = core.table.header
    if header.operation == operation:
        return

    def change() -> Flow[None]:
        check_apart(core, pair)
        yield from _mark_side(core, discard, count_clients, peer_line, accepted, operation)
        core.link_error = None

    yield from _quiesced(core, change)


def check_apart(core: Core, pair: str) -> None:
    """Raises Refused where there is nothing to resolve."""
    if core.session is not None:
        raise Refused(f"the two sides of pair {pair} agree by now: there is nothing to resolve")


def set_policy(core: Core, pair: str, on_path_loss: str) -> Flow[None]:
    """What becomes of host writes when the path is lost; those that wait are decided anew."""
    core.check_writable()
    _check_pair(core, pair)
    header = core.table.header
    if header.on_path_loss == on_path_loss:
        return

    def change() -> Flow[None]:
        header.on_path_loss = on_path_loss
        yield from core.write_header()
        core.wake_all("path")

    yield from _quiesced(core, change)


def suspend(core: Core, pair: str) -> Flow[None]:
    """Path not ready by command; what is on both sides by now is recorded as such."""
    _check_committed(core, pair)
    yield from _end_ready(core, is_last=False)


def _end_ready(core: Core, is_last: bool) -> Flow[None]:
    """The checkpoint comes first: a peer that does not answer holds up nobody's requests then.

    `is_last`: another one when nothing is written any more, since the pair ends and nothing owed will follow.
    """
    header = core.table.header
    yield from _checkpoint(core)

    def change() -> Flow[None]:
        if is_last:
            yield from checkpoint.checkpoint_or_note(core)
        was_ready, header.ready = header.ready, False  # before the session ends: nobody shall greet anew
        if core.session is not None:
            yield from core.end_session(core.session, "the path was suspended")
        core.link_error = None
        if was_ready:
            yield from core.write_header()
        core.wake_all("path")

    yield from _quiesced(core, change)


def _checkpoint(core: Core) -> Flow[None]:
    request = Request()
    yield from core.admit(request)
    try:
        yield from checkpoint.checkpoint_or_note(core)
    finally:
        core.depart(request)


def resume(core: Core, pair: str) -> Flow[None]:
    """Path ready by command; the link thread greets the peer."""
    core.check_writable()
    _check_committed(core, pair)
    header = core.table.header
    if header.ready:
        return

    def change() -> Flow[None]:
        header.ready = True
        yield from core.write_header()

    yield from _quiesced(core, change)


def stop(core: Core, pair: str) -> Flow[None]:
    """First step of a delete: checkpoint, session closed, not ready, durable."""
    if core.table.header.pair == pair:
        yield from _end_ready(core, is_last=True)


def disconnect(core: Core, pair: str) -> Flow[None]:
    """Drops the pair; invalid tracks stay invalid, they belong to the volume.  Owed marks go with the pair."""
    header = core.table.header
    if header.pair != pair:
        return

    def change() -> Flow[None]:
        if core.session is not None:
            yield from core.end_session(core.session, "the pair was deleted")
        header.leave_pair()
        core.extents.clear()
        core.is_loss_untold, core.own_generation = False, None
        core.link_error = None
        yield from core.write_table(lambda: core.table.build_fill(invalid=None, owed=False))
        core.wake_all("path")

    yield from _quiesced(core, change)


def drain(core: Core) -> Flow[None]:
    """Everything durable, nothing admitted any more: the process may be killed.  The caller re-admits on its limit."""
    yield from core.quiesce()
    yield from checkpoint.checkpoint_or_note(core)
    with contextlib.suppress(PathError):
        yield from checkpoint.unclaim(core)  # what comes after this process shall not send more than is owed


def _check_whole(core: Core) -> None:
    count = core.table.invalid.count
    if count or core.table.header.incomplete:
        what = f"{count} tracks of the source are invalid" if count else "the source is incomplete"
        raise Refused(f"{what}, so it cannot be the copy to push from; choose --invalidate source or a complete source")


def _check_pair(core: Core, pair: str) -> None:
    if core.table.header.pair != pair:
        raise Refused(f"the volume belongs to {core.table.header.pair or 'no pair'}, not to pair {pair}")


def _check_committed(core: Core, pair: str) -> None:
    _check_pair(core, pair)
    if not core.table.header.committed:
        raise Refused(f"pair {pair} is still being created")


# --- sessions ---


def begin_session(core: Core, discard: str | None = None) -> Flow[Greeting]:
    """A new session number, durable before it is sent.

    `discard`: the side whose data is about to give way, so that histories do not matter (see lineage.judge).
    """
    header = core.table.header

    def build() -> Change:
        header.session = max(header.session, header.accepted) + 1
        return core.table.build_change((), {}, header=True)

    yield from core.write_table(build)
    return Greeting(
        pair=header.pair or "",
        size=header.size,
        track_size=header.track_size,
        session=header.session,
        accepted=0 if discard else header.accepted,
        committed=header.committed and not discard,
        invalidate=discard or header.invalidate or "",
        generation=header.generation,
        ancestors=tuple(header.ancestors),
        differs=bool(core.table.owed.count or core.table.active_on_disk),
        protocol=core.spoken.newest,
        oldest=core.spoken.oldest,
    )


def note_accepted(core: Core, greeting: Greeting, epoch: str) -> Flow[bool]:
    """The peer took the session.  Result: whether anything will be pushed, so that it marks itself incomplete.

    A peer that restarted, or failed a sync, since we last knew it may lack what was not checkpointed: owed.
    """
    header = core.table.header

    def change() -> Flow[None]:
        if header.pair != greeting.pair or header.session != greeting.session:
            raise PeerLost("the pair changed while the peer was greeted")
        yield from checkpoint.unclaim(core)  # before what the disk owes is taken for what the peer may lack
        if header.committed and header.epoch != epoch:
            for extent in core.table.active_on_disk:
                core.table.mark_owed(core.table.geometry.get_extent_span(extent))
            core.table.restore_owed()
            core.is_loss_untold |= header.doubtful
        header.doubtful = False  # what a peer has when it accepts a session is durable
        header.epoch, header.accepted = epoch, greeting.session
        yield from core.write_header()

    yield from _quiesced(core, change)
    return core.table.owed.count > 0


def session_up(core: Core, session: int, is_told: bool) -> Flow[bool]:
    """The path is ready, unless a command came between (PeerLost).

    False if tracks became owed since the peer was asked whether anything will be pushed: tell it first.
    """
    header = core.table.header

    def change() -> Flow[None]:
        yield from checkpoint.unclaim(core)  # a write that goes to both sides must find its extent active
        if header.accepted != session or not (header.committed and header.ready):
            raise PeerLost("the path was suspended or deleted while the peer was greeted")
        if core.table.owed.count and not is_told:
            return
        core.session, core.ending = session, None
        core.is_complete = False
        core.link_error = None
        core.counts.sessions += 1
        core.wake_all("path")

    yield from _quiesced(core, change)
    return core.session == session


def finish(core: Core) -> Flow[bool]:
    """Tells the peer that it has everything, so that it is complete and of our generation."""
    request = Request()
    yield from core.admit(request)
    try:
        session, header = core.session, core.table.header
        if session is None or core.is_complete or core.table.owed.count:
            return False
        if not (yield from checkpoint.checkpoint(core)) and core.session != session:
            return False
        if core.table.owed.count or core.session != session:
            return False
        if header.peer_generation != header.generation:
            header.peer_generation = header.generation  # before the peer has it: a lineage taken too often does no harm
            yield from core.write_header()
        message = {"op": "complete", "generation": header.generation, "ancestors": header.ancestors}
        try:
            yield actions.PeerTell(session, message)
        except (PeerLost, PeerRefused) as error:
            yield from core.end_session(session, error)
            return False
        core.is_complete = core.session == session and not core.table.owed.count
        return core.is_complete
    finally:
        core.depart(request)


def lose_session(core: Core, session: int, reason: Exception | str) -> Flow[None]:
    """The link says so: a keep-alive failed."""
    with contextlib.suppress(PeerLost):
        yield from core.end_session(session, reason)
