"""actor - on whose behalf the current task works, for the record of events.

Set at the border, where a request comes in (api); tasks made from it inherit both.
"""

from contextvars import ContextVar

who: ContextVar[str] = ContextVar("who", default="pathctld")  # `uid 0 (root)`, `host beta`, `pathctld`
why: ContextVar[str | None] = ContextVar("why", default=None)  # the verb that was asked for: `pair.suspend`
