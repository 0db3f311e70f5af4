"""core - the state that every flow of one volume shares at the host's side, and the steps they have in common.  Pure.

Owns admission, the gate, the table, the active extents and what is known of the session.  Flows are generators of
actions (see actions.py); the driver holds one lock while a flow runs, so between two yields nothing else changes.
Order in every flow: admission, gate, extents, table write.
"""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Callable, Iterable

from nbdplugin import actions, lineage, tracks
from nbdplugin.actions import Flow, Patience, Wait, Waiter
from nbdplugin.decide import Path
from nbdplugin.errors import PathError, PathNotReady, PeerRefused, StoreFailed, VolumeFailed
from nbdplugin.gate import Gate, Ticket
from nbdplugin.geometry import Span
from nbdplugin.holes import View
from nbdplugin.tracks import ACTIVE_MOST, Change, Table

UNFLUSHED_MOST = 1 << 16
QUEUES = ("admission", "idle", "path", "activation", "table", "checkpoint", "settle", "leave", "distrust", "look")


@dataclasses.dataclass(slots=True)
class Extent:
    """Use of one active extent: writes in flight, and checkpoints since a write or push touched it."""

    in_flight: int = 0
    idle: int = 0


class Request:
    """One flow's place in the admission; `is_in` while it counts as in flight."""

    __slots__ = ("is_in",)

    def __init__(self) -> None:
        self.is_in = False


@dataclasses.dataclass(slots=True)
class Counts:
    """Monotonic since the process started; bytes and tracks.

    `read_errors`: reads that failed here; `peer_reads`: those of them that the peer answered, after which
    `repaired_tracks` were written here anew.
    """

    read_bytes: int = 0
    write_bytes: int = 0
    mirrored_bytes: int = 0
    fetched_tracks: int = 0
    fetched_bytes: int = 0
    copied_tracks: int = 0
    copied_bytes: int = 0
    zeroed_bytes: int = 0
    sessions: int = 0
    checkpoints: int = 0
    activations: int = 0
    claimed_pages: int = 0
    table_writes: int = 0
    read_errors: int = 0
    peer_reads: int = 0
    repaired_tracks: int = 0


class Core:
    """Invariant: `session` is set only while header.committed and header.ready and the peer accepted it.

    `turn` changes whenever what a checkpoint noted may have lost its meaning: a session begins or ends, tracks
    become invalid, a command changes the table.  `distrusts` counts failed syncs: what was written to the store
    while it changed may be lost.  `unrest`: after so many checkpoints that find little to record writes are few again.
    `unflushed` spans were sent in this session and no flush of the peer has begun
    since, `flushing` ones wait for theirs.  `doubts` counts what made header.doubtful true.
    """

    def __init__(
        self, table: Table, new_name: Callable[[], str], max_waiters: int = 128, max_active: int = ACTIVE_MOST
    ) -> None:
        self.table = table
        self.gate = Gate()
        self.new_name = new_name
        self.counts = Counts()
        self.max_waiters = max_waiters
        self.max_active = max_active
        self.spoken = lineage.SPOKEN
        self.session: int | None = None
        self.turn = 0
        self.distrusts = 0
        self.distrusting = 0
        self.is_complete = False
        self.link_error: str | None = None
        self.was_refused = False
        self.ending: int | None = None
        self.failed: str | None = None
        self.is_read_only = False
        self.is_quiesced = False
        self.in_flight = 0
        self.waiting = 0
        self.fetching = 0  # host requests that wait for the peer's data
        self.extents = {extent: Extent() for extent in table.header.active}
        self.wanted_extents: set[int] = set()
        self.unrest = 0
        self.marked_before = 0  # the table's count when the last checkpoint began
        self.is_activating = False
        self.is_table_busy = False
        self.is_checkpointing = False
        self.is_settling = False
        self.is_looking = False
        self.views: dict[bool, View] = {}  # for the pull (True) and the push, what was last told of holes
        self.to_settle: list[Span] = []
        self.unflushed: set[tuple[int, int]] = set()
        self.flushing: list[set[tuple[int, int]]] = []
        self.doubts = 0
        self.is_loss_untold = False
        self.own_generation: str | None = None
        self.woken: list[Waiter] = []
        self.queues: dict[str, list[Waiter]] = {name: [] for name in QUEUES}
        self._recover()

    def _recover(self) -> None:
        """After a crash every track of an active extent that is not invalid may differ: owed."""
        if self.table.header.committed:
            for extent in self.table.header.active:
                self.table.mark_owed(self.table.geometry.get_extent_span(extent))

    # --- waiting ---

    def wake(self, waiter: Waiter) -> None:
        waiter.is_done = True
        self.woken.append(waiter)

    def wake_all(self, queue: str) -> None:
        waiters, self.queues[queue] = self.queues[queue], []
        for waiter in waiters:
            self.wake(waiter)

    def wait(self, queue: str, patience: Patience = Patience.SHORT) -> Flow[bool]:
        """Until `wake_all` of the queue; the caller checks its condition again."""
        waiter = Waiter()
        self.queues[queue].append(waiter)
        woken: bool = yield Wait(waiter, patience)
        if not woken and waiter in self.queues[queue]:
            self.queues[queue].remove(waiter)
        return woken

    # --- admission ---

    def admit(self, request: Request) -> Flow[None]:
        while self.is_quiesced:
            yield from self.wait("admission")
        self.in_flight += 1
        request.is_in = True

    def depart(self, request: Request) -> None:
        if request.is_in:
            request.is_in = False
            self.leave()

    def leave(self) -> None:
        """One request less is in flight."""
        self.in_flight -= 1
        self.wake_all("leave")
        if self.in_flight == 0:
            self.wake_all("idle")

    def quiesce(self) -> Flow[None]:
        """Admits nothing new and waits until nothing is in flight; raises PathError when that takes too long.

        What waits for a peer that does not answer does not hold up the others for long: the session ends.
        """
        while self.is_quiesced:
            if not (yield from self.wait("admission", Patience.COMMAND)):
                raise PathError("another change of this volume is still under way; try again")
        self.is_quiesced = True
        patience = Patience.BRIEF
        while self.in_flight:
            if (yield from self.wait("idle", patience)):
                continue
            if patience is Patience.COMMAND:
                self.resume_admission()
                raise PathError("requests in flight did not end in time; nothing was changed")
            patience = Patience.COMMAND
            if self.session is not None:
                yield from self.end_session(self.session, "the peer did not answer while the pair was to be changed")

    def resume_admission(self) -> None:
        self.is_quiesced = False
        self.wake_all("admission")

    # --- the path ---

    @property
    def path(self) -> Path:
        if self.table.header.pair is None:
            return Path.ALONE
        if self.session is not None:
            return Path.STRICT if self.is_strict else Path.READY
        return Path.HALTED if self.is_strict else Path.NOT_READY

    @property
    def is_strict(self) -> bool:
        """Whether a host write may be acknowledged only when the peer has it too: policy stop, unless by command."""
        header = self.table.header
        return header.on_path_loss == tracks.STOP and header.committed and header.ready

    def await_path(self, request: Request) -> Flow[None]:
        """Steps out of the admission until something changes; the caller decides anew.

        Raises PathNotReady when patience ends.
        """
        if self.waiting >= self.max_waiters:
            raise PathNotReady(f"{self.waiting} requests wait for the path already")
        self.depart(request)
        self.waiting += 1
        try:
            if not (yield from self.wait("path", Patience.FETCH)):
                raise PathNotReady("the path did not become ready in time, and the request cannot be done without it")
        finally:
            self.waiting -= 1
        yield from self.admit(request)

    def end_session(self, session: int, reason: Exception | str) -> Flow[None]:
        """No request of the session is acknowledged from here on; what the peer may lack is owed."""
        if self.session == session != self.ending:  # the first reason is the cause, what follows its consequence
            self.ending, self.link_error, self.was_refused = session, str(reason), isinstance(reason, PeerRefused)
        yield actions.EndSession(session)
        if self.session != session:
            return
        self.session = None
        self.turn += 1
        self.is_complete = False
        for spans in (self.unflushed, *self.flushing):
            for first, count in spans:
                self.table.mark_owed(Span(first, count))
        self.unflushed = set()
        self.flushing = []

    def note_sent(self, span: Span) -> None:
        """The peer has these tracks in this session, but perhaps not durably.  Bounded: then it stands for all."""
        if len(self.unflushed) >= UNFLUSHED_MOST:
            self.unflushed = {(0, self.table.geometry.tracks)}
        self.unflushed.add((span.first, span.count))

    # --- gate ---

    def enter_gate(self, offset: int, length: int) -> Flow[Ticket]:
        waiter = Waiter()
        ticket = self.gate.enter(offset, length, waiter)
        if not ticket.is_in:
            yield Wait(waiter)
        return ticket

    def leave_gate(self, ticket: Ticket) -> None:
        for other in self.gate.leave(ticket):
            self.wake(other.owner)  # type: ignore[arg-type]

    # --- durable changes ---

    def write_table(self, build: Callable[[], Change | None]) -> Flow[bool]:
        """Builds and writes one change, alone; False if there was nothing to write (any more).

        A failure makes the volume read-only (rule 7) and raises VolumeFailed.
        """
        while self.is_table_busy:
            yield from self.wait("table")
        self.is_table_busy = True
        try:
            self.check_writable()
            change = build()
            if change is None:
                return False
            self.counts.table_writes += 1
            yield actions.WriteTable(change)
            self.table.note_written(change)
            return True
        except StoreFailed as error:
            self.is_read_only = True
            self.failed = f"the track table could not be written, so the volume is read-only: {error}"
            raise VolumeFailed(self.failed) from None
        finally:
            self.is_table_busy = False
            self.wake_all("table")

    def write_header(self) -> Flow[None]:
        """The header as it stands in memory becomes durable."""
        yield from self.write_table(lambda: self.table.build_change((), {}, header=True))

    def check_writable(self) -> None:
        if self.is_read_only:
            raise VolumeFailed(self.failed or "the volume is read-only")

    def sync_store(self) -> Flow[None]:
        """Everything written here is durable; a failure is never retried into success (rule 7).

        Nor is a sync begun before the marks of an earlier failure are durable: a crash would lose what it covers.
        """
        while self.distrusting:
            yield from self.wait("distrust")
        if self.failed is not None:
            raise VolumeFailed(self.failed)
        distrusts = self.distrusts
        try:
            yield actions.StoreSync()
        except StoreFailed as error:
            yield from self._distrust_store(error)
            raise
        if self.distrusts != distrusts:  # another one failed meanwhile: Linux reports a loss to one of them only
            raise StoreFailed("a sync", errno.EIO)

    def check_peer_durable(self) -> None:
        """Raises PathNotReady while what only the peer has may not be durable there, and once if it may be lost."""
        if self.is_loss_untold:
            self.is_loss_untold = False
            raise PathNotReady("a sync failed or the peer restarted, and what was not flushed before may be lost")
        if self.table.header.doubtful:
            raise PathNotReady("some of the data is only at the peer and was not flushed there when the path was lost")

    def _distrust_store(self, error: StoreFailed) -> Flow[None]:
        """What the peer surely has becomes invalid here; what only we have stays owed and blocks further flushes."""
        self.turn += 1
        self.distrusts += 1
        owed = self.table.owed.count
        for page, bits in self.table.note_clearer().items():
            self.table.restore_invalid(page, bits)
        self.is_loss_untold |= self.table.owed.count < owed
        if self.table.header.committed:
            for extent in self.table.active_on_disk:
                self.distrust(self.table.geometry.get_extent_span(extent))
        if self.table.owed.count or not self.table.header.committed:
            self.failed = f"a sync of the local store failed, flushes are refused until an operator decides: {error}"
        self.distrusting += 1
        try:
            yield from self.write_marks(())
        finally:
            self.distrusting -= 1
            self.wake_all("distrust")

    def distrust(self, span: Span) -> None:
        """Tracks of the span that are not owed become invalid: the peer has them, we may not."""
        owed, track = self.table.owed, span.first
        while track < span.end:
            if owed.get(track):
                track += 1
                continue
            following = owed.find(track)
            end = span.end if following is None else min(following, span.end)
            self.table.mark_invalid(Span(track, end - track))
            track = end

    def write_marks(self, spans: Iterable[Span]) -> Flow[None]:
        """Every mark set in memory on these tracks (none named: on all) becomes durable.

        They are invalid because of a failure here: from now on only the peer has what they hold.
        """
        self.table.header.doubtful = self.table.header.committed
        self.doubts += 1
        if self.table.header.doubtful:  # first: a crash between the pages and their header would leave marks no doubt
            yield from self.write_header()

        def build() -> Change | None:  # when its turn has come: the change before it may have altered what differs
            pages = self.table.get_pages(spans) or self.table.get_differing()
            return self.table.build_change(pages, {}, header=True) if pages else None

        yield from self.write_table(build)
