"""world - one seed: two hosts, a client, an operator, a link, faults; every choice comes from one generator."""

from __future__ import annotations

import dataclasses
import random
import uuid
from collections.abc import Callable, Generator
from typing import Any

from nbdplugin import actions, checkpoint, layout, modes, requests, transfer
from nbdplugin.actions import Patience
from nbdplugin.core import Core, Request
from nbdplugin.decide import Kind
from nbdplugin.errors import PathError, Refused, VolumeFailed
from nbdplugin.geometry import Span
from nbdplugin.requests import HostWrite
from nbdplugin.target import Target
from nbdplugin.tracks import Header
from tests.sim.disk import CELL, EXTENT_SIZE, PER_TRACK, TRACK_SIZE, A, B, Meta, Stores
from tests.sim.machine import FAULTS, Greet, Killed, Machine, Task
from tests.sim.model import Model, Read, Violation, Write
from tests.sim.rules import Rules

STATES = (
    "unpaired",
    "connected",
    "suspended",
    "not ready",
    "push",
    "pull",
    "synchronized",
    "quiescing",
    "checkpointing",
    "greeting",
)
SETTLE_STEPS = 30_000
MAX_CLIENTS = 6
FINE = ("accepted", "busy", "old_session")


def shrink() -> None:
    """Small pages and runs, so that a small volume has several of each."""
    layout.PLANE_BYTES, layout.TRACKS_PER_PAGE, layout.PAGE_SIZE = 1, 8, 128
    transfer.RUN_BYTES, transfer.HOLE_BYTES = 2 * TRACK_SIZE, 8 * TRACK_SIZE


@dataclasses.dataclass(slots=True)
class Result:
    """What one seed gave."""

    seed: int
    steps: int
    violation: str | None
    hits: dict[tuple[str, str], int]
    errors: dict[str, int]


class World:
    """`core` and `target` are None while their process is dead."""

    def __init__(self, seed: int, trace: list[str] | None = None) -> None:
        shrink()
        self.seed = seed
        self.rng = rng = random.Random(seed)
        tracks = rng.randint(16, 32)
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
        self.machine.on_lost = lambda side, lost: self.rules.note_lost(side, lost, self.machine.now)
        self.machine.on_push = self.rules.check_push
        self.core: Core | None = None
        self.target: Target | None = None
        self.values = 0
        self.clients = 0
        self.copies = 0
        self.checkpoints = 0
        self.is_greeting = False
        self.is_telling = False
        self.is_finishing = False
        self.hits: dict[tuple[str, str], int] = {}
        self.errors: dict[str, int] = {}
        self.pairs = 0
        self.doomed: set[int] = set()
        self.operator: Generator[Any, Any, None] | None = None
        self.order: tuple[int, str, Callable[[], actions.Flow[Any]]] | None = None
        self.is_settling = False
        self.max_active = rng.randint(2, 4)
        self._choose_profile()
        self.start(A)
        self.start(B)

    def _make_meta(self) -> Meta:
        volume = str(uuid.UUID(int=self.rng.getrandbits(128)))
        return Meta(Header(volume=volume, size=self.count * CELL, track_size=TRACK_SIZE, generation=self.new_name()))

    def new_name(self) -> str:
        self.names += 1
        return f"name-{self.names}"

    def _choose_profile(self) -> None:
        """Swarm testing: each seed, and each phase of it, has its own mix (Groce et al., ISSTA 2012)."""
        rng = self.rng
        rates = {"cut": 0.01, "kill A": 0.006, "kill B": 0.006, "command time-out": 0.03, "fetch time-out": 0.03}
        rates |= {"sync A": 0.06, "write A": 0.03, "table A": 0.008, "sync B": 0.06, "write B": 0.03, "table B": 0.015}
        rates["refusal"] = 0.01
        is_calm = rng.random() < 0.4
        self.machine.rates = {name: 0.0 if is_calm else rates[name] * rng.choice((0, 0, 1, 2)) for name in FAULTS}
        self.machine.p_immediate = rng.choice((0.5, 0.8, 0.95))
        self.most_clients = rng.choice((1, 3, MAX_CLIENTS))
        self.client_weight = rng.choice((0.05, 0.15, 0.4))
        self.work_weight = rng.choice((0.05, 0.15, 0.4))
        self.order_weight = rng.choice((0.02, 0.04, 0.1))
        self.faults_until = 0

    # --- processes ---

    def start(self, side: int) -> None:
        """From the bytes on disk; may be killed again while it mends the twins of torn pages."""
        machine, meta = self.machine, self.machine.metas[side]
        for stage in self.get_repairs(meta):
            if machine.rates.get("table A") and self.rng.random() < 0.05:
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

    def kill(self, side: int) -> None:
        self.machine.note(f"! {'AB'[side]} is killed")
        if side == A:
            self.core = self.rules.core = None
        else:
            self.target = None
        dead = self.machine.kill(side)
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
            states.append("not ready")
        elif core.table.owed.count or core.table.invalid.count:
            states += ["push"] * (core.table.owed.count > 0) + ["pull"] * (core.table.invalid.count > 0)
        else:
            states.append("synchronized")
        overlays = (("quiescing", core.is_quiesced), ("checkpointing", core.is_checkpointing))
        return states + [name for name, is_on in (*overlays, ("greeting", self.is_greeting)) if is_on]

    def count_fault(self, name: str) -> None:
        if name in ("sync A", "write A"):
            self.rules.note_local_failure()
        for state in self.get_states():
            self.hits[name, state] = self.hits.get((name, state), 0) + 1

    def count_error(self, who: str, error: Exception | None) -> None:
        if error is not None:
            key = f"{who}: {type(error).__name__}"
            self.errors[key] = self.errors.get(key, 0) + 1

    # --- the client ---

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

    def _spawn_read(self, core: Core, cells: range) -> None:
        read = self.model.start_read(cells, self.machine.now)

        def end(value: Any, error: Exception | None) -> None:
            self._leave("read", error)
            if error is None:
                self.model.end_read(read, value, core.failed is not None)
            else:
                self.model.drop_read(read)

        name = f"read {cells.start}+{len(cells)}"
        self.machine.spawn(A, name, requests.read(core, cells.start * CELL, len(cells) * CELL), end)

    def _spawn_write(self, core: Core, cells: range) -> None:
        rng, now = self.rng, self.machine.now
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
            if error is None and core.session is None:
                self.rules.check_lineage(cells, value)
            for write, part, is_sure in writes:
                if error is None and is_sure:
                    self.model.ack(write, part, self.machine.now, self._is_there)
                else:
                    self.model.fail(write, self.machine.now)
        data = None if is_zero else (value,) * len(cells)
        item = HostWrite(kind, cells.start * CELL, len(cells) * CELL, data, rng.random() < 0.1)
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

        def end(_: Any, error: Exception | None) -> None:
            self._leave("flush", error)
            if error is None:
                self.model.ack_flush(start)
            else:
                self.model.fail_flush()

        self.machine.spawn(A, "flush", requests.flush(core), end)

    def _leave(self, who: str, error: Exception | None) -> None:
        self.clients = max(0, self.clients - 1)
        self.count_error(who, error)

    # --- the source's own threads ---

    def establish(self, core: Core) -> actions.Flow[None]:
        """As nbdplugin.link does."""
        greeting, _ = yield from self.greet(core)
        if greeting is None:
            return
        epoch = _["epoch"]
        try:
            is_pushing = yield from modes.note_accepted(core, greeting, epoch)
            is_told = False
            while True:
                if is_pushing and not is_told:
                    yield actions.PeerTell(greeting.session, {"op": "begin"})
                    is_told = True
                if (yield from modes.session_up(core, greeting.session, is_told)):
                    return
                is_pushing = True
        except PathError:
            self.machine.end_conn(self.machine.conns.get(greeting.session))
            raise

    def greet(self, core: Core) -> actions.Flow[Any]:
        greeting = yield from modes.begin_session(core)
        fields = greeting.to_json() | {"ancestors": list(greeting.ancestors)}
        answer = yield Greet(fields)
        verdict = answer["verdict"]
        if verdict == "accepted":
            return greeting, answer
        if verdict == "old_session":
            core.table.header.session = max(core.table.header.session, answer["session"])
        is_deleted = core.table.header.pair != greeting.pair
        is_deleting = verdict == "wrong_pair" and (is_deleted or self.operator is not None)
        if greeting.committed and verdict not in FINE and not is_deleting:
            raise Violation(f"the peer of a committed pair refuses: {verdict}")
        if verdict == "incomplete":
            raise Refused("incomplete")
        return None, answer

    def keep_alive(self, core: Core) -> actions.Flow[None]:
        session = core.session
        assert session is not None
        try:
            yield actions.PeerTell(session, {"op": "alive"})
        except PathError as error:
            yield from modes.lose_session(core, session, str(error))

    def keep_checkpoint(self, core: Core) -> actions.Flow[None]:
        request = Request()
        yield from core.admit(request)
        try:
            yield from checkpoint.checkpoint(core)
        finally:
            core.depart(request)

    def spawn_link(self, core: Core) -> None:
        self.is_greeting = True

        def end(_: Any, error: Exception | None) -> None:
            self.is_greeting = False
            self.count_error("greeting", error)

        self.machine.spawn(A, "link", self.establish(core), end)

    def spawn_alive(self, core: Core) -> None:
        self.is_telling = True

        def end(_: Any, error: Exception | None) -> None:
            self.is_telling = False

        self.machine.spawn(A, "alive", self.keep_alive(core), end)

    def spawn_checkpoint(self, core: Core) -> None:
        self.checkpoints += 1

        def end(_: Any, error: Exception | None) -> None:
            self.checkpoints = max(0, self.checkpoints - 1)
            self.count_error("checkpoint", error)

        self.machine.spawn(A, "checkpoint", self.keep_checkpoint(core), end)

    def spawn_finish(self, core: Core) -> None:
        self.is_finishing = True

        def end(_: Any, error: Exception | None) -> None:
            self.is_finishing = False
            self.count_error("finish", error)

        self.machine.spawn(A, "finish", modes.finish(core), end)

    def spawn_copy(self, core: Core) -> bool:
        cursor = self.rng.choice((0, self.rng.randrange(core.table.geometry.tracks)))
        found = transfer.find_next(core, cursor) or transfer.find_next(core, 0)
        if found is None:
            return False
        run, is_pull = found
        run = Span(run.first, min(run.count, self.rng.choice((1, 2, 8))))
        self.copies += 1

        def end(_: Any, error: Exception | None) -> None:
            self.copies = max(0, self.copies - 1)
            self.count_error("copy", error)

        self.machine.spawn(A, f"copy {run.first}+{run.count}", transfer.copy_run(core, run, is_pull), end)
        return True

    def spawn_work(self) -> bool:
        """One of the threads that are not the client's has something to do."""
        core = self.core
        if core is None:
            return False
        header, rng = core.table.header, self.rng
        choices: list[Callable[[], object]] = []
        if core.session is None:
            if header.committed and header.ready and not self.is_greeting and not core.is_read_only:
                choices.append(lambda: self.spawn_link(core))
        else:
            conn = self.machine.conns.get(core.session)
            if not self.is_telling and (conn is None or not conn.is_alive or rng.random() < 0.05):
                choices.append(lambda: self.spawn_alive(core))
            if self.copies < 3 and (core.table.owed.count or core.table.invalid.count):
                choices += [lambda: self.spawn_copy(core)] * 4
            elif not self.is_finishing and not core.is_complete and not core.table.owed.count:
                choices.append(lambda: self.spawn_finish(core))
        if self.checkpoints < 2 and core.failed is None and checkpoint.is_due(core):
            choices.append(lambda: self.spawn_checkpoint(core))
        if not choices:
            return False
        rng.choice(choices)()
        return True

    # --- the operator ---

    def advance_operator(self) -> bool:
        """Gives the next command if its host is up; True if something was started."""
        if self.operator is None:
            self.operator = self.choose_order()
            self._answer_operator(None, first=True)
        if self.order is None or self.machine.owners[self.order[0]] is None:
            return False
        side, name, make = self.order
        self.order = None

        def end(value: Any, error: Exception | None) -> None:
            self.count_error(name, error)
            self._answer_operator(error)

        self.machine.spawn(side, name, make(), end)
        return True

    def _answer_operator(self, error: Exception | None, first: bool = False) -> None:
        assert self.operator is not None
        try:
            self.order = next(self.operator) if first else self.operator.send(error)
        except StopIteration:
            self.operator = self.order = None

    def choose_order(self) -> Generator[Any, Any, None]:
        core, rng = self.core, self.rng
        if core is None:
            return
        header = core.table.header
        if header.pair is None:
            yield from self.create(self._choose_side(core))
        elif self.is_settling or not header.ready:
            yield from self.command(A, "resume", lambda: modes.resume(self._get_core(), header.pair or ""))
        elif rng.random() < 0.3:
            yield from self.delete(header.pair)
        else:
            yield from self.command(A, "suspend", lambda: modes.suspend(self._get_core(), header.pair or ""))

    def _choose_side(self, core: Core) -> str:
        """The side to mark invalid; at times one that must be refused."""
        can_push = not core.table.invalid.count
        can_pull = self.target is None or not self.target.is_incomplete
        if self.is_settling or (can_push != can_pull and self.rng.random() < 0.9):
            return "destination" if can_push else "source"
        return self.rng.choice(("source", "destination"))

    def _get_core(self) -> Core:
        assert self.core is not None
        return self.core

    def _get_target(self) -> Target:
        assert self.target is not None
        return self.target

    def command(self, side: int, name: str, make: Callable[[], actions.Flow[Any]], tries: int = 50) -> Any:
        """Repeated until it is answered; an operator restarts what has failed.  Result: the refusal, or None."""
        for _ in range(tries):
            error = yield side, name, make
            if error is None or isinstance(error, Refused):
                return error
            if isinstance(error, VolumeFailed):
                self.doomed.add(side)
        raise Violation(f"{name} fails again and again: {error!r}")

    def create(self, invalidate: str) -> Generator[Any, Any, None]:
        self.pairs += 1
        pair = f"pair-{self.pairs}"
        halves = [
            (A, "connect A", lambda: modes.connect(self._get_core(), pair, pair, "B", invalidate)),
            (B, "connect B", lambda: self._get_target().connect(pair, pair, "A", invalidate)),
        ]
        if self.rng.random() < 0.5:
            halves.reverse()
        for side, name, make in halves:
            if (yield from self.command(side, name, make)) is not None:
                yield from self.undo(pair)
                return
        for attempt in range(50):
            error = yield A, "commit", lambda: self.make_ready(self._get_core(), pair)
            if error is None:
                return
            if isinstance(error, VolumeFailed):
                self.doomed.add(A)
            is_surely_not = not isinstance(error, (Killed, VolumeFailed)) and not self.rules.view.header.committed
            if is_surely_not and (isinstance(error, Refused) or attempt > 3):
                yield from self.undo(pair)
                return
        raise Violation(f"commit fails again and again: {error!r}")

    def make_ready(self, core: Core, pair: str) -> actions.Flow[None]:
        if core.table.header.committed:
            return
        self.is_greeting = True
        try:
            greeting, answer = yield from self.greet(core)
        finally:
            self.is_greeting = False
        if greeting is None:
            raise PathError("busy")
        self.machine.end_conn(self.machine.conns.get(greeting.session))
        clients = self.rng.choice((0, 0, 0, 1))
        yield from modes.commit(core, pair, lambda: clients, (answer["generation"], *answer["ancestors"]))

    def undo(self, pair: str) -> Generator[Any, Any, None]:
        yield from self.command(B, "disconnect B", lambda: self._get_target().disconnect(pair))
        yield from self.command(A, "disconnect A", lambda: modes.disconnect(self._get_core(), pair))

    def delete(self, pair: str) -> Generator[Any, Any, None]:
        yield from self.command(A, "stop", lambda: modes.stop(self._get_core(), pair))
        yield from self.undo(pair)

    # --- steps ---

    def step(self) -> bool:
        """One event; False if nothing at all can happen."""
        machine, rng = self.machine, self.rng
        machine.now += 1
        for side in sorted(self.doomed):
            if machine.owners[side] is not None:
                self.kill(side)
        self.doomed.clear()
        if not self.is_settling and self._break():
            return True
        if rng.random() < self.client_weight and self._can_serve() and self.clients < self.most_clients:
            self.spawn_client()
            return True
        if rng.random() < self.work_weight and self.spawn_work():
            return True
        if rng.random() < self.order_weight and (self.order is not None or self.operator is None):
            if self._is_order_wanted() and self.advance_operator():
                return True
        return self._proceed() or self._start_anything()

    def _can_serve(self) -> bool:
        return self.core is not None and not self.is_settling

    def _is_order_wanted(self) -> bool:
        """Commands on a committed, ready pair are rarer, so that copies get somewhere."""
        core = self.core
        if self.operator is not None or core is None:
            return True
        if core.table.header.ready:
            return not self.is_settling and self.rng.random() < 0.05
        return True

    def _proceed(self) -> bool:
        machine, rng = self.machine, self.rng
        pools: list[Any] = [pool for pool in (machine.ready, machine.ops, machine.net, machine.broken) if pool]
        if machine.late and (not pools or rng.random() < 0.03):
            pools = [machine.late]
        if not pools:
            return False
        pool = rng.choice(pools)
        index = rng.randrange(len(pool))
        item = pool[index]
        if pool is machine.ops:
            if machine.work(item):
                machine.ops.remove(item)
            return True
        pool[index] = pool[-1]
        pool.pop()
        if pool is machine.ready:
            machine.resume(*item)
        elif pool is machine.broken:
            machine.tell_broken(item)
        else:
            machine.deliver(item)
        return True

    def _start_anything(self) -> bool:
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
        return False

    def _break(self) -> bool:
        """Faults that are not the answer to an action; and their ends."""
        machine, rng = self.machine, self.rng
        if machine.now >= self.faults_until:
            self._choose_profile()
            self.faults_until = machine.now + rng.randint(100, 500)
        if self.core is None and rng.random() < 0.1:
            self.start(A)
        if self.target is None and rng.random() < 0.1:
            self.start(B)
        if not machine.is_link_up:
            if rng.random() < 0.05:
                machine.is_link_up = True
                machine.note("the link heals")
        elif machine.fault("cut"):
            machine.is_link_up = False
            machine.end_conns()
        if self.core is not None and machine.fault("kill A"):
            self.kill(A)
        if self.target is not None and machine.fault("kill B"):
            self.kill(B)
        if self.core is not None and self.core.failed is not None and rng.random() < 0.02:
            self.kill(A)  # the operator's decision
        if self.target is not None and self.target.failed is not None and rng.random() < 0.02:
            self.kill(B)
        return self._lose_patience()

    def _lose_patience(self) -> bool:
        waiting = [t for t in self.machine.tasks if t.waiter is not None and t.patience is not Patience.SHORT]
        if not waiting:
            return False
        task = self.rng.choice(waiting)
        if not self.machine.fault("fetch time-out" if task.patience is Patience.FETCH else "command time-out"):
            return False
        task.waiter.event = None
        self.machine.resume(task, False, None)
        return True

    # --- runs ---

    def run(self, steps: int) -> Result:
        violation = None
        try:
            for _ in range(steps):
                if not self.step():
                    raise Violation(f"stuck: {self._list_waiting()}")
                self.rules.check(self.machine.now)
            self.settle()
        except Violation as error:
            violation = str(error)
        except Exception as error:  # noqa: BLE001 - any error of a flow is a finding, shown with its seed
            violation = f"{type(error).__name__}: {error}"
            if self.machine.trace is not None:
                raise
        return Result(self.seed, self.machine.now, violation, self.hits, self.errors)

    def _list_waiting(self) -> list[str]:
        return [f"{'AB'[task.side]} {task.name}" for task in self.machine.tasks]

    def settle(self) -> None:
        """Faults off: it must become Synchronized, with both stores equal and nobody left waiting."""
        self.is_settling = True
        machine = self.machine
        machine.rates = {}
        machine.is_link_up = True
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
        if self.core is not None and self.core.failed is not None:
            self.kill(A)
        if self.target is not None and self.target.failed is not None:
            self.kill(B)
        for side in (A, B):
            if self.machine.owners[side] is None:
                self.start(side)
        if self.core is not None and not self.clients:
            self._overwrite(self.core)

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
            else:
                self.model.fail(write, self.machine.now)

        self.machine.spawn(A, "overwrite", requests.write(core, item), end)

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


__all__ = ["EXTENT_SIZE", "Read", "Result", "Task", "World", "Write"]
