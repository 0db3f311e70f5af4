"""client - reads, writes, trims and flushes of the host, several at a time, mostly close together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbdplugin import requests, tracks
from nbdplugin.core import Core
from nbdplugin.decide import Kind
from nbdplugin.geometry import Span
from nbdplugin.requests import HostWrite
from tests.sim.base import Base
from tests.sim.disk import CELL, PER_TRACK, A
from tests.sim.model import Violation

Then = Callable[["Exception | None"], None]


def ignore(error: Exception | None) -> None:
    """Nobody asks how the request ended."""


class Client(Base):
    """Tells the model what it does and what it is answered."""

    def spawn_client(self) -> None:
        core, rng = self.core, self.rng
        assert core is not None
        if rng.random() < 0.3 and self._overwrite(core):
            return
        self.clients += 1
        first = rng.randrange(self.count)
        length = rng.choice((1, 1, 2, 3, 4, 5, 6, 9, 14))
        if rng.random() < 0.3:
            first, length = first // PER_TRACK * PER_TRACK, rng.randint(1, 3) * PER_TRACK
        if self.max_active < 4 or rng.random() < 0.7:  # stay near the last request: overlaps are what breaks things
            first = min(first % (3 * PER_TRACK) + rng.choice((0, 16, 32)), self.count - 1)
        length = min(length, self.count - first)
        cells = range(first, first + length)
        what = rng.random()
        if what < 0.4:
            self._spawn_read(core, cells)
        elif what < 0.95:
            self._spawn_write(core, cells)
        else:
            self._spawn_flush(core)

    def _spawn_read(self, core: Core, cells: range, then: Then = ignore) -> None:
        read = self.model.start_read(cells, self.machine.now)

        def end(value: Any, error: Exception | None) -> None:
            self._leave("read", error)
            if error is None:
                self.model.end_read(read, value, core.failed is not None)
            else:
                self.model.drop_read(read)
            then(error)

        name = f"read {cells.start}+{len(cells)}"
        self.machine.spawn(A, name, requests.read(core, cells.start * CELL, len(cells) * CELL), end)

    def _spawn_write(self, core: Core, cells: range, then: Then = ignore, is_fua: bool | None = None) -> None:
        """`is_fua` None leaves it to chance; the chance is drawn in any case, so that seeds stay what they are."""
        rng, now = self.rng, self.machine.now
        sessions, was_read_only = core.counts.sessions, core.is_read_only
        kind = Kind.TRIM if rng.random() < 0.12 else Kind.WRITE
        is_zero = kind is Kind.TRIM or rng.random() < 0.1
        self.values += 1
        value = 0 if is_zero else self.values
        parts = self._cut_trim(core, cells) if kind is Kind.TRIM else [(cells, True)]
        writes = [(self.model.start_write(part, value, now), part, is_sure) for part, is_sure in parts]

        def end(_: Any, error: Exception | None) -> None:
            self._leave(kind.name.lower(), error)
            if error is not None and item.is_fua:
                self.model.fail_flush()
            if error is None and was_read_only:
                raise Violation(f"rule 7: {kind.name.lower()} {cells} was acknowledged by a read-only volume")
            if error is None and core.session is None and sessions == core.counts.sessions:
                self.rules.check_lineage(cells, value)
            for write, part, is_sure in writes:
                if error is None and is_sure:
                    self.model.ack(write, part, self.machine.now, self._is_there, item.is_fua)
                    self.rules.note_acked(part, write.start)
                    header = core.table.header
                    if header.on_path_loss == tracks.STOP and header.committed and header.ready:
                        self.rules.check_stop(part)
                    self.rules.check_mirrored(part)
                    self.rules.check_kept(part, write.start)
                    if item.is_fua:
                        self.rules.check_fua(part)
                else:
                    self.model.fail(write, self.machine.now)
            then(error)

        data = None if is_zero else (value,) * len(cells)
        may_be_fua = rng.random() < 0.1
        is_forced = may_be_fua if is_fua is None else is_fua
        item = HostWrite(kind, cells.start * CELL, len(cells) * CELL, data, is_forced)
        self.machine.spawn(A, f"{kind.name.lower()} {cells.start}+{len(cells)}", requests.write(core, item), end)

    def _is_there(self, cell: int) -> bool:
        return self.core is not None and self.core.table.invalid.get(cell // PER_TRACK)

    def _cut_trim(self, core: Core, cells: range) -> list[tuple[range, bool]]:
        """A trim may leave out what covers an invalid track in part."""
        first = -(-cells.start // PER_TRACK) * PER_TRACK
        stop = cells.stop if cells.stop == self.count else cells.stop // PER_TRACK * PER_TRACK
        if first >= stop:
            return [(cells, False)]
        parts = [(range(cells.start, first), False), (range(first, stop), True), (range(stop, cells.stop), False)]
        return [(part, is_sure) for part, is_sure in parts if len(part)]

    def _spawn_flush(self, core: Core) -> None:
        start = self.model.start_flush(self.machine.now)
        session, owed = core.session, self.rules.get_owed()

        def end(_: Any, error: Exception | None) -> None:
            self._leave("flush", error)
            if error is None:
                self.rules.check_flush(start)
                if session is not None and core.session == session:
                    self.rules.check_mirrored_flush(start, owed)
                self.model.ack_flush(start)
            else:
                self.model.fail_flush()

        self.machine.spawn(A, "flush", requests.flush(core), end)

    def _leave(self, who: str, error: Exception | None) -> None:
        self.clients = max(0, self.clients - 1)
        self.count_error(who, error)

    def _overwrite(self, core: Core) -> bool:
        """Without a pair nobody has the data of invalid tracks: they are written anew."""
        if core.table.header.pair is not None or not core.table.invalid.count:
            return False
        self.clients += 1
        first, count = core.table.invalid.find_run(0, 4) or (0, 1)
        offset, length = core.table.geometry.get_range(Span(first, count))
        self._spawn_write_at(core, range(offset // CELL, (offset + length) // CELL))
        return True

    def _spawn_write_at(self, core: Core, cells: range) -> None:
        self.values += 1
        write = self.model.start_write(cells, self.values, self.machine.now)
        item = HostWrite(Kind.WRITE, cells.start * CELL, len(cells) * CELL, (self.values,) * len(cells))

        def end(_: Any, error: Exception | None) -> None:
            self._leave("overwrite", error)
            if error is None:
                self.model.ack(write, cells, self.machine.now)
                self.rules.note_acked(cells, write.start)
            else:
                self.model.fail(write, self.machine.now)

        self.machine.spawn(A, "overwrite", requests.write(core, item), end)
