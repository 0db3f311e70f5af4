"""machine - carries the flows of both sides out, one event at a time, in an order that the seed chooses.

Owns tasks, local operations, messages and connections.  A task is resumed at once when its action is done, or
later, as a thread that waits for the lock would be.  A connection loses no message: it stalls or breaks.  What a
broken one had sent may still arrive, a greeting also twice; an answer on it does not.  A process that is frozen does
nothing at all, and finds what came meanwhile when it wakes.
"""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from nbdplugin import actions
from nbdplugin.actions import Outcome, Patience, Wait
from nbdplugin.errors import PathError, PeerLost, PeerRefused, SessionOver, StoreFailed
from tests.sim.disk import CELL, A, B, Meta, Stores

Sink = Callable[[Any, "Exception | None"], None]
FAULTS = (
    "cut",
    "cut to A",
    "cut to B",
    "stall",
    "flap",
    "delay",
    "duplicate",
    "link time-out",
    "lease",
    "freeze A",
    "freeze B",
    "kill A",
    "kill B",
    "power A",
    "power B",
    "power both",
    "sync A",
    "read A",
    "write A",
    "table A",
    "sync B",
    "read B",
    "write B",
    "table B",
    "roll back A",
    "roll back B",
    "refusal",
    "command time-out",
    "fetch time-out",
)


class Greet(NamedTuple):
    """A greeting on a new meta connection.  Result: the answer; raises PeerLost."""

    fields: dict[str, Any]


class Killed(Exception):
    """The process died before it answered: whether it did what was asked is unknown."""


class Task:
    """One flow on one side; `on_end` gets its result or its error."""

    __slots__ = ("flow", "is_alive", "name", "on_end", "patience", "side", "waiter")

    def __init__(self, side: int, name: str, flow: actions.Flow[Any], on_end: Sink) -> None:
        self.side = side
        self.name = name
        self.flow = flow
        self.on_end = on_end
        self.is_alive = True
        self.waiter: Any = None
        self.patience: Patience | None = None


class Op:
    """A local action under way; `at` counts the cells or stages done."""

    __slots__ = ("action", "at", "side", "sink", "stages")

    def __init__(self, side: int, action: Any, sink: Sink) -> None:
        self.side = side
        self.action = action
        self.sink = sink
        self.at = 0
        self.stages: Any = None


class Conn:
    """Every connection of one session.  `is_deaf`: the other end is gone, and this one was not told."""

    __slots__ = ("calls", "is_alive", "is_deaf", "pair", "session")

    def __init__(self, pair: str, session: int) -> None:
        self.pair = pair
        self.session = session
        self.is_alive = True
        self.is_deaf = False
        self.calls: list[Call] = []


class Call:
    """One request to the peer; exactly one answer reaches the sink."""

    __slots__ = ("action", "conn", "is_done", "is_push", "sink")

    def __init__(self, conn: Conn, action: Any, is_push: bool, sink: Sink) -> None:
        self.conn = conn
        self.action = action
        self.is_push = is_push
        self.sink = sink
        self.is_done = False


class Message(NamedTuple):
    """On its way: a request to B, or an answer to A."""

    call: Call
    is_reply: bool
    value: Any = None
    error: Exception | None = None


class Machine:
    """Invariant: each live task is in exactly one of: ready, ops, a call, waiting for a Waiter."""

    def __init__(self, rng: random.Random, stores: Stores, metas: tuple[Meta, Meta], trace: list[str] | None) -> None:
        self.rng = rng
        self.stores = stores
        self.metas = metas
        self.trace = trace
        self.now = 0
        self.rates: dict[str, float] = {}
        self.muted: tuple[str, ...] = ()
        self.aim: str | None = None
        self.aimed_rate = 0.0  # how likely the fault is that a seed aims at, in the state it aims at
        self.is_aimed: Callable[[str], bool] = lambda name: False
        self.p_immediate = 0.8
        self.owners: list[Any] = [None, None]
        self.tasks: list[Task] = []
        self.ready: list[tuple[Task, Any, Exception | None]] = []
        self.frozen: list[tuple[int, tuple[Task, Any, Exception | None]]] = []
        self.stopped = [0, 0]
        self.delayed: list[tuple[int, Message]] = []
        self.ops: list[Op] = []
        self.net: list[Message] = []
        self.late: list[Message] = []
        self.broken: list[Call] = []
        self.conns: dict[int, Conn] = {}
        self.ways = [True, True]  # by the side that is to get the message
        self.on_fault: Callable[[str], None] = lambda name: None
        self.on_lost: Callable[[int, list[tuple[int, int]]], None] = lambda side, lost: None
        self.on_push: Callable[[], None] = lambda: None

    def note(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now:5} {text}")

    # --- tasks ---

    def spawn(self, side: int, name: str, flow: actions.Flow[Any], on_end: Sink) -> Task:
        task = Task(side, name, flow, on_end)
        self.tasks.append(task)
        self.note(f"{'AB'[side]} {name} begins")
        self.resume(task, None, None)
        return task

    def resume(self, task: Task, value: Any, error: Exception | None) -> None:
        if not task.is_alive:
            return
        task.waiter = None
        try:
            action = task.flow.send(value) if error is None else task.flow.throw(error)
        except StopIteration as stop:
            self._end(task, stop.value, None)
        except PathError as failure:
            self._end(task, None, failure)
        else:
            self._begin(task, action)
        self.release_woken(task.side)

    def freeze(self, item: tuple[Task, Any, Exception | None], steps: int) -> None:
        """The thread gets no processor for a while."""
        self.note(f"{'AB'[item[0].side]} {item[0].name} is frozen for {steps} steps")
        self.frozen.append((self.now + steps, item))

    def thaw(self) -> None:
        self.ready += [item for until, item in self.frozen if until <= self.now and item[0].is_alive]
        self.frozen = [(until, item) for until, item in self.frozen if until > self.now and item[0].is_alive]
        self.net += [message for until, message in self.delayed if until <= self.now]
        self.delayed = [(until, message) for until, message in self.delayed if until > self.now]

    def is_stopped(self, side: int) -> bool:
        return self.stopped[side] > self.now

    @property
    def is_link_up(self) -> bool:
        return all(self.ways)

    @is_link_up.setter
    def is_link_up(self, value: bool) -> None:
        self.ways[:] = [value, value]

    @property
    def is_hindered(self) -> bool:
        """Whether anything may be unable to go on; see can_proceed."""
        return max(self.stopped) > self.now or not all(self.ways) or self.owners[B] is None

    def can_proceed(self, item: Any) -> bool:
        """Whether a member of a pool may go on now: its process runs, and a message has a way there."""
        if type(item) is tuple:
            return not self.is_stopped(item[0].side)
        if type(item) is Op:
            return not self.is_stopped(item.side)
        if type(item) is Call:
            return not self.is_stopped(A)
        side = A if item.is_reply else B
        return self.owners[side] is not None and not self.is_stopped(side) and self.ways[side]

    def release_woken(self, side: int) -> None:
        owner = self.owners[side]
        if owner is None or not owner.woken:
            return
        woken, owner.woken = owner.woken, []
        for waiter in woken:
            if waiter.event is not None:
                self.ready.append((waiter.event, True, None))
                waiter.event.waiter = None
                waiter.event = None

    def _end(self, task: Task, value: Any, error: Exception | None) -> None:
        self.tasks.remove(task)
        task.is_alive = False
        if self.trace is not None:
            self.note(f"{'AB'[task.side]} {task.name} ends: {value if error is None else repr(error)}")
        task.on_end(value, error)

    def _begin(self, task: Task, action: Any) -> None:
        kind = type(action)
        if self.trace is not None and kind is not Wait:
            self.note(f"{'AB'[task.side]} {task.name} -> {describe(action)}")

        def take(value: Any, error: Exception | None) -> None:
            if self.rng.random() < self.p_immediate or isinstance(error, StoreFailed):
                self.resume(task, value, error)
            else:
                self.ready.append((task, value, error))

        if kind is Wait:
            if action.waiter.is_done:
                self.ready.append((task, True, None))
                return
            task.waiter, task.patience = action.waiter, action.patience
            action.waiter.event = task
        elif kind is actions.WriteBoth:
            self._begin_both(task.side, action, take)
        elif kind is actions.PeerWrites:
            self._begin_all(action, take)
        elif kind is Greet:
            self._greet(action, take)
        elif hasattr(action, "session") and kind is not actions.EndSession:
            self.send(self.conns.get(action.session), action, kind is actions.PeerWrite, take)
        else:
            self.ops.append(Op(task.side, action, take))

    def _begin_both(self, side: int, action: actions.WriteBoth, take: Sink) -> None:
        legs: dict[str, Exception | None] = {}

        def put(name: str, error: Exception | None) -> None:
            legs[name] = error
            if len(legs) == 2:
                take(Outcome(legs["local"], legs["peer"]), None)

        write = actions.StoreWrite(action.offset, action.length, action.data)
        self.ops.append(Op(side, write, lambda _, error: put("local", error)))
        push = actions.PeerWrite(action.session, action.offset, action.length, action.data)
        self.send(self.conns.get(action.session), push, False, lambda _, error: put("peer", error))

    def _begin_all(self, action: actions.PeerWrites, take: Sink) -> None:
        conn, left, errors = self.conns.get(action.session), len(action.ranges), []

        def put(_: Any, error: Exception | None) -> None:
            nonlocal left
            left -= 1
            errors.extend([error] if error else [])
            if not left:
                take(None, errors[0] if errors else None)

        for (offset, length), data in zip(action.ranges, action.pieces, strict=True):
            self.send(conn, actions.PeerWrite(action.session, offset, length, data), True, put)

    # --- local operations ---

    def fault(self, name: str) -> bool:
        rate = self.rates.get(name, 0.0)
        if name == self.aim and self.is_aimed(name):
            rate = self.aimed_rate
        if rate and name not in self.muted and self.rng.random() < rate:
            self.on_fault(name)
            self.note(f"! {name}")
            return True
        return False

    def work(self, op: Op) -> bool:
        """One piece of a local operation; True once it has ended."""
        action, side = op.action, op.side
        kind = type(action)
        if kind is actions.StoreWrite:
            return self._write(op, action)
        if kind is actions.WriteTable:
            return self._write_table(op, action)
        if kind is actions.StoreSync:
            if self.fault(f"sync {'AB'[side]}"):
                lost = self.stores.lose(side, self.rng)
                op.sink(None, StoreFailed("a sync", errno.EIO))
                self.on_lost(side, lost)
                return True
            self.stores.sync(side)
            op.sink(None, None)
        elif kind is actions.StoreRead:
            if self.fault(f"read {'AB'[side]}"):
                op.sink(None, StoreFailed("a read", errno.EIO))
            else:
                op.sink(self.stores.get(side, action.offset // CELL, action.length // CELL), None)
        elif kind is actions.StoreReads:
            cells = [self.stores.get(side, offset // CELL, length // CELL) for offset, length in action.ranges]
            op.sink(cells, None)
        elif kind is actions.StoreExtents:
            op.sink(self._find_extents(side, action), None)
        elif kind is actions.EndSession:
            self.end_conn(self.conns.get(action.session))
            op.sink(None, None)
        else:
            raise AssertionError(f"no hand for {action}")
        return True

    def _find_extents(self, side: int, action: Any) -> list[tuple[int, bool]]:
        cells = self.stores.cells[side][action.offset // CELL : (action.offset + action.length) // CELL]
        return [
            (len(list(group)) * CELL, is_zero) for is_zero, group in itertools.groupby(cells, lambda cell: cell == 0)
        ]

    def _write(self, op: Op, action: actions.StoreWrite) -> bool:
        first, count = action.offset // CELL, action.length // CELL
        is_failing = op.at == 0 and self.fault(f"write {'AB'[op.side]}")
        end = count if self.rng.random() < 0.8 else self.rng.randint(op.at, count)
        for cell in range(op.at, end):
            if not is_failing or self.rng.random() < 0.5:
                self.stores.put(op.side, first + cell, 0 if action.data is None else action.data[cell])
        op.at = end
        if is_failing:
            op.sink(None, StoreFailed("a write", errno.EIO))
            return True
        if end < count:
            return False
        op.sink(None, None)
        return True

    def _write_table(self, op: Op, action: actions.WriteTable) -> bool:
        meta = self.metas[op.side]
        if op.stages is None:
            op.stages = meta.get_stages(action.change)
        end = len(op.stages) if self.rng.random() < 0.3 else min(len(op.stages), op.at + self.rng.randint(1, 3))
        while op.at < end:
            if self.fault(f"table {'AB'[op.side]}"):
                op.sink(None, StoreFailed("writing the track table", errno.EIO))
                return True
            meta.write(op.stages[op.at])
            op.at += 1
        if op.at == len(op.stages):
            op.sink(None, None)
            return True
        return False

    # --- the link ---

    def _greet(self, action: Greet, take: Sink) -> None:
        conn = Conn(action.fields["pair"], action.fields["session"])
        if self.owners[B] is not None or self.rng.random() < 0.5:  # else in the backlog of a socket that is kept
            self.conns[conn.session] = conn
        else:
            conn.is_alive = False
        self.send(conn, action, False, take)

    def send(self, conn: Conn | None, action: Any, is_push: bool, sink: Sink) -> None:
        if conn is None:
            conn = Conn("", 0)
            conn.is_alive = False
        call = Call(conn, action, is_push, sink)
        if conn.is_alive:
            conn.calls.append(call)
            self._put(Message(call, False))
        else:
            self.broken.append(call)

    def _put(self, message: Message) -> None:
        if message.call.conn.is_deaf:
            return
        if self.fault("delay"):
            self.delayed.append((self.now + self.rng.randint(10, 300), message))
        else:
            self.net.append(message)

    def deliver(self, message: Message) -> None:
        call = message.call
        if not message.is_reply:
            self._serve(call)
        elif call.conn.is_alive and not call.is_done:
            call.is_done = True
            call.conn.calls.remove(call)
            call.sink(message.value, message.error)

    def _serve(self, call: Call) -> None:
        target = self.owners[B]
        if target is None:
            return
        if self.fault("refusal"):
            self.reply(call, None, PeerRefused("injected"))
            return
        flow = self._make_flow(target, call)
        if flow is None:
            self.reply(call, None, SessionOver("another pair"))
            return
        if call.is_push and target.is_open and target.table.header.session == call.action.session:
            self.on_push()
        self.spawn(B, describe(call.action), flow, lambda value, error: self.reply(call, value, error))

    def _make_flow(self, target: Any, call: Call) -> actions.Flow[Any] | None:
        action, kind = call.action, type(call.action)
        if kind is Greet:
            return target.greet(action.fields)  # type: ignore[no-any-return]
        if not self.is_pair_right(target, call.conn.pair):
            return None
        session = action.session
        if kind is actions.PeerTell:
            return target.tell(session, action.message)  # type: ignore[no-any-return]
        if kind is actions.PeerFlush:
            return target.flush(session)  # type: ignore[no-any-return]
        if kind is actions.PeerRead:
            return target.read(session, action.offset, action.length)  # type: ignore[no-any-return]
        if kind is actions.PeerExtents:
            return target.extents(session, action.offset, action.length)  # type: ignore[no-any-return]
        return target.write(session, action.offset, action.length, action.data)  # type: ignore[no-any-return]

    @staticmethod
    def is_pair_right(target: Any, pair: str) -> bool:
        """What the export's name says, compared in every callback."""
        return bool(target.table.header.pair == pair)

    def reply(self, call: Call, value: Any, error: Exception | None) -> None:
        if type(call.action) is Greet and call.conn.is_alive and self.fault("duplicate"):
            other = Conn(call.conn.pair, call.conn.session)
            other.is_alive = False
            self.late.append(Message(Call(other, call.action, False, call.sink), False))
        if isinstance(error, SessionOver):
            error = PeerLost("ESHUTDOWN")
        elif error is None and self.fault("refusal"):
            error = PeerRefused("injected")
        elif error is not None:
            error = PeerRefused(str(error))
        if call.conn.is_alive and not call.is_done:
            self._put(Message(call, True, value, error))

    def end_conn(self, conn: Conn | None) -> None:
        """No answer comes any more; what was sent may still arrive."""
        if conn is None or not conn.is_alive:
            return
        conn.is_alive = False
        self.broken += [call for call in conn.calls if not call.is_done]
        conn.calls = []
        sent = self._take_sent(conn)
        self.late += [message for message in sent if self.rng.random() < 0.6]

    def _take_sent(self, conn: Conn) -> list[Message]:
        """What is on its way on the connection is so no more; result: the requests."""
        found = [message for message in self.net if message.call.conn is conn]
        if found:
            self.net = [message for message in self.net if message.call.conn is not conn]
        if self.delayed:
            found += [message for _, message in self.delayed if message.call.conn is conn]
            self.delayed = [item for item in self.delayed if item[1].call.conn is not conn]
        return [message for message in found if not message.is_reply]

    def deafen_conns(self) -> None:
        """The other end is gone, and nothing that says so gets through; a time-out will tell."""
        for conn in self.conns.values():
            if conn.is_alive:
                conn.is_deaf = True
                self._take_sent(conn)

    def reset_deaf(self) -> bool:
        """B's host is up and reached again: it knows nothing of these connections and says so."""
        if self.owners[B] is None or not all(self.ways) or self.is_stopped(B):
            return False
        deaf = [conn for conn in self.conns.values() if conn.is_deaf and conn.is_alive]
        for conn in deaf:
            self.end_conn(conn)
        return bool(deaf)

    def end_conns(self) -> None:
        for conn in list(self.conns.values()):
            self.end_conn(conn)
        self.conns = {}

    def tell_broken(self, call: Call) -> None:
        call.is_done = True
        call.sink(None, PeerLost("the connection broke"))

    # --- death ---

    def kill(self, side: int, is_silent: bool = False) -> list[Task]:
        """The process ends here and now; returns the tasks that died.  Silent: its host does not tell the other."""
        self.stopped[side] = 0
        for op in [op for op in self.ops if op.side == side]:
            if isinstance(op.action, actions.StoreWrite):
                for cell in range(op.at, op.action.length // CELL):
                    if self.rng.random() < 0.4:
                        data = op.action.data
                        self.stores.put(side, op.action.offset // CELL + cell, 0 if data is None else data[cell])
            elif isinstance(op.action, actions.WriteTable) and self.rng.random() < 0.5:
                stages = op.stages or self.metas[side].get_stages(op.action.change)
                if stages:
                    self.metas[side].tear(stages[min(op.at, len(stages) - 1)])
        self.ops = [op for op in self.ops if op.side != side]
        dead = [task for task in self.tasks if task.side == side]
        for task in dead:
            task.is_alive = False
        self.tasks = [task for task in self.tasks if task.side != side]
        self.ready = [item for item in self.ready if item[0].is_alive]
        if side == B and (is_silent or not self.ways[A]):
            self.deafen_conns()
        else:
            self.end_conns()
        if side == A:
            self.broken = []
        self.owners[side] = None
        return dead


def describe(action: Any) -> str:
    """One line for the trace."""
    name = type(action).__name__
    if isinstance(action, actions.WriteTable):
        change = action.change
        pages = [f"{index}:{bits.invalid:x}/{bits.owed:x}" for index, _, bits in change.pages]
        return f"{name} pages {pages} header {change.header is not None} active {change.active} fill {change.fill}"
    if hasattr(action, "offset"):
        session = f" s{action.session}" if hasattr(action, "session") else ""
        data = f" {action.data}" if hasattr(action, "data") else ""
        return f"{name}{session} {action.offset // CELL}+{action.length // CELL}{data}"
    if isinstance(action, actions.PeerTell):
        return f"{name} s{action.session} {action.message['op']}"
    if isinstance(action, Greet):
        return f"{name} s{action.fields['session']}"
    return f"{name}{tuple(action)}"
