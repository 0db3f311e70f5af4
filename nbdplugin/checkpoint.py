"""checkpoint - how marks reach the disk and leave it again.  Pure flows.

A mark is set on disk before the write that needs it (activate) and cleared only after the data it guards is
durable on both sides (checkpoint), or at once together with its reason (settle).  Concurrent requests share syncs.
"""

from __future__ import annotations

import functools
from collections.abc import Set

from nbdplugin import actions
from nbdplugin.actions import Flow
from nbdplugin.core import Core, Extent
from nbdplugin.errors import PathError, PeerLost, PeerRefused
from nbdplugin.geometry import Span
from nbdplugin.tracks import Bits, Change

IDLE_CHECKPOINTS = 8
NONE = range(0)


def needs_generation(core: Core) -> bool:
    """Whether a write that the peer lacks would happen under a lineage the peer may have, as the disk has it."""
    header, durable = core.table.header, core.table.generation_on_disk
    if header.committed:
        return core.session is None and durable == header.peer_generation
    return durable != core.own_generation


def take_generation(core: Core) -> Flow[None]:
    """Until it is not needed any more; waits for nobody who waits for room among the extents."""
    while needs_generation(core):
        yield from core.write_table(lambda: _build_activation(core, frozenset()))


def is_prepared(core: Core, extents: range) -> bool:
    """Whether a write to these extents may start: recorded as active if paired, lineage taken if needed."""
    on_disk = core.table.active_on_disk
    if core.table.header.pair is not None and not all(e in on_disk and e in core.extents for e in extents):
        return False
    return not needs_generation(core)


def prepare(core: Core, extents: range) -> Flow[None]:
    """One round towards is_prepared; the caller asks again.  Concurrent rounds share one header write."""
    if core.table.header.pair is not None:
        core.wanted_extents.update(e for e in extents if e not in core.extents)
    if core.is_activating:
        yield from core.wait("activation")
        return
    core.is_activating = True
    try:
        yield from _activate(core, extents)
    finally:
        core.is_activating = False
        core.wanted_extents.clear()
        core.wake_all("activation")


def _activate(core: Core, first: range) -> Flow[None]:
    """Room is for the extents `first` before those of others: requests that evicted each other's would not end."""
    if len(core.table.active_on_disk) + len(core.wanted_extents) > core.max_active:
        yield from checkpoint(core, first)
        if len(core.table.active_on_disk) >= core.max_active:
            if any(use.in_flight for use in core.extents.values()):
                yield from core.wait("leave")
            return
    yield from core.write_table(lambda: _build_activation(core, core.wanted_extents, first))


def _build_activation(core: Core, wanted: Set[int], first: range = NONE) -> Change | None:
    room = core.max_active - len(core.table.active_on_disk)
    new = frozenset(sorted(wanted - set(core.extents), key=lambda extent: (extent not in first, extent))[:room])
    if needs_generation(core):
        core.own_generation = core.new_name()
        core.table.header.take_generation(core.own_generation)
    elif not new:
        return None
    for extent in new:
        core.extents[extent] = Extent()
    core.counts.activations += len(new)
    return core.table.build_change((), {}, header=True, active=core.table.active_on_disk | new)


def use_extents(core: Core, extents: range) -> None:
    """Counts a write in flight on each active extent; see release_extents."""
    for extent in extents:
        use = core.extents.get(extent)
        if use is not None:
            use.in_flight += 1
            use.idle = 0


def release_extents(core: Core, extents: range) -> None:
    for extent in extents:
        use = core.extents.get(extent)
        if use is not None:
            use.in_flight -= 1
            use.idle = 0


def touch_extents(core: Core, extents: range) -> None:
    """A push passed here: not to be retired by a checkpoint that began before it."""
    for extent in extents:
        use = core.extents.get(extent)
        if use is not None:
            use.idle = 0


def settle(core: Core, span: Span) -> Flow[None]:
    """The span's tracks, valid in memory, stop being invalid on disk: sync, then one table change, shared.

    A track that became invalid again meanwhile is left so.
    """
    while not core.table.is_settled(span):
        core.to_settle.append(span)
        if core.is_settling:
            yield from core.wait("settle")
            continue
        core.is_settling = True
        try:
            batch, core.to_settle = core.to_settle, []
            masks = core.table.get_clear_mask(batch)  # before the sync, which does not cover what is fetched after it
            turn = core.turn
            yield from core.sync_store()
            yield from core.write_table(functools.partial(_build_settled, core, masks, turn))
        finally:
            core.is_settling = False
            core.wake_all("settle")


def _build_settled(core: Core, masks: dict[int, Bits], turn: int) -> Change | None:
    if core.turn != turn:  # a session ended meanwhile: sync once more, what is clear now may be younger
        return None
    return core.table.build_change(masks, masks, header=False)


def flush_peer(core: Core, session: int) -> Flow[bool]:
    """Everything sent in the session so far is durable at the peer; on failure the session ends, the rest is owed."""
    if core.session != session:
        return False
    sent, core.unflushed, doubts = core.unflushed, set(), core.doubts
    core.flushing.append(sent)
    try:
        yield actions.PeerFlush(session)
    except (PeerLost, PeerRefused) as error:
        yield from core.end_session(session, error)
        return False
    core.flushing = [spans for spans in core.flushing if spans is not sent]
    if core.session == session and core.doubts == doubts:
        core.table.header.doubtful = False
    return core.session == session


def checkpoint(core: Core, room_for: range | None = None) -> Flow[bool]:
    """Clears on disk what is clear in memory and durable on both sides; retires extents at rest.

    `room_for`: somebody waits to make these active, so that all others go that have no write in flight.
    False if something changed meanwhile, so that nothing was cleared.
    """
    while core.is_checkpointing:
        yield from core.wait("checkpoint")
    core.is_checkpointing = True
    try:
        return (yield from _checkpoint(core, room_for))
    finally:
        core.is_checkpointing = False
        core.wake_all("checkpoint")


def is_due(core: Core) -> bool:
    """Whether a checkpoint would have something to do."""
    return bool(core.table.get_differing() or core.table.active_on_disk or core.unflushed)


def _checkpoint(core: Core, room_for: range | None) -> Flow[bool]:
    session, turn = core.session, core.turn
    noted = core.table.note_clearer()
    for use in core.extents.values():
        use.idle += use.in_flight == 0
    core.counts.checkpoints += 1
    yield from core.sync_store()
    if session is not None and not (yield from flush_peer(core, session)):
        return False
    return (yield from core.write_table(lambda: _build_checkpoint(core, session, turn, noted, room_for)))


def _build_checkpoint(
    core: Core, session: int | None, turn: int, noted: dict[int, Bits], room_for: range | None
) -> Change | None:
    if core.turn != turn:
        return None
    if session is None:  # nothing of what is owed became durable at the peer
        noted = {page: Bits(bits.invalid, 0) for page, bits in noted.items()}
    most = IDLE_CHECKPOINTS if room_for is None else 1
    retired = {e for e, use in core.extents.items() if use.in_flight == 0 and use.idle >= most}
    retired.difference_update(room_for or NONE)
    pages = set(noted) | (core.table.get_differing() if retired else set())
    if not pages and not retired:
        return None
    for extent in retired:
        del core.extents[extent]
    active = core.table.active_on_disk - retired if retired else None
    return core.table.build_change(pages, noted, header=False, active=active)


def checkpoint_or_note(core: Core) -> Flow[bool]:
    """As checkpoint, for callers that go on when it fails; the reason stays in core.failed or link_error."""
    try:
        return (yield from checkpoint(core))
    except PathError:
        return False
