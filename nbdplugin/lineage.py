"""lineage - may these two volumes exchange data?  Pure: a greeting and our facts in, a verdict out.

The source sends a Greeting; the destination judges it before any data moves.  Versions first, identity next,
then the order of sessions, then whose data is newer.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection
from typing import Any

PROTOCOL = 1


class Verdict(enum.StrEnum):
    """What the destination answers; all but ACCEPTED end the attempt."""

    ACCEPTED = "accepted"
    VERSION = "version"
    WRONG_PAIR = "wrong_pair"
    WRONG_SHAPE = "wrong_shape"
    OLD_SESSION = "old_session"
    ROLLED_BACK = "rolled_back"
    INCOMPLETE = "incomplete"
    PEER_AHEAD = "peer_ahead"
    BOTH_MOVED = "both_moved"
    UNRELATED = "unrelated"


SENTENCES = {
    Verdict.VERSION: "the peer speaks another version of the protocol; bring both hosts to one version",
    Verdict.WRONG_PAIR: "the peer's volume does not belong to this pair; delete the pair and create it anew",
    Verdict.WRONG_SHAPE: "the peer's volume has another size or track size; delete the pair and create it anew",
    Verdict.OLD_SESSION: "the peer has seen a newer session than this; the next attempt takes a higher number",
    Verdict.ROLLED_BACK: "the peer's volume is older than what it had confirmed; delete the pair and create it anew",
    Verdict.INCOMPLETE: "the peer's volume is incomplete, so it cannot be the copy to fetch from",
    Verdict.PEER_AHEAD: "the peer has newer data than this volume; delete the pair and mark the other side invalid",
    Verdict.BOTH_MOVED: "both volumes were written apart; choose whose data to keep, then create the pair anew",
    Verdict.UNRELATED: "the two volumes do not share a history; delete the pair and create it anew",
}


class Kinship(enum.Enum):
    """How the peer's generation relates to ours, seen from the source."""

    EQUAL = enum.auto()
    PEER_BEHIND = enum.auto()
    PEER_AHEAD = enum.auto()
    BOTH_MOVED = enum.auto()
    UNRELATED = enum.auto()


@dataclasses.dataclass(frozen=True, slots=True)
class Greeting:
    """What the source says of itself.  `differs`: something is owed or active here."""

    pair: str
    size: int
    track_size: int
    session: int
    accepted: int
    committed: bool
    invalidate: str
    generation: str
    ancestors: tuple[str, ...]
    differs: bool
    protocol: int = PROTOCOL

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What the destination knows of itself."""

    pair: str | None
    size: int
    track_size: int
    session: int
    generation: str
    ancestors: tuple[str, ...]
    incomplete: bool


def parse_greeting(fields: Any) -> Greeting | None:
    """A Greeting from JSON that a peer sent, or None; nothing in it is trusted."""
    kinds = {"pair": str, "size": int, "track_size": int, "session": int, "accepted": int, "committed": bool}
    kinds |= {"invalidate": str, "generation": str, "ancestors": list, "differs": bool, "protocol": int}
    if not isinstance(fields, dict) or set(fields) != set(kinds):
        return None
    if any(type(fields[name]) is not kind for name, kind in kinds.items()):
        return None
    if len(fields["ancestors"]) > 64 or not all(isinstance(item, str) for item in fields["ancestors"]):
        return None
    if not 0 < fields["session"] < 1 << 62:
        return None
    return Greeting(**{**fields, "ancestors": tuple(fields["ancestors"])})


def get_kinship(
    ours: str, our_line: Collection[str], theirs: str, their_line: Collection[str], differs: bool
) -> Kinship:
    """DESIGN section 4, generations; `differs`: tracks are owed or active here."""
    if ours == theirs:
        return Kinship.EQUAL
    if theirs in our_line:
        return Kinship.PEER_BEHIND
    if ours in their_line:
        return Kinship.BOTH_MOVED if differs else Kinship.PEER_AHEAD
    return Kinship.UNRELATED


_REFUSED = {
    Kinship.PEER_AHEAD: Verdict.PEER_AHEAD,
    Kinship.BOTH_MOVED: Verdict.BOTH_MOVED,
    Kinship.UNRELATED: Verdict.UNRELATED,
}


def judge(greeting: Greeting, facts: Facts) -> Verdict:
    """The destination's answer to a greeting."""
    if greeting.protocol != PROTOCOL:
        return Verdict.VERSION
    if greeting.pair != facts.pair:
        return Verdict.WRONG_PAIR
    if (greeting.size, greeting.track_size) != (facts.size, facts.track_size):
        return Verdict.WRONG_SHAPE
    if facts.session < greeting.accepted:
        return Verdict.ROLLED_BACK
    if greeting.session <= facts.session:
        return Verdict.OLD_SESSION
    if not greeting.committed:  # one side is about to be marked invalid: histories do not matter yet
        return Verdict.INCOMPLETE if facts.incomplete and greeting.invalidate == "source" else Verdict.ACCEPTED
    kinship = get_kinship(greeting.generation, greeting.ancestors, facts.generation, facts.ancestors, greeting.differs)
    return _REFUSED.get(kinship, Verdict.ACCEPTED)
