"""pairstate - from facts to the state that a user sees.  Pure; the table of DESIGN section 2.

A state is derived each time and never stored.
"""

import enum
import re
from typing import Literal

import msgspec


class State(enum.StrEnum):
    CREATING = "Creating"
    DELETING = "Deleting"
    SUSPENDED = "Suspended"
    PARTITIONED = "Partitioned"
    SPLIT = "Split"
    REFUSED = "Refused"
    SYNC_IN_PROG = "SyncInProg"
    SYNCHRONIZED = "Synchronized"


Name = Literal["Synchronized", "SyncInProg", "Suspended", "Partitioned", "Split", "Refused", "Creating", "Deleting"]
Direction = Literal["to_source", "to_destination"]


class Facts(msgspec.Struct, frozen=True):
    """What is known of a pair at its source; counts in tracks."""

    journal: Literal["creating", "deleting"] | None
    answers: bool  # the source's data plane told the rest
    ready: bool = False  # by command
    session: bool = False
    refused: bool = False  # the last greeting was answered no
    invalid: int = 0
    owed: int = 0
    complete: bool = False  # the destination has confirmed that it has everything
    ended_there: bool = False  # the other host's pathctld has said that it has no such pair
    parted: bool = False  # by the greeting's verdict, or by what was written there since it ended, both sides moved on


def state(facts: Facts) -> State:
    if facts.journal is not None:
        return State.CREATING if facts.journal == "creating" else State.DELETING
    if not facts.answers:
        return State.REFUSED if facts.ended_there else State.PARTITIONED
    if not facts.ready:
        return State.SUSPENDED
    if not facts.session:
        is_refused = facts.refused or facts.ended_there
        return State.SPLIT if is_refused and facts.parted else State.REFUSED if is_refused else State.PARTITIONED
    synchronized = facts.complete and facts.invalid == facts.owed == 0
    return State.SYNCHRONIZED if synchronized else State.SYNC_IN_PROG


def name(facts: Facts) -> Name:
    """The state as it stands in answers."""
    return state(facts).value


def direction(facts: Facts) -> Direction | None:
    """Where the background copy goes; None when there is none, or nothing left but the destination's word."""
    if state(facts) != State.SYNC_IN_PROG or facts.invalid == facts.owed == 0:
        return None
    return "to_source" if facts.invalid else "to_destination"


def named(said: str | None, peer: str) -> str | None:
    """What a data plane says, which knows its peer by no name, as it can be read at either host."""
    return None if said is None else re.sub(r"\b(the|its) peer\b", f"host {peer}", said)
