"""--json: one object, version first, as pathctl/schema.json says."""

import json
import subprocess
import sys
from importlib import resources
from typing import Any

import fakeapi
import jsonschema
import pytest
from fakeapi import Api, Json

from pathctl import cli, client, errors, shapes

SCHEMA: Json = json.loads(resources.files("pathctl").joinpath("schema.json").read_text())

COMMANDS = [
    ("status", "StatusAnswer"),
    ("host init --name alpha --address 10.0.0.1", "HostAnswer"),
    ("host show", "HostAnswer"),
    ("host set --address 10.0.0.1", "HostAnswer"),
    ("peer invite", "InviteAnswer"),
    ("peer join T", "PeerAnswer"),
    ("peer set beta --address 10.0.0.1", "PeerAnswer"),
    ("peer list", "PeersAnswer"),
    ("connection list", "ConnectionsAnswer"),
    ("config show", "ConfigAnswer"),
    ("config check {file}", "ConfigAnswer"),
    ("backup /x/b", "FileAnswer"),
    ("metrics", "TextAnswer"),
    ("completion bash", "TextAnswer"),
    ("volume create v", "VolumeAnswer"),
    ("volume create v --dry-run", "PlanAnswer"),
    ("volume show v", "VolumeAnswer"),
    ("volume delete v", "VolumeAnswer"),
    ("volume delete v --dry-run", "PlanAnswer"),
    ("volume accept v", "VolumeAnswer"),
    ("volume accept v --dry-run", "PlanAnswer"),
    ("volume list", "VolumesAnswer"),
    ("attach v", "AttachAnswer"),
    ("detach v", "VolumeAnswer"),
    ("pair create v beta:w --invalidate source", "CreatedAnswer"),
    ("pair create v beta:w --invalidate source --dry-run", "PlanAnswer"),
    ("pair list", "PairsAnswer"),
    ("pair show v", "PairAnswer"),
    ("pair wait v", "PairAnswer"),
    ("pair watch", "PairsAnswer"),
    ("pair suspend v", "PairAnswer"),
    ("pair resume v", "PairAnswer"),
    ("pair set v --copy-rate 0", "PairAnswer"),
    ("pair set v --on-path-loss stop", "PairAnswer"),
    ("pair resolve v --discard source", "ResolvedAnswer"),
    ("pair resolve v --discard source --dry-run", "PlanAnswer"),
    ("pair delete v", "PairAnswer"),
    ("pair delete v --dry-run", "PlanAnswer"),
    ("events", "EventsAnswer"),
    ("why v", "WhyAnswer"),
]


def validate(found: Any, answer: str) -> None:
    jsonschema.validate(found, {"$ref": f"#/$defs/{answer}", "$defs": SCHEMA["$defs"]})


def test_the_schema_is_that_of_the_shapes_and_a_good_one() -> None:
    made = subprocess.run([sys.executable, "-m", "pathctl.shapes"], capture_output=True, text=True, check=True)
    assert json.loads(made.stdout) == SCHEMA
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert f"version {shapes.VERSION}" in SCHEMA["title"]


@pytest.mark.parametrize(("line", "answer"), COMMANDS, ids=[line for line, _answer in COMMANDS])
def test_what_a_command_prints_is_what_the_schema_says(
    api: Api, capsys: pytest.CaptureFixture[str], line: str, answer: str
) -> None:
    file = api.root / "pathctl.toml"
    file.write_text('[log]\nlevel = "warning"\n')
    assert api.run(*line.format(file=file).split(), "--json") == errors.ExitCode.OK
    told = capsys.readouterr()
    assert told.err == ""
    found = json.loads(told.out)
    assert next(iter(found)) == "version"
    assert found["version"] == shapes.VERSION
    validate(found, answer)


def test_every_command_but_restore_is_in_the_table() -> None:
    """restore has no pathctld to ask: it is tested with real ones."""
    listed = [task for tasks in cli.TASKS.values() for task in tasks]
    shown = {command for command in listed for line, _answer in COMMANDS if f"{line} ".startswith(f"{command} ")}
    assert set(listed) - shown == {"restore"}


@pytest.mark.parametrize("code", list(errors.ErrorCode))
def test_an_error_is_what_the_schema_says(api: Api, capsys: pytest.CaptureFixture[str], code: errors.ErrorCode) -> None:
    api.answers["status"] = (500, {"error": errors.PathctlError(code, "no", done=["a"], failed="b").as_json()})
    assert api.run("status", "--json") == errors.ExitCode.of(code)
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["version", "error"]
    validate(found, "ErrorAnswer")


@pytest.mark.parametrize("line", ["pair", "nonsense", "pair show", "pair delete v", "volume show \udcff"])
def test_an_error_of_the_command_line_itself_is_too(api: Api, capsys: pytest.CaptureFixture[str], line: str) -> None:
    api.plan = fakeapi.LOSING
    assert api.run("--json", *line.split()) != errors.ExitCode.OK
    validate(json.loads(capsys.readouterr().out), "ErrorAnswer")


def test_followed_events_and_a_watch_are_one_answer_a_line(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([{"events": [fakeapi.EVENT]}, {"events": []}, {"events": [fakeapi.EVENT | {"id": 9}]}])
    asked: list[Json] = []

    def ask(_root: object, _verb: str, **fields: Any) -> Json:
        asked.append(fields)
        answer = next(answers, None)
        if answer is None:
            raise errors.internal("enough")
        return answer

    monkeypatch.setattr(client, "call", ask)
    assert api.run("events", "--follow", "--since", "10m", "--json") == errors.ExitCode.INTERNAL
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for line in lines[:-1]:
        validate(line, "EventsAnswer")
    assert [line["events"][0]["id"] for line in lines[:-1]] == [7, 9]
    assert [fields["after_id"] for fields in asked] == [0, 7, 7, 9]
    assert [fields["since"] is None for fields in asked] == [False, True, True, True]
    assert [fields["wait_s"] for fields in asked] == [0, 30.0, 30.0, 30.0]
