"""mutation - one fault of mutations.py, and how it is planted."""

from __future__ import annotations

import importlib
import inspect
import textwrap
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """`where`: module and function, dotted, below nbdplugin or tests.sim.

    `hint`: a seed, or the path of a sequence, that found it once.  `faults`: what has to be frequent to find it.
    `aim`: a fault and the state that it is to meet.  `lazy`: how the names of those threads begin that freeze often.
    """

    name: str
    where: str
    old: str
    new: str
    hint: int | str | None = None
    faults: tuple[str, ...] = ()
    aim: tuple[str, str] | None = None
    lazy: str = ""
    steps: int = 2_000


def apply(mutation: Mutation) -> None:
    """In this process, for good."""
    module_name, names = _split(mutation.where)
    module = importlib.import_module(module_name)
    owner: Any = module
    for name in names[:-1]:
        owner = getattr(owner, name)
    original = inspect.getattr_static(owner, names[-1])
    function = getattr(original, "__func__", None) or getattr(original, "fget", original)  # of what wraps it
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(mutation.old) == 1, (
        f"{mutation.old!r} stands {source.count(mutation.old)} times in {mutation.where}"
    )
    space: dict[str, Any] = {}
    exec(compile(source.replace(mutation.old, mutation.new), mutation.where, "exec"), module.__dict__, space)
    setattr(owner, names[-1], space[names[-1]])


def _split(where: str) -> tuple[str, list[str]]:
    parts = where.split(".")
    depth = 2 if parts[0] == "nbdplugin" else 3
    return ".".join(parts[:depth]), parts[depth:]
