"""The command line against an API that answers from a table: fields sent, agreement to losses, errors, exit codes."""

import json
import os
import time
from pathlib import Path

import fakeapi
import pytest
from fakeapi import Api, Json

from pathctl import cli, clicommon, client, clihost, config, errors, shapes

PAIR_CREATE: Json = {
    "source": "v",
    "destination": "beta:w",
    "invalidate": "source",
    "first": "source",
    "create": False,
    "size": None,
    "track_size": None,
    "attach": False,
    "force": False,
    "copy_rate_bytes_s": None,
    "on_path_loss": None,
    "dry_run": False,
}
EVENTS: Json = {"after_id": 0, "since": None, "pair": None, "limit": 1000, "wait_s": 0}


@pytest.mark.parametrize(
    ("line", "verb", "fields"),
    [
        (
            "host init --name alpha --address 10.0.0.1",
            "host.init",
            {"name": "alpha", "address": "10.0.0.1", "port": 7630},
        ),
        (
            "host init --name alpha --address 10.0.0.1:99",
            "host.init",
            {"name": "alpha", "address": "10.0.0.1", "port": 99},
        ),
        ("host show", "host.show", {}),
        ("host set --address [fd00::1]:99", "host.set", {"address": "fd00::1", "port": 99}),
        ("peer invite", "peer.invite", {}),
        ("peer join T", "peer.join", {"token": "T"}),
        ("peer list", "peer.list", {}),
        (
            "peer set beta --address 10.0.0.9",
            "peer.set",
            {"name": "beta", "address": "10.0.0.9", "port": None, "force": False},
        ),
        (
            "peer set beta --address 10.0.0.9 --force",
            "peer.set",
            {"name": "beta", "address": "10.0.0.9", "port": None, "force": True},
        ),
        (
            "volume create v --size 1.5G",
            "volume.create",
            {"name": "v", "size": 3 << 29, "track_size": None, "backing": None, "dry_run": False},
        ),
        (
            "volume create v --backing /dev/x --track-size 4K",
            "volume.create",
            {"name": "v", "size": None, "track_size": 4096, "backing": "/dev/x", "dry_run": False},
        ),
        ("volume list", "volume.list", {}),
        ("volume show v", "volume.show", {"name": "v"}),
        ("volume delete v --yes", "volume.delete", {"name": "v", "dry_run": False}),
        ("volume accept v --yes", "volume.accept", {"name": "v", "dry_run": False}),
        ("pair create v beta:w --invalidate source --yes", "pair.create", PAIR_CREATE),
        (
            "pair create v beta:w --invalidate destination --first destination --create --size 1G --track-size 1M \
--attach --force --copy-rate 0 --on-path-loss stop --yes",
            "pair.create",
            PAIR_CREATE
            | {
                "invalidate": "destination",
                "first": "destination",
                "create": True,
                "size": 1 << 30,
                "track_size": 1 << 20,
                "attach": True,
                "force": True,
                "copy_rate_bytes_s": 0,
                "on_path_loss": "stop",
            },
        ),
        ("pair list", "pair.list", {}),
        ("pair show v", "pair.show", {"pair": "v"}),
        ("pair suspend v", "pair.suspend", {"pair": "v"}),
        ("pair resume v", "pair.resume", {"pair": "v"}),
        (
            "pair delete v --half --yes",
            "pair.delete",
            {"pair": "v", "half": True, "force": False, "dry_run": False},
        ),
        (
            "pair delete v --force --yes",
            "pair.delete",
            {"pair": "v", "half": False, "force": True, "dry_run": False},
        ),
        ("pair set v --copy-rate 50M", "pair.set", {"pair": "v", "copy_rate_bytes_s": 50 << 20}),
        ("pair set v --copy-rate none", "pair.set", {"pair": "v", "copy_rate_bytes_s": None}),
        ("pair set v --on-path-loss stop", "pair.set", {"pair": "v", "on_path_loss": "stop"}),
        (
            "pair resolve v --discard source --force --yes",
            "pair.resolve",
            {"pair": "v", "discard": "source", "force": True, "dry_run": False},
        ),
        ("connection list", "connection.list", {}),
        ("attach v", "attach", {"volume": "v"}),
        ("detach v", "detach", {"volume": "v"}),
        ("status", "status", {}),
        ("why v", "pair.why", {"pair": "v"}),
        ("events", "events.list", EVENTS),
        ("events --limit 1", "events.list", EVENTS | {"limit": 1}),
        ("events --pair v --limit 3", "events.list", EVENTS | {"pair": "v", "limit": 3}),
        ("events --since 2026-11-22T14:30:00Z", "events.list", EVENTS | {"since": 1795357800.0}),
        ("config show", "config.show", {}),
        ("backup /x/b", "backup.make", {"path": "/x/b"}),
        ("metrics", "/metrics", {}),
    ],
)
def test_a_command_is_one_verb_with_its_options_as_fields(
    api: Api, capsys: pytest.CaptureFixture[str], line: str, verb: str, fields: Json
) -> None:
    assert api.run(*line.split()) == errors.ExitCode.OK
    assert api.asked == [(verb, fields)]
    assert capsys.readouterr().out.strip()


def test_a_time_may_be_told_as_a_length_before_now(api: Api) -> None:
    before = time.time()
    assert api.run("events", "--since", "2h") == errors.ExitCode.OK
    assert before - 7200 <= api.asked[0][1]["since"] <= time.time() - 7200


@pytest.mark.parametrize(
    ("rate", "said"),
    [
        ("10", "note: 10 is 10 bytes per second; 10M is 10 MiB per second\n"),
        ("63K", "note: 63K is 64512 bytes per second; 10M is 10 MiB per second\n"),
        ("64K", ""),
        ("0", ""),
        ("none", ""),
    ],
)
def test_a_rate_that_is_hardly_meant_is_told_and_carried_out(
    api: Api, capsys: pytest.CaptureFixture[str], rate: str, said: str
) -> None:
    assert api.run("pair", "set", "v", "--copy-rate", rate) == errors.ExitCode.OK
    assert capsys.readouterr().err == said
    assert api.asked[0][0] == "pair.set"


@pytest.mark.parametrize(
    ("options", "limit"),
    [("", 10), ("--limit 3", 3), ("--since 10m", 1000), ("--since 10m --limit 3", 3)],
)
def test_events_that_are_followed_begin_with_the_last_ten(
    monkeypatch: pytest.MonkeyPatch, api: Api, options: str, limit: int
) -> None:
    asked: list[Json] = []

    def ask(_root: object, _verb: str, **fields: object) -> Json:
        asked.append(fields)
        raise errors.internal("enough")

    monkeypatch.setattr(client, "call", ask)
    assert api.run("events", "--follow", *options.split()) == errors.ExitCode.INTERNAL
    assert asked[0]["limit"] == limit


# -- what loses data --------------------------------------------------------------------------------------

LOSERS = [
    ("pair create v beta:w --invalidate source", "pair.create"),
    ("pair delete v --force", "pair.delete"),
    ("pair resolve v --discard destination", "pair.resolve"),
    ("volume delete v", "volume.delete"),
    ("volume accept v", "volume.accept"),
]


@pytest.mark.parametrize(("line", "verb"), LOSERS)
def test_what_loses_data_is_refused_in_a_script_unless_it_says_yes(
    api: Api, capsys: pytest.CaptureFixture[str], line: str, verb: str
) -> None:
    api.plan = fakeapi.LOSING
    assert api.run(*line.split()) == errors.ExitCode.REFUSED
    assert [(asked, fields["dry_run"]) for asked, fields in api.asked] == [(verb, True)]
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"pathctl: this would lose data: {fakeapi.LOSS}; nothing was changed:"
        " look with --dry-run, then repeat with --yes\n"
    )

    assert api.run(*line.split(), "--yes") == errors.ExitCode.OK
    assert [(asked, fields["dry_run"]) for asked, fields in api.asked[1:]] == [(verb, False)]


@pytest.mark.parametrize(("line", "verb"), LOSERS)
def test_what_loses_nothing_needs_no_yes(api: Api, line: str, verb: str) -> None:
    assert api.run(*line.split()) == errors.ExitCode.OK
    assert [(asked, fields["dry_run"]) for asked, fields in api.asked] == [(verb, True), (verb, False)]


@pytest.mark.parametrize(
    ("line", "verb"), [*LOSERS, ("volume create v --size 1G", "volume.create"), ("pair delete v --yes", "pair.delete")]
)
def test_a_dry_run_tells_the_plan_and_does_nothing(
    api: Api, capsys: pytest.CaptureFixture[str], line: str, verb: str
) -> None:
    api.plan = fakeapi.LOSING
    assert api.run(*line.split(), "--dry-run") == errors.ExitCode.OK
    assert [(asked, fields["dry_run"]) for asked, fields in api.asked] == [(verb, True)]
    assert capsys.readouterr().out.splitlines() == [
        "would: mark it",
        f"LOSES: {fakeapi.LOSS}",
        "nothing was changed; to do it, repeat with --yes",
    ]


# -- errors -----------------------------------------------------------------------------------------------


def test_an_error_is_one_sentence_with_what_was_done_and_an_exit_code(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {
        "code": "unreachable",
        "message": "beta does not answer.",
        "done": ["first connection"],
        "failed": "second connection",
        "undone": ["first connection"],
        "pending": [],
    }
    api.answers["pair.create"] = (502, {"error": error})
    line = ["pair", "create", "v", "beta:w", "--invalidate", "source", "--yes"]
    assert api.run(*line) == errors.ExitCode.UNREACHABLE
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "pathctl: beta does not answer.",
        "  done: first connection",
        "  failed: second connection",
        "  undone: first connection",
    ]
    assert api.run(*line, "--json") == errors.ExitCode.UNREACHABLE
    assert json.loads(capsys.readouterr().out) == {"version": 1, "error": error}


@pytest.mark.parametrize("code", list(errors.ErrorCode))
def test_each_error_code_has_its_exit_code(api: Api, code: errors.ErrorCode) -> None:
    api.answers["volume.show"] = (500, {"error": {"code": code.value, "message": "no"}})
    assert api.run("volume", "show", "v") == errors.ExitCode[code.name]


@pytest.mark.parametrize(
    "answer", [(500, {}), (500, {"error": {"code": "odd"}}), (200, ["a list"]), (404, {"error": 1})]
)
def test_an_answer_that_is_none_is_an_internal_error(
    api: Api, capsys: pytest.CaptureFixture[str], answer: tuple[int, Json]
) -> None:
    api.answers["volume.show"] = answer
    assert api.run("volume", "show", "v") == errors.ExitCode.INTERNAL
    assert "see its log" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("volume create v --size 10X", "is no size"),
        ("pair set v --copy-rate fast", "is no rate"),
        ("pair set v", "Missing option"),
        ("pair set v --on-path-loss panic", "'panic' is not one of 'continue', 'stop'"),
        ("pair resolve v", "Missing option"),
        ("pair resolve v --discard both", "'both' is not one of 'source', 'destination'"),
        ("pair create v w --invalidate both", "is not one of"),
        ("pair wait v --for asleep", "is not one of"),
        ("pair create v beta:w", "Missing option '--invalidate': it is one of source, destination; look with"),
        ("host init --name a --address 10.0.0.1:x", "ADDRESS[:PORT]"),
        ("volume", ""),
        ("nonsense", "No such command"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error_and_asks_nobody(
    api: Api, capsys: pytest.CaptureFixture[str], line: str, reason: str
) -> None:
    assert api.run(*line.split()) == errors.ExitCode.USAGE
    told = capsys.readouterr().err
    assert reason in told
    assert "\t" not in told.replace("\\t", "\t")
    assert api.asked == []


def test_a_usage_error_is_json_too_if_json_is_asked_for(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert api.run("volume", "show", "--json") == errors.ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_without_pathctld_the_error_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--root", str(tmp_path), "status"]) == errors.ExitCode.UNREACHABLE
    assert "pathctld does not run" in capsys.readouterr().err


def test_the_root_is_taken_from_the_environment(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers["pair.list"] = {"pairs": []}
    monkeypatch.setenv("PATHCTL_ROOT", str(api.root))
    assert cli.run(["pair", "list"]) == errors.ExitCode.OK
    assert capsys.readouterr().out == "no pairs\n"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", ("10.0.0.1", 1)),
        ("10.0.0.1:22", ("10.0.0.1", 22)),
        ("fd00::1", ("fd00::1", 1)),
        ("[fd00::1]", ("fd00::1", 1)),
        ("[fd00::1]:22", ("fd00::1", 22)),
    ],
)
def test_an_address_may_have_a_port(text: str, address: tuple[str, int]) -> None:
    assert clicommon.split_address(text, default_port=1) == address


@pytest.mark.parametrize(
    "line", ["--json pair list", "pair --json list", "pair list --json", "pair --json list --json"]
)
def test_json_may_stand_anywhere(api: Api, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert api.run(*line.split()) == errors.ExitCode.OK
    assert list(json.loads(capsys.readouterr().out)) == ["version", "pairs"]


def test_behind_two_dashes_json_is_a_name(api: Api) -> None:
    assert api.run("volume", "show", "--", "--json") == errors.ExitCode.OK
    assert api.asked == [("volume.show", {"name": "--json"})]


def test_control_characters_are_shown_escaped(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    error = {"code": "refused", "message": "no \x1b[31mred\n name", "done": ["\x07"]}
    api.answers["volume.show"] = (409, {"error": error})
    api.run("volume", "show", "v")
    assert capsys.readouterr().err == "pathctl: no \\x1b[31mred\\n name\n  done: \\x07\n"
    api.answers["volume.list"] = {"volumes": [fakeapi.VOLUME | {"failed": "\x1b[2J\u202egone"}]}
    api.run("volume", "list")
    assert "\\x1b[2J\\u202egone" in capsys.readouterr().out


def test_an_argument_that_is_no_utf_8_is_a_usage_error(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert api.run("volume", "show", os.fsdecode(b"v\xff")) == errors.ExitCode.USAGE
    assert r"'v\udcff' is not UTF-8" in capsys.readouterr().err
    assert api.asked == []


def test_an_answer_of_another_version_is_no_traceback(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["volume.show"] = {"volume": {"name": "v"}}
    assert api.run("volume", "show", "v") == errors.ExitCode.INTERNAL
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1
    assert "KeyError" in told
    assert "start it anew" in told


def test_a_root_that_is_too_long_for_a_socket_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--root", "/" + "x" * 120, "status"]) == errors.ExitCode.USAGE
    assert "choose a root with a shorter name" in capsys.readouterr().err


def test_values_that_stand_twice_for_the_sake_of_a_short_start_are_the_same() -> None:
    assert clicommon.VERSION == shapes.VERSION
    assert clihost.DEFAULT_PORT == config.DEFAULT_PORT
