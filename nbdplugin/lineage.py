"""lineage - may these two volumes exchange data?  Pure: a greeting and our facts in, a verdict out.

The source sends a Greeting; the destination judges it before any data moves.  Versions first, identity next,
then the order of sessions, then whose data is newer.

Versions of the data protocol: a greeting names the oldest and the newest that the source speaks, the answer the one
that both use, the newest they share.  Version 1 knew neither: it takes a greeting of exactly its own fields, calls
any other `malformed`, and is then greeted in its own form.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Collection
from typing import Any, NamedTuple


class Versions(NamedTuple):
    """The versions of the data protocol that a host speaks, both ends included."""

    oldest: int
    newest: int

    def __str__(self) -> str:
        return f"version {self.newest}" if self.oldest == self.newest else f"versions {self.oldest} to {self.newest}"


SPOKEN = Versions(1, 2)
ANCESTORS = 8  # how many a volume remembers
NAME_MOST = 64
MALFORMED = "malformed"  # the answer to what is no greeting


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
    Verdict.WRONG_PAIR: "the peer's volume does not belong to this pair; choose whose data to keep (pair resolve)",
    Verdict.WRONG_SHAPE: "the peer's volume has another size or track size; delete the pair and create it anew",
    Verdict.OLD_SESSION: "the peer has seen a newer session than this; the next attempt takes a higher number",
    Verdict.ROLLED_BACK: "the peer's volume is older than what it had confirmed; choose whose to keep (pair resolve)",
    Verdict.INCOMPLETE: "the peer's volume is incomplete, so it cannot be the copy to fetch from",
    Verdict.PEER_AHEAD: "the peer has newer data than this volume; choose whose data to keep (pair resolve)",
    Verdict.BOTH_MOVED: "both volumes were written apart; choose whose data to keep (pair resolve)",
    Verdict.UNRELATED: "the two volumes do not share a history; choose whose data to keep (pair resolve)",
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
    protocol: int = SPOKEN.newest
    oldest: int = SPOKEN.oldest

    @property
    def versions(self) -> Versions:
        return Versions(self.oldest, self.protocol)

    def to_json(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        if self.protocol == 1:
            del fields["oldest"]
        return fields


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What the destination knows of itself.  `accepted`: the last session of which the source knew that we took it."""

    pair: str | None
    size: int
    track_size: int
    session: int
    generation: str
    ancestors: tuple[str, ...]
    incomplete: bool
    spoken: Versions = SPOKEN
    accepted: int = 0


_KINDS = {"pair": str, "size": int, "track_size": int, "session": int, "accepted": int, "committed": bool}
_KINDS |= {"invalidate": str, "generation": str, "ancestors": list, "differs": bool, "protocol": int}


def parse_greeting(fields: Any, spoken: Versions = SPOKEN) -> Greeting | None:
    """A Greeting from JSON that a peer sent, or None; nothing in it is trusted.

    One of a version above ours may say more than we know, so that we can tell it which versions we speak.
    """
    if not isinstance(fields, dict) or type(fields.get("protocol")) is not int:
        return None
    version = fields["protocol"]
    kinds = _KINDS if version == 1 or spoken.newest == 1 else _KINDS | {"oldest": int}
    is_known = spoken.newest == 1 or version <= spoken.newest
    if not set(kinds) <= set(fields) or (is_known and set(fields) != set(kinds)):
        return None
    if any(type(fields[name]) is not kind for name, kind in kinds.items()):
        return None
    if len(fields["ancestors"]) > 64 or not all(isinstance(item, str) for item in fields["ancestors"]):
        return None
    oldest = fields["oldest"] if "oldest" in kinds else version
    if not 0 < fields["session"] < 1 << 62 or not 0 < oldest <= version < 1 << 31:
        return None
    known = {name: fields[name] for name in kinds}
    return Greeting(**known | {"ancestors": tuple(fields["ancestors"]), "oldest": oldest})


def is_name(value: Any) -> bool:
    """Whether it may be a generation or an epoch: some text of ours, and short enough to be kept in a header."""
    return isinstance(value, str) and 0 < len(value) <= NAME_MOST


def parse_line(generation: Any, ancestors: Any) -> tuple[str, ...] | None:
    """A generation and its ancestors as a peer sent them, or None; nothing in it is trusted."""
    line = [generation, *ancestors] if isinstance(ancestors, list) else []
    return tuple(line) if 0 < len(line) <= ANCESTORS + 1 and all(map(is_name, line)) else None


def get_common(one: Versions, other: Versions) -> int | None:
    """The newest version that both speak; None without one."""
    newest = min(one.newest, other.newest)
    return newest if newest >= max(one.oldest, other.oldest) else None


def get_first_form(greeting: Greeting, answer: dict[str, Any]) -> Greeting | None:
    """The greeting as version 1 knows it, if the answer is that of a peer that speaks no other and we do too."""
    if answer.get("verdict") != MALFORMED or greeting.oldest > 1 or greeting.protocol == 1:
        return None
    return dataclasses.replace(greeting, protocol=1, oldest=1)


def explain_versions(source: Versions, destination: Versions) -> str:
    """Why the two cannot talk, for both their admins."""
    return (
        f"the source speaks {source} of the data protocol, the destination {destination}; bring both hosts to one "
        "release of pathctl"
    )


def parse_versions(text: str) -> Versions:
    """`OLDEST-NEWEST`, as a test gives it; raises ValueError."""
    oldest, _, newest = text.partition("-")
    return Versions(int(oldest), int(newest))


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
    return Kinship.UNRELATED if set(our_line).isdisjoint(their_line) else Kinship.BOTH_MOVED


_REFUSED = {
    Kinship.PEER_AHEAD: Verdict.PEER_AHEAD,
    Kinship.BOTH_MOVED: Verdict.BOTH_MOVED,
    Kinship.UNRELATED: Verdict.UNRELATED,
}


def judge(greeting: Greeting, facts: Facts) -> Verdict:
    """The destination's answer to a greeting."""
    if get_common(greeting.versions, facts.spoken) is None:
        return Verdict.VERSION
    if greeting.pair != facts.pair:
        return Verdict.WRONG_PAIR
    if (greeting.size, greeting.track_size) != (facts.size, facts.track_size):
        return Verdict.WRONG_SHAPE
    if facts.session < greeting.accepted:
        return Verdict.ROLLED_BACK
    if greeting.committed and greeting.accepted < facts.accepted:  # the source has forgotten a session that it used
        return Verdict.BOTH_MOVED if greeting.differs else Verdict.PEER_AHEAD
    if greeting.session <= facts.session:
        return Verdict.OLD_SESSION
    if not greeting.committed:  # one side is about to be marked invalid: histories do not matter yet
        return Verdict.INCOMPLETE if facts.incomplete and greeting.invalidate == "source" else Verdict.ACCEPTED
    kinship = get_kinship(greeting.generation, greeting.ancestors, facts.generation, facts.ancestors, greeting.differs)
    return _REFUSED.get(kinship, Verdict.ACCEPTED)
