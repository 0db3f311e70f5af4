"""The program against two real pathctld: answers as the schema says, losses agreed to, what is followed."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from live.daemons import BIN, Daemon, enrol
from waiting import WAIT_S

from pathctl import errors

SCHEMA = json.loads(resources.files("pathctl").joinpath("schema.json").read_text())
MIB = 1 << 20


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    alpha, beta = Daemon(tmp_path, "alpha").start(), Daemon(tmp_path, "beta").start()
    enrol(alpha, beta)
    yield alpha, beta
    alpha.stop_all()
    beta.stop_all()


def run(host: Daemon, line: str) -> subprocess.CompletedProcess[str]:
    command = [BIN / "pathctl", "--root", host.root, *line.split()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def ask(host: Daemon, line: str, answer: str) -> dict[str, Any]:
    """The JSON of a command, which is what the schema says of `answer`."""
    shown = run(host, f"{line} --json")
    found = json.loads(shown.stdout)
    jsonschema.validate(found, {"$ref": f"#/$defs/{answer}", "$defs": SCHEMA["$defs"]})
    assert next(iter(found)) == "version"
    assert (shown.returncode == errors.ExitCode.OK) == (answer != "ErrorAnswer"), found
    return found


def test_a_token_is_read_from_the_standard_input(tmp_path: Path) -> None:
    alpha, beta = Daemon(tmp_path, "alpha").start(), Daemon(tmp_path, "beta").start()
    try:
        for host in (alpha, beta):
            host.call("host.init", name=host.name, address="127.0.0.1", port=host.port)
        token = alpha.call("peer.invite")["token"]
        command = [BIN / "pathctl", "--root", beta.root, "peer", "join", "-", "--json"]
        done = subprocess.run(command, input=f"{token}\n", capture_output=True, text=True, timeout=60, check=False)
        assert json.loads(done.stdout)["peer"]["name"] == "alpha", done.stderr
        empty = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False
        )
        assert (empty.returncode, "no token" in empty.stderr) == (errors.ExitCode.USAGE, True)
    finally:
        alpha.stop_all()
        beta.stop_all()


def test_what_real_daemons_answer_is_what_the_schema_says(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, beta = hosts
    ask(alpha, "host show", "HostAnswer")
    ask(alpha, "peer list", "PeersAnswer")
    ask(alpha, "peer invite", "InviteAnswer")
    ask(alpha, f"host set --address 127.0.0.1:{alpha.port}", "HostAnswer")
    ask(alpha, f"peer set beta --address 127.0.0.1:{beta.port}", "PeerAnswer")
    ask(alpha, "volume create v --size 8M --dry-run", "PlanAnswer")
    ask(alpha, "volume create v --size 8M", "VolumeAnswer")
    ask(alpha, "pair create v beta:w --invalidate destination --create --dry-run", "PlanAnswer")
    created = ask(alpha, "pair create v beta:w --invalidate destination --create --attach", "CreatedAnswer")
    assert Path(created["device"]).is_block_device()
    ask(alpha, "pair wait v", "PairAnswer")
    ask(alpha, "pair watch", "PairsAnswer")
    for host, name in ((alpha, "v"), (beta, "w")):
        ask(host, "status", "StatusAnswer")
        ask(host, "volume list", "VolumesAnswer")
        ask(host, f"volume show {name}", "VolumeAnswer")
        ask(host, "pair list", "PairsAnswer")
        ask(host, f"pair show {name}", "PairAnswer")
        ask(host, f"why {name}", "WhyAnswer")
        ask(host, "connection list", "ConnectionsAnswer")
        ask(host, "config show", "ConfigAnswer")
        ask(host, "config check", "ConfigAnswer")
        assert ask(host, f"events --pair {name} --since 1h", "EventsAnswer")["events"]
        assert "pathctl_" in ask(host, "metrics", "TextAnswer")["text"]
    ask(alpha, "pair set v --copy-rate 1M", "PairAnswer")
    ask(alpha, "pair suspend v", "PairAnswer")
    ask(beta, "pair resume w", "PairAnswer")
    ask(alpha, "detach v", "VolumeAnswer")
    ask(alpha, "attach v", "AttachAnswer")
    assert ask(alpha, "volume delete v", "ErrorAnswer")["error"]["code"] == "refused"
    ask(alpha, "detach v", "VolumeAnswer")
    ask(alpha, "pair wait v", "PairAnswer")
    ask(alpha, "pair delete v --dry-run", "PlanAnswer")
    ask(alpha, "pair delete v", "PairAnswer")
    ask(alpha, "volume delete v --dry-run", "PlanAnswer")
    ask(alpha, "volume delete v --yes", "VolumeAnswer")


def test_nothing_is_overwritten_without_yes(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, beta = hosts
    for host in hosts:
        assert run(host, "volume create v --size 4M").returncode == 0
    data = os.urandom(4 * MIB)
    beta.image("v").write_bytes(data)
    before = alpha.rows(), beta.rows()
    create = "pair create v beta:v --invalidate destination"
    plan = ask(alpha, f"{create} --dry-run", "PlanAnswer")["plan"]
    assert any("beta:v" in sentence and "4194304" in sentence for sentence in plan["loses"])
    refused = ask(alpha, create, "ErrorAnswer")["error"]
    assert refused["code"] == "refused"
    assert "nothing was changed" in refused["message"]
    assert (alpha.rows(), beta.rows()) == before
    assert beta.image("v").read_bytes() == data
    ask(alpha, f"{create} --yes", "CreatedAnswer")
    ask(alpha, "pair wait v", "PairAnswer")
    assert beta.image("v").read_bytes() == bytes(4 * MIB)


def test_a_configuration_is_kept_and_put_back(hosts: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    alpha, _beta = hosts
    assert run(alpha, "volume create v --size 4M").returncode == 0
    file = tmp_path / "alpha.backup"
    ask(alpha, f"backup {file}", "FileAnswer")
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(alpha, f"backup {file}").returncode == errors.ExitCode.REFUSED
    assert run(alpha, "volume create younger --size 4M").returncode == 0
    assert run(alpha, f"restore {file}").returncode == errors.ExitCode.REFUSED  # pathctld runs
    alpha.stop_all()
    loses = ask(alpha, f"restore {file} --dry-run", "PlanAnswer")["plan"]["loses"]
    assert any("younger" in sentence for sentence in loses)
    assert "younger" in ask(alpha, f"restore {file}", "ErrorAnswer")["error"]["message"]
    ask(alpha, f"restore {file} --yes", "FileAnswer")
    alpha.start()
    names = [volume["name"] for volume in ask(alpha, "volume list", "VolumesAnswer")["volumes"]]
    assert names == ["v"]


def test_a_watch_goes_on_through_a_restart_of_pathctld_and_never_falls(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, beta = hosts
    assert run(beta, "volume create v --size 16M").returncode == 0
    beta.image("v").write_bytes(os.urandom(16 * MIB))
    assert run(alpha, "pair create v beta:v --invalidate source --create --copy-rate 4M").returncode == 0
    command = [BIN / "pathctl", "--root", alpha.root, "pair", "watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        lines = [watch.stdout.readline()]
        alpha.kill()
        alpha.start()
        rest, _ = watch.communicate(timeout=WAIT_S)
        lines += rest.splitlines()
    assert watch.returncode == errors.ExitCode.OK
    pairs = [json.loads(line)["pairs"][0] for line in lines]
    assert pairs[-1]["state"] == "Synchronized"
    told = [pair["progress"] for pair in pairs if pair["progress"] is not None]
    for before, after in itertools.pairwise(told):
        assert before["copy"] != after["copy"] or before["percent"] <= after["percent"]


def test_followed_events_come_while_they_happen(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, _beta = hosts
    command = [BIN / "pathctl", "--root", alpha.root, "events", "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as follow:
        assert follow.stdout is not None
        first = json.loads(follow.stdout.readline())["events"]
        assert run(alpha, "volume create v --size 4M").returncode == 0
        seen = [event["id"] for event in first]
        for line in follow.stdout:  # what the hosts notice of each other may come before
            told = json.loads(line)["events"]
            seen += [event["id"] for event in told]
            if any(event["kind"] == "volume.created" for event in told):
                break
        else:
            pytest.fail("it ended by itself")
        assert seen == sorted(set(seen)), "each once, in their order"
        follow.terminate()
