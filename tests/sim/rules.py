"""rules - DESIGN section 4, what must hold at every instant, checked after every step.

Rule 1 is the model's.  Which copy of a track counts is decided twice: by A's memory, and by what recovery from A's
disk would find at this instant.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nbdplugin import layout
from tests.sim.disk import PER_TRACK, A, B, Lost, Meta, Stores, View, mask_extents
from tests.sim.model import FLIGHT, Model, Saved, Violation


class Rules:
    """`core` is A's, None while A is dead."""

    def __init__(self, stores: Stores, metas: tuple[Meta, Meta], model: Model) -> None:
        self.stores = stores
        self.metas = metas
        self.model = model
        self.core: Any = None
        self.view: View = metas[A].view
        self._version = -1
        self._memory_invalid = 0
        self.local_failure = -1
        self.now = 0
        self._blind_syncs = -1
        self.is_table_failed = False
        self._restart = 0
        self._lost: dict[tuple[int, int], int] = {}
        self._lost_at: dict[int, int] = {}  # of A's cells
        self._saved: tuple[View, Saved] | None = None
        self._split: set[str | None] = set()  # operations of the source's header
        self._rolled_back = -1
        self.greeted = -1  # when the peer answered the last resolve
        self._is_quiet = False  # a command has the volume for itself

    def check(self, now: int) -> None:
        self.now = now
        if self.metas[A].version != self._version:
            self._version = self.metas[A].version
            self._take_view(now)
        core = self.core
        if core is not None:
            self._check_memory(core)
            self._check_quiet(core)
        self._check_disk()
        touched = self.stores.touched | self.model.touched
        if touched:
            self.stores.touched.clear()
            self.model.touched = set()
            self._check_copies(sorted(touched), core)

    # --- what the disk says ---

    def _take_view(self, now: int) -> None:
        old, new = self.view, self.metas[A].view
        self.view = new
        self._touch(old.invalid ^ new.invalid)
        if self.is_split(old) and self.greeted <= self._rolled_back and new.header.pair == old.header.pair:
            self._split.add(new.header.operation)  # this resolve was answered by the side before it was put back
        if get_mode(old) == get_mode(new):
            self._check_cleared(old.invalid & ~new.invalid)
        if get_mode(old) != get_mode(new) and self._saved is None:
            self._saved = old, self.model.save()
        is_marked = new.header.committed and get_mode(new) != get_mode(old)
        if is_marked and new.header.invalidate == "source":
            self.model.switch(list(self.stores.cells[B]), now, self.stores.dirty[B])
        if old.header.pair is not None and new.header.pair is None:
            self._forget_peer(new)

    def _forget_peer(self, view: View) -> None:
        """Invalid tracks have no copy any more; those invalid only on disk have one as long as the process lives."""
        memory = view.invalid if self.core is None else self._get_invalid(self.core)
        for track in range(self.metas[A].tracks):
            if memory >> track & 1:
                self.model.forget(self._get_cells(track))
            elif view.invalid >> track & 1:
                self.model.doubt(self._get_cells(track))

    # --- a side that was put back ---

    def is_split(self, view: View | None = None) -> bool:
        """One side was put back to an older state, which nobody has resolved: the tracks that differ are not known."""
        return (view or self.view).header.operation in self._split

    def note_rolled_back(self, side: int, now: int) -> None:
        """What the client sees from here on is what the source holds, old or not."""
        self.now = now
        self.view, self._version = self.metas[A].view, self.metas[A].version
        self._split, self._saved = {self.view.header.operation}, None
        self._rolled_back = now
        self._lost.clear()
        self.model.reverts.clear()
        if side == A:
            self.model.switch(list(self.stores.cells[A]), now, self.stores.dirty[A])
            self._forget_peer(self.view)
            return
        invalid = self.view.invalid | (0 if self.core is None else self._get_invalid(self.core))
        for track in range(self.metas[A].tracks):
            if invalid >> track & 1:
                self.model.doubt(self._get_cells(track))  # what was fetched before may still be stored

    def note_acked(self, cells: range, start: float) -> None:
        """A write whose local leg had failed, and whose peer was put back after its answer: nobody has it any more.

        What is put back after its answer cannot be told from what is put back after the acknowledgement, which undoes
        writes as well (see note_rolled_back): with the failure here these are two failures, and no promise is left.
        """
        if start > self._rolled_back or not self.is_split():
            return
        invalid = self.view.invalid | (0 if self.core is None else self._get_invalid(self.core))
        for cell in cells:
            if invalid >> cell // PER_TRACK & 1:
                self.model.doubt(range(cell, cell + 1))

    def note_power_loss(self, losses: dict[int, Lost], now: int) -> None:
        """These sides' hosts, whose processes are dead, forgot what was not durable."""
        self.now = now
        old, new = self.view, self.metas[A].view
        if self._saved is not None and get_mode(new) == get_mode(self._saved[0]) != get_mode(old):
            self.model.restore(self._saved[1])
            self._saved = None
        else:
            self._take_view(now)
        self.view, self._version = new, self.metas[A].version
        if A not in losses:
            self.note_lost(B, losses[B], now)
            return
        cells = {cell for lost in losses.values() for cell, _ in lost}
        for track in range(self.metas[A].tracks):
            if (old.invalid ^ new.invalid) >> track & 1:
                cells.update(self._get_cells(track))
        for cell in sorted(cells):
            side = B if new.invalid >> cell // PER_TRACK & 1 else A
            if side == A or (new.header.pair is not None and not self.is_split()):
                is_excused = side == B and (self._is_blind() or self.local_failure >= self.model.flushed)
                value = self.stores.cells[side][cell]
                arriving = None if side in losses else value  # what was sent to the other side may still get there
                self.model.revert(cell, value, now, "the power loss", is_excused, arriving)

    def note_restart(self, now: int) -> None:
        """A's process begins from the disk: what only memory knew is gone."""
        view = self.view
        if self.local_failure > self._restart and self.is_table_failed:
            self._blind_syncs = self.stores.syncs[B]
        self.is_table_failed = self._is_quiet = False
        self._restart = now
        for (side, cell), value in self._lost.items():
            is_only = (side == B) == bool(view.invalid >> (cell // PER_TRACK) & 1)
            if is_only and self.stores.cells[side][cell] == value:
                self.model.revert(cell, value, now, f"a kill after the failed sync at {'AB'[side]}")
        self._lost.clear()
        if view.header.pair is None:
            for track in range(self.metas[A].tracks):
                if view.invalid >> track & 1:
                    self.model.forget(self._get_cells(track))

    def note_local_failure(self) -> None:
        self.local_failure = self.now

    def _is_blind(self) -> bool:
        """A failed, could not write that down, was killed, and forgot what B alone has and has not flushed."""
        return self.stores.syncs[B] == self._blind_syncs

    def _touch(self, mask: int) -> None:
        while mask:
            track = (mask & -mask).bit_length() - 1
            self.model.touched.update(self._get_cells(track))
            mask &= mask - 1

    def _get_cells(self, track: int) -> range:
        first = track * PER_TRACK
        return range(first, min(first + PER_TRACK, len(self.stores.cells[A])))

    def _get_invalid(self, core: Any) -> int:
        return int(core.table.invalid.read_bits(0, core.table.geometry.tracks))

    # --- rules 2 and 3 ---

    def _check_memory(self, core: Any) -> None:
        table = core.table
        invalid, owed = self._get_invalid(core), table.owed.read_bits(0, table.geometry.tracks)
        if invalid & owed:
            raise Violation(f"rule 3: in memory both invalid and owed: {invalid & owed:b}")
        self._touch(invalid ^ self._memory_invalid)
        self._memory_invalid = invalid
        if not self._is_memory_true(core):
            return
        left = self.stores.differing & ~(invalid | owed)
        if left and core.table.header.committed:
            left &= ~mask_extents(table, table.active_on_disk)
            for spans in (core.unflushed, *core.flushing):  # known, and owed when the session ends
                for first, count in spans:
                    left &= ~(((1 << count) - 1) << first)
            if left and not self.is_split():
                raise Violation(f"rule 2: in memory tracks {left:b} differ unmarked")
        self._check_claims(core)
        is_told = self.metas[B].view.header.incomplete or self.is_split()
        if core.session is not None and owed and not is_told:
            raise Violation("the destination is to be pushed to, but is not marked incomplete")

    def _check_claims(self, core: Any) -> None:
        """The disk owes whatever a claim says, now and after a power loss; uses of extents are counted in and out."""
        table = core.table
        claimed = 0
        for page in table.owed_pages_on_disk:
            first = page * layout.TRACKS_PER_PAGE
            claimed |= (1 << min(first + layout.TRACKS_PER_PAGE, table.geometry.tracks)) - (1 << first)
        for view in (self.view, self.metas[A].durable):
            left = claimed & ~(view.invalid | view.raw_owed)
            if left:
                raise Violation(f"a claim: tracks {left:b} are neither owed nor invalid on disk")
        if claimed and core.session is not None:
            raise Violation("a claim: pages are claimed while a session is up")
        if len(table.owed_pages_on_disk) > core.max_active:
            raise Violation(f"a claim: {len(table.owed_pages_on_disk)} pages, {core.max_active} may be claimed")
        if any(use.in_flight < 0 for use in core.extents.values()):
            raise Violation("fewer than no writes are in flight on an active extent")

    def _check_quiet(self, core: Any) -> None:
        """Once a command has waited for the requests in flight, no other begins before it is done, and none goes on."""
        if not core.in_flight and len(core.gate):
            raise Violation("nothing is in flight, and somebody holds or waits for tracks")
        if self._is_quiet and core.is_quiesced and core.in_flight:
            raise Violation("a request is admitted while a command changes the volume")
        self._is_quiet = core.is_quiesced and not core.in_flight

    def _is_memory_true(self, core: Any) -> bool:
        """Not while a change of mode is on its way to the disk, or failed there: then nothing is served."""
        header, disk = core.table.header, self.view.header
        return (header.pair, header.committed, header.operation) == (disk.pair, disk.committed, disk.operation)

    def _check_disk(self) -> None:
        """`durable` is what a power loss may leave of the table; a mixture of both is one of them, track by track."""
        view, durable = self.view, self.metas[A].durable
        if self._saved is not None and get_mode(durable) == get_mode(view):
            self._saved = None
        if view.invalid & view.raw_owed:
            raise Violation(f"rule 3: on disk both invalid and owed: {view.invalid & view.raw_owed:b}")
        if view.header.committed:
            left = self.stores.differing & ~(view.invalid | view.owed)
            if left and not self.is_split():
                raise Violation(f"rule 2: recovery would not know that tracks {left:b} differ")
        if durable.header.committed:
            unsure = self.stores.differing | self.stores.undurable[A] | self.stores.undurable[B]
            left = unsure & ~(durable.invalid | durable.owed)
            if left and view.header.committed and not self.is_split(durable):
                raise Violation(f"rule 2: recovery from a power loss would not know that tracks {left:b} may differ")

    def _check_cleared(self, mask: int) -> None:
        """These tracks are not invalid on disk any more: nothing that a flush or FUA promised waits for a sync here."""
        for cell, older in self.stores.dirty[A].items():
            if not mask >> cell // PER_TRACK & 1 or cell in self.model.unknown:
                continue
            for value in older:
                is_flushed = self.model.find_oldest_lost(cell, value) < self.model.flushed
                if is_flushed or self.model.is_durable_lost(cell, value):
                    raise Violation(f"rule 5: on disk cell {cell} is valid; it was flushed, and here it is not durable")

    # --- rule 4 ---

    def _check_copies(self, cells: list[int], core: Any) -> None:
        view = self.view
        is_paired = view.header.pair is not None and not self.is_split()
        is_true = core is not None and self._is_memory_true(core)
        for cell in cells:
            track = cell // PER_TRACK
            self._check_copy(cell, bool(view.invalid >> track & 1), is_paired, "recovery")
            if is_true:
                self._check_copy(cell, bool(self._memory_invalid >> track & 1), is_paired, "memory")

    def _check_copy(self, cell: int, is_invalid: bool, is_paired: bool, who: str) -> None:
        model = self.model
        if cell in model.unknown:
            return
        if is_invalid and not is_paired:
            if any(write.is_acked for write in model.found[cell]):
                raise Violation(f"rule 4: cell {cell} was acknowledged and is invalid without a pair, by {who}")
            return
        value = self.stores.cells[B if is_invalid else A][cell]
        if model.is_possible(cell, value):
            return
        is_lost = self._lost.get((B if is_invalid else A, cell)) == value
        if is_lost and who == "memory" and is_invalid:  # B had lost it, then A lost or gave up its copy
            model.revert(cell, value, self.now, "a failure of both sides", self.local_failure >= model.flushed, value)
            model.touched.add(cell)
        elif not is_lost:
            possible = [(write.value, write.end) for write in model.found[cell]]
            where = "the peer" if is_invalid else "here"
            raise Violation(f"rule 4: cell {cell} holds {value} {where}, by {who}; possible are {possible}")

    def check_stop(self, cells: range) -> None:
        """Policy stop: an acknowledged write is at the peer too, in whichever order those that overlapped it came."""
        for cell in () if self.is_split() else cells:  # a peer that was put back had it
            there = self.stores.cells[B][cell]
            if not self.model.is_possible(cell, there) and self._lost.get((B, cell)) != there:
                raise Violation(f"policy stop: cell {cell} was acknowledged, the peer has {there}")

    def check_mirrored(self, cells: range) -> None:
        """An acknowledged write to tracks neither owed nor invalid is at the peer; for good if the session is over."""
        marked = self.get_owed() | self._get_invalid(self.core)
        for cell in () if self.is_split() or not self.core.table.header.committed else cells:
            there = self.stores.cells[B][cell]
            if marked >> cell // PER_TRACK & 1 or self._lost.get((B, cell)) == there:
                continue
            if not self.model.is_possible(cell, there):
                raise Violation(f"rule 4: cell {cell} was acknowledged and is not owed, the peer has {there}")
            if self.core.session is None and cell in self.stores.dirty[B]:
                raise Violation(f"rule 4: cell {cell} was acknowledged and is not owed, and may not be durable there")

    def check_kept(self, cells: range, start: float) -> None:
        """Rule 7: a write that began at `start` and is acknowledged was not taken back by a sync that failed here."""
        invalid = self._get_invalid(self.core)
        for cell in cells:
            is_taken = self._lost_at.get(cell, -1) > start and not invalid >> cell // PER_TRACK & 1
            if is_taken and not self.model.is_possible(cell, self.stores.cells[A][cell]):
                raise Violation(f"rule 7: cell {cell} was acknowledged after a failed sync had taken it back")

    def check_lineage(self, cells: range, value: int) -> None:
        """An acknowledged write that a whole peer lacks belongs, on disk, to a lineage that the peer has not."""
        view = self.metas[A].view
        header, peer = view.header, self.metas[B].view.header
        if not header.committed or self.is_split() or peer.incomplete or header.generation != peer.generation:
            return
        for cell in cells:
            here, there = (self.stores.cells[side][cell] for side in (A, B))
            is_flying = any(write.end == FLIGHT and write.value == there for write in self.model.found[cell])
            is_lost = is_flying or self._lost.get((B, cell)) == there
            is_ours = not view.invalid >> (cell // PER_TRACK) & 1 and not is_lost
            if is_ours and here == value != there:
                raise Violation(f"generations: cell {cell} was acknowledged under {header.generation}, the peer's own")

    def check_flush(self, start: int) -> None:
        """Rule 5: what was acknowledged before the flush began is durable where recovery would look for it."""
        for cell, older in self._find_undurable():
            if any(self.model.find_oldest_lost(cell, value) < start for value in older):
                raise Violation(f"rule 5: a flush begun at {start} is acknowledged; cell {cell} is not durable")

    def get_owed(self) -> int:
        """The tracks that are owed in memory."""
        return int(self.core.table.owed.read_bits(0, self.core.table.geometry.tracks))

    def check_mirrored_flush(self, start: int, owed: int) -> None:
        """And in one session at the peer too, but for what was owed when it began or is now: A's host may be lost."""
        owed |= self.get_owed() | self.view.raw_owed
        for cell, older in self.stores.dirty[B].items():
            if owed >> cell // PER_TRACK & 1 or self._is_blind():
                continue
            if any(self.model.find_oldest_lost(cell, value) < start for value in older):
                raise Violation(
                    f"rule 5: a flush begun at {start} is acknowledged; cell {cell} is not durable at the peer"
                )

    def check_fua(self, cells: range) -> None:
        """A write with FUA to these cells is acknowledged and durable where recovery would look for it."""
        for cell, older in self._find_undurable():
            if cell in cells and any(self.model.is_durable_lost(cell, value) for value in older):
                raise Violation(f"rule 5: a write with FUA is acknowledged; cell {cell} is not durable")

    def _find_undurable(self) -> Iterator[tuple[int, list[int]]]:
        """(cell, what a power loss may leave of it) on the side whose copy recovery would take."""
        for view in {id(view): view for view in (self.metas[A].view, self.metas[A].durable)}.values():
            for side in (A, B):
                if side == B and (not view.header.committed or self._is_blind() or self.is_split(view)):
                    continue
                for cell, older in self.stores.dirty[side].items():
                    bit = 1 << cell // PER_TRACK
                    if bool(view.invalid & bit) == (side == B) or not (view.invalid | view.owed) & bit:
                        yield cell, older

    # --- the other side ---

    def check_push(self) -> None:
        if not self.metas[B].view.header.incomplete or not self.metas[B].durable.header.incomplete:
            raise Violation("a push reaches a destination that is not marked incomplete")

    def note_lost(self, side: int, lost: list[tuple[int, int]], now: int) -> None:
        """A failed sync took cells back.  Where the side was the only one to have them, they are old, unless flushed.

        Where the other side has them, A's memory knows; until its disk does, a kill makes them old as well.
        """
        for cell, old in lost:
            track = cell // PER_TRACK
            invalid = self.view.invalid if self.core is None else self._get_invalid(self.core)
            is_reached = self.view.header.pair is not None and not self.is_split()
            is_only = (side == B) == bool(invalid >> track & 1) and (side == A or is_reached)
            self._lost[side, cell] = self.stores.cells[side][cell]
            if side == A:
                self._lost_at[cell] = now
            if is_only:
                is_forgotten = side == B and self._is_blind()
                is_excused = is_forgotten or (side == B and self.local_failure >= self.model.flushed)
                value = self.stores.cells[side][cell]
                fetched = old if side == B else None
                self.model.revert(cell, value, now, f"the failed sync at {'AB'[side]}", is_excused, fetched)
                if is_forgotten:
                    self.model.reverts.clear()


def get_mode(view: View) -> tuple[str | None, bool, str | None]:
    """What a header changes for the volume as a whole; each command that does has an operation of its own."""
    return view.header.pair, view.header.committed, view.header.operation
