"""actor - on whose behalf the current task works, for the record of events.

Set at the border, where a request comes in (api); tasks made from it inherit both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

who: ContextVar[str] = ContextVar("who", default="pathctld")  # `uid 0 (root)`, `host beta`, `pathctld`
why: ContextVar[str | None] = ContextVar("why", default=None)  # the verb that was asked for: `pair.suspend`

ITSELF = "pathctld"


@contextmanager
def by(name: str = ITSELF, cause: str | None = None) -> Iterator[None]:
    """What is recorded meanwhile is on behalf of somebody else than who is served: of pathctld itself, say."""
    before = who.set(name), why.set(cause)
    try:
        yield
    finally:
        who.reset(before[0])
        why.reset(before[1])
