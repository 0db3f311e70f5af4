"""What is said of a pair: whatever is the case, whole sentences, and a command only where it is right."""

from __future__ import annotations

import itertools
import re
import shlex
from typing import Any, get_args, get_type_hints

import click
import msgspec
import pytest

from nbdplugin import lineage
from pathctl import cli, refusals, shapes, why
from pathctl.why import Facts, Situation

PAIR = shapes.Pair(
    pair="0f3c2a10-0000-4000-8000-000000000000",
    state="Synchronized",
    since=1.7e9,
    direction=None,
    reason=None,
    side="source",
    source=shapes.End("alpha", "va"),
    destination=shapes.End("beta", "vb"),
    invalidated="destination",
    ready=True,
    committed=True,
    size=1 << 30,
    track_size=64 << 10,
    tracks=16384,
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
COPY = shapes.Progress("c", 1.7e9, 16384, 0, 10000, 6384, 61.0, 50 << 20, 8.0, True)
STATES = get_args(get_type_hints(shapes.Pair)["state"])
LEFT = {"owed": 6384, "direction": "to_destination", "progress": COPY}
REFUSED = "the peer refuses the path: "
SIDES = shapes.Sides(
    shapes.Held("alpha", "va", 1.7e9, 17, "a" * 36, incomplete=False, in_use=True, device="/dev/loop0", ended=False),
    shapes.Held("beta", "vb", 1.71e9, None, "b" * 36, incomplete=True, in_use=False, ended=True),
)


def make(changes: dict[str, Any] | None = None, **facts: Any) -> Facts:
    pair = msgspec.structs.replace(PAIR, **(changes or {}))
    peer = pair.destination.host if pair.side == "source" else pair.source.host
    return Facts(pair, **({"peer": peer} | facts))


HALF = "pathctl pair delete va --half --dry-run"

# What is the case, what it is taken for, the command.
TABLE = [
    (make({"state": "Creating"}), Situation.CREATING, None),
    (make({"state": "Creating"}, is_reachable=False), Situation.CREATING_AWAY, HALF),
    (make({"state": "Creating"}, note="no answer"), Situation.CREATING_AWAY, HALF),
    (make({"state": "Deleting"}), Situation.DELETING, None),
    (make({"state": "Deleting"}, is_reachable=False), Situation.DELETING_AWAY, HALF),
    (
        make({"state": "Deleting", "side": "destination"}, note="alpha was asked and did not answer"),
        Situation.DELETING_AWAY,
        "pathctl pair delete vb --half --dry-run",
    ),
    (make({"state": "Suspended"}), Situation.SUSPENDED, "pathctl pair resume va"),
    (make({"state": "Suspended", "side": "destination"}), Situation.SUSPENDED, "pathctl pair resume vb"),
    (make({"state": "Suspended"}, failed="a sync failed"), Situation.FAILED, None),
    (make({"state": "Partitioned"}, is_heard=False, failed="a sync failed"), Situation.FAILED, None),
    (make({"state": "Partitioned"}, is_heard=False, silent="ended"), Situation.SILENT, "pathctl volume show va"),
    (make({"state": "Partitioned"}, is_heard=False, silent="-", hung=77), Situation.HUNG, "kill -9 77"),
    (
        make({"state": "Partitioned"}, is_heard=False, silent="its backing is missing", is_down=True),
        Situation.DOWN,
        "pathctl volume show va",
    ),
    (make({"state": "Partitioned", "side": "destination"}, silent="-", hung=77), Situation.HUNG, "kill -9 77"),
    (make({"state": "SyncInProg", "side": "destination", **LEFT}, silent="-", hung=77), Situation.HUNG, "kill -9 77"),
    (
        make({"state": "Partitioned", "side": "destination"}, is_heard=False, silent="no backing", is_down=True),
        Situation.DOWN,
        "pathctl volume show vb",
    ),
    (
        make({"state": "Partitioned", "reason": "volume va is in no pair by its metadata"}, is_heard=False),
        Situation.OTHER_PAIR,
        HALF,
    ),
    (make({"state": "Partitioned"}), Situation.CONNECTING, None),
    (make({"state": "Partitioned"}, link_error="no route"), Situation.LINK_DOWN, None),
    (make({"state": "Partitioned"}, link_error="no route", is_reachable=False), Situation.PEER_DOWN, None),
    (make({"state": "Partitioned", "side": "destination"}, is_heard=False), Situation.SOURCE_AWAY, None),
    (
        make({"state": "Partitioned", "side": "destination"}, is_heard=False, is_linked=True),
        Situation.SOURCE_AWAY_LINKED,
        None,
    ),
    (
        make({"state": "Partitioned", "side": "destination"}, is_heard=False, is_ended_there=True),
        Situation.ENDED_THERE,
        "pathctl pair delete vb --half --dry-run",
    ),
    (make({"state": "Refused"}, is_ended_there=True), Situation.ENDED_THERE, HALF),
    (make({"state": "Refused"}, link_error=f"{REFUSED}written apart"), Situation.REFUSED, None),
    (make({"state": "Refused", "sides": SIDES}, is_ended_there=True), Situation.ENDED_THERE, HALF),
    (make({"state": "Refused", "sides": SIDES}, link_error=f"{REFUSED}written apart"), Situation.REFUSED, None),
    (make({"state": "Split", "sides": SIDES}, is_ended_there=True), Situation.SPLIT, None),
    (make({"state": "Split", "sides": SIDES, "side": "destination"}), Situation.SPLIT, None),
    (make({"state": "Split", "sides": SIDES}, failed="a sync failed"), Situation.FAILED, None),
    (make({"state": "SyncInProg", **LEFT}), Situation.COPYING, None),
    (make({"state": "SyncInProg", **LEFT}, copy_error="a write failed"), Situation.COPY_FAILING, None),
    (
        make({"state": "SyncInProg", "side": "destination", "reason": "host alpha says: no space", **LEFT}),
        Situation.COPY_FAILING,
        None,
    ),
    (make({"state": "SyncInProg", **LEFT}, device_failed="gone"), Situation.DEVICE_FAILED, "pathctl attach va"),
    (make({"state": "SyncInProg"}), Situation.CONFIRMING, None),
    (
        make({"state": "SyncInProg", **LEFT, "copy_rate_bytes_s": 0}),
        Situation.PAUSED,
        "pathctl pair set va --copy-rate none",
    ),
    (make({"state": "SyncInProg", **LEFT}, limit_bytes_s=0), Situation.PAUSED_HOST, None),
    (
        make({"state": "SyncInProg", **LEFT, "progress": msgspec.structs.replace(COPY, converging=False, eta_s=None)}),
        Situation.STUCK,
        None,
    ),
    (make({"state": "SyncInProg", **LEFT}, failed="a sync failed"), Situation.FAILED, None),
    (make(), Situation.SYNCHRONIZED, None),
    (make(device_failed="its process has ended"), Situation.DEVICE_FAILED, "pathctl attach va"),
    (make(device_failed="its process has ended", read_errors=1), Situation.DEVICE_FAILED, "pathctl attach va"),
    (make(read_errors=3, peer_reads=3, repaired_tracks=2), Situation.DISK_FAILING, None),
    (make({"state": "SyncInProg", **LEFT}, read_errors=3), Situation.DISK_FAILING, None),
]


def sentences(found: shapes.Why) -> list[str]:
    return [found.meaning, found.cause, found.safe, found.next]


def check(found: shapes.Why) -> None:
    assert msgspec.convert(msgspec.to_builtins(found), shapes.Why) == found
    for text in sentences(found):
        assert re.search(r"[.!?]$", text), text
        assert not re.search(r"[{}]|None|  |\.\.", text), text
    if found.command is not None:
        known = r"pathctl (pair|volume|attach) [a-z0-9 -]+|kill -9 [0-9]+"
        assert re.fullmatch(known, found.command), found.command


def commands(found: shapes.Why) -> set[str]:
    """All that it says can be typed."""
    quoted = re.findall(r"`(pathctl [^`]+)`", " ".join(sentences(found)))
    return {found.command, *quoted} - {None} - {text for text in [found.command] if text and text.startswith("kill")}


def parse(text: str) -> None:
    """As the command line would read it; raises click's UsageError."""
    words = shlex.split(text.replace("SIDE", "source").replace("ADDRESS", "192.0.2.1"))[1:]
    context, command = click.Context(cli.cli), cli.cli
    while isinstance(command, click.Group):
        name = words.pop(0)
        command = command.get_command(context, name)
        assert command is not None, text
    command.make_context("pathctl", words, parent=context)


@pytest.mark.parametrize(("facts", "situation", "command"), TABLE, ids=lambda value: getattr(value, "name", None))
def test_each_situation_is_recognized_and_names_its_command(facts, situation, command) -> None:
    assert why.situation(facts) == situation
    found = why.explain(facts)
    check(found)
    assert found.command == command


def test_the_table_above_and_the_texts_have_every_situation() -> None:
    assert {situation for _facts, situation, _command in TABLE} == set(Situation)
    assert set(why.SITUATIONS) == set(Situation) - {Situation.REFUSED}


def test_whatever_is_the_case_all_of_it_is_said_in_whole_sentences() -> None:
    lefts: list[dict[str, Any]] = [
        {},
        LEFT,
        {"sides": SIDES, "on_path_loss": "stop"},
        {"sides": shapes.Sides(SIDES.source, shapes.Held("beta", "vb")), "on_path_loss": "continue"},
        {"on_path_loss": "stop", "owed": 7},
        {"invalid": 5},
        {"invalid": 5, "owed": 2, "progress": COPY},
        {"invalid": None, "owed": None, "progress": None, "since": None},
        {"owed": 3, "copy_rate_bytes_s": 1 << 20, "progress": msgspec.structs.replace(COPY, rate_bytes_s=None)},
    ]
    more: list[dict[str, Any]] = [
        {},
        {"is_reachable": False, "peer_note": "host beta at 192.0.2.1:7630 cannot be reached"},
        {"is_heard": False, "is_linked": True},
        {"is_heard": False, "is_ended_there": True, "incomplete": True},
        {"is_heard": False, "incomplete": False},
        {"failed": "the disk is broken", "note": "waits"},
        {"silent": "no answer", "hung": 77},
        {"silent": "no backing", "is_down": True, "is_heard": False},
        {"is_heard": False, "heard_s": 45.2},
        {"link_error": "the peer answered: No space left on device", "copy_error": "x", "actor": "uid 0 (root)"},
        {"device_failed": "its process has ended", "actor": "host beta", "cause": "pair.suspend", "limit_bytes_s": 0},
    ]
    said: set[str] = set()
    for state, side, left, known in itertools.product(STATES, ("source", "destination"), lefts, more):
        facts = make({"state": state, "side": side, **left}, **known)
        assert why.situation(facts) in Situation
        found = why.explain(facts)
        check(found)
        said |= commands(found)
    assert len(said) > 10
    for text in said:
        parse(text)


@pytest.mark.parametrize("verdict", list(lineage.SENTENCES))
@pytest.mark.parametrize("side", ["source", "destination"])
def test_every_refusal_of_a_greeting_is_known_and_told_what_to_do_about(verdict, side) -> None:
    reason = f"{REFUSED}{lineage.SENTENCES[verdict]}"
    assert refusals.find(reason).sign, "known by name, not just as some refusal"
    found = why.explain(make({"state": "Refused", "side": side, "reason": reason, **LEFT}, link_error=reason))
    check(found)
    for text in commands(found):
        parse(text)
    assert lineage.SENTENCES[verdict] in found.cause
    if verdict is lineage.Verdict.BOTH_MOVED:
        assert found.command is None, "whose data is kept is decided by a person"


@pytest.mark.parametrize("side", ["source", "destination"])
@pytest.mark.parametrize("state", ["Split", "Refused"])
def test_of_a_pair_that_can_be_resolved_both_sides_and_both_ways_are_told(state, side) -> None:
    reason = f"{REFUSED}{lineage.SENTENCES[lineage.Verdict.PEER_AHEAD]}"
    found = why.explain(make({"state": state, "side": side, "reason": reason, "sides": SIDES}))
    assert "alpha:va: last written 2023-11-14 22:13:20 UTC" in found.safe
    assert "17 of 16384 tracks (1M) are owed to the other" in found.safe
    assert "in use (/dev/loop0)" in found.safe
    assert "beta:vb: last written 2024-03-09 16:00:00 UTC" in found.safe
    assert "its half of the pair was ended" in found.safe
    name = "va" if side == "source" else "vb"
    for lost in ("source", "destination"):
        assert f"pathctl pair resolve {name} --discard {lost} --dry-run" in commands(found)
    assert found.command is None, "whose data is kept is decided by a person"
    assert "pair create" not in found.next


def test_what_the_policy_stop_does_is_told_before_and_while_it_does() -> None:
    assert "Policy stop: host writes wait and then fail while" in why.explain(make({"on_path_loss": "stop"})).safe
    halted = make({"state": "Partitioned", "on_path_loss": "stop"}, link_error="no route", fetch_timeout_s=600.0)
    found = why.explain(halted)
    assert "Host writes to alpha:va wait for the path and fail after 10m00s" in found.meaning
    assert "`pathctl pair set va --on-path-loss continue` lets them go on" in found.meaning
    assert "alpha:va is complete and can be read, while writes wait" in found.safe
    for other in ({"on_path_loss": "continue"}, {}, {"on_path_loss": "stop", "state": "Suspended"}):
        said = why.explain(make({"state": "Partitioned", **other}, link_error="no route"))
        assert "wait for the path" not in said.meaning
        assert "Policy stop" not in said.safe


def test_refusals_differ_from_each_other() -> None:
    found = [refusals.find(text).sign for text in lineage.SENTENCES.values()]
    assert len(set(found)) == len(found)
    versions = lineage.explain_versions(lineage.Versions(3, 4), lineage.Versions(1, 2))
    assert "one version" in why.explain(make({"state": "Refused", "reason": versions})).next


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("the peer answered: No space left on device", "Make room on the file system of beta:vb at host beta"),
        ("the peer answered: Input/output error", "The disk of beta:vb gives errors"),
        ("something new", "See the log of beta:vb on beta"),
    ],
)
def test_an_error_that_the_peers_disk_answers_is_told_as_that(reason, said) -> None:
    assert said in why.explain(make({"state": "Refused"}, link_error=reason)).next


def test_who_suspended_the_path_is_named() -> None:
    found = why.explain(make({"state": "Suspended"}, actor="uid 0 (root)", cause="pathctl pair suspend"))
    assert found.cause == "It was asked for by uid 0 (root): pathctl pair suspend."


def test_a_peers_daemon_that_is_away_is_told_although_data_goes_on() -> None:
    assert "pathctld on host beta does not answer" in why.explain(make(is_reachable=False)).next
    assert "pathctld" not in why.explain(make(is_reachable=True)).next


def test_what_is_safe_follows_from_what_is_left_and_where() -> None:
    def safe(**changes: Any) -> str:
        return why.explain(make({"state": "Suspended", **changes})).safe

    assert "alpha:va is the only good copy" in safe(owed=16)
    assert "16 of 16384 tracks (1M) of alpha:va are only at beta:vb" in safe(invalid=16)
    assert "delete neither" in safe(invalid=1, owed=1)
    assert "alpha:va is complete" in safe()
    assert "Either host may fail" in why.explain(make()).safe


def test_a_destination_alone_says_whether_its_copy_can_be_used() -> None:
    alone = {"state": "Partitioned", "side": "destination", "invalid": None, "owed": None}
    whole = why.explain(make(alone, is_heard=False, incomplete=False))
    assert "complete as of when the hosts last heard each other" in whole.safe
    assert "accept" not in whole.next
    part = why.explain(make(alone, is_heard=False, incomplete=True))
    assert "Do not use it alone" in part.safe
    assert "`pathctl volume accept vb --dry-run`" in part.next


def test_names_for_creating_anew_are_as_this_host_has_to_write_them() -> None:
    reason = lineage.SENTENCES[lineage.Verdict.UNRELATED]
    here, there = (
        why.explain(make({"state": "Refused", "reason": reason, "side": side})).next
        for side in ("source", "destination")
    )
    assert "pathctl pair create va beta:vb --invalidate SIDE" in here
    assert "pathctl pair create alpha:va vb --invalidate SIDE" in there


@pytest.mark.parametrize("left", [{"invalid": 16}, {"invalid": 16, "owed": 3}])
def test_that_reading_fails_without_the_path_is_said_whatever_else_is_left(left) -> None:
    for state in ("Suspended", "Partitioned", "Refused"):
        safe = why.explain(make({"state": state, **left}, link_error="x", fetch_timeout_s=30.0)).safe
        assert "The path is not there: reading those waits (30s) and then fails" in safe
    assert "The path is not there" not in why.explain(make({"state": "SyncInProg", **left})).safe


def test_what_freeing_a_half_loses_is_told_and_the_command_only_looks() -> None:
    away = make({"state": "Partitioned", "invalid": 1002}, link_error="no route", is_reachable=False)
    said = why.explain(away).next
    assert "--half --dry-run` says what that loses: 1002 of 16384 tracks (62.6M), which are only at beta:vb." in said
    for facts, _situation, _command in TABLE:
        assert not any("--half --yes" in text for text in commands(why.explain(facts)))


def test_a_destination_that_hears_nothing_says_since_when_and_claims_no_connection() -> None:
    alone = {"state": "Partitioned", "side": "destination", "invalid": None, "owed": None}
    silent = why.explain(make(alone, is_heard=False, heard_s=45.2))
    assert "Nothing came from it for 45s." in silent.meaning
    linked = why.explain(make(alone, is_heard=False, is_linked=True, heard_s=5.1))
    assert "was heard 5s ago" in linked.meaning
    for found in (silent, linked):
        assert "is up" not in " ".join(sentences(found))


def test_a_process_that_tells_nothing_is_not_called_failed() -> None:
    for side in ("source", "destination"):
        found = why.explain(make({"state": "Partitioned", "side": side}, silent="no answer", hung=77))
        said = " ".join(sentences(found))
        assert "Process 77" in found.meaning
        assert "has failed" not in said
        assert "delete the pair" not in said
        assert "starts it again by itself" not in said


def test_at_a_destination_it_is_said_who_refuses_what_to_whom() -> None:
    reason = "host alpha says: host beta answered: No space left on device"
    found = why.explain(make({"state": "Refused", "side": "destination", "reason": reason}))
    assert found.meaning.startswith("The path is wanted, but beta:vb refuses alpha:va:")
    assert found.cause == "Host alpha says: host beta answered: No space left on device."
    assert "Make room on the file system of beta:vb at host beta" in found.next
