"""checkpoint - how marks reach the disk and leave it again.  Pure flows.

A mark is set on disk before the write that needs it (activate) and cleared only after the data it guards is
durable on both sides (checkpoint), or at once together with its reason (settle).  Concurrent requests share syncs.

While there is no session every write owes its tracks in memory before it begins.  Where more extents are wanted, again
and again, than may be active, the disk owes whole pages of tracks instead (claim); no page is claimed in a session.
"""

from __future__ import annotations

import functools
from collections.abc import Set

from nbdplugin import actions
from nbdplugin.actions import Flow
from nbdplugin.core import Core, Extent, Request
from nbdplugin.errors import PathError, PeerLost, PeerRefused
from nbdplugin.geometry import Span
from nbdplugin.tracks import Bits, Change

IDLE_CHECKPOINTS = 8
CALM_CHECKPOINTS = 8
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
    """Whether a write to these extents may start: recorded if paired, lineage taken if needed."""
    if core.table.header.pair is not None and not all(is_recorded(core, extent) for extent in extents):
        return False
    return not needs_generation(core)


def is_recorded(core: Core, extent: int) -> bool:
    """Whether recovery would know of a write to the extent: it is active, or lies in claimed pages.

    The second lasts until nothing is in flight: an extent in claimed pages is never made active under a write that
    was not counted as a use of it.
    """
    if extent in core.table.active_on_disk and extent in core.extents:
        return True
    return is_claimed(core, extent)


def is_claimed(core: Core, extent: int) -> bool:
    claimed = core.table.owed_pages_on_disk
    return bool(claimed) and claimed.issuperset(core.table.get_extent_pages(extent))


def prepare(core: Core, extents: range) -> Flow[None]:
    """One round towards is_prepared; the caller asks again.  Concurrent rounds share one table write."""
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
        core.wanted_extents = {extent for extent in core.wanted_extents if not is_recorded(core, extent)}
        core.wake_all("activation")


def _activate(core: Core, first: range) -> Flow[None]:
    """Room is for the extents `first` before those of others: requests that evicted each other's would not end."""
    if len(core.table.active_on_disk) + len(core.wanted_extents) > core.max_active:
        if core.session is None:
            is_calm, core.unrest = core.unrest == 0, CALM_CHECKPOINTS
            if not is_calm and (yield from core.write_table(lambda: _build_claim(core, first))):
                return
        yield from checkpoint(core, first)
        if len(core.table.active_on_disk) >= core.max_active:
            if any(use.in_flight for use in core.extents.values()):
                yield from core.wait("leave")
            return
    yield from core.write_table(lambda: _build_activation(core, core.wanted_extents, first))


def _build_activation(core: Core, wanted: Set[int], first: range = NONE) -> Change | None:
    room = core.max_active - len(core.table.active_on_disk)
    lacking = [extent for extent in wanted if extent not in core.extents and not is_claimed(core, extent)]
    new = frozenset(sorted(lacking, key=lambda extent: (extent not in first, extent))[:room])
    if not _take_lineage(core) and not new:
        return None
    for extent in new:
        core.extents[extent] = Extent()
    core.counts.activations += len(new)
    return core.table.build_change((), {}, header=True, active=core.table.active_on_disk | new)


def _take_lineage(core: Core) -> bool:
    """Into the header in memory, if one is needed: then the change that is being built takes the header along."""
    if not needs_generation(core):
        return False
    core.own_generation = core.new_name()
    core.table.header.take_generation(core.own_generation)
    return True


def _build_claim(core: Core, first: range) -> Change | None:
    """The pages of all extents that are wanted, as far as there may be more; None if not all of `first` can be had.

    As many pages may be claimed as extents active.
    """
    table = core.table
    wanted = {page for extent in core.wanted_extents for page in table.get_extent_pages(extent)}
    mine = {page for extent in first if not is_recorded(core, extent) for page in table.get_extent_pages(extent)}
    wanted, mine = wanted - table.owed_pages_on_disk, mine - table.owed_pages_on_disk
    room = core.max_active - len(table.owed_pages_on_disk)
    if not wanted or len(mine) > room:
        return None
    pages = sorted(wanted, key=lambda page: (page not in mine, page))[:room]
    core.counts.claimed_pages += len(pages)
    return table.build_claim(pages, header=_take_lineage(core))


def unclaim(core: Core) -> Flow[None]:
    """The disk owes what is owed in memory.  While nothing is in flight: what began under a claim relies on it."""
    if core.table.owed_pages_on_disk:
        yield from core.write_table(core.table.build_unclaim)


def use_extents(core: Core, extents: range) -> None:
    """Counts a write in flight on each active extent; see release_extents.  What is only claimed is not counted."""
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
    table = core.table
    return bool(table.get_differing() or table.active_on_disk or table.owed_pages_on_disk or core.unflushed)


def keep(core: Core) -> Flow[None]:
    """The driver's, every so often: a checkpoint; and once writes have been few for a while every claim ends."""
    _note_unrest(core)
    request = Request()
    yield from core.admit(request)
    try:
        yield from checkpoint(core)
    finally:
        core.depart(request)
    if core.unrest or core.is_quiesced or not core.table.owed_pages_on_disk:
        return
    core.unrest = CALM_CHECKPOINTS
    yield from core.quiesce()
    try:
        yield from unclaim(core)
    finally:
        core.resume_admission()


def _note_unrest(core: Core) -> None:
    is_calm = core.table.marked - core.marked_before <= core.max_active
    core.unrest = max(0, core.unrest - 1) if is_calm else CALM_CHECKPOINTS
    core.marked_before = core.table.marked


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
        noted = {page: Bits(bits.invalid, 0) for page, bits in noted.items() if bits.invalid}
    most = IDLE_CHECKPOINTS if room_for is None else 1
    retired = {e for e, use in core.extents.items() if use.in_flight == 0 and use.idle >= most}
    retired.difference_update(room_for or NONE)
    pages = set(noted) | (core.table.get_behind() if retired else set())
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
