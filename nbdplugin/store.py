"""store - the local file or block device under a volume: blocking reads, writes, zeroes, syncs.

Owns the file descriptor and the lock that keeps a second writer out.  Every OSError leaves as StoreFailed.
Safe in any number of threads; ordering is the gate's business.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from nbdplugin.errors import BadRequest, StoreFailed

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_KEEP_SIZE = 1  # linux/falloc.h
_PUNCH_HOLE = 2
_PIECE = 1 << 20
EXTENTS_MOST = 256
_ZEROES = bytes(_PIECE)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreFailed(what, error.errno or errno.EIO) from error


class Store:
    """Invariant: the first `size` bytes of the file exist for as long as the store is open."""

    def __init__(self, path: Path, size: int) -> None:
        """Raises BadRequest where the backing cannot be used."""
        try:
            self._is_device = stat.S_ISBLK(os.stat(path).st_mode)
            exclusive = os.O_EXCL if self._is_device else 0  # of a device: refused while mounted or otherwise claimed
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | exclusive)
        except OSError as error:
            raise BadRequest(f"the backing {path} cannot be opened for writing: {error.strerror}") from None
        self.path = path
        self.size = size
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadRequest(f"the backing {path} is locked by another process") from None
        end = os.lseek(self._fd, 0, os.SEEK_END)
        if end < size:
            raise BadRequest(f"the backing {path} has {end} bytes, less than the volume's {size}")

    def get_fd(self) -> int:
        """For the compiled lane, which reads and writes as this class does."""
        return self._fd

    def read_into(self, buf: memoryview | bytearray, offset: int) -> None:
        with _translated("a read"):
            count = os.preadv(self._fd, [buf], offset)
            if count != len(buf):
                self._read_rest(memoryview(buf)[count:], offset + count)

    def _read_rest(self, view: memoryview, offset: int) -> None:
        while view:
            count = os.preadv(self._fd, [view], offset)
            if count == 0:
                raise OSError(errno.EIO, "the backing is shorter than the volume")
            view, offset = view[count:], offset + count

    def read(self, offset: int, length: int, into: memoryview | None = None) -> memoryview | bytearray:
        """`into`: where they go, of that length; else into a buffer of their own."""
        buf = bytearray(length) if into is None else into
        self.read_into(buf, offset)
        return buf

    def read_all(self, ranges: Sequence[tuple[int, int]], into: memoryview | None) -> list[memoryview | bytearray]:
        """Each (offset, length); one after the other in `into`, where that is long enough."""
        found, at = [], 0
        if into is not None and len(into) < sum(length for _, length in ranges):
            into = None
        for offset, length in ranges:
            found.append(self.read(offset, length, None if into is None else into[at : at + length]))
            at += length
        return found

    def write(self, offset: int, length: int, data: bytes | bytearray | memoryview | None) -> None:
        """`data` None: zeroes, which may become a hole."""
        if data is None:
            self._zero(offset, length)
            return
        with _translated("a write"):
            count = os.pwrite(self._fd, data, offset)
            view = memoryview(data)[count:]
            while view:
                offset += count
                count = os.pwrite(self._fd, view, offset)
                view = view[count:]

    def _zero(self, offset: int, length: int) -> None:
        if _libc.fallocate(self._fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENODEV, errno.EINVAL):
            raise StoreFailed("writing zeroes", code)
        end = offset + length
        while offset < end:
            piece = min(_PIECE, end - offset)
            self.write(offset, piece, memoryview(_ZEROES)[:piece])
            offset += piece

    def sync(self) -> None:
        with _translated("a sync"):
            os.fdatasync(self._fd)

    def find_extent(self, offset: int, length: int) -> tuple[int, bool]:
        """(length, is_hole) of the first even piece of the range; what cannot be told is data."""
        if self._is_device:
            return length, False
        try:
            data = os.lseek(self._fd, offset, os.SEEK_DATA)
        except OSError as error:
            return (length, True) if error.errno == errno.ENXIO else (length, False)
        if data > offset:
            return min(length, data - offset), True
        try:
            return min(length, os.lseek(self._fd, offset, os.SEEK_HOLE) - offset), False
        except OSError:
            return length, False

    def find_extents(self, offset: int, length: int) -> list[tuple[int, bool]]:
        """As find_extent, of the first even pieces of the range, at most EXTENTS_MOST."""
        found: list[tuple[int, bool]] = []
        while length and len(found) < EXTENTS_MOST:
            found.append(self.find_extent(offset, length))
            offset, length = offset + found[-1][0], length - found[-1][0]
        return found


def is_zero(data: bytes | bytearray | memoryview) -> bool:
    """Whether all of it is zero; stops at the first byte that is not."""
    view = memoryview(data)
    return all(view[at : at + _PIECE] == memoryview(_ZEROES)[: len(view) - at] for at in range(0, len(view), _PIECE))
