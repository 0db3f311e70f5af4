"""actions - what the pure flows ask their driver to do.

A flow is a generator: it yields an action, is sent the result, or has the action's error thrown into it.  Between
two yields nothing else runs.  The driver holds the core's lock while a flow runs and none while it acts; the
simulator performs the same actions in any order it likes.
"""

from __future__ import annotations

import enum
from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from nbdplugin.tracks import Change

T = TypeVar("T")
Flow = Generator[Any, Any, T]
Data = Any  # bytes, or a buffer that lives as long as the request; None stands for zeroes


class Again(enum.Enum):
    """Instead of data: what was to be read has changed, look anew."""

    AGAIN = enum.auto()


AGAIN = Again.AGAIN


class Waiter:
    """Somebody waits; `event` belongs to the driver."""

    __slots__ = ("event", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self.event: Any = None


class Patience(enum.Enum):
    """How long a wait may last: its own end is near by construction, or the driver's limit for it applies."""

    SHORT = enum.auto()
    FETCH = enum.auto()
    COMMAND = enum.auto()
    BRIEF = enum.auto()  # a moment in which host requests may be held up


class Wait(NamedTuple):
    """Result: True when woken, False when the patience is over."""

    waiter: Waiter
    patience: Patience = Patience.SHORT


class StoreRead(NamedTuple):
    """Result: the bytes; a driver may put them into `into`, of that length, and return that.  Raises StoreFailed."""

    offset: int
    length: int
    into: Data = None


class StoreReads(NamedTuple):
    """Result: the bytes of each (offset, length); `into` as with StoreRead, for all of them.  Raises StoreFailed."""

    ranges: tuple[tuple[int, int], ...]
    into: Data = None


class StoreWrite(NamedTuple):
    """Raises StoreFailed."""

    offset: int
    length: int
    data: Data


class StoreSync(NamedTuple):
    """Everything written is durable; raises StoreFailed."""


class StoreExtents(NamedTuple):
    """Result: [(length, is_zero), ...] of the first even pieces of the range, one at least, none of them empty."""

    offset: int
    length: int


class PeerExtents(NamedTuple):
    """As StoreExtents, at the peer; raises PeerLost, PeerRefused."""

    session: int
    offset: int
    length: int


class PeerRead(NamedTuple):
    """Result: the bytes, None if all are zero; raises PeerLost, PeerRefused.  Urgent: a host request waits for it.

    `into` as with StoreRead.
    """

    session: int
    offset: int
    length: int
    urgent: bool
    into: Data = None


class PeerWrite(NamedTuple):
    """A push; raises PeerLost, PeerRefused."""

    session: int
    offset: int
    length: int
    data: Data


class PeerWrites(NamedTuple):
    """Pushes of several ranges at once; raises PeerLost, PeerRefused, once none of them is under way."""

    session: int
    ranges: tuple[tuple[int, int], ...]
    pieces: list[Data]


class PeerFlush(NamedTuple):
    """Raises PeerLost, PeerRefused."""

    session: int


class PeerTell(NamedTuple):
    """A message on the session's meta connection; raises PeerLost, PeerRefused."""

    session: int
    message: dict[str, Any]


class WriteBoth(NamedTuple):
    """One host write, here and at the peer.  Result: Outcome; raises nothing."""

    session: int
    offset: int
    length: int
    data: Data


class Outcome(NamedTuple):
    """The error of each leg, None where it succeeded."""

    local: Exception | None
    peer: Exception | None


class WriteTable(NamedTuple):
    """Pages, both copies, then the header, both copies, each durable before the next; raises StoreFailed."""

    change: Change


class EndSession(NamedTuple):
    """Make every connection of the session unusable before going on.  Raises nothing."""

    session: int
