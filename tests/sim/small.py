"""small - a World without chance: five tracks, three extents, three pages of the table, a given order of events.

Tracks 0 to 3 have four cells, track 4 has two; extents and pages hold two tracks each, and two extents may be active.
An extent is retired by the first checkpoint that finds it at rest, a claim ends with the first that finds little to
record.  Of the events that are possible the newest comes first, or the oldest.
"""

from __future__ import annotations

import functools
import random
import uuid
from typing import Any

from nbdplugin import actions, checkpoint, layout, modes, requests, transfer
from nbdplugin.actions import Patience
from nbdplugin.core import Core
from nbdplugin.decide import Kind
from nbdplugin.geometry import Span
from nbdplugin.requests import HostWrite
from nbdplugin.tracks import Header
from tests.sim import disk, world
from tests.sim.disk import CELL, PER_TRACK, TRACK_SIZE, A, B, Meta, Stores, View
from tests.sim.machine import Machine, Op
from tests.sim.model import Model, Violation
from tests.sim.rules import Rules
from tests.sim.world import World

COUNT = 4 * PER_TRACK + 2
PAIR = "pair-1"
STARTS = ("clean", "source invalid", "destination invalid", "source invalid, holes", "destination invalid, holes")
SIDES = {"crash source": (A,), "crash destination": (B,), "crash both": (A, B)}
NAMES = (
    "write A",
    "write overlapping A",
    "flush",
    "FUA write",
    "trim",
    "fetch",
    "push",
    "checkpoint",
    "disconnect",
    "reconnect",
    *SIDES,
)
FAULTS = ("disconnect", *SIDES)
RANGES = {  # in cells
    "write A": range(6, 14),  # half of track 1, track 2, half of track 3: extents 0 and 1
    "write overlapping A": range(8, 18),  # tracks 2, 3, 4: extents 1 and 2
    "FUA write": range(4, 8),  # track 1: overlaps write A
    "trim": range(2, 10),  # half of track 0, track 1, half of track 2
}
STEPS_MOST = 400
PATIENCE = 60


class Settled(random.Random):
    """What the simulator would leave to chance is given: `value` is each answer."""

    value = 0.99

    def random(self) -> float:
        return self.value

    def __reduce__(self) -> Any:
        return Settled, ()


class Steps(Machine):
    """Each piece of work is a step: the cells of one track, one stage of a table write, one message, one wake-up.

    `is_newest_first`: what became possible last is done first, so that an operation that begins while another is
    under way runs to its end, or to where it must wait, within one step of the other; else the oldest is done first.
    `is_link_first`: of the two legs of a host write the peer's is done first.
    `p_immediate` 0 (lazy): that an action is done, and that its flow goes on, are two steps.
    """

    is_newest_first = True
    is_link_first = False
    had_choice = False

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.p_immediate = 1.0
        self._stamps: dict[int, tuple[int, Any]] = {}
        self._stamp = 0

    def _write(self, op: Op, action: actions.StoreWrite) -> bool:
        first, count = action.offset // CELL, action.length // CELL
        end = min(count, (first + op.at) // PER_TRACK * PER_TRACK + PER_TRACK - first)
        for cell in range(op.at, end):
            self.stores.put(op.side, first + cell, 0 if action.data is None else action.data[cell])
        op.at = end
        if end < count:
            return False
        op.sink(None, None)
        return True

    def _write_table(self, op: Op, action: actions.WriteTable) -> bool:
        meta = self.metas[op.side]
        if op.stages is None:
            op.stages = meta.get_stages(action.change)
        if op.at < len(op.stages):
            meta.write(op.stages[op.at])
            op.at += 1
        if op.at < len(op.stages):
            return False
        op.sink(None, None)
        return True

    def advance(self) -> bool:
        """One step; False if nothing is possible."""
        found = self.pick()
        self.now += 1
        if found is None:
            return self._time_out()
        pool, item = found
        if pool is self.ops:
            if self.work(item):
                self.ops.remove(item)
            return True
        pool.remove(item)
        if pool is self.ready:
            self.resume(*item)
        elif pool is self.broken:
            self.tell_broken(item)
        else:
            self.deliver(item)
        return True

    def _time_out(self) -> bool:
        """A greeting that was sent into a link that is cut: nobody answers."""
        if all(self.ways) or not any(conn.is_alive for conn in self.conns.values()):
            return False
        self.cut(False)
        return True

    def pick(self) -> tuple[Any, Any] | None:
        """Stamps what became possible since the last step, and chooses."""
        legs: tuple[Any, Any] = (self.ops, self.net) if self.is_link_first else (self.net, self.ops)
        if not self.is_newest_first:
            legs = legs[1], legs[0]
        best, found, stamps = -1, None, {}
        self.had_choice |= len(self.ops) + len(self.net) + len(self.broken) + len(self.ready) > 1
        for pool in (*legs, self.broken, self.ready):
            for item in pool:
                if self.is_hindered and not self.can_proceed(item):
                    continue
                known = self._stamps.get(id(item))
                if known is None:
                    self._stamp += 1
                    known = self._stamp, item
                stamps[id(item)] = known
                if found is None or (known[0] > best) is self.is_newest_first:
                    best, found = known[0], (pool, item)
        self._stamps = stamps
        return found

    def cut(self, is_late: bool) -> None:
        """Every connection breaks; `is_late`: what was sent arrives when all has healed."""
        assert isinstance(self.rng, Settled)
        self.rng.value = 0.0 if is_late else Settled.value
        self.end_conns()
        self.rng.value = Settled.value


_LARGE = layout.TRACKS_PER_PAGE, layout.HEADER_SIZE, disk.EXTENT_SIZE, checkpoint.IDLE_CHECKPOINTS


def grow() -> None:
    """Undoes `shrink`."""
    layout.TRACKS_PER_PAGE, layout.HEADER_SIZE, disk.EXTENT_SIZE, checkpoint.IDLE_CHECKPOINTS = _LARGE


def shrink() -> None:
    """For this whole process."""
    world.shrink()
    layout.TRACKS_PER_PAGE, layout.HEADER_SIZE = 2, 2048
    if not hasattr(layout._seal, "cache_info"):
        layout._seal = functools.lru_cache(1 << 14)(layout._seal)
    disk.EXTENT_SIZE = 2 * TRACK_SIZE
    checkpoint.IDLE_CHECKPOINTS = checkpoint.CALM_CHECKPOINTS = 1


class SmallMeta(Meta):
    """Reads each image once."""

    def _build_view(self) -> View:
        key = *self.headers, *self.pages[0], *self.pages[1]
        view = _VIEWS.get(key)
        if view is None:
            if len(_VIEWS) > VIEWS_MOST:
                _VIEWS.clear()
            view = _VIEWS[key] = super()._build_view()
        return view


_VIEWS: dict[tuple[bytes, ...], View] = {}
VIEWS_MOST = 1 << 12


class Small(World):
    """A volume of five tracks in one of STARTS; `power` says whether power was ever lost."""

    def __init__(self, start: str, trace: list[str] | None = None) -> None:
        shrink()
        self.seed = 0
        self.rng = self.settled = Settled()
        self.count = COUNT
        self.names = 0
        self.max_active = 2
        self.hits, self.errors, self.doomed = {}, {}, set()
        self.stores = Stores(COUNT)
        metas = (self._make_meta(), self._make_meta())
        self.machine = Steps(self.rng, self.stores, metas, trace)
        self.steps = self.machine
        self.variants: tuple[str, ...] = ("",)
        for side in (A, B):
            for cell in range(COUNT):
                self.stores.put(side, cell, -(2 * cell + side + 1))
        if start.endswith("holes"):  # tracks 0 and 1 of the side that is valid
            for cell in range(2 * PER_TRACK):
                self.stores.put(B if start.startswith("source") else A, cell, 0)
        for side in (A, B):
            self.stores.sync(side)
        self.model = Model(self.stores.cells[A])
        self.rules = Rules(self.stores, metas, self.model)
        self.machine.on_fault = self.count_fault
        self.machine.is_aimed = self._is_aimed
        self.machine.on_lost = self._note_lost
        self.machine.on_push = self.rules.check_push
        self.start(A)
        self.start(B)
        self._pair("source" if start.startswith("source") else "destination")
        if start == "clean":
            self.heal()
            self.do("checkpoint")

    def _make_meta(self) -> Meta:
        volume = str(uuid.UUID(int=1))
        size = self.count * CELL
        return SmallMeta(Header(volume=volume, size=size, track_size=TRACK_SIZE, generation=self.new_name()))

    def _pair(self, invalidate: str) -> None:
        core, target = self._get_core(), self._get_target()
        self._finish_flow(A, modes.connect(core, "op", PAIR, "B", invalidate))
        self._finish_flow(B, target.connect("op", PAIR, "A", invalidate))
        self._finish_flow(A, self.make_ready(core, PAIR))
        self.do("reconnect")

    def _is_aimed(self, name: str) -> bool:
        return False

    def _note_lost(self, side: int, lost: list[tuple[int, int]]) -> None:
        self.rules.note_lost(side, lost, self.machine.now)

    def _finish_flow(self, side: int, flow: Any) -> None:
        failures: list[Exception | None] = []
        self.machine.spawn(side, "command", flow, lambda _, error: failures.append(error))
        self.run_idle()
        if failures != [None]:
            raise AssertionError(f"the start cannot be made: {failures}")

    # --- steps ---

    def run_idle(self) -> int:
        """Until nothing is possible; the number of steps.  In the long run nothing that is possible is passed over."""
        for count in range(STEPS_MOST):
            self.steps.is_newest_first &= count < PATIENCE
            if not self.advance():
                self._check_waiting()
                return count
        raise Violation(f"after {STEPS_MOST} steps there is still something to do: {self._list_waiting()}")

    def _check_waiting(self) -> None:
        """Whose wait is said to be short does not wait for what nobody does."""
        stuck = [task.name for task in self.machine.tasks if task.waiter is None or task.patience is Patience.SHORT]
        if stuck:
            raise Violation(f"nothing is possible any more, and {stuck} wait for ever")

    def advance(self) -> bool:
        if not self.steps.advance():
            return False
        self.rules.check(self.machine.now)
        return True

    def do(self, name: str) -> int:
        self.begin(name)
        return self.run_idle()

    # --- operations ---

    def begin(self, name: str, variant: str = "") -> bool:
        """Starts one of NAMES; False if that would neither do nor change anything now."""
        self.machine.now += 1
        self.steps.pick()  # what is possible by now is older than what this begins
        if name in SIDES:
            self._crash(name, variant)
        elif name in RANGES:
            self._begin_write(name)
        else:
            begun: bool = getattr(self, "_begin_" + name)(variant)
            if not begun:
                return False
        self.rules.check(self.machine.now)
        return True

    def _begin_write(self, name: str) -> None:
        core, now, cells = self._get_core(), self.machine.now, RANGES[name]
        sessions = core.counts.sessions
        kind = Kind.TRIM if name == "trim" else Kind.WRITE
        self.values += 1
        value = 0 if name == "trim" else self.values
        parts = self._cut_trim(core, cells) if kind is Kind.TRIM else [(cells, True)]
        writes = [(self.model.start_write(part, value, now), part, is_sure) for part, is_sure in parts]
        data = None if name == "trim" else (value,) * len(cells)
        item = HostWrite(kind, cells.start * CELL, len(cells) * CELL, data, name == "FUA write")

        def end(_: Any, error: Exception | None) -> None:
            if error is not None and item.is_fua:
                self.model.fail_flush()
            if error is None and core.session is None and sessions == core.counts.sessions:
                self.rules.check_lineage(cells, value)
            for write, part, is_sure in writes:
                if error is None and is_sure:
                    self.model.ack(write, part, self.machine.now, self._is_there, item.is_fua)
                    self.rules.check_mirrored(part)
                    self.rules.check_kept(part, write.start)
                    if item.is_fua:
                        self.rules.check_fua(part)
                else:
                    self.model.fail(write, self.machine.now)

        self.machine.spawn(A, name, requests.write(core, item), end)

    def _begin_flush(self, _: str) -> bool:
        self._spawn_flush(self._get_core())
        return True

    def _begin_fetch(self, _: str) -> bool:
        core = self._get_core()
        track = core.table.invalid.find(0)
        if track is None:
            return False
        first = track * PER_TRACK
        self._spawn_read(core, range(first, min(first + PER_TRACK, COUNT)))
        return True

    def _begin_push(self, _: str) -> bool:
        """As nbdplugin.copier: the next run, or the closing message when nothing is left."""
        core = self._get_core()
        if core.session is None:
            return False
        found = transfer.find_next(core, 0)
        if found is not None:
            run, is_pull = found
            run = Span(run.first, min(run.count, 2))
            self.machine.spawn(A, f"copy {run.first}+{run.count}", transfer.copy_run(core, run, is_pull), self._ignore)
            return True
        if core.is_complete or self.is_finishing or core.table.owed.count:
            return False
        self.spawn_finish(core)
        return True

    def _begin_checkpoint(self, _: str) -> bool:
        core = self._get_core()
        if core.failed is not None or not checkpoint.is_due(core):
            return False
        self.machine.spawn(A, "checkpoint", checkpoint.keep(core), self._ignore)
        return True

    def _ignore(self, value: Any, error: Exception | None) -> None:
        """The copy and the checkpoint are tried again, whatever became of this one."""

    def _begin_disconnect(self, variant: str) -> bool:
        if not all(self.machine.ways):
            return False
        self.machine.ways[:] = [False, False]
        self.steps.cut(variant == "late")
        return True

    def _begin_reconnect(self, _: str) -> bool:
        core = self._get_core()
        if self.is_greeting or self._is_connected(core):
            return False
        self.machine.ways[:] = [True, True]
        self.is_greeting = True

        def end(_: Any, error: Exception | None) -> None:
            self.is_greeting = False

        self.machine.spawn(A, "link", self._relink(core), end)
        return True

    def _is_connected(self, core: Core) -> bool:
        conn = None if core.session is None else self.machine.conns.get(core.session)
        return conn is not None and conn.is_alive

    def _relink(self, core: Core) -> actions.Flow[None]:
        """As nbdplugin.link: the end of the old session is noticed, then the peer is greeted."""
        if core.session is not None:
            yield from modes.lose_session(core, core.session, "the connection broke")
        yield from self.establish(core)
        if core.session is not None:
            yield from self.keep_alive(core)

    # --- crashes ---

    def get_variants(self, name: str) -> tuple[str, ...]:
        """The forms of this operation that can make a difference now."""
        if name == "disconnect":
            return ("", "late") if self._has_sent() else ("",)
        if name not in SIDES:
            return ("",)
        sides = SIDES[name]
        variants = ["", "late"] if self._has_sent() or any(op.side in sides for op in self.machine.ops) else [""]
        is_data = [bool(self.stores.dirty[side]) for side in sides]
        is_table = [bool(self.machine.metas[side].unsynced) for side in sides]
        if any(is_data) or any(is_table):
            variants += ["lost", "kept"]
        if any(is_table):
            variants.append("torn")
        if any(is_data) and any(is_table):
            variants += ["only table", "only data"]
        if len(sides) > 1 and (is_data[A] or is_table[A]) and (is_data[B] or is_table[B]):
            variants += ["only source", "only destination"]
        return tuple(variants)

    def _has_sent(self) -> bool:
        return any(not message.is_reply for message in self.machine.net)

    def _crash(self, name: str, variant: str) -> None:
        for side in SIDES[name]:
            self.settled.value = 0.0 if variant == "late" else Settled.value
            self.kill(side)
            self.settled.value = Settled.value
        if variant not in ("", "late"):
            losses = {side: self._lose_of(side, variant) for side in SIDES[name]}
            self.rules.note_power_loss(losses, self.machine.now)
        for side in SIDES[name]:
            self.start(side)

    def _lose_of(self, side: int, variant: str) -> disk.Lost:
        """What a power loss leaves of this side's data and table."""
        keeper = ("only source", "only destination")[side]
        meta = self.machine.metas[side]
        if variant == "torn":
            meta.tear_unsynced()
        elif variant in ("kept", "only table", keeper):
            meta.keep_unsynced()
        else:
            meta.lose_unsynced()
        if variant in ("kept", "only data", keeper):
            return self.stores.keep_unsynced(side)
        return self.stores.lose_unsynced(side)

    # --- the end ---

    def heal(self) -> None:
        """All faults end: both sides become equal, Synchronized, and everything reads as it should."""
        self.is_settling = True
        self.steps.is_newest_first, self.steps.p_immediate = True, 1.0
        for _ in range(40):
            self.run_idle()
            core = self._get_core()
            if core.failed is not None:
                self._crash("crash source", "")
            elif not self._is_connected(core):
                self.begin("reconnect")
            elif not self.begin("push"):
                break
        late, self.machine.late = self.machine.late, []
        self.machine.net += late  # the worst moment: nothing is marked any more
        self.run_idle()
        if not self.is_settled():
            raise Violation(f"it does not become Synchronized: {self.get_states()} {self._list_waiting()}")
        self._spawn_read(self._get_core(), range(COUNT))
        self.run_idle()
        self.is_settling = False
