"""faultserver - a program of its own: a folder of plain files passed through, with errors and a record.

    python faultserver.py FOLDER CONTROL_FD [RECORD]

Mounts itself over FOLDER and serves the files that lie beneath, one request after the other, until CONTROL_FD is
closed at its other end; then unmounts.  Nothing is cached: every write reaches this process, in order.  A sync is a
point of the record and nothing else: the folder beneath is as durable as the machine that runs the test.

Control, JSON lines, each answered by one: {"do": "fail", ...fields of Rule}, {"do": "heal"}, {"do": "flush"}.
A program and not a thread: whoever forks while it holds Python's lock closes files, and would wait for itself.

Record: entries of ENTRY | name | data, see faultdisk.  FUSE: linux/fuse.h (protocol 7.31), as in pathctl.fusefile.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import json
import os
import select
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from typing import IO

from pathctl.fusefile import IN_HEADER, INIT_OUT, IO_IN, MAX_WRITE, OPEN_OUT, OUT_HEADER, WRITE_OUT

ENTRY = struct.Struct("<BBHQQQ")  # kind, length of the name, 0, monotonic ns, offset, length; then name, then data
WRITE, PUNCH, SYNC, SIZE, CREATE, UNLINK, RENAME, LINK, FAILED = range(1, 10)  # kinds
ATTR = struct.Struct("<QQQQQQ III IIIIIII")
ENTRY_OUT = struct.Struct("<QQQQII")  # nodeid, generation, validities; then ATTR
ATTR_OUT = struct.Struct("<QII")  # validity, padding; then ATTR
FALLOCATE_IN = struct.Struct("<QQQI")
LSEEK_IN = struct.Struct("<QQI")
DIRENT = struct.Struct("<QQII")
OPCODES = {
    1: "lookup",
    3: "getattr",
    4: "setattr",
    9: "unlink",
    10: "unlink",
    12: "rename",
    13: "link",
    14: "open",
    15: "read",
    16: "write",
    17: "statfs",
    18: "nothing",
    20: "fsync",
    25: "nothing",
    26: "init",
    27: "open",
    28: "readdir",
    29: "nothing",
    30: "fsync",
    35: "create",
    43: "fallocate",
    45: "rename2",
    46: "lseek",
}
UNANSWERED = (2, 36, 42)  # FORGET, INTERRUPT, BATCH_FORGET
FALLOCATE = 43
ROOT = 1
ANY_IO = 1 << 0 | 1 << 5 | 1 << 15 | 1 << 22  # ASYNC_READ, BIG_WRITES, ASYNC_DIO, MAX_PAGES
DIRECT_IO = 1 << 0
PUNCH_HOLE, ZERO_RANGE = 2, 16  # linux/falloc.h
SET_MODE, SET_SIZE = 1, 8  # of setattr
MNT_DETACH = 2
PR_SET_IO_FLUSHER = 57

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@dataclasses.dataclass(slots=True)
class Rule:
    """Requests `op` of file `name` that touch the range (None: any) fail with `errno`, the next `count` (None: all)."""

    name: str
    op: str
    offset: int | None = None
    length: int | None = None
    errno: int = errno.EIO
    count: int | None = None

    def hits(self, name: str, op: str, offset: int, length: int) -> bool:
        if name != self.name or op != self.op or self.count == 0:
            return False
        if self.offset is None or op == "sync":
            return True
        end = 1 << 63 if self.length is None else self.offset + self.length
        return offset < end and self.offset < offset + length


class File:
    """One file beneath; the descriptor stays open, so that it outlives its name."""

    def __init__(self, node: int, name: str, fd: int) -> None:
        self.node, self.name, self.fd = node, name, fd


class Server:
    """Invariant: `names` are the regular files of the folder that were asked for, `nodes` all that were ever open."""

    def __init__(self, folder: str, record: IO[bytes] | None) -> None:
        self.root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.record = record
        self.rules: list[Rule] = []
        self.failed = 0
        self.names: dict[str, File] = {}
        self.nodes: dict[int, File] = {}
        self._node = ROOT

    def note(self, kind: int, name: str, offset: int = 0, length: int = 0, data: bytes | memoryview = b"") -> None:
        if self.record is not None:
            raw = name.encode()
            self.record.write(ENTRY.pack(kind, len(raw), 0, time.monotonic_ns(), offset, length) + raw)
            self.record.write(data)

    def check(self, name: str, op: str, offset: int, length: int) -> None:
        """Raises the OSError that a rule asks for."""
        for rule in self.rules:
            if rule.hits(name, op, offset, length):
                rule.count = None if rule.count is None else rule.count - 1
                self.failed += 1
                raise OSError(rule.errno, "injected")

    # --- names ---

    def get(self, name: str) -> File:
        """Raises FileNotFoundError."""
        found = self.names.get(name)
        if found is None:
            found = self._adopt(name, os.open(name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self.root))
        return found

    def _adopt(self, name: str, fd: int) -> File:
        self._node += 1
        self.names[name] = self.nodes[self._node] = file = File(self._node, name, fd)
        return file

    def describe(self, node: int) -> bytes:
        found = os.fstat(self.root if node == ROOT else self.nodes[node].fd)
        times = (int(found.st_atime), int(found.st_mtime), int(found.st_ctime))
        sizes = (node, found.st_size, found.st_blocks)
        owner = (found.st_mode, max(1, found.st_nlink), found.st_uid, found.st_gid, 0, 4096, 0)
        return ATTR.pack(*sizes, *times, 0, 0, 0, *owner)

    def show(self, file: File) -> bytes:
        return ENTRY_OUT.pack(file.node, 0, 0, 0, 0, 0) + self.describe(file.node)

    def lookup(self, _node: int, body: memoryview) -> bytes:
        return self.show(self.get(_text(body)))

    def create(self, _node: int, body: memoryview) -> bytes:
        flags, mode, _umask, _pad = struct.unpack_from("<IIII", body)
        name = _text(body[16:])
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags & os.O_EXCL, mode & 0o7777, dir_fd=self.root)
        old = self.names.pop(name, None)
        file = self._adopt(name, fd) if old is None else old
        self.names[name] = file
        self.note(CREATE, name)
        return self.show(file) + OPEN_OUT.pack(file.node, DIRECT_IO, 0)

    def unlink(self, _node: int, body: memoryview) -> bytes:
        name = _text(body)
        os.unlink(name, dir_fd=self.root)
        self.names.pop(name, None)
        self.note(UNLINK, name)
        return b""

    def rename(self, _node: int, body: memoryview) -> bytes:
        return self._rename(body[8:])

    def rename2(self, _node: int, body: memoryview) -> bytes:
        if struct.unpack_from("<QI", body)[1]:
            raise OSError(errno.EINVAL, "flags of renameat2")
        return self._rename(body[16:])

    def _rename(self, body: memoryview) -> bytes:
        old, new = (item.decode() for item in bytes(body).split(b"\0")[:2])
        os.rename(old, new, src_dir_fd=self.root, dst_dir_fd=self.root)
        file = self.names.pop(old, None)
        self.names.pop(new, None)
        if file is not None:
            file.name, self.names[new] = new, file
        self.note(RENAME, old, 0, len(new), new.encode())
        return b""

    def link(self, _node: int, body: memoryview) -> bytes:
        node, new = struct.unpack_from("<Q", body)[0], _text(body[8:])
        file = self.nodes[node]
        os.link(file.name, new, src_dir_fd=self.root, dst_dir_fd=self.root)
        self.names[new] = file
        self.note(LINK, file.name, 0, len(new), new.encode())
        return self.show(file)

    def readdir(self, _node: int, body: memoryview) -> bytes:
        _fh, offset, size = IO_IN.unpack_from(body)
        names, reply = sorted(os.listdir(self.root)), b""
        for at in range(offset, len(names)):
            raw = names[at].encode()
            entry = DIRENT.pack(ROOT + 1 + at, at + 1, len(raw), stat.S_IFREG >> 12) + raw
            entry += bytes(-len(entry) % 8)
            if len(reply) + len(entry) > size:
                break
            reply += entry
        return reply

    # --- attributes ---

    def init(self, _node: int, body: memoryview) -> bytes:
        _major, minor, readahead, _flags = struct.unpack_from("<IIII", body)
        return INIT_OUT.pack(7, min(minor, 31), readahead, ANY_IO, 128, 128, MAX_WRITE, 1, MAX_WRITE // 4096, 0)

    def getattr(self, node: int, _body: memoryview) -> bytes:
        return ATTR_OUT.pack(0, 0, 0) + self.describe(node)

    def setattr(self, node: int, body: memoryview) -> bytes:
        valid, _pad, _fh, size = struct.unpack_from("<IIQQ", body)
        if node != ROOT and valid & SET_SIZE:
            file = self.nodes[node]
            os.ftruncate(file.fd, size)
            self.note(SIZE, file.name, size)
        if node != ROOT and valid & SET_MODE:
            os.fchmod(self.nodes[node].fd, struct.unpack_from("<I", body, 68)[0] & 0o7777)
        return self.getattr(node, body)

    def statfs(self, _node: int, _body: memoryview) -> bytes:
        found = os.fstatvfs(self.root)
        counts = (found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree)
        return struct.pack("<QQQQQIIII24x", *counts, found.f_bsize, found.f_namemax, found.f_frsize, 0)

    def open(self, node: int, _body: memoryview) -> bytes:
        return OPEN_OUT.pack(node, DIRECT_IO if node != ROOT else 0, 0)

    def nothing(self, _node: int, _body: memoryview) -> bytes:
        return b""

    # --- data ---

    def read(self, node: int, body: memoryview) -> bytes:
        _fh, offset, size = IO_IN.unpack_from(body)
        self.check(self.nodes[node].name, "read", offset, size)
        return os.pread(self.nodes[node].fd, size, offset)

    def write(self, node: int, body: memoryview) -> bytes:
        _fh, offset, size = IO_IN.unpack_from(body)
        file, data = self.nodes[node], body[40 : 40 + size]
        self.check(file.name, "write", offset, size)
        count = os.pwrite(file.fd, data, offset)
        self.note(WRITE, file.name, offset, count, data[:count])
        return WRITE_OUT.pack(count, 0)

    def fsync(self, node: int, _body: memoryview) -> bytes:
        name = "" if node == ROOT else self.nodes[node].name
        try:
            self.check(name, "sync", 0, 0)
        except OSError:
            self.note(FAILED, name)
            raise
        self.note(SYNC, name)
        return b""

    def fallocate(self, node: int, body: memoryview) -> bytes:
        _fh, offset, length, mode = FALLOCATE_IN.unpack_from(body)
        file = self.nodes[node]
        self.check(file.name, "fallocate", offset, length)
        before = os.fstat(file.fd).st_size
        if _libc.fallocate(file.fd, mode, offset, length) != 0:
            raise OSError(ctypes.get_errno(), "fallocate")
        after = os.fstat(file.fd).st_size
        if after != before:
            self.note(SIZE, file.name, after)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            self.note(PUNCH, file.name, offset, length)
        return b""

    def lseek(self, node: int, body: memoryview) -> bytes:
        _fh, offset, whence = LSEEK_IN.unpack_from(body)
        return struct.pack("<Q", os.lseek(self.nodes[node].fd, offset, whence))

    # --- the loop ---

    def answer(self, fuse: int, data: memoryview) -> None:
        _length, opcode, unique, node, *_rest = IN_HEADER.unpack_from(data)
        if opcode in UNANSWERED:
            return
        number, reply = 0, b""
        try:
            name = OPCODES.get(opcode)
            if name is None:
                raise OSError(errno.ENOSYS, "not known here")
            handler: Callable[[int, memoryview], bytes] = getattr(self, name)
            reply = handler(node, data[IN_HEADER.size :])
        except OSError as error:
            # The kernel takes ENOSYS, and of fallocate EOPNOTSUPP, for an answer once and for all.
            number = -(error.errno or errno.EIO)
        try:
            os.writev(fuse, [OUT_HEADER.pack(OUT_HEADER.size + len(reply), number, unique), reply])
        except OSError as problem:
            if problem.errno not in (errno.ENOENT, errno.ENODEV):  # nobody waits for it any more
                raise

    def obey(self, line: bytes) -> dict[str, int]:
        fields = json.loads(line)
        what = fields.pop("do")
        if what == "fail":
            self.rules.append(Rule(**fields))
        elif what == "heal":
            self.rules.clear()
        if self.record is not None:
            self.record.flush()
        return {"failed": self.failed}


def _text(body: memoryview) -> str:
    return bytes(body).split(b"\0", 1)[0].decode()


def mount(folder: str) -> int:
    fuse = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = stat.S_IFDIR
    options = f"fd={fuse},rootmode={mode:o},user_id=0,group_id=0,allow_other,default_permissions,max_read={MAX_WRITE}"
    if _libc.mount(b"faultdisk", os.fsencode(folder), b"fuse", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount", folder)
    return fuse


def serve(server: Server, fuse: int, control: socket.socket) -> None:
    """Until the other end of the control socket is closed, or the folder unmounted."""
    poll, buffer = select.poll(), bytearray(MAX_WRITE + 4096)
    poll.register(fuse, select.POLLIN)
    poll.register(control, select.POLLIN)
    while True:
        for fd, _events in poll.poll():
            if fd == fuse:
                try:
                    length = os.readv(fuse, [buffer])
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        return
                    continue  # interrupted before it was read
                server.answer(fuse, memoryview(buffer)[:length])
            else:
                lines = control.recv(1 << 16)
                if not lines:
                    return
                for line in lines.splitlines():
                    control.sendall(json.dumps(server.obey(line)).encode() + b"\n")


def main() -> None:
    folder, control_fd, *rest = sys.argv[1:]
    control = socket.socket(fileno=int(control_fd))
    _libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)  # a file system may lie on this one: see pathctl.fusefile
    with open(rest[0], "wb", buffering=1 << 20) if rest else open(os.devnull, "wb") as record:
        server = Server(folder, record if rest else None)
        fuse = mount(folder)
        try:
            control.sendall(b"{}\n")
            serve(server, fuse, control)
        finally:
            os.close(fuse)  # first: whoever waits for an answer gets an error, and unmounting asks nobody
            _libc.umount2(os.fsencode(folder), MNT_DETACH)


if __name__ == "__main__":
    main()
