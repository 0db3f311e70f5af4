"""base - what the parts of a World have in common."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

from nbdplugin import actions
from nbdplugin.core import Core
from nbdplugin.target import Target
from tests.sim import coverage
from tests.sim.disk import Image, Stores
from tests.sim.machine import Machine
from tests.sim.model import Model
from tests.sim.rules import Rules


class Base:
    """`core` and `target` are None while their process is dead.  `lazy`: threads whose names begin so freeze often."""

    rng: random.Random
    machine: Machine
    stores: Stores
    model: Model
    rules: Rules
    core: Core | None = None
    target: Target | None = None
    count: int
    max_active: int
    delete_share = 0.3
    values = 0
    clients = 0
    copies = 0
    most_clients = 1
    client_weight = work_weight = order_weight = p_freeze = p_heal = late_weight = p_order = p_lazy = 0.0
    lazy = ""
    checkpoints = 0
    pairs = 0
    resolves = 0
    is_greeting = False
    is_telling = False
    is_finishing = False
    is_settling = False
    doomed: set[int]
    aim: coverage.Cell
    is_aiming = False
    is_sharp = False
    broken: str | None = None
    images: list[Image | None]
    operator: Generator[Any, Any, None] | None = None
    order: tuple[int, str, Callable[[], actions.Flow[Any]]] | None = None
    errors: dict[str, int]

    def start(self, side: int) -> None:
        """The process begins, from what is on disk."""
        raise NotImplementedError

    def kill(self, side: int, is_silent: bool = False) -> None:
        """The process dies; see Machine.kill."""
        raise NotImplementedError

    def count_error(self, who: str, error: Exception | None) -> None:
        """For `run --errors`: what requests and commands are answered."""
        if error is not None:
            key = f"{who}: {type(error).__name__}"
            self.errors[key] = self.errors.get(key, 0) + 1
