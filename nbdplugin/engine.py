"""engine - carries flows out: threads, a lock, and hands for each action.

The lock is held while a flow runs and never while an action is performed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from nbdplugin.actions import Flow, Patience, Wait, Waiter

T = TypeVar("T")
_SHORT_LIMIT_S = 600.0
_BRIEF_LIMIT_S = 0.5


log = logging.getLogger(__name__)


def start_thread(name: str, work: Callable[[], None]) -> None:
    """A thread whose unexpected error ends the process: pathctld starts it anew, which half a process would not be."""

    def guarded() -> None:
        try:
            work()
        except Exception:
            log.exception("thread %s failed; the process ends", name)
            os._exit(70)

    threading.Thread(target=guarded, name=name, daemon=True).start()


class Wakes(Protocol):
    """A core or target: flows leave the waiters they woke here."""

    woken: list[Waiter]


class Lock(Protocol):
    """Of threading.Lock what is used."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *_: Any) -> None: ...


class Engine:
    """`hands` maps each action type to what performs it; an error they raise goes into the flow."""

    def __init__(self, owner: Wakes, hands: Mapping[type, Callable[[Any], Any]], patience_s: dict[Patience, float]):
        self.lock: Lock = threading.Lock()  # the compiled lane takes its place
        self._owner = owner
        self._hands = hands
        self._patience_s = {Patience.SHORT: _SHORT_LIMIT_S, Patience.BRIEF: _BRIEF_LIMIT_S, **patience_s}

    def set_patience(self, patience_s: dict[Patience, float]) -> None:
        """For the waits that begin from now on."""
        self._patience_s = self._patience_s | patience_s

    def run(self, flow: Flow[T]) -> T:
        """To its end, on this thread; returns its result or raises its error."""
        start = time.monotonic()
        value: Any = None
        error: BaseException | None = None
        while True:
            with self.lock:
                try:
                    action = flow.send(value) if error is None else flow.throw(error)
                except StopIteration as stop:
                    result: T = stop.value
                    return result
                finally:
                    error = None  # its traceback holds this frame: a circle would keep a lost session's sockets
                    if self._owner.woken:
                        self.release_woken()
                if type(action) is Wait and not action.waiter.is_done:
                    action.waiter.event = threading.Event()
            value, error = self._perform(action, start)

    def release_woken(self) -> None:
        """Sets the events of the waiters that a flow woke; the lock is held."""
        woken, self._owner.woken = self._owner.woken, []
        for waiter in woken:
            if waiter.event is not None:
                waiter.event.set()

    def _perform(self, action: Any, start: float) -> tuple[Any, BaseException | None]:
        try:
            if type(action) is Wait:
                return self._wait(action, start), None
            return self._hands[type(action)](action), None
        except BaseException as error:  # noqa: BLE001 - the flow must see every error, to leave gate and admission
            return None, error

    def _wait(self, action: Wait, start: float) -> bool:
        event = action.waiter.event
        if event is None:
            return True
        if action.patience in (Patience.BRIEF, Patience.SHORT):
            start = time.monotonic()  # of this wait, not of what came before
        limit = start + self._patience_s[action.patience] - time.monotonic()
        if event.wait(max(limit, 0)):
            return True
        if action.patience is Patience.SHORT:
            raise RuntimeError("a wait that should be short did not end: this is a bug")
        return action.waiter.is_done
