"""service - puts the parts of one process together, in the host's role or the peer's, and answers its commands.

`open_export` gives nbdkit what a client asked for: the volume (host), a session's data or the meta export (peer).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import struct
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from nbdplugin import actions, checkpoint, control, lineage, link, modes, status, tracks
from nbdplugin.actions import Patience
from nbdplugin.control import Control, get_policy, get_side, get_text
from nbdplugin.copier import Copier
from nbdplugin.core import UNFLUSHED_MOST, Core
from nbdplugin.engine import Engine, start_thread
from nbdplugin.errors import BadRequest, PathError, PeerRefused, SessionOver
from nbdplugin.link import Link
from nbdplugin.metafile import MetaFile
from nbdplugin.params import Params
from nbdplugin.peer import META_REPLY, META_SIZE
from nbdplugin.stats import Stats
from nbdplugin.store import Store
from nbdplugin.target import Target
from nbdplugin.tracks import Header
from nbdplugin.volume import Volume

T = TypeVar("T")
DRAINED_S = 10.0
TELL_AGAIN_S = 600.0
HEARD_SPARE_S = 2.0  # what a source that is there may be late
SAVE_CLOCK_S = 30
_REST = 4  # a checkpoint that takes long is followed by so many times its length of rest, at most so many intervals
_LENGTH = struct.Struct(">I")

log = logging.getLogger(__name__)


def _new_name() -> str:
    return str(uuid.uuid4())


class Export(Protocol):
    """What one NBD connection serves."""

    size: int
    stats: Stats

    def read(self, buf: memoryview, offset: int) -> None: ...
    def write(self, buf: memoryview, offset: int, is_fua: bool) -> None: ...
    def zero(self, offset: int, length: int, is_fua: bool) -> None: ...
    def trim(self, offset: int, length: int, is_fua: bool) -> None: ...
    def flush(self) -> None: ...
    def find_extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]: ...
    def close(self) -> None: ...


def _make_hands(backing: Store, meta: MetaFile) -> dict[type, Callable[[Any], Any]]:
    return {
        actions.StoreRead: lambda a: backing.read(a.offset, a.length, a.into),
        actions.StoreReads: lambda a: backing.read_all(a.ranges, a.into),
        actions.StoreWrite: lambda a: backing.write(a.offset, a.length, a.data),
        actions.StoreSync: lambda a: backing.sync(),
        actions.StoreExtents: lambda a: backing.find_extents(a.offset, a.length),
        actions.WriteTable: lambda a: meta.write(a.change),
    }


class WriteClock:
    """When the last write was: noted in memory at each, on disk once a minute at most."""

    def __init__(self, header: Header) -> None:
        self._saved = header.last_write or 0

    def is_due(self, header: Header) -> bool:
        """Whether the caller should write the header now; then it counts as written."""
        last = header.last_write or 0
        is_due = last != self._saved and (last - self._saved >= SAVE_CLOCK_S or time.time() - last >= SAVE_CLOCK_S)
        if is_due:
            self._saved = last
        return is_due


class HostExport(Volume):
    """The volume for one client of this host."""

    def __init__(self, owner: HostService) -> None:
        super().__init__(owner.core, owner.engine, owner.store, owner.params.volume)
        self.size = owner.store.size
        self.stats = owner.stats
        self._owner = owner

    def close(self) -> None:
        self._owner.count_client(-1)


class HostService:
    """Role host: serves the volume to this host and, when paired, keeps it equal with the peer's."""

    def __init__(self, params: Params, meta: MetaFile, backing: Store) -> None:
        self.params = params
        self.store = backing
        self._meta = meta
        self.core = Core(meta.table, _new_name, params.max_waiters)
        self.stats = Stats()
        self.link = Link(self.core, params, backing, self.stats.fetch)
        patience = {Patience.FETCH: params.fetch_timeout_s, Patience.COMMAND: params.command_timeout_s}
        self.engine = Engine(self.core, _make_hands(backing, meta) | self.link.hands, patience)
        self.copier = Copier(self.core, self.engine)
        self.clients = 0
        self.lane = "python"  # how plain requests go: see lane.py
        self._clock = WriteClock(meta.table.header)
        self._control = Control(
            params.control,
            {
                "status": lambda _: self.get_status(),
                "connect": self._connect,
                "link": self._link,
                "greet": self._greet,
                "commit": self._commit,
                "suspend": lambda r: self._run(modes.suspend(self.core, get_text(r, "pair"))),
                "resume": self._resume,
                "stop": lambda r: self._run(modes.stop(self.core, get_text(r, "pair"))),
                "policy": self._policy,
                "resolve": self._resolve,
                "disconnect": lambda r: self._run(modes.disconnect(self.core, get_text(r, "pair"))),
                "set": self._set,
                "limits": self._limits,
                "drain": self._drain,
                "sockets": lambda _: {},
            },
        )

    def start(self) -> None:
        self._meta.tell_repairs()
        self.link.start(self.engine, self.copier.poke)
        self.copier.start()
        start_thread("checkpoint", self._keep_checkpoints)
        self._control.start()

    def open_export(self, name: str) -> HostExport:
        if name not in ("", self.params.volume):
            raise BadRequest(f"there is no export {name!r} here")
        self.count_client(1)
        return HostExport(self)

    def count_client(self, change: int) -> None:
        with self.engine.lock:
            self.clients += change

    def get_status(self) -> dict[str, Any]:
        core = self.core
        with self.engine.lock:
            facts = status.describe(core.table)
            facts["counters"] = dataclasses.asdict(core.counts) | {"marked_tracks": core.table.marked}
            facts["active_extents"] = len(core.table.active_on_disk)
            facts["claimed_pages"] = len(core.table.owed_pages_on_disk)
        return facts | {
            "volume": self.params.volume,
            "role": "host",
            "pid": os.getpid(),
            "clients": self.clients,
            "session": core.session,
            "link": "none" if core.table.header.pair is None else self.link.state,
            "link_error": core.link_error,
            "complete": core.is_complete,
            "verdict": self.link.verdict,
            "peer_last_write": self.link.peer_last_write,
            "waiting": core.waiting,
            "failed": core.failed,
            "copy_error": self.copier.error,
            "copy_rate_bytes_s": self.copier.bucket.rate_bytes_s,
            "latency": self.stats.describe(),
            "limits": self.params.get_limits(),
            "lane": self.lane,
        }

    # --- commands ---

    def _run(self, flow: actions.Flow[Any]) -> dict[str, Any]:
        self.engine.run(flow)
        self.link.poke()
        return self.get_status()

    def _connect(self, request: dict[str, Any]) -> dict[str, Any]:
        if get_side(request, "side") != "source":
            raise BadRequest("a process in the host's role takes the source's side")
        operation, pair, peer = (get_text(request, key) for key in ("operation", "pair", "peer"))
        policy = get_policy(request) if "on_path_loss" in request else tracks.CONTINUE
        return self._run(modes.connect(self.core, operation, pair, peer, get_side(request, "invalid"), policy))

    def _resume(self, request: dict[str, Any]) -> dict[str, Any]:
        self._run(modes.resume(self.core, get_text(request, "pair")))
        self.link.hurry()
        return self.get_status()

    def _policy(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._run(modes.set_policy(self.core, get_text(request, "pair"), get_policy(request)))

    def _resolve(self, request: dict[str, Any]) -> dict[str, Any]:
        operation, pair = get_text(request, "operation"), get_text(request, "pair")
        discard, is_forced = get_side(request, "discard"), request.get("force") is True
        if self.core.table.header.operation != operation:
            modes.check_apart(self.core, pair)  # before the greeting, which would end the session
            session, line = self.link.greet(pair, discard)
            clients = (lambda: 0) if is_forced else (lambda: self.clients)
            self.engine.run(modes.resolve(self.core, operation, pair, discard, clients, line, session))
            self.link.forget_refusal()
            self.link.poke()
        return self.get_status()

    def _link(self, request: dict[str, Any]) -> dict[str, Any]:
        self.link.set_address(get_text(request, "pair"), link.parse_address(request))
        return self.get_status()

    def _greet(self, request: dict[str, Any]) -> dict[str, Any]:
        self.link.greet(get_text(request, "pair"))
        return self.get_status()

    def _commit(self, request: dict[str, Any]) -> dict[str, Any]:
        pair = get_text(request, "pair")
        if get_side(request, "invalid") != (self.core.table.header.invalidate or request["invalid"]):
            raise BadRequest("the pair was connected with the other side to be marked invalid")
        if self.core.table.header.committed and self.core.table.header.pair == pair:
            return self.get_status()
        line = self.link.get_peer_line(pair)
        is_forced = request.get("force") is True
        return self._run(modes.commit(self.core, pair, lambda: 0 if is_forced else self.clients, line))

    def _set(self, request: dict[str, Any]) -> dict[str, Any]:
        rate = request.get("copy_rate_bytes_s")
        if rate is not None and (not isinstance(rate, int) or not 0 <= rate < 1 << 62):
            raise BadRequest(f"copy rate {rate!r} is not a number of bytes per second")
        self.copier.bucket.set_rate(rate)
        return self.get_status()

    def _limits(self, request: dict[str, Any]) -> dict[str, Any]:
        self.params = found = self.params.change(request)
        self.link.set_params(found)
        self.engine.set_patience({Patience.FETCH: found.fetch_timeout_s, Patience.COMMAND: found.command_timeout_s})
        return self.get_status()

    def get_pair(self) -> str | None:
        return self.core.table.header.pair

    def _drain(self, _: dict[str, Any]) -> dict[str, Any]:
        self.engine.run(modes.drain(self.core))
        timer = threading.Timer(DRAINED_S, self._readmit)
        timer.daemon = True
        timer.start()
        return {}

    def _readmit(self) -> None:
        with self.engine.lock:
            self.core.resume_admission()
            self.engine.release_woken()

    def _rest(self, wanted_s: float) -> None:
        """At least one interval, at most _REST, and not while so much is unflushed that it would soon stand for all."""
        for number in range(1, _REST + 1):
            time.sleep(self.params.checkpoint_s)
            if number * self.params.checkpoint_s >= wanted_s or len(self.core.unflushed) > UNFLUSHED_MOST // 4:
                return

    def _keep_checkpoints(self) -> None:
        took_s = 0.0
        while True:
            self._rest(_REST * took_s)
            start = time.monotonic()
            try:
                with self.engine.lock:
                    is_due = checkpoint.is_due(self.core) and self.core.failed is None
                if is_due:
                    self.engine.run(checkpoint.keep(self.core))
                if self._clock.is_due(self.core.table.header) and not self.core.is_read_only:
                    self.engine.run(self.core.write_header())
            except PathError as error:
                log.warning("volume %s: a checkpoint failed: %s", self.params.volume, error)
            took_s = time.monotonic() - start


def _fence(target: Target, pair: str | None, flow: actions.Flow[T]) -> actions.Flow[T]:
    """The flow, if the connection's pair is still the volume's: session numbers begin anew with each pair."""
    if target.table.header.pair != pair:
        raise SessionOver("the pair of this connection has ended")
    return (yield from flow)


class DataExport:
    """A session's data connection, for the source of the pair; every callback is fenced by its session."""

    def __init__(self, owner: PeerService, session: int, is_for_host: bool) -> None:
        self.size = owner.store.size
        self.stats = owner.stats
        self._owner = owner
        self._session = session
        self._is_for_host = is_for_host
        self._target = owner.target
        self._pair = owner.target.table.header.pair

    def _run(self, flow: actions.Flow[T]) -> T:
        self._owner.hear()
        try:
            return self._owner.engine.run(_fence(self._target, self._pair, flow))
        except SessionOver:
            self._owner.tell_refused("requests of a session that is over come in and are refused")
            raise

    def read(self, buf: memoryview, offset: int) -> None:
        self._run(self._target.read(self._session, offset, len(buf), self._is_for_host, buf))

    def write(self, buf: memoryview, offset: int, is_fua: bool) -> None:
        self._run(self._target.write(self._session, offset, len(buf), buf, self._is_for_host))
        self._target.table.header.last_write = int(time.time())
        if is_fua:
            self.flush()

    def zero(self, offset: int, length: int, is_fua: bool) -> None:
        self._run(self._target.write(self._session, offset, length, None, self._is_for_host))
        self._target.table.header.last_write = int(time.time())
        if is_fua:
            self.flush()

    trim = zero

    def flush(self) -> None:
        self._run(self._target.flush(self._session))

    def find_extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """(offset, length, is_hole) of the first even pieces."""
        found = []
        for count, is_hole in self._run(self._target.extents(self._session, offset, length)):
            found.append((offset, count, is_hole))
            offset += count
        return found

    def close(self) -> None:
        """Nothing is held per connection."""


class MetaExport:
    """Messages: a write of length and JSON at offset 0 is answered by the next read at offset 0."""

    size = META_SIZE

    def __init__(self, owner: PeerService) -> None:
        self.stats = Stats()  # messages are no requests of anybody's: thrown away
        self._owner = owner
        self._session = -1
        self._pair: str | None = None
        self._reply = b""

    def write(self, buf: memoryview, offset: int, is_fua: bool) -> None:
        raw = bytes(buf)
        length = _LENGTH.unpack_from(raw)[0] if len(raw) >= _LENGTH.size and offset == 0 else -1
        if length != len(raw) - _LENGTH.size:
            raise BadRequest("a message is its length and JSON, written at offset 0")
        try:
            message = json.loads(raw[_LENGTH.size :])
        except (ValueError, RecursionError):
            raise BadRequest("a message is JSON") from None
        answer = json.dumps(self._answer(message)).encode()
        self._reply = (_LENGTH.pack(len(answer)) + answer).ljust(META_REPLY, b"\0")

    def _answer(self, message: Any) -> dict[str, Any]:
        target, engine = self._owner.target, self._owner.engine
        if isinstance(message, dict) and message.get("op") == "greet":
            del message["op"]
            answer = engine.run(target.greet(message))
            if answer["verdict"] == "accepted":
                self._session, self._pair = message["session"], message["pair"]
                self._owner.note_heard()
            elif answer["verdict"] != "busy":
                self._owner.tell_refused(f"a greeting is refused ({answer['verdict']})")
            return answer
        self._owner.hear(message)
        try:
            answer = engine.run(_fence(target, self._pair, target.tell(self._session, message)))
            self._owner.save_clock()
            return answer
        except SessionOver:
            raise
        except PathError as error:
            return {"ok": False, "message": str(error)}
        finally:
            if self._owner.is_completing:
                self._owner.note_heard()

    def read(self, buf: memoryview, offset: int) -> None:
        if offset or len(buf) > len(self._reply):
            raise BadRequest("an answer is read at offset 0, after a message")
        buf[:] = self._reply[: len(buf)]

    def zero(self, offset: int, length: int, is_fua: bool) -> None:
        raise PeerRefused("the meta export takes messages only")

    trim = zero

    def flush(self) -> None:
        """Messages are durable when answered, where they need to be."""

    def find_extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        return [(offset, length, False)]

    def close(self) -> None:
        """The session goes on until the next greeting."""


class PeerService:
    """Role peer: serves the volume to the source of its pair, never to this host."""

    def __init__(self, params: Params, meta: MetaFile, backing: Store) -> None:
        self.params = params
        self.store = backing
        self._meta = meta
        self.stats = Stats()
        self.target = Target(meta.table, _new_name)
        patience = {Patience.FETCH: params.fetch_timeout_s, Patience.COMMAND: params.link_timeout_s}
        self.engine = Engine(self.target, _make_hands(backing, meta), patience)
        self.lane = "python"  # how plain requests go: see lane.py
        self._heard_at: float | None = None
        self.ask_lane: Callable[[], float | None] = lambda: None  # when a request came that went past Python
        self.is_completing = False
        self._told: dict[str, float] = {}
        self._clock = WriteClock(meta.table.header)
        self._control = Control(
            params.control,
            {
                "status": lambda _: self.get_status(),
                "connect": self._connect,
                "disconnect": lambda r: self._run(self.target.disconnect(get_text(r, "pair"))),
                "drain": lambda _: self._run(self.target.drain()),
                "limits": self._limits,
                "sockets": lambda _: {},
            },
        )

    def start(self) -> None:
        self._meta.tell_repairs()
        self._control.start()

    def open_export(self, name: str) -> Export:
        if name == "meta":
            return MetaExport(self)
        parts = name.split("/")
        is_known = len(parts) == 4 and parts[0] == "data" and parts[1] == self.target.table.header.pair
        if is_known and parts[2].isdigit() and len(parts[2]) < 20 and parts[3] in ("host", "copy"):
            return DataExport(self, int(parts[2]), parts[3] == "host")
        raise BadRequest(f"there is no export {name[:80]!r} here")

    def tell_refused(self, what: str) -> None:
        """Of each kind one line in a while, however often it comes."""
        now = time.monotonic()
        if now - self._told.get(what, -TELL_AGAIN_S) >= TELL_AGAIN_S:
            self._told[what] = now
            log.warning("volume %s: %s", self.params.volume, what)

    def note_heard(self) -> None:
        """A greeting was accepted, or a closing message is done with: the source has spoken with us until now."""
        self.is_completing = False
        self._heard_at = time.monotonic()

    def hear(self, message: Any = None) -> None:
        """A request or message came, before it is looked at: the source sends one a second at least.

        After a longer silence than the source puts up with, its session is over: what comes then was sent before.
        """
        now, heard = time.monotonic(), self._get_heard()
        if heard is not None and now - heard > self._get_silence_most():
            self._expire(now - heard)
        self.is_completing |= isinstance(message, dict) and message.get("op") == "complete"
        self._heard_at = now  # last: until the session is over every thread must find it late

    def _get_heard(self) -> float | None:
        return max((heard for heard in (self._heard_at, self.ask_lane()) if heard is not None), default=None)

    def _get_silence_most(self) -> float:
        """The answer to "complete" takes a sync, and until it has come the source sends no other message."""
        params = self.params
        return HEARD_SPARE_S + (params.flush_timeout_s if self.is_completing else params.link_timeout_s)

    def _expire(self, silence_s: float) -> None:
        target = self.target
        with self.engine.lock:
            if target.is_open:
                target.expire()
                log.warning(
                    "volume %s: nothing was heard of the source for %.1f s, so its session %d is over; what comes of "
                    "it now is refused, the source sends it again",
                    self.params.volume,
                    silence_s,
                    target.table.header.session,
                )

    def save_clock(self) -> None:
        """The time of the last write becomes durable, if it is due."""
        if self._clock.is_due(self.target.table.header) and self.target.failed is None:
            self.engine.run(self.target.save())

    def get_status(self) -> dict[str, Any]:
        """`session` is null when nothing was heard of it for longer than its source would put up with."""
        target = self.target
        with self.engine.lock:
            facts = status.describe(target.table)
            session = target.table.header.session if target.is_open else None
        heard = self._get_heard()
        heard_s = None if heard is None else round(time.monotonic() - heard, 1)
        if heard_s is None or heard_s > self._get_silence_most():
            session = None
        counters = {
            "read_bytes": target.read_bytes,
            "write_bytes": target.written_bytes,
            "copied_bytes": target.copied_bytes,
            "fetched_bytes": target.fetched_bytes,
            "fetched_tracks": target.fetched_tracks,
            "refused_requests": target.refused_requests,
        }
        return facts | {
            "volume": self.params.volume,
            "role": "peer",
            "pid": os.getpid(),
            "clients": 0,
            "session": session,
            "link": "up" if session else "none",
            "link_error": None,
            "heard_s": heard_s,
            "complete": not target.is_incomplete,
            "verdict": None,
            "peer_last_write": None,
            "waiting": 0,
            "failed": target.failed,
            "copy_error": None,
            "copy_rate_bytes_s": None,
            "counters": counters,
            "latency": self.stats.describe(),
            "limits": self.params.get_limits(),
            "lane": self.lane,
        }

    def _run(self, flow: actions.Flow[Any]) -> dict[str, Any]:
        self.engine.run(flow)
        return self.get_status()

    def _limits(self, request: dict[str, Any]) -> dict[str, Any]:
        self.params = found = self.params.change(request)
        self.engine.set_patience({Patience.FETCH: found.fetch_timeout_s, Patience.COMMAND: found.link_timeout_s})
        return self.get_status()

    def get_pair(self) -> str | None:
        return self.target.table.header.pair

    def _connect(self, request: dict[str, Any]) -> dict[str, Any]:
        if get_side(request, "side") != "destination":
            raise BadRequest("a process in the peer's role takes the destination's side")
        operation, pair, peer = (get_text(request, key) for key in ("operation", "pair", "peer"))
        return self._run(self.target.connect(operation, pair, peer, get_side(request, "invalid")))


def make(params: Params) -> HostService | PeerService:
    """Opens and locks metadata and backing, makes the control socket; raises BadRequest, TableDamaged."""
    meta = MetaFile(params.meta)
    _check_volume(params, meta.table.header)
    _check_side(params, meta.table.header)
    backing = Store(params.backing, meta.table.geometry.size)
    control.get_listener()
    spoken = _get_spoken()
    if params.role == "host":
        host = HostService(params, meta, backing)
        host.core.spoken = spoken
        return host
    peer = PeerService(params, meta, backing)
    peer.target.spoken = spoken
    return peer


def _check_volume(params: Params, header: Header) -> None:
    """Another volume's table says of this one's data what is not so."""
    if params.uuid not in (None, header.volume):
        raise BadRequest(
            f"{params.meta} is the metadata of another volume ({header.volume}), not of {params.volume} "
            f"({params.uuid}): put the right file back, or end the volume's pair and create volume and pair anew"
        )


def _check_side(params: Params, header: Header) -> None:
    """A destination that its own host wrote to would differ from its source, and nobody would know."""
    if header.side is not None and (header.side == "destination") != (params.role == "peer"):
        raise BadRequest(
            f"the metadata of volume {params.volume} says that it is the {header.side} of pair {header.pair}; if that "
            f"pair is to end, free the volume with `pathctl pair delete {params.volume} --half`"
        )


def _get_spoken() -> lineage.Versions:
    """Ours, unless a test plays another release with $PATHCTL_DATA_PROTOCOL, `OLDEST-NEWEST`."""
    text = os.environ.get("PATHCTL_DATA_PROTOCOL")
    try:
        return lineage.parse_versions(text) if text else lineage.SPOKEN
    except ValueError:
        raise BadRequest(f"$PATHCTL_DATA_PROTOCOL={text} is not OLDEST-NEWEST") from None
