"""mutation - one fault of mutations.py, and how it is planted."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """`where`: module and function, dotted, below nbdplugin or tests.sim.

    `hint`: a seed, or the path of a sequence, that found it once.  `faults`: what has to be frequent to find it.
    `aim`: a fault and the state that it is to meet.  `lazy`: how the names of those threads begin that freeze often.
    `also`: where, old and new of a second line of defence, which holds the promise alone.
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
    also: tuple[str, str, str] | None = None


def apply(mutation: Mutation) -> None:
    """In this process, for good."""
    _break(mutation.where, mutation.old, mutation.new)
    if mutation.also is not None:
        _break(*mutation.also)


def _break(where: str, old: str, new: str) -> None:
    module_name, names = _split(where)
    module = importlib.import_module(module_name)
    owner: Any = module
    for name in names[:-1]:
        owner = getattr(owner, name)
    original = inspect.getattr_static(owner, names[-1])
    function = getattr(original, "__func__", None) or getattr(original, "fget", original)  # of what wraps it
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {where}"
    space: dict[str, Any] = {}
    exec(compile(source.replace(old, new), where, "exec"), module.__dict__, space)
    setattr(owner, names[-1], space[names[-1]])
    _rebind(original, space[names[-1]])


def _rebind(original: Any, broken: Any) -> None:
    """Under every name that a module of ours knows it by, as if the text had been broken."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith(("nbdplugin", "tests.sim")):
            for name in [name for name, value in vars(module).items() if value is original]:
                setattr(module, name, broken)


def _split(where: str) -> tuple[str, list[str]]:
    parts = where.split(".")
    depth = 2 if parts[0] == "nbdplugin" else 3
    return ".".join(parts[:depth]), parts[depth:]
