"""volume - the volume as its host uses it: requests in, bytes out.

Cuts long zeroes and trims, takes the lock-free way for reads of valid tracks, and hands everything else to the
flows of requests.py.
"""

from __future__ import annotations

import logging
import time

from nbdplugin import requests
from nbdplugin.actions import Outcome
from nbdplugin.core import Core
from nbdplugin.decide import Kind
from nbdplugin.engine import Engine
from nbdplugin.errors import PeerLost, PeerRefused, StoreFailed
from nbdplugin.lane import Pass
from nbdplugin.requests import HostWrite
from nbdplugin.store import Store

_PIECE = 32 << 20

log = logging.getLogger(__name__)


class Volume:
    """Every method may run in any number of threads at once; raises PathError."""

    def __init__(self, core: Core, engine: Engine, backing: Store, name: str) -> None:
        self._core = core
        self._engine = engine
        self._store = backing
        self._name = name

    def read(self, buf: memoryview, offset: int) -> None:
        """Fills `buf`; a valid range costs two short holds of the lock."""
        core, lock = self._core, self._engine.lock
        span = core.table.geometry.get_span(offset, len(buf))
        with lock:
            is_plain = not core.is_quiesced and not core.table.invalid.is_any(span.first, span.count)
            distrusts = core.distrusts
            core.in_flight += is_plain
        if is_plain:
            try:
                self._store.read_into(buf, offset)
            except StoreFailed as error:
                is_plain = self._tell_read_error(offset, len(buf), error)
            finally:
                with lock:
                    is_plain &= core.distrusts == distrusts  # else a failed sync may have dropped what was written
                    core.counts.read_bytes += len(buf) if is_plain else 0
                    core.in_flight -= 1
                    if core.in_flight == 0 and core.is_quiesced:
                        core.wake_all("idle")
                        self._engine.release_woken()
        if not is_plain:
            data = self._engine.run(requests.read(core, offset, len(buf)))
            buf[:] = bytes(len(buf)) if data is None else data

    def _tell_read_error(self, offset: int, length: int, error: StoreFailed) -> bool:
        log.error(
            "volume %s: reading %d bytes at %d failed on the local store (errno %d); the peer is asked if it has them",
            self._name,
            length,
            offset,
            error.errno,
        )
        return False

    def write(self, buf: memoryview, offset: int, is_fua: bool) -> None:
        self._write(HostWrite(Kind.WRITE, offset, len(buf), buf, is_fua))

    def _write(self, item: HostWrite) -> None:
        self._engine.run(requests.write(self._core, item))
        self._core.table.header.last_write = int(time.time())

    def conclude(self, buf: memoryview, plain: Pass, local: int, peer: PeerLost | PeerRefused | None) -> None:
        """A write that the lane carried out and could not end; `local`: errno of our leg; `peer`: what came of it."""
        item = HostWrite(Kind.WRITE, plain.ticket.offset, len(buf), buf)
        outcome = Outcome(StoreFailed("a write", local) if local else None, peer)
        self._engine.run(requests.conclude_plain(self._core, item, plain, outcome))
        self._core.table.header.last_write = int(time.time())

    def zero(self, offset: int, length: int, is_fua: bool) -> None:
        self._cut(Kind.WRITE, offset, length, is_fua)

    def trim(self, offset: int, length: int, is_fua: bool) -> None:
        self._cut(Kind.TRIM, offset, length, is_fua)

    def _cut(self, kind: Kind, offset: int, length: int, is_fua: bool) -> None:
        for start, count in self._core.table.geometry.cut(offset, length, _PIECE):
            self._write(HostWrite(kind, start, count, None))
        if is_fua:
            self.flush()

    def flush(self) -> None:
        self._engine.run(requests.flush(self._core))

    def find_extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]:
        """(offset, length, is_hole) pieces that fill the range; where tracks are invalid it is data."""
        span = self._core.table.geometry.get_span(offset, length)
        found = list_extents(self._store, offset, length)
        with self._engine.lock:  # last: what became invalid meanwhile is data too
            is_valid = not self._core.table.invalid.is_any(span.first, span.count)
        return found if is_valid else [(offset, length, False)]


def list_extents(backing: Store, offset: int, length: int, most: int = 1024) -> list[tuple[int, int, bool]]:
    """At most `most` pieces from the start of the range."""
    pieces: list[tuple[int, int, bool]] = []
    end = offset + length
    while offset < end and len(pieces) < most:
        count, is_hole = backing.find_extent(offset, end - offset)
        pieces.append((offset, count, is_hole))
        offset += count
    return pieces
