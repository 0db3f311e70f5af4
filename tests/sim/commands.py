"""commands - the operator, who outlives both processes and repeats what was not answered."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from nbdplugin import actions, modes, tracks
from nbdplugin.core import Core
from nbdplugin.errors import PathError, Refused, VolumeFailed
from nbdplugin.target import Target
from tests.sim.disk import A, B
from tests.sim.machine import Killed
from tests.sim.model import Violation
from tests.sim.threads import Threads


class Operator(Threads):
    """`operator` is the sequence under way, `order` its next command: (side, name, flow)."""

    def advance_operator(self) -> bool:
        """Gives the next command if its host is up; True if something was started."""
        if self.operator is None:
            self.operator = self.choose_order()
            self._answer_operator(None, first=True)
        if self.order is None or self.machine.owners[self.order[0]] is None or self.machine.is_stopped(self.order[0]):
            return False
        side, name, make = self.order
        if name in ("commit", "resolve") and self.is_greeting:  # one greeting at a time, as nbdplugin.link sees to
            return False
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
        elif header.committed and (self.rules.is_split() or self._is_resolve_wanted(core)):
            yield from self.resolve(header.pair, self._choose_discard(core))
        elif not self.is_settling and rng.random() < 0.1:
            policy = rng.choice((tracks.CONTINUE, tracks.STOP))
            yield from self.command(A, "policy", lambda: modes.set_policy(self._get_core(), header.pair or "", policy))
        elif self.is_settling or not header.ready:
            yield from self.command(A, "resume", lambda: modes.resume(self._get_core(), header.pair or ""))
        elif rng.random() < self.delete_share:
            yield from self.delete(header.pair)
        else:
            yield from self.command(A, "suspend", lambda: modes.suspend(self._get_core(), header.pair or ""))

    def _is_resolve_wanted(self, core: Core) -> bool:
        """Nobody asked for it, and what one side alone has is thrown away."""
        share = 0.2 if self.is_aiming and self.aim[1] == "suspended" else 0.02
        return not self.is_settling and core.session is None and self.rng.random() < share

    def _choose_discard(self, core: Core) -> str:
        if self.is_settling:
            is_whole = not core.table.invalid.count and not core.table.header.incomplete
            return "destination" if is_whole else "source"
        return self.rng.choice(("source", "destination"))

    def resolve(self, pair: str, discard: str) -> Generator[Any, Any, None]:
        self.resolves += 1
        operation = f"resolve-{self.resolves}"
        refusal = yield from self.command(
            A, "resolve", lambda: self.make_resolved(self._get_core(), operation, pair, discard), 1000
        )
        if refusal is not None and self.is_settling:
            yield from self.delete(pair)

    def make_resolved(self, core: Core, operation: str, pair: str, discard: str) -> actions.Flow[None]:
        if core.table.header.operation == operation:
            return
        answer = yield from self._greet_once(core, discard)
        self.rules.greeted = self.machine.now
        line = (answer["generation"], *answer["ancestors"])
        clients = self.rng.choice((0, 0, 0, 1))
        yield from modes.resolve(core, operation, pair, discard, lambda: clients, line, answer["session"])

    def _greet_once(self, core: Core, discard: str | None = None) -> actions.Flow[Any]:
        self.is_greeting = True
        try:
            greeting, answer = yield from self.greet(core, discard)
        finally:
            if self.core is core:  # else a killed process's flow is being thrown away
                self.is_greeting = False
        if greeting is None:
            raise PathError("busy")
        self.machine.end_conn(self.machine.conns.get(greeting.session))
        return answer

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

    def command(self, side: int, name: str, make: Callable[[], actions.Flow[Any]], tries: int = 500) -> Any:
        """Repeated until it is answered; an operator restarts what has failed.  Result: the refusal, or None."""
        while tries > 0:
            tries -= self.broken is None  # else it may well fail until all is healed
            error = yield side, name, make
            if error is None or isinstance(error, Refused):
                return error
            if isinstance(error, VolumeFailed):
                self.doomed.add(side)
        raise Violation(f"{name} fails again and again: {error!r}")

    def create(self, invalidate: str) -> Generator[Any, Any, None]:
        self.pairs += 1
        pair = f"pair-{self.pairs}"
        policy = self.rng.choice((tracks.CONTINUE, tracks.CONTINUE, tracks.STOP))
        halves = [
            (A, "connect A", lambda: modes.connect(self._get_core(), pair, pair, "B", invalidate, policy)),
            (B, "connect B", lambda: self._get_target().connect(pair, pair, "A", invalidate)),
        ]
        if self.rng.random() < 0.5:
            halves.reverse()
        for side, name, make in halves:
            if (yield from self.command(side, name, make)) is not None:
                yield from self.undo(pair)
                return
        for attempt in range(500):
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
        answer = yield from self._greet_once(core)
        clients = self.rng.choice((0, 0, 0, 1))
        yield from modes.commit(core, pair, lambda: clients, (answer["generation"], *answer["ancestors"]))

    def undo(self, pair: str) -> Generator[Any, Any, None]:
        yield from self.command(B, "disconnect B", lambda: self._get_target().disconnect(pair))
        yield from self.command(A, "disconnect A", lambda: modes.disconnect(self._get_core(), pair))

    def delete(self, pair: str) -> Generator[Any, Any, None]:
        yield from self.command(A, "stop", lambda: modes.stop(self._get_core(), pair))
        yield from self.undo(pair)
