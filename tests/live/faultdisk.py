"""faultdisk - a folder of files whose disk fails on request and whose every write and sync is on record.

    with FaultDisk(folder) as disk:
        disk.fail("va.meta", "write", errno=errno.ENOSPC, count=1)   # ops: read, write, sync, fallocate
        ...
        disk.heal()

Mounted over `folder` by a program of its own (faultserver), by FUSE: flock, fallocate, SEEK_DATA and the rest are
the kernel's, so what opens its files need not know.  The alternatives were LD_PRELOAD, which needs a compiler and
sees libc's calls only, and ptrace, which slows every thread of nbdkit.  The folder holds plain files only.  Whatever
becomes of the test, its end closes the control socket, and with that the program unmounts and ends.

The record: read_record gives what was done, in order, stamped with the time it was done (time.monotonic_ns, one
clock for all disks of the machine); a write is durable from the next sync of its file on, not before.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import mmap
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from live.faultserver import CREATE, ENTRY, FAILED, LINK, PUNCH, RENAME, SIZE, SYNC, UNLINK, WRITE

__all__ = ["CREATE", "FAILED", "LINK", "PUNCH", "RENAME", "SIZE", "SYNC", "UNLINK", "WRITE"]
__all__ += ["Entry", "FaultDisk", "read_record"]
OPS = ("read", "write", "sync", "fallocate")
_WAIT_S = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One effect on the disk.

    WRITE: `data` at `offset`.  PUNCH: `length` zeroes at `offset`.  SIZE: the file has `offset` bytes from now on.
    SYNC: of file `name`, of the folder if that is empty.  FAILED: a sync that was made to fail.  CREATE, UNLINK;
    RENAME, LINK: `data` is the new name.
    """

    kind: int
    name: str
    stamp_ns: int
    offset: int
    length: int
    data: bytes | memoryview


class FaultDisk:
    """Invariant: while it is open, every request to a file of the folder passes the program."""

    def __init__(self, folder: Path, record: Path | None = None) -> None:
        """`record`: a file outside of the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.record = folder, record
        self._control, theirs = socket.socketpair()
        self._control.settimeout(_WAIT_S)
        command = [sys.executable, str(Path(__file__).with_name("faultserver.py")), str(folder), str(theirs.fileno())]
        command += [str(record)] if record is not None else []
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        self._lines = self._control.makefile("rb")
        self._take()

    def __enter__(self) -> FaultDisk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def path(self, name: str) -> Path:
        return self.folder / name

    def _take(self) -> dict[str, int]:
        line = self._lines.readline()
        if not line:
            raise AssertionError(f"the fault disk over {self.folder} ended with code {self._process.wait(_WAIT_S)}")
        answer: dict[str, int] = json.loads(line)
        return answer

    def _ask(self, what: str, **fields: object) -> dict[str, int]:
        self._control.sendall(json.dumps({"do": what, **fields}).encode() + b"\n")
        return self._take()

    def fail(
        self,
        name: str,
        op: str,
        offset: int | None = None,
        length: int | None = None,
        errno: int = errno.EIO,
        count: int | None = None,
    ) -> None:
        """From now on such requests fail, without any effect; a sync of the folder has the name ""."""
        assert op in OPS, op
        self._ask("fail", name=name, op=op, offset=offset, length=length, errno=errno, count=count)

    def heal(self) -> int:
        """No request fails any more; how many have failed so far."""
        return self._ask("heal")["failed"]

    def get_failed(self) -> int:
        """How many requests have failed so far; what was recorded until now is in the record's file."""
        return self._ask("flush")["failed"]

    def read_entries(self) -> list[Entry]:
        """What was recorded until now."""
        assert self.record is not None, "opened without a record"
        if self._process.poll() is None:
            self.get_failed()
        return list(read_record(self.record))

    def close(self) -> None:
        """Unmounted, whoever still has a file open; any number of times."""
        self._lines.close()
        self._control.close()
        try:
            self._process.wait(_WAIT_S)
        finally:
            self._process.kill()
            self._process.wait(_WAIT_S)
            if f" {self.folder} " in Path("/proc/self/mountinfo").read_text():  # it was killed
                subprocess.run(["umount", "--lazy", self.folder], check=True)


def read_record(path: Path) -> Iterator[Entry]:
    """The entries of one disk; their data stays in the file and is read when it is looked at."""
    if not path.stat().st_size:
        return
    with path.open("rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    at = 0
    while at < len(view):
        kind, name_length, _, stamp, offset, length = ENTRY.unpack_from(view, at)
        at += ENTRY.size
        name = bytes(view[at : at + name_length]).decode()
        at += name_length
        count = length if kind in (WRITE, RENAME, LINK) else 0
        data: bytes | memoryview = view[at : at + count]
        at += count
        yield Entry(kind, name, stamp, offset, length, bytes(data) if kind in (RENAME, LINK) else data)
