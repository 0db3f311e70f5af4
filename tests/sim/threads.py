"""threads - what runs on the source beside the requests: link, copier, checkpoint, as nbdplugin's drivers do it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nbdplugin import actions, checkpoint, modes, scatter, transfer
from nbdplugin.core import Core
from nbdplugin.errors import PathError, PeerRefused, Refused
from nbdplugin.geometry import Span
from tests.sim.base import Base
from tests.sim.disk import A
from tests.sim.machine import Greet
from tests.sim.model import Violation

SPLIT = ("both_moved", "old_session", "peer_ahead", "rolled_back", "unrelated")


class Threads(Base):
    """At most one greeting, one keep-alive, one closing message, two checkpoints and three runs of the copy."""

    def establish(self, core: Core) -> actions.Flow[None]:
        """As nbdplugin.link does."""
        greeting, _ = yield from self.greet(core)
        if greeting is None:
            return
        epoch = _["epoch"]
        try:
            is_pushing = yield from modes.note_accepted(core, greeting, epoch)
            if not is_pushing:
                yield actions.PeerTell(greeting.session, {"op": "alive"})
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

    def greet(self, core: Core, discard: str | None = None) -> actions.Flow[Any]:
        """(greeting, answer), greeting None if another attempt may get further; raises Refused, PeerRefused."""
        was_split = self.rules.is_split()
        greeting = yield from modes.begin_session(core, discard)
        fields = greeting.to_json() | {"ancestors": list(greeting.ancestors)}
        answer = yield Greet(fields)
        verdict = answer["verdict"]
        is_split = self.rules.is_split()
        if was_split and not is_split:
            return None, answer
        if verdict == "accepted":
            if greeting.committed and is_split and was_split:
                raise Violation("a side that was put back to an older state is accepted")
            return greeting, answer
        if verdict == "old_session" and not greeting.committed:
            core.table.header.session = max(core.table.header.session, answer["session"])
        is_deleted = core.table.header.pair != greeting.pair
        is_deleting = verdict == "wrong_pair" and (is_deleted or self.operator is not None)
        if is_split and verdict in SPLIT and greeting.committed:
            raise PeerRefused(verdict)
        if greeting.committed and verdict != "busy" and not is_deleting:
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

        self.machine.spawn(A, "checkpoint", checkpoint.keep(core), end)

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

        if not is_pull and self.rng.random() < 0.5:
            runs = scatter.find_more(core, run, transfer.RUN_BYTES * 4)
            self.machine.spawn(A, f"copy of {len(runs)} runs from {run.first}", scatter.push(core, runs), end)
            return True
        self.machine.spawn(A, f"copy {run.first}+{run.count}", transfer.copy_run(core, run, is_pull), end)
        return True

    def spawn_work(self) -> bool:
        """One of the threads that are not the client's has something to do."""
        core = self.core
        if core is None or self.machine.is_stopped(A):
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
