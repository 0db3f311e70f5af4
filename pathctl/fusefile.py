"""fusefile - a program of its own: the volume behind an NBD socket, as one file for a loop device.

    python -m pathctl.fusefile NBD_SOCKET FILE LOG [HOLD_S]

It returns when the file is there, and goes on in the background until the file is unmounted.

Translates each FUSE request into an NBD request and its reply back, as many at once as the kernel has; the answers
come in any order.  One thread, one loop: FUSE requests in, NBD requests out, NBD replies in, FUSE answers out.  Every
request is kept, with its data, until it has been answered: when the connection is lost, all that are kept are sent
again on the next one, which is right because each says what shall be where.  What waits longer than HOLD_S fails
with EIO.  No thread, no asyncio: a volume's every request goes through here.

Why not the storage daemon's FUSE export: see devices.  Wire formats: linux/fuse.h (protocol 7.31), NBD's proto.md.
"""

import contextlib
import ctypes
import errno
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections import deque
from pathlib import Path

HOLD_S = 60.0
RETRY_S = 0.1
HANDSHAKE_S = 5.0
REST_S = 5.0  # without a request, after which a connection that carried much is made anew: see Bridge._carry
MUCH = 16 << 20
MAX_WRITE = 1 << 20
MAX_ZERO = 1 << 30  # of one NBD request; its length has 32 bits
MAX_BACKGROUND = 256  # requests of the kernel at once; above the loop device's 128, and see nbdkitcmd.THREADS
MAX_QUEUED = 8 << 20  # bytes not yet taken by nbdkit, above which no further requests are read

# FUSE: fuse_in_header | body; fuse_out_header | body
IN_HEADER = struct.Struct("<IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, padding
OUT_HEADER = struct.Struct("<IiQ")  # len, error, unique
INIT_OUT = struct.Struct("<IIIIHHIIHH32x")
OPEN_OUT = struct.Struct("<QII")  # fh, open_flags, padding
WRITE_OUT = struct.Struct("<II")
ATTR_OUT = struct.Struct("<QII QQQQQQ III IIIIIII")
IO_IN = struct.Struct("<QQI")  # fh, offset, size: of fuse_read_in and of fuse_write_in, both 40 bytes
FALLOCATE_IN = struct.Struct("<QQQI")  # fh, offset, length, mode
GETATTR, SETATTR, OPEN, READ, WRITE, RELEASE, FSYNC, FLUSH, INIT, INTERRUPT, DESTROY, FALLOCATE = (
    *(3, 4, 14, 15, 16, 18, 20, 25, 26, 36, 38, 43),
)
FORGET, BATCH_FORGET = 2, 42
INIT_FLAGS = 1 << 0 | 1 << 5 | 1 << 15 | 1 << 22  # ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES
OPEN_FLAGS = 1 << 0 | 1 << 6  # DIRECT_IO: no second page cache; PARALLEL_DIRECT_WRITES
PUNCH_HOLE, ZERO_RANGE = 2, 16
PR_SET_IO_FLUSHER = 57

# NBD
REQUEST = struct.Struct(">IHHQQI")  # magic, flags, type, cookie, offset, length
REPLY = struct.Struct(">IIQ")  # magic, error, cookie
REQUEST_MAGIC, REPLY_MAGIC, OPTION_MAGIC = 0x25609513, 0x67446698, 0x3E889045565A9
NBD_READ, NBD_WRITE, NBD_FLUSH, NBD_ZEROES = 0, 1, 3, 6
NO_HOLE = 2
OPT_GO, REP_ACK, REP_INFO = 7, 1, 3


class BridgeError(Exception):
    """The volume cannot be reached, or the file not be made; a sentence for the one who started the program."""


class Lost(Exception):
    """The connection to nbdkit is unusable: make another and send again."""


class Pending:
    """One FUSE request: the NBD requests it became that are not answered yet, and the first error of these."""

    def __init__(self, unique: int, answer: bytes) -> None:
        self.unique = unique
        self.answer = answer
        self.begun = time.monotonic()
        self.left = 0
        self.error = 0


class Request:
    """One NBD request, as it is sent and sent again."""

    def __init__(self, pending: Pending, kind: int, length: int, parts: list[bytes]) -> None:
        self.pending = pending
        self.kind = kind
        self.length = length
        self.parts = parts


class Connection:
    """One NBD connection in its transmission phase: bytes out that are queued, bytes in that are incomplete."""

    def __init__(self, path: str, limit_s: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(limit_s)
        self._out: deque[bytes | memoryview] = deque()
        self.queued = 0
        self.carried = 0
        self._in = bytearray()
        try:
            self.socket.connect(path)
            self.size = self._negotiate()
        except OSError as error:
            self.socket.close()
            raise Lost(f"{path}: {error}") from error
        except Lost:
            self.socket.close()
            raise
        self.socket.setblocking(False)

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                raise Lost("nbdkit closed the connection while greeting")
            data += more
        return data

    def _negotiate(self) -> int:
        """Fixed newstyle, default export, simple replies; returns the export's size."""
        magic, option, _flags = struct.unpack(">8sQH", self._receive(18))
        if magic != b"NBDMAGIC" or option != int.from_bytes(b"IHAVEOPT", "big"):
            raise Lost("the socket does not speak NBD")
        self.socket.sendall(struct.pack(">I8sIIIH", 3, b"IHAVEOPT", OPT_GO, 6, 0, 0))
        size = 0
        while True:
            magic, _option, kind, length = struct.unpack(">QIII", self._receive(20))
            data = self._receive(length)
            if magic != OPTION_MAGIC or kind >= 1 << 31:
                raise Lost(f"nbdkit refused the export: {data.decode(errors='replace')}")
            if kind == REP_INFO and data[:2] == b"\0\0":
                size = int.from_bytes(data[2:10], "big")
            if kind == REP_ACK:
                return size

    def queue(self, parts: list[bytes]) -> None:
        length = sum(map(len, parts))
        self._out.extend(parts)
        self.queued += length
        self.carried += length

    def send(self) -> None:
        """As much as the socket takes now."""
        while self._out:
            try:
                sent = self.socket.sendmsg([self._out[i] for i in range(min(len(self._out), 512))])
            except BlockingIOError:
                return
            except OSError as error:
                raise Lost(str(error)) from error
            self.queued -= sent
            while sent:
                part = self._out.popleft()
                if len(part) > sent:
                    self._out.appendleft(memoryview(part)[sent:])
                    return
                sent -= len(part)

    def receive(self) -> bytearray:
        """The bytes that have come and were not used up; the caller deletes from it what it used."""
        try:
            data = self.socket.recv(MAX_WRITE)
        except BlockingIOError:
            return self._in
        except OSError as error:
            raise Lost(str(error)) from error
        if not data:
            raise Lost("nbdkit closed the connection")
        self._in += data
        self.carried += len(data)
        return self._in


class Bridge:
    """The file: requests from the kernel on one side, the connection on the other, `_requests` in between."""

    def __init__(self, path: str, fuse: int, connection: Connection, hold_s: float) -> None:
        self._path = path
        self._fuse = fuse
        self._hold_s = hold_s
        self._connection: Connection | None = connection
        self._size = connection.size
        self._requests: dict[int, Request] = {}
        self._cookie = 0
        self._buffer = bytearray(MAX_WRITE + 4096)

    def serve(self) -> None:
        """Until the file is unmounted."""
        while True:
            connection = self._connection or self._connect_again()
            try:
                self._carry(connection)
            except Lost as lost:
                print(f"fusefile: {lost}; connecting again", file=sys.stderr, flush=True)
            connection.socket.close()
            self._connection = None

    def _carry(self, connection: Connection) -> None:
        """Until nothing has been asked for a while, if much was before.

        Each of nbdkit's threads keeps a buffer as large as its largest request for as long as the connection lives:
        after a megabyte through each of 288 threads that is 288 MiB, which a volume at rest shall not hold.
        """
        poll = select.poll()
        while True:
            poll.register(self._fuse, select.POLLIN if connection.queued < MAX_QUEUED else 0)
            poll.register(connection.socket, select.POLLIN | (select.POLLOUT if connection.queued else 0))
            ready = poll.poll(REST_S * 1000)
            if not ready and not self._requests and connection.carried > MUCH:
                return
            for fd, _events in ready:
                if fd == self._fuse:
                    self._take_requests()
                else:
                    self._take_replies(connection.receive())
            connection.send()

    # -- from the kernel

    def _take_requests(self) -> None:
        while self._connection is None or self._connection.queued < MAX_QUEUED:
            try:
                length = os.readv(self._fuse, [self._buffer])
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno == errno.ENODEV:  # unmounted
                    sys.exit(0)
                if error.errno not in (errno.ENOENT, errno.EINTR):  # interrupted before it was read
                    raise
                continue
            self._take_request(memoryview(self._buffer)[:length])

    def _take_request(self, data: memoryview) -> None:
        _length, opcode, unique, *_rest = IN_HEADER.unpack_from(data)
        body = data[IN_HEADER.size :]
        if opcode == READ:
            _fh, offset, size = IO_IN.unpack_from(body)
            size = max(0, min(size, self._size - offset))
            self._ask(unique, NBD_READ, [(offset, size, 0, b"")] if size else [], b"")
        elif opcode == WRITE:
            _fh, offset, size = IO_IN.unpack_from(body)
            self._ask(unique, NBD_WRITE, [(offset, size, 0, bytes(body[40 : 40 + size]))], WRITE_OUT.pack(size, 0))
        elif opcode == FSYNC:
            self._ask(unique, NBD_FLUSH, [(0, 0, 0, b"")], b"")
        elif opcode == FALLOCATE:
            self._take_fallocate(unique, body)
        elif opcode == DESTROY:
            sys.exit(0)
        elif opcode not in (FORGET, BATCH_FORGET, INTERRUPT):  # these want no answer
            self._answer_at_once(unique, opcode, body)

    def _take_fallocate(self, unique: int, body: memoryview) -> None:
        """Zeroes both: the loop device punches holes where it was asked for zeroes, too."""
        _fh, offset, length, mode = FALLOCATE_IN.unpack_from(body)
        if not mode & (PUNCH_HOLE | ZERO_RANGE):
            self._answer(unique, -errno.EOPNOTSUPP)
            return
        flags = NO_HOLE if mode & ZERO_RANGE else 0
        end = min(offset + length, self._size)
        runs = [(at, min(MAX_ZERO, end - at), flags, b"") for at in range(offset, end, MAX_ZERO)]
        self._ask(unique, NBD_ZEROES, runs, b"")

    def _answer_at_once(self, unique: int, opcode: int, body: memoryview) -> None:
        if opcode == INIT:
            _major, minor, readahead, _flags = struct.unpack_from("<IIII", body)
            pages = MAX_WRITE // 4096
            limits = (MAX_BACKGROUND, MAX_BACKGROUND, MAX_WRITE, 1, pages, 0)
            self._answer(unique, 0, INIT_OUT.pack(7, min(minor, 31), readahead, INIT_FLAGS, *limits))
        elif opcode in (GETATTR, SETATTR):
            mode = stat.S_IFREG | 0o600
            times, owner = (0,) * 6, (mode, 1, 0, 0, 0, 4096, 0)
            self._answer(unique, 0, ATTR_OUT.pack(3600, 0, 0, 1, self._size, self._size // 512, *times, *owner))
        elif opcode == OPEN:
            self._answer(unique, 0, OPEN_OUT.pack(0, OPEN_FLAGS, 0))
        elif opcode in (RELEASE, FLUSH):
            self._answer(unique, 0)
        else:
            self._answer(unique, -errno.ENOSYS)

    def _ask(self, unique: int, kind: int, runs: list[tuple[int, int, int, bytes]], answer: bytes) -> None:
        """Send one NBD request for each run of (offset, length, flags, data); answer when all are answered."""
        if not runs:
            self._answer(unique, 0, answer)
        pending = Pending(unique, answer)
        pending.left = len(runs)
        for offset, length, flags, data in runs:
            self._cookie += 1
            header = REQUEST.pack(REQUEST_MAGIC, flags, kind, self._cookie, offset, length)
            request = Request(pending, kind, length, [header, data] if data else [header])
            self._requests[self._cookie] = request
            if self._connection is not None:
                self._connection.queue(request.parts)

    # -- from nbdkit

    def _take_replies(self, data: bytearray) -> None:
        at = 0
        while len(data) - at >= REPLY.size:
            magic, error, cookie = REPLY.unpack_from(data, at)
            request = self._requests.get(cookie)
            if magic != REPLY_MAGIC or request is None:
                raise Lost(f"nbdkit sent what is no reply: {bytes(data[at : at + 16])!r}")
            length = request.length if request.kind == NBD_READ and not error else 0
            if len(data) - at < REPLY.size + length:
                break
            at += REPLY.size
            if length:
                request.pending.answer = bytes(memoryview(data)[at : at + length])
            at += length
            self._finish(cookie, error)
        del data[:at]

    def _finish(self, cookie: int, error: int) -> None:
        pending = self._requests.pop(cookie).pending
        pending.left -= 1
        pending.error = pending.error or error
        if not pending.left:
            self._answer(pending.unique, -pending.error, b"" if pending.error else pending.answer)

    def _answer(self, unique: int, error: int, body: bytes = b"") -> None:
        try:
            os.writev(self._fuse, [OUT_HEADER.pack(OUT_HEADER.size + len(body), error, unique), body])
        except OSError as problem:
            if problem.errno not in (errno.ENOENT, errno.ENODEV):  # nobody waits for it any more
                raise

    # -- another connection

    def _connect_again(self) -> Connection:
        """Try until it succeeds, then send all that was not answered.  Meanwhile requests are taken, and time out.

        Sending again is right because the nbdkit that had them is dead: its end is what closed the connection.  One
        that lived on could still carry out an old write after a later one was answered.
        """
        lost_at = time.monotonic()
        while True:
            with contextlib.suppress(Lost):
                connection = Connection(self._path, HANDSHAKE_S)
                if connection.size == self._size:
                    break
                connection.socket.close()
            self._take_requests()
            self._give_up_old(lost_at)
            time.sleep(RETRY_S)
        for request in self._requests.values():
            connection.queue(request.parts)
        self._connection = connection
        return connection

    def _give_up_old(self, lost_at: float) -> None:
        """What has waited too long for a connection; how long it was in work before does not count."""
        end = time.monotonic() - self._hold_s
        for cookie in [c for c, request in self._requests.items() if max(request.pending.begun, lost_at) < end]:
            self._finish(cookie, errno.EIO)


# -- start ------------------------------------------------------------------------------------------------


def mount(fuse: int, file: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fuse},rootmode={stat.S_IFREG:o},user_id=0,group_id=0,allow_other,max_read={MAX_WRITE}"
    nosuid_nodev = 2 | 4
    if libc.mount(b"pathctl", os.fsencode(file), b"fuse", nosuid_nodev, options.encode()) != 0:
        raise BridgeError(f"{file} could not be mounted: {os.strerror(ctypes.get_errno())}")


def start(path: str, file: Path, hold_s: float) -> Bridge:
    try:
        connection = Connection(path, HANDSHAKE_S)
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except Lost as error:
        raise BridgeError(str(error)) from error
    except OSError as error:
        raise BridgeError(f"/dev/fuse: {error.strerror}") from error
    mount(fuse, file)
    return Bridge(path, fuse, connection, hold_s)


def detach_from_parent(log: str) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
    # Memory this process needs to write out a page must not wait for pages to be written out: prctl(2).
    ctypes.CDLL(None).prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)


def main() -> None:
    """In a child: connect and mount, say so to the parent, serve.  The parent ends when the child has said so."""
    path, file, log, *rest = sys.argv[1:]
    told, tell = os.pipe()
    if os.fork():
        os.close(tell)
        said = os.fdopen(told).read()
        sys.exit(0 if said == "ready" else said or "fusefile: the program ended")
    os.close(told)
    detach_from_parent(log)
    try:
        bridge = start(path, Path(file), float(rest[0]) if rest else HOLD_S)
    except BridgeError as error:
        os.write(tell, f"fusefile: {error}".encode())
        sys.exit(1)
    os.write(tell, b"ready")
    os.close(tell)
    bridge.serve()


if __name__ == "__main__":
    main()
