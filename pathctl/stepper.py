"""stepper - takes the steps of one sequence at its coordinator, and remembers what was done and how long it took.

Each step stands in the journal before it is taken; one that was never sent to the other host is struck out again.
After each there is a place where a test can interfere (`VERB.STEP`).
"""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from pathctl import faults
from pathctl.errors import NoAnswer
from pathctl.node import Node

INTENT = "journal"  # the first step: the entry itself, which is there already


class Stepper:
    """`done`: the labels of the steps that were taken; `at`: the one that is being taken, or failed."""

    def __init__(self, node: Node, operation: str, verb: str, label: Callable[[str], str], started: float) -> None:
        self.steps: list[dict[str, Any]] = []
        self.done: list[str] = []
        self.at = INTENT
        self._node = node
        self._operation = operation
        self._verb = verb
        self._label = label
        self._last = started

    async def take(self, name: str, action: Callable[[], Awaitable[None]]) -> None:
        node, operation = self._node, self._operation
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
        self.done.append(self._label(name))
        await faults.point(f"{self._verb}.{name}")

    def note(self, name: str) -> None:
        now = time.monotonic()
        self.steps.append({"step": name, "ms": round((now - self._last) * 1000, 1)})
        self._last = now
