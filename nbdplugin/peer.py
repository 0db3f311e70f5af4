"""peer - NBD connections to the peer's data plane: the only importer of libnbd.

Each connection is used by one thread at a time, with synchronous calls; a watchdog shuts the socket of a call that
the peer leaves unanswered.  Errors leave as PeerLost (drop everything) or PeerRefused (the peer said no).
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import nbd

from nbdplugin import lane
from nbdplugin.errors import PeerLost, PeerRefused

META_SIZE = 64 << 10
META_REPLY = 16 << 10
URGENT_MOST = 8
COPY_MOST = 4
TAKE_MOST_S = 600.0
_WATCH_S = 0.2
_TOTAL_FACTOR = 6  # a call that moves a little now and then is given up too, after so many of its limits
_NEARLY = 0.9  # the kernel's own limit (TCP_USER_TIMEOUT) is the same and may be first
_TCP_USER_TIMEOUT = 18  # linux/tcp.h
_TCP_INFO_MOVED = struct.Struct("=120x2Q")  # of struct tcp_info: tcpi_bytes_acked, tcpi_bytes_received
_LENGTH = struct.Struct(">I")


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where the peer's data plane listens, and the key of the pair; without a key, in clear."""

    host: str
    port: int
    psk_file: Path | None
    identity: str


class Call:
    """A request under way: given up at `deadline`, which moves on while bytes move, but not beyond `end`."""

    __slots__ = ("deadline", "end", "limit_s", "start")

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.start = time.monotonic()
        self.deadline = self.start + limit_s
        self.end = self.start + limit_s * _TOTAL_FACTOR

    def extend(self, now: float) -> None:
        self.deadline = min(now + self.limit_s, self.end)


class Connection:
    """One export of the peer.  `call`: the request under way, for the watchdog; None if there is none.

    `peer_host`: the numeric address that it goes to; a connection that was reset could not tell it any more.
    """

    is_simple = False  # without structured replies and what needs them

    def __init__(
        self, address: Address, export: str, timeout_s: float, size: int, is_given_up: Callable[[], bool]
    ) -> None:
        """Connects within timeout_s or until `is_given_up`; raises PeerLost, and PeerRefused if the size is another."""
        self.call: Call | None = None
        self.timeout_s = timeout_s
        self._moved = 0
        self._handle = nbd.NBD()
        self._socket: socket.socket | None = None
        try:
            if address.psk_file is not None:
                self._handle.set_tls(nbd.TLS_REQUIRE)
                self._handle.set_tls_psk_file(str(address.psk_file))
                self._handle.set_tls_username(address.identity)
            self._handle.set_export_name(export)
            if self.is_simple:
                self._handle.set_request_structured_replies(False)
            else:
                self._handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
            self._connect(address, is_given_up)
            self._socket = socket.socket(fileno=os.dup(self._handle.aio_get_fd()))
            self.peer_host = str(self._socket.getpeername()[0])
            self._watch_socket(self._socket, timeout_s)
            found = self._handle.get_size()
        except (nbd.Error, OSError) as error:
            raise PeerLost(f"no connection to the peer at {address.host}:{address.port}: {_explain(error)}") from None
        if found != size:
            self.shut()
            raise PeerRefused(f"the peer's {export.split('/')[0]} export has {found} bytes instead of {size}")

    def _connect(self, address: Address, is_given_up: Callable[[], bool]) -> None:
        end = time.monotonic() + self.timeout_s
        self._handle.aio_connect_tcp(address.host, str(address.port))
        while self._handle.aio_is_connecting():
            left = end - time.monotonic()
            if left <= 0:
                raise PeerLost(f"the peer at {address.host}:{address.port} did not answer within {self.timeout_s:g} s")
            if is_given_up():
                raise PeerLost(f"the connection to the peer at {address.host}:{address.port} is not wanted any more")
            self._handle.poll(max(1, int(min(left, _WATCH_S) * 1000)))
        if not self._handle.aio_is_ready():
            raise PeerLost(f"the peer at {address.host}:{address.port} closed the connection during the handshake")

    def note_moved(self, now: float) -> bool:
        """Whether bytes were taken by the peer's machine, or came from it, since this was last asked."""
        if self._socket is None:
            return False
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_MOVED.size)
            moved = sum(_TCP_INFO_MOVED.unpack(info))
        except (OSError, struct.error):
            return False
        is_new: bool = moved != self._moved
        self._moved = moved
        call = self.call
        if is_new and call is not None:
            call.extend(now)
        return is_new

    @staticmethod
    def _watch_socket(sock: socket.socket, timeout_s: float) -> None:
        limit_s = max(1, int(timeout_s))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, limit_s)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_USER_TIMEOUT, limit_s * 1000)

    def shut(self) -> None:
        """Ends every call on the connection with an error; safe from any thread, any number of times."""
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it was shut already

    @contextmanager
    def _call(self, timeout_s: float | None = None) -> Iterator[None]:
        self.call = call = Call(self.timeout_s if timeout_s is None else timeout_s)
        try:
            yield
        except nbd.Error as error:
            if self._handle.aio_is_ready() and error.errnum != errno.ESHUTDOWN:
                raise PeerRefused(f"the peer answered: {_explain(error)}") from None
            raise PeerLost(_tell_broken(error, time.monotonic() - call.start, call.limit_s)) from None
        finally:
            self.call = None

    def read(self, offset: int, length: int) -> bytearray:
        with self._call():
            data: bytearray = self._handle.pread(length, offset)
            return data

    def read_into(self, offset: int, buf: memoryview) -> None:
        with self._call():
            cookie = self._handle.aio_pread(buf, offset)
            while not self._handle.aio_command_completed(cookie):
                self._handle.poll(-1)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        with self._call():
            self._handle.pwrite(data, offset)

    def write_all(self, pieces: Sequence[tuple[int, int, bytes | bytearray | memoryview | None]]) -> None:
        """(offset, length, data or None for zeroes), all under way at once; an error is told when none is any more."""
        with self._call():
            sent, failure = [], None
            try:
                for offset, length, data in pieces:
                    zero, write = self._handle.aio_zero, self._handle.aio_pwrite
                    sent.append(zero(length, offset) if data is None else write(data, offset))
            except nbd.Error as error:
                failure = error
            for cookie in sent:
                try:
                    while not self._handle.aio_command_completed(cookie):
                        self._handle.poll(-1)
                except nbd.Error as error:
                    failure = failure or error
            if failure is not None:
                raise failure

    def zero(self, offset: int, length: int, timeout_s: float) -> None:
        with self._call(timeout_s):
            self._handle.zero(length, offset)

    def flush(self, timeout_s: float) -> None:
        with self._call(timeout_s):
            self._handle.flush()

    def find_extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """(length, is_zero) of the first even pieces of the range, as the peer tells them; one at least."""
        found: list[int] = []

        def note(context: str, start: int, entries: list[int], _error: Any) -> None:
            if context == nbd.CONTEXT_BASE_ALLOCATION and start == offset:
                found.extend(entries)

        with self._call():
            self._handle.block_status(length, offset, note)
        pieces = []
        for count, flags in zip(found[::2], found[1::2], strict=False):
            if count <= 0 or length <= 0:
                break
            pieces.append((min(count, length), bool(flags & nbd.STATE_ZERO)))
            length -= count
        return pieces or [(length, False)]

    def ask(self, message: dict[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        """Sends a message on a meta export and returns the answer; raises PeerLost if it is none."""
        raw = json.dumps(message).encode()
        with self._call(timeout_s):
            self._handle.pwrite(_LENGTH.pack(len(raw)) + raw, 0)
            reply = self._handle.pread(META_REPLY, 0)
        length = _LENGTH.unpack_from(reply)[0]
        try:
            answer = json.loads(reply[_LENGTH.size : _LENGTH.size + length])
        except (ValueError, RecursionError):
            raise PeerLost("the peer's answer to a message is not JSON") from None
        if not isinstance(answer, dict):
            raise PeerLost("the peer's answer to a message is not an object")
        return answer


class StreamConnection(Connection):
    """One whose writes the compiled lane sends, many at once: `stream` is theirs.

    `call` stands for all that is under way: it begins anew with every answer.
    """

    is_simple = True

    def __init__(
        self, address: Address, export: str, timeout_s: float, size: int, is_given_up: Callable[[], bool]
    ) -> None:
        super().__init__(address, export, timeout_s, size, is_given_up)
        self.stream = lane.compiled.Stream(self._handle)
        self._completed = 0

    def note_moved(self, now: float) -> bool:
        if self.stream.attended == 0:  # what is in flight beyond that is being written here first
            self.call = None
        elif self.call is None or self._completed != self.stream.completed:
            self.call = Call(self.timeout_s)
        self._completed = self.stream.completed
        return super().note_moved(now)


def explain_answer(number: int, is_lost: bool, waited_s: float, limit_s: float) -> PeerLost | PeerRefused:
    """What an error that a stream's write ended with means, as of any other call's."""
    error = nbd.Error("", number)
    if is_lost:
        return PeerLost(_tell_broken(error, waited_s, limit_s))
    return PeerRefused(f"the peer answered: {os.strerror(number)}")


def _tell_broken(error: nbd.Error, waited_s: float, limit_s: float) -> str:
    """Why a call ended with its connection, for people: what GnuTLS and libnbd say of it names their functions."""
    if waited_s >= limit_s * _NEARLY:
        return f"the peer did not answer within {limit_s:g} s"
    if error.errnum == errno.ESHUTDOWN:
        return "the peer has ended the session"
    return "the connection to the peer broke off: its process ended, or something on the way closed it"


def _explain(error: Exception) -> str:
    """Without the names of libnbd's functions, where the system's own words say it all."""
    text = str(getattr(error, "string", None) or getattr(error, "strerror", None) or error)
    number = getattr(error, "errnum", 0)
    plain = os.strerror(number) if number else ""
    return plain if plain and text.endswith(plain) else text


class Pool:
    """Connections of one purpose, opened when first needed, at most `most`; each is taken by one thread at a time."""

    def __init__(self, open_one: Callable[[], Connection], most: int) -> None:
        self._open_one = open_one
        self._most = most
        self._opened = 0
        self._free: list[Connection] = []
        self._change = threading.Condition()
        self._is_shut = False
        self._reason: str | None = None  # why

    @contextmanager
    def take(self) -> Iterator[Connection]:
        """Waits until one is free, which the limit of each call bounds; raises PeerLost when the session is over."""
        connection = self._get()
        try:
            yield connection
        finally:
            with self._change:
                self._free.append(connection)
                self._change.notify()

    def _get(self) -> Connection:
        with self._change:
            # The limit of each call bounds this wait; its own is there for the mistake that nobody has made yet.
            if not self._change.wait_for(lambda: self._free or self._is_shut or self._opened < self._most, TAKE_MOST_S):
                raise PeerLost(f"no connection to the peer became free within {TAKE_MOST_S:g} s")
            if self._is_shut:
                raise PeerLost(self._reason or "the session is over")
            if self._free:
                return self._free.pop()
            self._opened += 1
        try:
            return self._open_one()
        except (PeerLost, PeerRefused):
            with self._change:
                self._opened -= 1
                self._change.notify()
            raise

    def shut(self, reason: str | None) -> None:
        with self._change:
            self._is_shut, self._reason = True, reason
            self._open_one = self._refuse  # a circle with its session would keep all sockets until a collection
            self._change.notify_all()

    @staticmethod
    def _refuse() -> NoReturn:
        raise PeerLost("the session is over")


Connect = Callable[[str, Callable[[], bool], type[Connection]], Connection]


class Session:
    """Every connection of one session; they end together.  `is_over` is set once they do."""

    def __init__(self, number: int, meta: Connection, connect: Connect) -> None:
        """`connect` opens a data connection for a use, "host" or "copy", unless it is given up meanwhile."""
        self.number = number
        self.meta = meta
        self.meta_lock = threading.Lock()
        self.urgent = Pool(functools.partial(self._open, connect, "host", Connection), URGENT_MOST)
        self.copy = Pool(functools.partial(self._open, connect, "copy", Connection), COPY_MOST)
        self._connect = connect
        self._opening = threading.Lock()
        self.is_over = threading.Event()
        self.reason: str | None = None
        self._lock = threading.Lock()
        self._all = [meta]
        threading.Thread(target=self._watch, name=f"watch-{number}", daemon=True).start()

    def open_stream(self) -> Any:
        """The stream of the session's mirrored writes, once: to all callers but the first it is None."""
        if not self._opening.acquire(blocking=False):
            return None
        connection = self._open(self._connect, "host", StreamConnection)
        assert isinstance(connection, StreamConnection)
        return connection.stream

    def _open(self, connect: Connect, use: str, kind: type[Connection]) -> Connection:
        connection = connect(use, self.is_over.is_set, kind)
        with self._lock:
            self._all.append(connection)
            is_over = self.is_over.is_set()
        if is_over:
            connection.shut()
            raise PeerLost(self.reason or "the session is over")
        return connection

    def end(self, reason: str | None = None) -> None:
        """Shuts every connection; returns once no call can succeed any more.  The first reason stays."""
        with self._lock:
            self.reason = self.reason or reason
            self.is_over.set()
            connections = list(self._all)
        self.urgent.shut(self.reason)
        self.copy.shut(self.reason)
        for connection in connections:
            connection.shut()

    def _watch(self) -> None:
        """A message waits for its answer as long as anything moves: on a slow link it comes behind the data."""
        while not self.is_over.wait(_WATCH_S):
            now = time.monotonic()
            calls = [(connection.note_moved(now), connection.call) for connection in list(self._all)]
            message = calls[0][1]
            if message is not None and any(has_moved for has_moved, _ in calls):
                message.extend(now)
            for _, call in calls:
                if call is not None and call.deadline < now:
                    self.end(f"the peer did not answer within {call.limit_s:g} s")


def ask(meta: Connection, message: dict[str, Any]) -> dict[str, Any]:
    """One message outside a session: a watchdog of its own bounds it."""
    timer = threading.Timer(meta.timeout_s, meta.shut)
    timer.daemon = True
    timer.start()
    try:
        return meta.ask(message)
    finally:
        timer.cancel()
