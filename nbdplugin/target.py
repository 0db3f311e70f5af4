"""target - the destination's side: who may write here, in which session, and whether this copy is whole.  Pure flows.

Owns the session fence: once a greeting is accepted, no callback of an older session runs or will ever run.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from nbdplugin import actions, lineage
from nbdplugin.actions import Data, Flow, Patience, Wait, Waiter
from nbdplugin.errors import PathError, PeerRefused, Refused, SessionOver, StoreFailed, VolumeFailed
from nbdplugin.lineage import Facts, Greeting, Verdict
from nbdplugin.tracks import Change, Table


class Target:
    """Invariant: `running` counts callbacks by session; only those of `header.session` may begin."""

    def __init__(self, table: Table, new_name: Callable[[], str]) -> None:
        self.table = table
        self.new_name = new_name
        self.epoch = new_name()
        self.running: dict[int, int] = {}
        self.is_open = False
        self.is_greeting = False
        self.is_table_busy = False
        self.failed: str | None = None
        self.spoken = lineage.SPOKEN
        self.woken: list[Waiter] = []
        self.waiters: list[Waiter] = []
        self.read_bytes = 0
        self.written_bytes = 0
        self.copied_bytes = 0  # of these, what the copy brought
        self.fetched_bytes = 0
        self.fetched_tracks = 0
        self.refused_requests = 0  # of sessions that were over

    # --- waiting ---

    def _wait(self, patience: Patience = Patience.COMMAND) -> Flow[bool]:
        waiter = Waiter()
        self.waiters.append(waiter)
        return bool((yield Wait(waiter, patience)))

    def _wake(self) -> None:
        for waiter in self.waiters:
            waiter.is_done = True
        self.woken += self.waiters
        self.waiters = []

    # --- greeting ---

    def greet(self, fields: Any) -> Flow[dict[str, Any]]:
        """The answer to a greeting; accepted only once no older session can touch the volume any more."""
        greeting = lineage.parse_greeting(fields, self.spoken)
        if greeting is None:
            return {"verdict": lineage.MALFORMED, "message": "the greeting is not one of this protocol"}
        while self.is_greeting:
            if not (yield from self._wait()):
                return {"verdict": "busy", "message": "another greeting is still under way"}
        self.is_greeting = True
        try:
            self._check_writable()  # else memory may know of a session that the disk does not
            verdict = lineage.judge(greeting, self._get_facts())
            session = greeting.session if greeting.committed else None
            if verdict is Verdict.ACCEPTED and not (yield from self._open(session)):
                return {"verdict": "busy", "message": "requests of an older session are still running at the peer"}
            return self._answer(verdict, greeting)
        finally:
            self.is_greeting = False
            self._wake()

    def _open(self, session: int | None) -> Flow[bool]:
        """Raises StoreFailed, with a new epoch for the next greeting.

        None: the source asks before it commits.  Nothing durable may change here then: were the number of a question
        kept whose commit is not carried out, a side that was put back would no longer be known by its old one.
        """
        header = self.table.header
        self.is_open = False
        if session is not None:
            header.session = session  # from here on no older callback begins
            yield from self._write_header()
        while any(count for number, count in self.running.items() if session is None or number < session):
            if not (yield from self._wait()):
                return False
        yield from self._sync()  # what the source fetches from here on, and does not write itself, stays
        if session is None:
            return True
        self.running = {session: self.running.get(session, 0)}
        self.is_open = True
        return True

    def _get_facts(self) -> Facts:
        header = self.table.header
        return Facts(
            pair=header.pair,
            size=header.size,
            track_size=header.track_size,
            session=header.session,
            generation=header.generation,
            ancestors=tuple(header.ancestors),
            incomplete=self.is_incomplete,
            spoken=self.spoken,
            accepted=header.accepted,
        )

    def _answer(self, verdict: Verdict, greeting: Greeting) -> dict[str, Any]:
        header = self.table.header
        message = lineage.SENTENCES.get(verdict, "")
        if verdict is Verdict.VERSION:
            message = lineage.explain_versions(greeting.versions, self.spoken)
        return {
            "verdict": verdict.value,
            "message": message,
            "protocol": lineage.get_common(greeting.versions, self.spoken),
            "epoch": self.epoch,
            "session": header.session,
            "generation": header.generation,
            "ancestors": header.ancestors,
            "last_write": header.last_write,
        }

    @property
    def is_incomplete(self) -> bool:
        """Whether some of this copy is known not to be good."""
        return self.table.header.incomplete or self.table.invalid.count > 0

    # --- data callbacks of a session ---

    def enter(self, session: int) -> None:
        """Raises SessionOver unless this is the open session."""
        if not self.is_open or session != self.table.header.session:
            self.refused_requests += 1
            raise SessionOver(f"session {session} is over")
        self.running[session] = self.running.get(session, 0) + 1

    def expire(self) -> None:
        """Nothing was heard of the source for longer than it puts up with silence: it has ended the session.

        What it had sent before may still lie here, in a process that was stopped for a while: it comes too late.
        """
        self.is_open = False

    def leave(self, session: int) -> None:
        self.running[session] -= 1
        if self.running[session] == 0:
            self._wake()

    def read(self, session: int, offset: int, length: int, is_for_host: bool = False, into: Data = None) -> Flow[Data]:
        """`is_for_host`: a request of the source's host waits for it; counted apart from the copy."""
        self.enter(session)
        try:
            data = yield actions.StoreRead(offset, length, into)
            self.read_bytes += length
            if is_for_host:
                self.fetched_bytes += length
                self.fetched_tracks += self.table.geometry.get_span(offset, length).count
            return data
        finally:
            self.leave(session)

    def write(self, session: int, offset: int, length: int, data: Data, is_for_host: bool = True) -> Flow[None]:
        self.enter(session)
        try:
            if self.failed is not None:
                raise VolumeFailed(self.failed)
            yield actions.StoreWrite(offset, length, data)
            self.written_bytes += length
            self.copied_bytes += 0 if is_for_host else length
        finally:
            self.leave(session)

    def flush(self, session: int) -> Flow[None]:
        """Durable, or a new epoch: the source then owes us everything since the last good flush."""
        self.enter(session)
        try:
            yield from self._sync()
        finally:
            self.leave(session)

    def extents(self, session: int, offset: int, length: int) -> Flow[list[tuple[int, bool]]]:
        """See actions.StoreExtents."""
        self.enter(session)
        try:
            found: list[tuple[int, bool]] = yield actions.StoreExtents(offset, length)
            return found
        finally:
            self.leave(session)

    def _sync(self) -> Flow[None]:
        epoch = self.epoch
        try:
            yield actions.StoreSync()
        except StoreFailed:
            self.epoch = self.new_name()
            self.is_open = False  # the source greets anew and learns the epoch
            raise
        if self.epoch != epoch:  # another one failed meanwhile: Linux reports a loss to one of them only
            raise StoreFailed("a sync", errno.EIO)

    def tell(self, session: int, message: Any) -> Flow[dict[str, Any]]:
        """A message of the source about the whole copy: "begin" of pushing, or "complete"."""
        self.enter(session)
        try:
            op = message.get("op") if isinstance(message, dict) else None
            if op in ("begin", "alive"):
                yield from self._note_spoken(session, is_begin=op == "begin")
            elif op == "complete":
                yield from self._complete(message)
            else:
                raise PeerRefused(f"unknown message {op!r}")
            return {"ok": True}
        finally:
            self.leave(session)

    def _note_spoken(self, session: int, is_begin: bool) -> Flow[None]:
        """The source knows that we took this session; one that has forgotten was put back to an older state.

        `is_begin`: it is about to push, too.
        """
        header = self.table.header
        if header.accepted != session or (is_begin and not header.incomplete):
            header.accepted = session
            header.incomplete = header.incomplete or is_begin
            yield from self._write_header()

    def _complete(self, message: dict[str, Any]) -> Flow[None]:
        line = lineage.parse_line(message.get("generation"), message.get("ancestors"))
        if line is None:
            raise PeerRefused("a complete message without a lineage")
        yield from self._sync()
        header = self.table.header
        was_pushed, header.incomplete = header.incomplete, False
        header.generation, header.ancestors = line[0], list(line[1:])
        # Whoever pushed everything has overwritten what an earlier pair left invalid here.
        yield from self._write(lambda: self.table.build_fill(invalid=False if was_pushed else None, owed=False))

    # --- commands ---

    def connect(self, operation: str, pair: str, peer: str, invalidate: str) -> Flow[None]:
        """The destination's half of a pair."""
        self._check_writable()
        header = self.table.header
        if header.pair == pair:
            return
        if header.pair is not None:
            raise Refused(f"the volume belongs to pair {header.pair} already; delete that pair first")
        if invalidate == "source" and self.is_incomplete:
            raise Refused("the destination is incomplete, so it cannot be the copy to fetch from")
        header.side, header.pair, header.peer, header.operation = "destination", pair, peer, operation
        header.invalidate, header.committed, header.ready = invalidate, False, False
        header.session = header.accepted = 0
        yield from self._write_header()

    def disconnect(self, pair: str) -> Flow[None]:
        """No session of the pair is open from here on; what the volume holds stays as complete as it is."""
        header = self.table.header
        if header.pair != pair:
            return
        self.is_open = False
        while any(self.running.values()) or self.is_greeting:
            if not (yield from self._wait()):
                raise PathError("requests of the source are still running; try again")
            self.is_open = False  # a greeting that was under way may have opened a session
        header.leave_pair()
        yield from self._write_header()

    def drain(self) -> Flow[None]:
        """Durable, and no callback begins any more; the process is about to be ended."""
        self.is_open = False
        yield actions.StoreSync()

    def _check_writable(self) -> None:
        if self.failed is not None:
            raise VolumeFailed(self.failed)

    def _write(self, build: Callable[[], Change]) -> Flow[None]:
        """One durable change at a time, built when its turn comes."""
        while self.is_table_busy:
            yield from self._wait(Patience.SHORT)
        self._check_writable()
        self.is_table_busy = True
        try:
            change = build()
            yield actions.WriteTable(change)
            self.table.note_written(change)
        except StoreFailed as error:
            self.failed = f"the track table could not be written: {error}"
            self.is_open = False
            raise VolumeFailed(self.failed) from None
        finally:
            self.is_table_busy = False
            self._wake()

    def save(self) -> Flow[None]:
        """The time of the last write becomes durable."""
        yield from self._write_header()

    def _write_header(self) -> Flow[None]:
        yield from self._write(lambda: self.table.build_change((), {}, header=True))
