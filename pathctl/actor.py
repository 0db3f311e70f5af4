"""actor - on whose behalf the current task works, for the record of events.

Set at the border, where a request comes in (api); tasks made from it inherit both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

who: ContextVar[str] = ContextVar("who", default="pathctld")  # `uid 0 (root)`, `host beta`, `pathctld`
why: ContextVar[str | None] = ContextVar("why", default=None)  # the verb that was asked for: `pair.suspend`

ITSELF = "pathctld"
NAME_MOST = 100  # characters of what a peer says of its user

_AT_HOST = "{} at host {}"


def of_peer(peer: str, name: str | None) -> str:
    """`uid 0 (root) at host beta`: who asked there is the peer's word, that it was there we know ourselves."""
    shown = "".join(letter for letter in name or "" if letter.isprintable())[:NAME_MOST].strip()
    return _AT_HOST.format(shown, peer) if shown else f"host {peer}"


def at_host(name: str, host: str, ours: str) -> str:
    """Who asked for something, as `host` tells it to this one, which may be where it was asked."""
    return name if name.endswith(_AT_HOST.format("", ours)) else _AT_HOST.format(name, host)


@contextmanager
def by(name: str = ITSELF, cause: str | None = None) -> Iterator[None]:
    """What is recorded meanwhile is on behalf of somebody else than who is served: of pathctld itself, say."""
    before = who.set(name), why.set(cause)
    try:
        yield
    finally:
        who.reset(before[0])
        why.reset(before[1])
