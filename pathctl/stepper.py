"""stepper - one sequence at its coordinator: its steps up to the commit point, and how it is ended from there.

Each step stands in the journal before it is taken; one that was never sent to the other host is struck out again.
After each there is a place where a test can interfere (`VERB.STEP`).  Until the commit point every failure, and a
crash found at the next start, leads to `undo`; after it to `finish`; the source's data plane alone knows which
(`is_committed`).  What cannot be ended because the other host does not answer stays in the journal.

What the steps are, how they are undone and what is recorded at the end is each sequence's own.
"""

import abc
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from pathctl import controlclient, db, faults, logs, pairsteps, peers, planes
from pathctl.errors import ErrorCode, NoAnswer, PathctlError
from pathctl.node import Node

INTENT = "journal"  # the first step: the entry itself, which is there already


class Spec(msgspec.Struct, frozen=True):
    """Whose operation on which pair; each sequence keeps more than this in the journal."""

    operation: str
    pair: str
    source: str  # the volume here
    peer: str
    destination: str  # the volume at the peer

    @property
    def which(self) -> pairsteps.Which:
        """For the peer."""
        return pairsteps.Which(self.operation, self.pair, self.destination, self.source)

    def get_names(self, node: Node) -> tuple[str, str]:
        """Of the source and the destination."""
        return f"{node.host().name}:{self.source}", f"{self.peer}:{self.destination}"

    def build_entry(self, verb: db.Verb) -> db.Entry:
        return db.Entry(
            operation=self.operation,
            verb=verb,
            role="coordinator",
            pair=self.pair,
            volume=self.source,
            peer=self.peer,
            peer_volume=self.destination,
            spec=msgspec.json.encode(self).decode(),
        )


class Words(msgspec.Struct, frozen=True):
    """How a sequence is spoken of."""

    verb: str  # in the names of the places where a test can interfere
    commit: str  # the step that is the commit point
    created: str  # the pair was not `created`
    made_ready: str  # it is not known whether the pair was `made_ready`
    ready: str  # the pair is `ready`, at the end
    as_before: str  # once all is undone


S = TypeVar("S", bound=Spec)


class Stepper(abc.ABC, Generic[S]):
    """`done`: the labels of the steps that were taken; `at`: the one that is being taken, or failed."""

    words: Words

    def __init__(self, node: Node, spec: S, started: float | None = None) -> None:
        self.steps: list[dict[str, Any]] = []
        self.done: list[str] = []
        self.at = INTENT
        self._node = node
        self._spec = spec
        self._last = time.monotonic() if started is None else started
        self._log = logging.getLogger(type(self).__module__)
        self._about = logs.of(volume=spec.source, pair=spec.pair)

    # each sequence's own

    @abc.abstractmethod
    async def all(self) -> None:
        """Take all steps."""

    @abc.abstractmethod
    def label(self, step: str) -> str:
        """What the user reads of a step."""

    @abc.abstractmethod
    def is_commit(self, found: controlclient.Status) -> bool:
        """Whether the source's metadata, which is of this pair, says that the commit point was passed."""

    @abc.abstractmethod
    async def undo(self, *, cut: bool) -> tuple[list[str], list[str]]:
        """Undo at both hosts whatever was begun, the last first; -> what was undone, what could not be yet.

        `cut`: a command may still be under way inside nbdkit.
        """

    @abc.abstractmethod
    async def finish(self) -> None:
        """After the commit point: record it here and there.  While the peer does not answer, the journal stays open."""

    # what is the same in all

    async def run(self) -> None:
        """From the journal to the end; raises PathctlError when all was undone, or will be."""
        try:
            await self.all()
        except PathctlError as error:
            if not await self._committed_after(error):
                await self._fail(error)
            said = f"pair %s was {self.words.made_ready} although its last step said: %s"
            self._log.warning(said, self._spec.pair, error.message, extra=self._about)
        await self.finish()
        self.note("done")

    async def go_on(self, entry: db.Entry) -> str | None:
        """What a crash, or a host that did not answer, left unfinished.

        -> the event that tells how it ended, if it did.
        """
        is_done = entry.state == "committed"
        if entry.state == "forward" and self.words.commit in self._node.db.steps(entry.operation):
            is_done = await self.is_committed(cut=True)
        if is_done:
            await self.finish()
            return "recovery.finished"
        _, pending = await self.undo(cut=True)
        return None if pending else "recovery.undone"

    async def take(self, name: str, action: Callable[[], Awaitable[None]]) -> None:
        node, operation = self._node, self._spec.operation
        self.at = name
        if name != INTENT:
            node.db.begin_step(operation, name)
        try:
            await action()
        except NoAnswer as error:
            if not error.sent:
                node.db.forget_step(operation, name)
            raise
        self.note(name)
        self.done.append(self.label(name))
        await faults.point(f"{self.words.verb}.{name}")

    def note(self, name: str) -> None:
        now = time.monotonic()
        self.steps.append({"step": name, "ms": round((now - self._last) * 1000, 1)})
        self._last = now

    async def ask(self, verb: str, body: msgspec.Struct) -> dict[str, Any]:
        """A step of the peer's."""
        spec, limit_s = self._spec, self._node.cfg.timeouts.peer_step_s
        return await pairsteps.ask(self._node, spec.operation, spec.peer, verb, body, limit_s)

    async def is_committed(self, *, cut: bool) -> bool:
        """The truth about the commit point: what the source's metadata says.

        `cut`: the command may still be under way; start nbdkit anew first, so that what it says is final.
        """
        node, spec = self._node, self._spec
        async with node.locks[spec.source]:
            if node.db.connection(spec.pair) is None:
                return False
            await planes.settle(node, spec.source)
            if cut:
                await node.supervisor.restart(spec.source)
            found = await planes.status(node, spec.source)
        return found.pair == spec.pair and self.is_commit(found)

    async def _committed_after(self, error: PathctlError) -> bool:
        """Whether the failed step was the commit and it has taken effect all the same."""
        if self.at != self.words.commit:
            return False
        # A commit that was not turned down may stand in the data plane's memory and not on its disk: only what it
        # reads from there anew is final.
        is_open = error.code != ErrorCode.REFUSED
        try:
            return await self.is_committed(cut=is_open)
        except PathctlError as unknown:
            self._node.db.set_note(self._spec.operation, unknown.message)
            raise PathctlError(
                error.code,
                f"it is not known whether pair {self._spec.pair} was {self.words.made_ready} ({unknown.message}); it "
                "stays in the journal and pathctld finishes or undoes it as soon as the source's data plane answers",
                done=self.done,
                failed=self.label(self.at),
                pending=[self.label(self.at)],
            ) from error

    async def _fail(self, error: PathctlError) -> NoReturn:
        """Undo, and tell all of it in one sentence."""
        undone, pending = await self.undo(cut=isinstance(error, NoAnswer))
        failed = self.label(self.at)
        rest = f"undone: {', '.join(undone)}" if undone else "nothing had to be undone"
        if pending:
            rest += f"; still to be undone: {', '.join(pending)}, which pathctld goes on with by itself"
        else:
            rest += f"; {self.words.as_before}"
        raise PathctlError(
            error.code,
            f"the pair was not {self.words.created}, because its {failed} failed: {error.message}; {rest}",
            done=self.done,
            failed=failed,
            undone=undone,
            pending=pending,
        ) from error

    async def undo_there(self) -> list[str]:
        node, spec = self._node, self._spec
        limit_s = node.cfg.timeouts.control_s
        answer = await pairsteps.ask(node, spec.operation, spec.peer, "pair.undo", spec.which, limit_s)
        return peers.read(spec.peer, "pair.undo", answer.get("undone", []), list[str])

    async def tell_committed(self, verb: str, body: msgspec.Struct) -> bool:
        """Bring the source's process up and tell the peer of the commit.

        -> False: one of them did not answer, and this is to be done again.  What is refused is not.
        """
        node, spec, ready = self._node, self._spec, self.words.ready
        try:
            async with node.locks[spec.source]:
                await planes.bring(node, spec.source)
            await pairsteps.ask(node, spec.operation, spec.peer, verb, body, node.cfg.timeouts.peer_look_s)
        except PathctlError as error:
            node.db.set_note(spec.operation, f"{ready}, but not yet recorded as such by both hosts: {error.message}")
            said = f"pair %s is {ready}; %s"
            self._log.warning(said, spec.pair, error.message, extra=self._about)
            return not isinstance(error, NoAnswer) and error.code == ErrorCode.REFUSED
        return True
