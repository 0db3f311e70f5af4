"""controlclient - commands to one nbdkit over its control socket.

JSON lines, one short connection per command, every command with a time limit.  A reply with an error becomes a
PathctlError; no reply becomes NoAnswer, because the command may have been carried out.
"""

import array
import asyncio
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pathctl import errors
from pathctl.errors import ErrorCode

LINE_LIMIT = 1 << 20
READ_AT_ONCE = 64 << 10
SOCKETS_MOST = 4

CODES = {
    "bad_request": ErrorCode.INTERNAL,
    "not_found": ErrorCode.NOT_FOUND,
    "refused": ErrorCode.REFUSED,
    "timeout": ErrorCode.TIMEOUT,
    "peer_lost": ErrorCode.UNREACHABLE,
    "io": ErrorCode.INTERNAL,
    "internal": ErrorCode.INTERNAL,
}


class Status(msgspec.Struct, frozen=True):
    """What nbdkit says of its volume, counted in tracks.  `format show` says the same of one that does not run."""

    uuid: str = ""
    role: str | None = None
    pid: int | None = None
    size: int = 0
    track_size: int = 0
    tracks: int = 0
    clients: int = 0
    pair: str | None = None
    side: str | None = None
    peer: str | None = None
    operation: str | None = None
    committed: bool = False
    ready: bool = False
    on_path_loss: str | None = None  # None: an older data plane, which goes on
    session: int | None = None
    link: str = "none"
    link_error: str | None = None
    verdict: str | None = None  # the machine's word for the last refusal of a greeting
    peer_last_write: float | None = None  # as the refusing peer said
    generation: str = ""
    ancestors: list[str] = msgspec.field(default_factory=list)
    last_write: float | None = None  # seconds since the epoch; may be a minute old
    heard_s: float | None = None  # role peer: since when nothing has come from the source
    invalid: int = 0
    owed: int = 0
    complete: bool = False
    incomplete: bool = False
    waiting: int = 0
    failed: str | None = None
    copy_error: str | None = None
    copy_rate_bytes_s: int | None = None
    counters: dict[str, int] = msgspec.field(default_factory=dict)
    latency: "Latency | None" = None  # None: an older data plane, or none that runs
    limits: dict[str, float] = msgspec.field(default_factory=dict)


class Histogram(msgspec.Struct, frozen=True):
    """One kind of request: counts[i] took up to bounds_s[i], the last of them longer than all."""

    errors: int
    sum_s: float
    counts: list[int]


class Latency(msgspec.Struct, frozen=True):
    """How long requests took since the process started."""

    bounds_s: list[float]
    kinds: dict[str, Histogram]


class _Error(msgspec.Struct, frozen=True):
    code: str
    message: str


class _Reply(msgspec.Struct, frozen=True):
    ok: dict[str, Any] | None = None
    error: _Error | None = None


async def call(path: Path | str, op: str, limit_s: float, **fields: object) -> Mapping[str, Any]:
    """The `ok` object of one command's reply."""
    sent = False
    loop = asyncio.get_running_loop()
    try:
        # Bare calls: this is done for each volume again and again, and a transport would cost more than the rest.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            async with asyncio.timeout(limit_s):
                await loop.sock_connect(client, str(path))
                sent = True
                await loop.sock_sendall(client, msgspec.json.encode({"op": op, **fields}) + b"\n")
                line = await _read_line(loop, client)
    except TimeoutError as error:
        raise _no_answer(path, op, f"did not answer within {limit_s:g} s", sent, ErrorCode.TIMEOUT) from error
    except (OSError, ValueError) as error:  # ValueError: a line above the limit
        raise _no_answer(path, op, f"cannot be asked ({error})", sent) from error
    return _result(path, op, line)


async def _read_line(loop: asyncio.AbstractEventLoop, client: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n") and (more := await loop.sock_recv(client, READ_AT_ONCE)):
        line += more
        if len(line) > LINE_LIMIT:
            raise ValueError(f"its line is longer than {LINE_LIMIT} bytes")
    return bytes(line)


async def status(path: Path | str, limit_s: float) -> Status:
    return msgspec.convert(await call(path, "status", limit_s), Status)


def _result(path: Path | str, op: str, line: bytes) -> Mapping[str, Any]:
    if not line.endswith(b"\n"):
        raise _no_answer(path, op, "ended before it answered", True)
    try:
        reply = msgspec.json.decode(line, type=_Reply)
    except msgspec.DecodeError as error:
        raise errors.internal(f"the data plane at {path} answered {op} with something else: {error}") from error
    if reply.error is not None:
        raise errors.PathctlError(CODES.get(reply.error.code, ErrorCode.INTERNAL), reply.error.message)
    return reply.ok or {}


def _no_answer(
    path: Path | str, op: str, what: str, sent: bool, code: ErrorCode = ErrorCode.INTERNAL
) -> errors.NoAnswer:
    return errors.NoAnswer(code, f"the data plane of volume {Path(path).stem} {what} when told to {op}", sent=sent)


async def take_sockets(path: Path | str, limit_s: float) -> list[socket.socket]:
    """The listening sockets that the process holds, duplicated for us."""
    return await asyncio.to_thread(_take_sockets, str(path), limit_s)


def _take_sockets(path: str, limit_s: float) -> list[socket.socket]:
    taken: list[int] = []
    line = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(limit_s)
            client.connect(path)
            client.sendall(b'{"op":"sockets"}\n')
            while not line.endswith(b"\n"):
                data, handles = _receive(client)
                taken += handles
                line += data
                if not data:
                    break
        _result(path, "sockets", line)
    except (OSError, errors.PathctlError) as error:
        for handle in taken:
            os.close(handle)
        if isinstance(error, errors.PathctlError):
            raise
        raise _no_answer(path, "sockets", f"cannot be asked ({error})", True) from error
    return [socket.socket(fileno=handle) for handle in taken]


def _receive(client: socket.socket) -> tuple[bytes, list[int]]:
    """Data, and what descriptors came with it, closed in our children: nbdkit must have no listener but its own.

    Not socket.recv_fds, which in Python 3.11 drops the flags it is given.
    """
    room = socket.CMSG_SPACE(SOCKETS_MOST * array.array("i").itemsize)
    data, ancillary, _, _ = client.recvmsg(LINE_LIMIT, room, socket.MSG_CMSG_CLOEXEC)
    handles = array.array("i")
    for level, kind, raw in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            handles.frombytes(raw[: len(raw) - len(raw) % handles.itemsize])
    return data, handles.tolist()
