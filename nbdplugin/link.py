"""link - greets the peer, keeps the session alive, begins anew after a loss; carries out the core's peer actions.

One thread.  It acts only while the core's header says committed and ready and an address is known.  A refusal is
shown and tried again with a long back-off, a loss with a short one.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from nbdplugin import actions, lineage, modes, peer, store
from nbdplugin.actions import Outcome
from nbdplugin.core import Core
from nbdplugin.engine import Engine, start_thread
from nbdplugin.errors import BadRequest, PathError, PeerLost, PeerRefused, Refused, StoreFailed, strip
from nbdplugin.lineage import Greeting, Verdict, Versions
from nbdplugin.params import Params
from nbdplugin.peer import Address, Connection, Session
from nbdplugin.stats import Histogram
from nbdplugin.store import Store

SESSION_JUMP_MOST = 1 << 32  # the peer's number is not trusted further than this
_ALIVE_S = 1.0
_RETRY_S = 0.05  # the first pause, which doubles
_RETRY_MOST_S = 5.0
_REFUSED_RETRY_S = 5.0
_TELL_AGAIN_S = 600.0
_TOLD_MOST = 32
_MESSAGE_MOST = 500
_READ_MOST = 16 << 20  # NBD servers take 32 MiB in one request
_ZERO_FACTOR = 6

log = logging.getLogger(__name__)


class Link:
    """Invariant: `_session` is the only session whose connections may be used."""

    def __init__(self, core: Core, params: Params, backing: Store, fetches: Histogram) -> None:
        self._core = core
        self._fetches = fetches
        self._params = params
        self._store = backing
        self._engine: Engine | None = None
        self._address: Address | None = None
        self._address_pair: str | None = None
        self._session: Session | None = None
        self._peer_line: tuple[str, tuple[str, ...]] | None = None
        self._wanted = threading.Event()
        self._establishing = threading.Lock()
        self._on_up: Callable[[], None] = lambda: None
        self.on_stream: Callable[[int | None, Any], None] | None = None  # a lane takes it
        self._hurry = threading.Event()
        self._told: dict[str, float] = {}
        self.state = "none"
        self.verdict: str | None = None  # why the last greeting was refused
        self.peer_last_write: int | None = None  # as of that
        self.hands: dict[type, Callable[[Any], Any]] = {
            actions.PeerRead: self._read,
            actions.PeerWrite: self._write,
            actions.PeerWrites: self._write_all,
            actions.PeerExtents: self._find_extents,
            actions.PeerFlush: self._flush,
            actions.PeerTell: self._tell,
            actions.WriteBoth: self._write_both,
            actions.EndSession: self._end,
        }

    # --- commands ---

    def start(self, engine: Engine, on_up: Callable[[], None]) -> None:
        """`on_up` is called whenever the path has become ready."""
        self._engine, self._on_up = engine, on_up
        start_thread("link", self._run)

    def set_address(self, pair: str, address: Address) -> None:
        """Where to find the peer of this pair; begins at once if the path is to be ready."""
        if self._core.table.header.pair != pair:
            raise Refused(f"the volume does not belong to pair {pair}")
        is_new, self._address, self._address_pair = address != self._address, address, pair
        if is_new:
            self.hurry()
        self.poke()

    def set_params(self, params: Params) -> None:
        """Other limits: of a flush at once, of the link from the next session on."""
        self._params = params

    def poke(self) -> None:
        """Something changed: look again now."""
        self._wanted.set()

    def hurry(self) -> None:
        """As poke, and an attempt under way to reach the peer is begun anew."""
        if self._core.session is None:
            self._hurry.set()
            self._wanted.set()

    def forget_refusal(self) -> None:
        """A command has removed its cause."""
        self.state, self.verdict, self.peer_last_write = "connecting", None, None

    def greet(self, pair: str, discard: str | None = None) -> tuple[int, tuple[str, ...]]:
        """Once, before the pair is committed; remembers the peer's lineage for the commit.

        `discard`: of a committed pair, whose two sides do not agree, the side whose data is about to give way.
        Result: the last session that the peer accepted, its generation and ancestors.
        """
        if self._core.table.header.pair != pair or self._address_pair != pair:
            raise Refused(f"the volume does not belong to pair {pair} or no address was given")
        with self._establishing:
            try:
                greeting, meta, answer = self._greet(discard)
            except OldSession:
                greeting, meta, answer = self._greet(discard)
            meta.shut()
            found = lineage.parse_line(answer.get("generation"), answer.get("ancestors"))
            if found is None:
                raise PeerRefused("the peer's answer has no lineage")
            self._peer_line = greeting.pair, found
            known = answer.get("session")
            return known if isinstance(known, int) and 0 <= known < greeting.session else 0, found

    def get_peer_line(self, pair: str) -> tuple[str, ...]:
        """The peer's generation and ancestors as of `greet`; raises Refused without one."""
        if self._peer_line is None or self._peer_line[0] != pair:
            raise Refused("the peer was not greeted yet")
        return self._peer_line[1]

    # --- the thread ---

    def _is_wanted(self) -> bool:
        header = self._core.table.header
        return header.committed and header.ready and self._address_pair == header.pair is not None

    def _run(self) -> None:
        attempt = 0
        while True:
            self._wanted.wait(1.0)
            self._wanted.clear()
            while self._is_wanted():
                try:
                    session = self._establish()
                    attempt = 0
                    self._keep(session)
                    self._rest_after(session.number)
                except (PeerRefused, Refused) as error:
                    self._note("refused", error)
                    self._wanted.wait(_REFUSED_RETRY_S)
                except PathError as error:
                    if self._hurry.is_set():
                        attempt = 0
                        continue
                    self._note("lost", error)
                    self._wanted.wait(get_pause(attempt))
                    attempt += 1
                self._wanted.clear()
            self.state, self.verdict, attempt = "none", None, 0

    def _rest_after(self, number: int) -> None:
        """A session that ended with an error reply (no space, I/O error) would end so again: not at once."""
        self.state = "refused" if self._core.was_refused else "lost"
        self._tell_once(number, self._core.link_error or "by command")
        if self._core.was_refused:
            self._wanted.wait(_REFUSED_RETRY_S)

    def _note(self, state: str, error: Exception) -> None:
        self._tell_once(None, str(error))
        self._core.link_error, self.state = str(error), state

    def _tell_once(self, session: int | None, text: str) -> None:
        """What happens again and again is logged once in a while."""
        now = time.monotonic()
        is_known = now - self._told.get(text, -_TELL_AGAIN_S) < _TELL_AGAIN_S
        if not is_known:
            if len(self._told) >= _TOLD_MOST:
                self._told.clear()
            self._told[text] = now
        level, volume = logging.DEBUG if is_known else logging.WARNING, self._params.volume
        if session is None:
            log.log(level, "path of volume %s: %s", volume, text)
        else:
            log.log(level, "session %d of volume %s ended: %s", session, volume, text)

    def _establish(self) -> Session:
        """A session that is up; raises PeerLost, PeerRefused."""
        assert self._engine is not None
        self.state = "connecting" if self.state != "refused" else self.state
        with self._establishing:
            greeting, meta, answer = self._greet()
            try:
                is_pushing = self._engine.run(modes.note_accepted(self._core, greeting, str(answer.get("epoch"))))
                session = self._open(greeting, meta)
            except PathError:
                meta.shut()
                raise
        self._session = session
        try:
            if not is_pushing:  # it shall know before any data that we know of the session: see lineage.Facts
                self._tell(actions.PeerTell(session.number, {"op": "alive"}))
            is_told = False
            while True:
                if is_pushing and not is_told:
                    self._tell(actions.PeerTell(session.number, {"op": "begin"}))
                    is_told = True
                if self._engine.run(modes.session_up(self._core, session.number, is_told)):
                    break
                is_pushing = True
        except PathError:
            session.end()
            raise
        self.state, self.verdict, self.peer_last_write = "up", None, None
        self._on_up()
        log.info("path of volume %s is ready, session %d", self._params.volume, session.number)
        return session

    def _greet(self, discard: str | None = None) -> tuple[Greeting, Connection, dict[str, Any]]:
        assert self._engine is not None
        address = self._address
        if address is None:
            raise Refused("no address of the peer is known")
        self._hurry.clear()
        meta = Connection(address, "meta", self._params.link_timeout_s, peer.META_SIZE, self._hurry.is_set)
        try:
            greeting = self._engine.run(modes.begin_session(self._core, discard))
            answer = peer.ask(meta, {"op": "greet", **greeting.to_json()})
            first_form = lineage.get_first_form(greeting, answer)
            if first_form is not None:
                answer = peer.ask(meta, {"op": "greet", **first_form.to_json()})
        except PathError:
            meta.shut()
            raise
        if answer.get("verdict") == Verdict.ACCEPTED.value and lineage.is_name(answer.get("epoch")):
            return greeting, meta, answer
        meta.shut()
        self._refuse(greeting, answer)

    def _refuse(self, greeting: Greeting, answer: dict[str, Any]) -> NoReturn:
        """The error that stands for the peer's answer; nothing in it is trusted."""
        assert self._engine is not None
        verdict = answer.get("verdict")
        if verdict == Verdict.OLD_SESSION.value and isinstance(answer.get("session"), int):
            header = self._core.table.header
            with self._engine.lock:
                header.session = max(header.session, min(answer["session"], header.session + SESSION_JUMP_MOST))
            raise OldSession("the peer has seen a newer session; the next attempt takes a higher number")
        if verdict == "busy":
            raise PeerLost(str(answer.get("message"))[:_MESSAGE_MOST])
        if verdict == Verdict.ACCEPTED.value:
            raise PeerRefused("the peer's answer has no epoch")
        if verdict == lineage.MALFORMED:
            raise PeerRefused(lineage.explain_versions(greeting.versions, Versions(1, 1)))
        self.verdict = verdict if verdict in list(Verdict) else None
        last = answer.get("last_write")
        self.peer_last_write = last if isinstance(last, int) and 0 < last < 1 << 40 else None
        raise PeerRefused(f"the peer refuses the path: {str(answer.get('message') or verdict)[:_MESSAGE_MOST]}")

    def _open(self, greeting: Greeting, meta: Connection) -> Session:
        """Data connections go where the meta connection goes, without asking for the name's address again."""
        assert self._address is not None
        address = dataclasses.replace(self._address, host=meta.peer_host)
        export, size = f"data/{greeting.pair}/{greeting.session}", self._store.size
        timeout_s = self._params.link_timeout_s

        def connect(use: str, is_given_up: Callable[[], bool], kind: type[Connection]) -> Connection:
            return kind(address, f"{export}/{use}", timeout_s, size, is_given_up)

        return Session(greeting.session, meta, connect)

    def _keep(self, session: Session) -> None:
        """Returns when the session is over, whoever ended it."""
        assert self._engine is not None
        reason: Exception | None = None
        while not session.is_over.wait(_ALIVE_S):
            try:
                self._tell(actions.PeerTell(session.number, {"op": "alive"}))
            except PathError as error:
                reason = strip(error)
                break
        cause = reason if isinstance(reason, PeerRefused) else session.reason or reason or "the connection was lost"
        self._engine.run(modes.lose_session(self._core, session.number, cause))
        if session.reason is not None and self._core.link_error is not None and not self._core.was_refused:
            self._core.link_error = session.reason  # a request that was cut off by it may have told its own end first

    # --- hands ---

    def _get(self, number: int) -> Session:
        session = self._session
        if session is None or session.number != number:
            raise PeerLost("the session is over")
        if session.is_over.is_set():
            raise PeerLost(session.reason or "the session is over")
        return session

    def _read(self, action: actions.PeerRead) -> memoryview | bytearray | None:
        session = self._get(action.session)
        start = time.monotonic()
        try:
            with (session.urgent if action.urgent else session.copy).take() as connection:
                if action.into is not None:
                    connection.read_into(action.offset, action.into)
                    return None if store.is_zero(action.into) else action.into
                data = connection.read(action.offset, min(action.length, _READ_MOST))
                while len(data) < action.length:
                    data += connection.read(action.offset + len(data), min(action.length - len(data), _READ_MOST))
        except PathError:
            self._fetches.errors += action.urgent
            raise
        finally:
            if action.urgent:
                self._fetches.note(time.monotonic() - start)
        return None if store.is_zero(data) else data

    def _write(self, action: actions.PeerWrite) -> None:
        data = action.data
        with self._get(action.session).copy.take() as connection:
            self._send(connection, action.offset, action.length, None if data and store.is_zero(data) else data)

    def _write_all(self, action: actions.PeerWrites) -> None:
        pieces = zip(action.ranges, action.pieces, strict=True)
        with self._get(action.session).copy.take() as connection:
            connection.write_all(
                [(offset, length, None if store.is_zero(data) else data) for (offset, length), data in pieces]
            )

    def _send(self, connection: Connection, offset: int, length: int, data: actions.Data) -> None:
        if data is None:
            connection.zero(offset, length, self._params.link_timeout_s * _ZERO_FACTOR)
        else:
            connection.write(offset, data)

    def _write_both(self, action: actions.WriteBoth) -> Outcome:
        local: Exception | None = None
        remote: Exception | None = None
        try:
            self._store.write(action.offset, action.length, action.data)
        except StoreFailed as error:
            local = error
        try:
            session = self._get(action.session)
            with session.urgent.take() as connection:
                self._send(connection, action.offset, action.length, action.data)
            if self.on_stream is not None:
                self._open_stream(session)
        except (PeerLost, PeerRefused) as error:
            remote = strip(error)
        return Outcome(local, remote)

    def _open_stream(self, session: Session) -> None:
        """With the first mirrored write: a session at rest needs none.  Raises PeerLost, PeerRefused."""
        assert self._engine is not None
        assert self.on_stream is not None
        stream = session.open_stream()
        with self._engine.lock:
            if stream is not None and self._session is session and not session.is_over.is_set():
                self.on_stream(session.number, stream)

    def _find_extents(self, action: actions.PeerExtents) -> list[tuple[int, bool]]:
        with self._get(action.session).copy.take() as connection:
            return connection.find_extents(action.offset, action.length)

    def _flush(self, action: actions.PeerFlush) -> None:
        with self._get(action.session).urgent.take() as connection:
            connection.flush(self._params.flush_timeout_s)

    def _tell(self, action: actions.PeerTell) -> None:
        session = self._get(action.session)
        is_syncing = action.message["op"] == "complete"
        with session.meta_lock:
            answer = session.meta.ask(action.message, self._params.flush_timeout_s if is_syncing else None)
        if answer.get("ok") is not True:
            raise PeerRefused(f"the peer refused {action.message.get('op')}: {answer.get('message')}")

    def _end(self, action: actions.EndSession) -> None:
        session = self._session
        if session is not None and session.number == action.session:
            session.end()
            if self.on_stream is not None:
                assert self._engine is not None
                with self._engine.lock:
                    self.on_stream(None, None)


class OldSession(PeerLost):
    """The peer knows of a newer session.  The next attempt takes a higher number: repeat at once."""


def get_pause(attempt: int) -> float:
    """Seconds to wait after so many attempts that failed; at random, so that many paths do not come back at once."""
    longest: float = min(_RETRY_S * 2 ** min(attempt, 16), _RETRY_MOST_S)
    return longest * random.uniform(0.5, 1.0)


def parse_address(fields: dict[str, Any]) -> Address:
    """From the control command `link`; raises BadRequest."""
    host, port, psk_file, identity = (fields.get(key) for key in ("address", "port", "psk_file", "identity"))
    if not (isinstance(host, str) and isinstance(psk_file, str | None) and isinstance(identity, str)):
        raise BadRequest("link needs address, psk_file (null: in clear) and identity")
    if not isinstance(port, int) or not 0 < port < 65536:
        raise BadRequest(f"port {port!r} is not a TCP port")
    if "psk_file" not in fields:  # nobody asks for a link in clear by leaving something out
        raise BadRequest("link needs psk_file, even if it is null")
    return Address(host, port, None if psk_file is None else Path(psk_file), identity)
