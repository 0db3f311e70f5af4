"""world - one seed: two hosts, a client, an operator, a link, faults; every choice comes from one generator."""

from __future__ import annotations

import dataclasses
import random
import uuid
from typing import Any

from nbdplugin import checkpoint, layout, transfer
from nbdplugin.core import Core
from nbdplugin.target import Target
from nbdplugin.tracks import Header
from tests.sim import coverage
from tests.sim.commands import Operator
from tests.sim.disk import CELL, PER_TRACK, TRACK_SIZE, A, B, Image, Meta, Stores
from tests.sim.live import EVENTS, Liveness, choose_broken
from tests.sim.machine import Killed, Machine
from tests.sim.model import Model, Violation
from tests.sim.rules import Rules

SETTLE_STEPS = 30_000


def shrink() -> None:
    """Small pages and runs, so that a small volume has several of each."""
    layout.PLANE_BYTES, layout.TRACKS_PER_PAGE, layout.PAGE_SIZE = 1, 8, 128
    checkpoint.CALM_CHECKPOINTS = 2
    transfer.RUN_BYTES, transfer.HOLE_BYTES, transfer.LOOK_BYTES = 2 * TRACK_SIZE, 8 * TRACK_SIZE, 16 * TRACK_SIZE


@dataclasses.dataclass(slots=True)
class Result:
    """What one seed gave."""

    seed: int
    steps: int
    violation: str | None
    hits: dict[tuple[str, str], int]
    errors: dict[str, int]
    aim: coverage.Cell


class World(Operator, Liveness):
    """One run; see `step` for what can happen."""

    def __init__(
        self, seed: int, trace: list[str] | None = None, is_live: bool = False, aim: coverage.Cell | None = None
    ) -> None:
        shrink()
        self.seed = seed
        self.is_live = is_live
        self.rng = rng = random.Random(seed)
        self.aim, self.is_sharp = aim or coverage.get_aim(seed), aim is not None
        tracks = rng.randint(8, 12) if self.aim[1] == "synchronized" else rng.randint(16, 32)
        self.count = tracks * PER_TRACK - rng.choice((0, 0, 1, 3))
        self.names = 0
        self.stores = Stores(self.count)
        metas = (self._make_meta(), self._make_meta())
        self.machine = Machine(rng, self.stores, metas, trace)
        for side in (A, B):
            for cell in range(self.count):
                if rng.random() < 0.6 or cell // PER_TRACK % 3 == 0:
                    self.stores.put(side, cell, -(2 * cell + side + 1))
            self.stores.sync(side)
        self.model = Model(self.stores.cells[A])
        self.rules = Rules(self.stores, metas, self.model)
        self.machine.on_fault = self.count_fault
        self.machine.is_aimed = lambda name: name == self.aim[0] and self.aim[1] in self.get_states()
        self.machine.on_lost = lambda side, lost: self.rules.note_lost(side, lost, self.machine.now)
        self.machine.on_push = self.rules.check_push
        self.hits: dict[tuple[str, str], int] = {}
        self.errors: dict[str, int] = {}
        self.doomed: set[int] = set()
        self.images: list[Image | None] = [None, None]
        self.max_active = rng.randint(2, 4)
        self.choose_profile()
        self.start(A)
        self.start(B)

    def _make_meta(self) -> Meta:
        volume = str(uuid.UUID(int=self.rng.getrandbits(128)))
        return Meta(Header(volume=volume, size=self.count * CELL, track_size=TRACK_SIZE, generation=self.new_name()))

    def new_name(self) -> str:
        self.names += 1
        return f"name-{self.names}"

    # --- processes ---

    def start(self, side: int) -> None:
        """From the bytes on disk; may be killed again while it mends the twins of torn pages."""
        machine, meta = self.machine, self.machine.metas[side]
        for stage in self.get_repairs(meta):
            if machine.rates.get("table A") and self.rng.random() < 0.05:
                return
            if machine.rates.get(f"power {'AB'[side]}") and self.rng.random() < 0.05:
                self.lose_power((side,))
                return
            meta.write(stage)
        table = meta.load()
        machine.note(f"{'AB'[side]} starts, table change {table.sequence}")
        if side == A:
            self.rules.check(machine.now)
            self.rules.note_restart(machine.now)
            self.model.fail_flush()
            self.core = self.rules.core = machine.owners[A] = Core(table, self.new_name, 8, self.max_active)
        else:
            self.target = machine.owners[B] = Target(table, self.new_name)

    def get_repairs(self, meta: Meta) -> Any:
        return meta.repair()

    def kill(self, side: int, is_silent: bool = False) -> None:
        self.machine.note(f"! {'AB'[side]} is killed")
        if side == A:
            self.core = self.rules.core = None
        else:
            self.target = None
        dead = self.machine.kill(side, is_silent)
        for task in dead:
            task.on_end(None, Killed(f"{'AB'[side]} died"))
        if side == A:
            self.model.fail_flush()
            self.clients = self.copies = self.checkpoints = 0
            self.is_greeting = self.is_telling = self.is_finishing = False

    # --- coverage ---

    def get_states(self) -> list[str]:
        core = self.core
        if core is None:
            return []
        header, states = core.table.header, []
        if header.pair is None:
            states.append("unpaired")
        elif not header.committed:
            states.append("connected")
        elif not header.ready:
            states.append("suspended")
        elif core.session is None:
            name = "refused" if self.rules.is_split() else "halted" if core.is_strict else "not ready"
            states.append(name)
        elif core.table.owed.count or core.table.invalid.count:
            states += ["push"] * (core.table.owed.count > 0) + ["pull"] * (core.table.invalid.count > 0)
        else:
            states.append("synchronized")
        overlays = (("quiescing", core.is_quiesced), ("checkpointing", core.is_checkpointing))
        return states + [name for name, is_on in (*overlays, ("greeting", self.is_greeting)) if is_on]

    def count_fault(self, name: str) -> None:
        if name in ("sync A", "write A"):
            self.rules.note_local_failure()
        self.rules.is_table_failed |= name == "table A"
        for state in self.get_states():
            self.hits[name, state] = self.hits.get((name, state), 0) + 1

    # --- steps ---

    def step(self) -> bool:
        """One event; False if nothing at all can happen."""
        machine, rng = self.machine, self.rng
        machine.now += 1
        for side in sorted(self.doomed):
            if machine.owners[side] is not None:
                self.kill(side)
        self.doomed.clear()
        if self.broken is not None:
            self.keep_part()
        elif not self.is_settling:
            self.break_something()
        if rng.random() < self.client_weight and self._can_serve() and self.clients < self.most_clients:
            self.spawn_client()
            return True
        if rng.random() < self.work_weight and self.spawn_work():
            return True
        if rng.random() < self.order_weight and self._is_order_wanted() and self.advance_operator():
            return True
        return self._proceed() or self._start_anything()

    def _can_serve(self) -> bool:
        return self.core is not None and not self.is_settling and not self.machine.is_stopped(A)

    def _is_order_wanted(self) -> bool:
        """Commands on a committed, ready pair are rarer, so that copies get somewhere."""
        if self.operator is not None or self.broken is not None:
            return self.order is not None
        if self.core is not None and self.core.table.header.ready and not self.rules.is_split():
            return not self.is_settling and self.rng.random() < self.p_order
        return True

    def _proceed(self) -> bool:
        machine, rng = self.machine, self.rng
        if machine.frozen or machine.delayed:
            machine.thaw()
        pools: list[Any] = [pool for pool in (machine.ready, machine.ops, machine.net, machine.broken) if pool]
        is_late = machine.late and (not pools or self.is_settling or rng.random() < self.late_weight)
        if is_late and not machine.is_stopped(B):
            pools = [machine.late]
        if not pools:
            return False
        pool = rng.choice(pools)
        index = rng.randrange(len(pool))
        if machine.is_hindered and pool is not machine.late:
            able = [i for i, item in enumerate(pool) if machine.can_proceed(item)]
            if not able:
                return False
            index = rng.choice(able)
        item = pool[index]
        if pool is machine.ops:
            if machine.work(item):
                machine.ops.remove(item)
            return True
        pool[index] = pool[-1]
        pool.pop()
        if pool is machine.ready:
            p_freeze = self.p_lazy if self.lazy and item[0].name.startswith(self.lazy) else self.p_freeze
            if rng.random() < p_freeze and not self.is_settling:
                machine.freeze(item, rng.randint(10, 200))
            else:
                machine.resume(*item)
        elif pool is machine.broken:
            machine.tell_broken(item)
        else:
            machine.deliver(item)
        return True

    def _start_anything(self) -> bool:
        """Nothing can go on by itself: somebody begins something, or gives up waiting."""
        machine = self.machine
        if self.core is None:
            self.start(A)
            return True
        if self.target is None:
            self.start(B)
            return True
        if self.spawn_work():
            return True
        if (self.order is not None or self.operator is None) and self.advance_operator():
            return True
        if self._can_serve() and self.clients < self.most_clients:
            self.spawn_client()
            return True
        if machine.reset_deaf():
            return True
        conn = self.find_waiting()
        if conn is not None and machine.is_hindered and not machine.is_stopped(A):
            self.time_link_out(conn)
            return True
        return bool(machine.frozen or machine.delayed or machine.is_hindered)

    # --- runs ---

    def run(self, steps: int) -> Result:
        violation = None
        try:
            for _ in range(steps):
                if not self.step():
                    raise Violation(f"stuck: {self._list_waiting()}")
                self.rules.check(self.machine.now)
            if self.is_live:
                self.live()
            self.settle()
        except Violation as error:
            violation = str(error)
        except Exception as error:
            violation = f"{type(error).__name__}: {error}"
            if self.machine.trace is not None:
                raise
        return Result(self.seed, self.machine.now, violation, self.hits, self.errors, self.aim)

    def _list_waiting(self) -> list[str]:
        return [f"{'AB'[task.side]} {task.name}" for task in self.machine.tasks]

    def live(self) -> None:
        """One thing stays broken, the rest is healed: see live."""
        self.begin_part(choose_broken(self.rng))
        for _ in range(EVENTS):
            if not self.step():
                raise Violation(f"stuck while {self.broken}: {self._list_waiting()}")
            self.rules.check(self.machine.now)
        self.end_part()

    def settle(self) -> None:
        """Faults off: it must become Synchronized, with both stores equal and nobody left waiting."""
        self.is_settling = True
        machine = self.machine
        self.heal_all()
        machine.note("--- faults end")
        self.order_weight = 0.2
        for _ in range(SETTLE_STEPS):
            self._mend()
            if self.is_settled():
                return
            if not self.step():
                raise Violation(f"stuck while settling: {self._list_waiting()}")
            self.rules.check(machine.now)
        raise Violation(f"not settled after {SETTLE_STEPS} steps: {self.get_states()} {self._list_waiting()}")

    def _mend(self) -> None:
        self.machine.reset_deaf()
        if self.core is not None and self.core.failed is not None:
            self.kill(A)
        if self.target is not None and self.target.failed is not None:
            self.kill(B)
        for side in (A, B):
            if self.machine.owners[side] is None:
                self.start(side)
        if self.core is not None and not self.clients:
            self._overwrite(self.core)

    def is_settled(self) -> bool:
        core, machine = self.core, self.machine
        if core is None or self.target is None or core.session is None or not core.is_complete or self.operator:
            return False
        if core.table.owed.count or core.table.invalid.count or machine.tasks:
            return False
        if self.stores.differing:
            raise Violation(f"Synchronized, but tracks {self.stores.differing:b} differ")
        if machine.metas[B].view.header.incomplete:
            raise Violation("Synchronized, but the destination is incomplete")
        if len(core.gate) or core.in_flight or core.waiting or any(core.queues.values()):
            raise Violation("something is left in the gate, the admission or a queue")
        return True
