"""Changes of state on a real database: each once, in the order of the looks, with who asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from pathctl import actor, config, controlclient, db, shapes, statelog
from pathctl.node import Node
from pathctl.statelog import Told

ROW = db.Connection("pair-1", "op-1", "va", "source", "beta", "vb", "destination")
PAIR = shapes.Pair(
    pair="pair-1",
    state="Synchronized",
    since=None,
    direction=None,
    reason=None,
    side="source",
    source=shapes.End("alpha", "va"),
    destination=shapes.End("beta", "vb"),
    invalidated="destination",
    ready=True,
    committed=True,
    size=1 << 20,
    track_size=65536,
    tracks=16,
    invalid=0,
    owed=0,
    waiting=0,
    copy_rate_bytes_s=None,
    copied_bytes=0,
    fetched_tracks=0,
    copied_tracks=0,
    session=3,
    progress=None,
)
ROOT = "uid 0 (root)"


@pytest.fixture
def node(tmp_path) -> Iterator[Node]:
    database = db.Database(tmp_path / "pathctl.db")
    database.insert_host(db.Host("alpha", "10.0.0.1", 7630))
    database.upsert_peer(db.Peer("beta", "10.0.0.2", 7630, "PEM"))
    database.insert_volume(db.Volume("va", "uuid-1", 1 << 20, 65536, "/x/va.img", True))
    database.insert_connection(ROW)
    yield make_node(tmp_path, database)
    database.close()


def make_node(folder: Any, database: db.Database) -> Node:
    """Of what recording needs: the database; nothing is supervised, nothing runs."""
    return Node(config.Config(folder), database, None, None)  # type: ignore[arg-type]


def see(node: Node, state: str, look: int, **fields: Any) -> float | None:
    names = {name: fields.pop(name) for name in ("told", "is_alone") if name in fields}
    return statelog.note(node, msgspec.structs.replace(PAIR, state=state, **fields), look, **names)


def recorded(node: Node) -> list[tuple[str | None, str | None, str, str | None]]:
    events = [event for event in node.db.events() if event.kind == "pair.state"]
    return [(event.before, event.after, event.actor, event.cause) for event in events]


def states(node: Node) -> list[str | None]:
    return [after for _before, after, _actor, _cause in recorded(node)]


def test_a_state_is_recorded_once_and_since_when_is_known(node: Node) -> None:
    since = see(node, "SyncInProg", 1)
    assert since is not None
    assert [see(node, "SyncInProg", look) for look in (2, 3)] == [since, since]
    assert states(node) == ["SyncInProg"]


def test_what_an_older_look_saw_is_not_recorded_after_a_newer_one(node: Node) -> None:
    see(node, "Suspended", 5)
    assert see(node, "Synchronized", 4) is None
    assert states(node) == ["Suspended"]
    see(node, "Synchronized", 6)
    assert states(node) == ["Suspended", "Synchronized"]


def test_a_restart_of_pathctld_is_no_change_of_state(node: Node, tmp_path) -> None:
    since = see(node, "Synchronized", 1)
    again = make_node(tmp_path, node.db)
    assert see(again, "Synchronized", 1) == since
    assert states(again) == ["Synchronized"]
    assert statelog.last_change(again, "pair-1") == statelog.last_change(node, "pair-1")


def test_a_pair_that_was_deleted_while_it_was_looked_at_leaves_nothing(node: Node) -> None:
    see(node, "Synchronized", 1)
    node.db.end_pair("pair-1")
    see(node, "Partitioned", 2, reason="no answer")
    assert states(node) == ["Synchronized"]
    assert node.db.last_state("pair-1") is None


def test_a_command_is_its_callers_although_the_observer_saw_the_change_first(node: Node) -> None:
    see(node, "Synchronized", 1)
    with actor.by(ROOT, "pair.suspend"):
        node.db.set_connection_state("pair-1", "suspended")
    see(node, "Suspended", 2)
    assert recorded(node)[-1] == ("Synchronized", "Suspended", ROOT, "pathctl pair suspend")
    with actor.by("host beta", "pair.resume"):
        node.db.set_connection_state("pair-1", "ready")
    see(node, "SyncInProg", 3)
    assert recorded(node)[-1] == ("Suspended", "SyncInProg", "host beta", "pathctl pair resume")
    see(node, "Synchronized", 4)
    assert recorded(node)[-1][2:] == ("pathctld", "the copy is finished and the destination has confirmed it")


def test_whoever_only_looks_has_not_changed_anything(node: Node) -> None:
    see(node, "Synchronized", 1)
    with actor.by(ROOT, "pair.show"):
        see(node, "Partitioned", 2, reason="the connection broke")
    assert recorded(node)[-1] == ("Synchronized", "Partitioned", "pathctld", "the connection broke")


def test_a_peers_steps_are_told_as_the_command_that_they_are_part_of(node: Node) -> None:
    with actor.by("host beta", "pair.end"):
        node.db.set_connection_state("pair-1", "deleting")
    see(node, "Deleting", 1)
    assert recorded(node) == [(None, "Deleting", "host beta", "pathctl pair delete")]


def test_the_moment_of_greeting_after_a_resume_is_no_event_and_a_failure_is(node: Node) -> None:
    see(node, "Suspended", 1)
    assert see(node, "Partitioned", 2) is None
    assert states(node) == ["Suspended"]
    see(node, "Partitioned", 3, reason="no connection")
    assert states(node) == ["Suspended", "Partitioned"]


def test_a_destination_tells_what_the_source_told_it(node: Node) -> None:
    see(node, "Synchronized", 1, side="destination")
    see(node, "Suspended", 2, side="destination", told=Told("beta", ROOT, "pathctl pair suspend"))
    asked = f"pathctl pair suspend (asked for by {ROOT} at host beta)"
    assert recorded(node)[-1] == ("Synchronized", "Suspended", "host beta", asked)
    see(node, "Partitioned", 3, side="destination", is_alone=True, reason="not heard")
    see(node, "Suspended", 4, side="destination", told=Told("beta", ROOT, "pathctl pair suspend"))
    assert recorded(node)[-1][2:] == ("pathctld", "pathctld of host beta is heard again")


def test_what_was_asked_for_here_is_told_by_the_other_host_with_one_host(node: Node) -> None:
    see(node, "Synchronized", 1, side="destination")
    see(node, "Suspended", 2, side="destination", told=Told("beta", f"{ROOT} at host alpha", "pathctl pair suspend"))
    asked = f"pathctl pair suspend (asked for by {ROOT} at host alpha)"
    assert recorded(node)[-1][2:] == ("host beta", asked)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (ROOT, f"{ROOT} at host beta"),
        (None, "host beta"),
        ("\n\x1b\u200b ", "host beta"),
        ("uid 0\n\x1b[31m", "uid 0[31m at host beta"),
        ("pathctld", "pathctld at host beta"),
        ("x" * 1000, "x" * 100 + " at host beta"),
    ],
)
def test_what_a_peer_says_of_its_user_is_bounded_and_always_its_word(said: str | None, kept: str) -> None:
    assert actor.of_peer("beta", said) == kept


def test_a_command_that_is_just_being_forwarded_is_its_users_here(node: Node) -> None:
    see(node, "Synchronized", 1, side="destination")
    node.forwarding["pair-1"] = (ROOT, "pair.suspend")
    see(node, "Suspended", 2, side="destination", told=Told("beta", "host alpha", "pathctl pair suspend"))
    assert recorded(node)[-1][2:] == (ROOT, "pathctl pair suspend")


def look_at_path(node: Node, look: int, session: int | None, link: str = "up", error: str | None = None) -> None:
    status = controlclient.Status(pair="pair-1", ready=True, session=session, link=link, link_error=error)
    statelog.note_path(node, PAIR, status, look)


def test_a_path_comes_is_lost_and_is_refused_once_each(node: Node) -> None:
    for look, known in enumerate(
        [
            (None, "connecting"),
            (1,),
            (1,),
            (None, "lost", "cable"),
            (None, "lost", "cable"),
            (None, "refused", "no"),
            (None, "refused", "no"),
            (4,),
            (6,),
        ]
    ):
        look_at_path(node, look, *known)
    found = [(event.kind, event.before, event.after, event.cause) for event in node.db.events() if "path" in event.kind]
    assert found == [
        ("path.up", None, "session 1", None),
        ("path.lost", "session 1", None, "cable"),
        ("path.refused", None, None, "no"),
        ("path.up", None, "session 4", None),
        ("path.lost", "session 4", None, "and made anew between two looks"),
        ("path.up", "session 4", "session 6", None),
    ]


def test_a_command_that_takes_effect_after_a_loss_is_still_its_callers(node: Node) -> None:
    see(node, "Synchronized", 1)
    with actor.by(ROOT, "pair.suspend"):
        node.db.set_connection_state("pair-1", "suspended")
    see(node, "Partitioned", 2, reason="process 7 of volume va is alive but does not answer")
    see(node, "Suspended", 3)
    assert recorded(node)[-1] == ("Partitioned", "Suspended", ROOT, "pathctl pair suspend")
