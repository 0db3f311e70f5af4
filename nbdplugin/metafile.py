"""metafile - the file that holds a volume's metadata: created, locked, read, repaired, written.

Two copies of each page; the second is written after the first is durable, and a change is done after both.  A bad
page is replaced by its twin; where both are bad the volume is not served.

All room the file will ever need is taken when it is made: a full file system must not keep a served volume from
recording what has become invalid or owed.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from nbdplugin import geometry, layout, tracks
from nbdplugin.errors import BadRequest, PathError, StoreFailed, TableDamaged
from nbdplugin.layout import Page
from nbdplugin.tracks import Change, Header, Table

log = logging.getLogger(__name__)

_LOCK_WAIT_S = 3.0
_REBUILD = (
    "the pair's other side is the copy to keep: end the pair with `pathctl pair delete --half`, delete the volume, "
    "and create the pair anew with this side invalid"
)


def create(path: Path, header: Header) -> None:
    """Writes the metadata of a new volume; raises BadRequest if the file is there and says something else.

    Under another name first: wherever a crash ends it, the file is there whole or not at all.
    """
    if path.exists():
        found = MetaFile(path, is_writer=False).table.header
        if (found.volume, found.size, found.track_size) != (header.volume, header.size, header.track_size):
            raise BadRequest(f"{path} exists and describes another volume")
        return
    table = Table(header)
    change = table.build_change((), {}, header=True)
    assert change.header is not None
    draft = path.with_name(path.name + ".new")
    try:
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _not_made(path, error) from None
    try:
        os.posix_fallocate(fd, 0, layout.get_file_size(table.geometry.tracks))
        for copy in (0, 1):
            os.pwrite(fd, change.header, layout.get_header_offset(copy))
        os.fsync(fd)
        draft.rename(path)
        _sync_folder(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise _not_made(path, error) from None
    finally:
        os.close(fd)


def _not_made(path: Path, error: OSError) -> BadRequest:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BadRequest(f"the file system of {path.parent} is full: make room there, then repeat the command")
    return BadRequest(f"{path} cannot be made: {error.strerror}")


def _sync_folder(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class MetaFile:
    """Invariant: `table` is what the file says, repaired; only one writer holds the file at a time.

    `bad` tells which copies were bad, `behind` which were older, as a crash leaves them; a writer replaced both.
    """

    def __init__(self, path: Path, is_writer: bool = True) -> None:
        """Raises BadRequest (missing, locked) or TableDamaged (both copies of a page are bad)."""
        self.path = path
        self._is_writer = is_writer
        self.bad: list[str] = []
        self.behind: list[str] = []
        try:
            self._fd = os.open(path, (os.O_RDWR if is_writer else os.O_RDONLY) | os.O_CLOEXEC)
        except OSError as error:
            raise BadRequest(f"the metadata file {path} cannot be opened: {error.strerror}") from None
        try:
            if is_writer:
                self._lock()
                self._face_disk()
            self.table = self._load()
        except OSError as error:
            os.close(self._fd)
            raise TableDamaged(f"the metadata file {path} cannot be read: {error.strerror}") from None
        except PathError:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        end = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:  # a predecessor that was just killed may take a moment to go
                if time.monotonic() > end:
                    raise BadRequest(f"{self.path} is locked: another process serves this volume") from None
                time.sleep(0.02)

    def _face_disk(self) -> None:
        """What is read from here on is what is on the disk.

        A killed process may have left a page unsynced: a power loss during a repair must not tear it and its twin.
        And what a failed sync did not write stays in the cache as if it had been (see fsync(2), ERRORS).
        """
        os.fdatasync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_RANDOM)  # pages that were read ahead are no holes any more

    def _load(self) -> Table:
        raw = [os.pread(self._fd, layout.HEADER_SIZE, layout.get_header_offset(copy)) for copy in (0, 1)]
        if any(len(item) != layout.HEADER_SIZE for item in raw):
            raise TableDamaged(f"{self.path} is too short to be a metadata file")
        copies = [layout.decode(item, layout.KIND_HEADER, 0, None) for item in raw]
        page = layout.choose(*copies)
        if page is None or page.sequence == 0:
            raise TableDamaged(
                f"both copies of the header of {self.path} are bad; delete the volume's pair, move the file away and "
                "create the volume anew over its backing"
            )
        table = self._make_table(page)
        if os.fstat(self._fd).st_size < layout.get_file_size(table.geometry.tracks):
            raise TableDamaged(f"{self.path} is shorter than the table of its volume")
        offsets = [layout.get_header_offset(copy) for copy in (0, 1)]
        repairs = self._find_repairs("the header", copies, page, raw, offsets)
        for index in self._find_written(table):
            table.restore_page(self._load_page(table, index, repairs))
        lost = table.count_lost_pages()
        if lost:
            raise TableDamaged(f"{lost} pages of {self.path} that were written are empty in both copies; {_REBUILD}")
        if self._is_writer:
            self._repair(repairs)
        return table

    def _make_table(self, page: Page) -> Table:
        header = tracks.decode_header(page.payload)
        try:
            geometry.check(header.size, header.track_size)
        except BadRequest as error:
            raise TableDamaged(f"the metadata file {self.path} makes no sense: {error}") from None
        table = Table(header, page.sequence)
        if not all(0 <= extent < table.geometry.extents for extent in header.active):
            raise TableDamaged(
                f"the metadata file {self.path} makes no sense: it names extents beyond the volume's end"
            )
        return table

    def _load_page(self, table: Table, index: int, repairs: list[tuple[bytes, int]]) -> Page:
        offsets = [layout.get_page_offset(index, copy, table.pages) for copy in (0, 1)]
        raw = [os.pread(self._fd, layout.PAGE_SIZE, offset) for offset in offsets]
        copies = [layout.decode(item, layout.KIND_BITS, index, table.volume) for item in raw]
        page = layout.choose(*copies)
        if page is None:
            raise TableDamaged(f"both copies of page {index} of {self.path} are bad; {_REBUILD}")
        repairs += self._find_repairs(f"page {index}", copies, page, raw, offsets)
        return page

    def _find_repairs(
        self, what: str, copies: list[Page | None], best: Page, raw: list[bytes], offsets: list[int]
    ) -> list[tuple[bytes, int]]:
        """What is to be written where, and notes it."""
        good, repairs = raw[copies.index(best)], []
        for copy, offset in enumerate(offsets):
            if copies[copy] != best:
                found = self.bad if copies[copy] is None else self.behind
                found.append(f"copy {'AB'[copy]} of {what} of the track table {self.path}")
                repairs.append((good, offset))
        return repairs

    def _repair(self, repairs: list[tuple[bytes, int]]) -> None:
        for raw, offset in repairs:
            os.pwrite(self._fd, raw, offset)
        if repairs:
            os.fdatasync(self._fd)

    def _find_written(self, table: Table) -> Iterator[int]:
        """The pages of which either copy is not a hole in the file."""
        seen: set[int] = set()
        end = layout.get_file_size(table.geometry.tracks)
        offset = layout.BITS_START
        while offset < end:
            try:
                start = os.lseek(self._fd, offset, os.SEEK_DATA)
                offset = os.lseek(self._fd, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break
                raise
            first = max(0, start - layout.BITS_START) // layout.PAGE_SIZE
            last = -(-(min(offset, end) - layout.BITS_START) // layout.PAGE_SIZE)
            seen.update(page % table.pages for page in range(first, last))
        yield from sorted(seen)

    def tell_repairs(self) -> None:
        """To the log; once, when the process has one."""
        for what in self.bad:
            log.warning(
                "%s was bad (torn by a power loss, or the disk's fault); its twin was good and replaced it", what
            )
        for what in self.behind:
            log.info("%s was older than its twin, as a crash leaves it; brought up to date", what)

    def write(self, change: Change) -> None:
        """Raises StoreFailed; then either copy may hold the old or the new state of what was being written."""
        try:
            if change.pages:
                for copy in (0, 1):
                    for index, raw, _ in change.pages:
                        self._put(raw, layout.get_page_offset(index, copy, self.table.pages))
                    os.fdatasync(self._fd)
            if change.header is not None:
                for copy in (0, 1):
                    self._put(change.header, layout.get_header_offset(copy))
                    os.fdatasync(self._fd)
        except OSError as error:
            raise StoreFailed("writing the track table", error.errno or errno.EIO) from error

    def _put(self, raw: bytes, offset: int) -> None:
        if os.pwrite(self._fd, raw, offset) != len(raw):
            raise OSError(errno.EIO, "a short write")
