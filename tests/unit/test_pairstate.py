"""The states that users see, walked over every combination of facts."""

import itertools

import msgspec
import pytest

from pathctl.pairstate import Facts, State, direction, named, state

UP = Facts(journal=None, answers=True, ready=True, session=True, complete=True)

# One row per line of the table: what differs from a synchronized pair, the state, the direction.
TABLE = [
    ({"journal": "creating"}, State.CREATING, None),
    ({"journal": "deleting"}, State.DELETING, None),
    ({"answers": False}, State.PARTITIONED, None),
    ({"ready": False}, State.SUSPENDED, None),
    ({"session": False}, State.PARTITIONED, None),
    ({"session": False, "refused": True}, State.REFUSED, None),
    ({"session": False, "ended_there": True}, State.REFUSED, None),
    ({"session": False, "refused": True, "parted": True}, State.SPLIT, None),
    ({"session": False, "ended_there": True, "parted": True}, State.SPLIT, None),
    ({"session": False, "parted": True}, State.PARTITIONED, None),
    ({"ready": False, "session": False, "refused": True, "parted": True}, State.SUSPENDED, None),
    ({"answers": False, "ended_there": True}, State.REFUSED, None),
    ({"ready": False, "session": False, "ended_there": True}, State.SUSPENDED, None),
    ({"invalid": 1}, State.SYNC_IN_PROG, "to_source"),
    ({"owed": 1}, State.SYNC_IN_PROG, "to_destination"),
    ({"invalid": 1, "owed": 1}, State.SYNC_IN_PROG, "to_source"),
    ({"complete": False}, State.SYNC_IN_PROG, None),
    ({}, State.SYNCHRONIZED, None),
]


@pytest.mark.parametrize(("change", "expected", "way"), TABLE)
def test_each_row_of_the_table_gives_its_state_and_direction(change, expected, way):
    facts = msgspec.structs.replace(UP, **change)
    assert (state(facts), direction(facts)) == (expected, way)


def test_synchronized_is_said_only_when_everything_holds():
    everything = itertools.product(("creating", "deleting", None), *[(False, True)] * 4, (0, 3), (0, 3), (False, True))
    for journal, answers, ready, session, refused, invalid, owed, complete in everything:
        facts = Facts(journal, answers, ready, session, refused, invalid, owed, complete)
        holds = journal is None and answers and ready and session and complete and not invalid and not owed
        assert (state(facts) == State.SYNCHRONIZED) == holds, facts
        is_copying = state(facts) == State.SYNC_IN_PROG and bool(invalid or owed)
        assert (direction(facts) is not None) == is_copying, facts


def test_the_peer_is_called_by_its_name():
    assert named(None, "beta") is None
    assert named("the peer refuses the path: the peer's volume is older", "beta") == (
        "host beta refuses the path: host beta's volume is older"
    )
    assert named("no connection to the peer at 192.0.2.1:7700: timed out", "beta") == (
        "no connection to host beta at 192.0.2.1:7700: timed out"
    )
