"""pathctl.toml and the log with real daemons: what is refused, what a restart changes, what is never written."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live.daemons import BIN, Daemon, enrol, free_port
from waiting import WAIT_S, wait_until

from pathctl.errors import ErrorCode, ExitCode, PathctlError

SIZE = 4 << 20


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    alpha, beta = Daemon(tmp_path, "alpha"), Daemon(tmp_path, "beta")
    try:
        yield alpha, beta
    finally:
        alpha.stop_all()
        beta.stop_all()


def set_up(hosts: tuple[Daemon, Daemon]) -> tuple[Daemon, Daemon]:
    alpha, beta = (daemon.start() for daemon in hosts)
    enrol(alpha, beta)
    return alpha, beta


def add(daemon: Daemon, text: str) -> Path:
    """Appends to the file; a [data] takes the place of the one that every Daemon has, with its ports, at the end."""
    file = daemon.root / "etc/pathctl/pathctl.toml"
    before = file.read_text()
    if text.startswith("[data]"):
        before = before.partition("[data]")[0]
    file.write_text(f"{before}{text}\n")
    return file


def start_alone(daemon: Daemon, *words: str) -> subprocess.CompletedProcess[str]:
    """pathctld, which is to end by itself."""
    return subprocess.run(
        [BIN / "pathctld", "--root", daemon.root, *words], capture_output=True, text=True, timeout=60, check=False
    )


def ask_plane(daemon: Daemon, volume: str) -> dict[str, Any]:
    """The status of a data plane, from itself."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(WAIT_S)
        asked.connect(str(daemon.root / f"run/pathctl/{volume}.ctl"))
        asked.sendall(b'{"op":"status"}\n')
        with asked.makefile("rb") as lines:
            found: dict[str, Any] = json.loads(lines.readline())["ok"]
    return found


def make_pair(alpha: Daemon, beta: Daemon, name: str = "v", **fields: Any) -> str:
    beta.call("volume.create", name=name, size=SIZE)
    beta.image(name).write_bytes(os.urandom(SIZE))
    wanted = {"source": name, "destination": f"beta:{name}", "invalidate": "source", "create": True, **fields}
    pair: str = alpha.call("pair.create", **wanted)["pair"]["pair"]
    return pair


def test_a_wrong_file_keeps_pathctld_from_starting_and_is_told_with_the_line(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, _ = hosts
    file = add(alpha, "[data]\nlink_timout_s = 3")
    ran = start_alone(alpha)
    assert ran.returncode == ExitCode.USAGE
    told = f"pathctld: {file}, line 5: there is no key link_timout_s in [data]; did you mean link_timeout_s?\n"
    assert ran.stderr == told
    assert not (alpha.root / "run").exists(), "nothing was made"


def test_a_wrong_file_does_not_keep_from_ending_everything(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, beta = set_up(hosts)
    make_pair(alpha, beta)
    pid = alpha.volume("v")["pid"]
    alpha.terminate()
    add(alpha, "[nonsense]")
    ran = start_alone(alpha, "--stop-all")
    assert ran.returncode == 0, ran.stderr
    assert "no section [nonsense]" in ran.stderr
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the data plane has ended")


def test_data_ports_that_hold_this_hosts_own_port_are_refused(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, _ = set_up(hosts)
    alpha.terminate()
    add(alpha, f"[data]\nport_first = {alpha.port}\nport_last = {alpha.port}")
    ran = start_alone(alpha)
    assert ran.returncode == ExitCode.USAGE
    assert f"include {alpha.port}, on which this host listens for its peers" in ran.stderr


def test_destinations_listen_on_the_ports_that_are_set_and_no_others(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, beta = hosts
    port = free_port()
    add(beta, f"[data]\nport_first = {port}\nport_last = {port}")
    set_up(hosts)
    make_pair(alpha, beta)
    (row,) = beta.call("connection.list")["connections"]
    assert row["port"] == port
    with pytest.raises(PathctlError, match=f"no data port from {port} to {port} is free on host beta") as caught:
        make_pair(alpha, beta, "w")
    assert caught.value.code == ErrorCode.REFUSED


def test_limits_that_have_changed_are_told_to_data_planes_that_go_on(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, beta = set_up(hosts)
    make_pair(alpha, beta)
    pids = [daemon.volume("v")["pid"] for daemon in hosts]
    for daemon in hosts:
        daemon.terminate()
        add(daemon, "[data]\nfetch_timeout_s = 11\nlink_timeout_s = 7")
        daemon.start()
    for daemon in hosts:
        wait_until(
            lambda daemon=daemon: ask_plane(daemon, "v")["limits"]["fetch_timeout_s"] == 11,  # type: ignore[misc]
            f"{daemon.name} has told its data plane",
        )
        assert ask_plane(daemon, "v")["limits"]["link_timeout_s"] == 7
    assert [daemon.volume("v")["pid"] for daemon in hosts] == pids


def test_a_hangup_ends_nothing_and_says_what_reads_the_settings(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, _ = set_up(hosts)
    assert alpha.process is not None
    alpha.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "restart pathctld" in alpha.log.read_text(), "it is said")
    assert alpha.call("pair.list") is not None
    assert alpha.process.poll() is None


def test_the_hosts_copy_rate_is_shared_out_and_given_back(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, beta = hosts
    add(alpha, '[copy]\nrate_bytes_s = "40K"\npair_rate_bytes_s = "30K"')
    set_up(hosts)

    def rates() -> list[int | None]:
        return [ask_plane(alpha, name)["copy_rate_bytes_s"] for name in ("a", "b")]

    make_pair(alpha, beta, "a")
    assert ask_plane(alpha, "a")["copy_rate_bytes_s"] == 30 << 10
    make_pair(alpha, beta, "b")
    wait_until(lambda: rates() == [20 << 10, 20 << 10], "both copy at half the rate")
    alpha.call("pair.set", pair="b", copy_rate_bytes_s=6 << 10)
    wait_until(lambda: rates() == [30 << 10, 6 << 10], "what one leaves the other has, up to its limit")
    alpha.call("pair.suspend", pair="a")
    alpha.call("pair.set", pair="b", copy_rate_bytes_s=1 << 30)
    wait_until(lambda: rates()[1] == 40 << 10, "who copies alone has all of it")


def test_each_line_of_the_log_is_one_event_and_no_secret_is_in_it(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, beta = (daemon.start() for daemon in hosts)
    for daemon in hosts:
        daemon.call("host.init", name=daemon.name, address="127.0.0.1", port=daemon.port)
    token = alpha.call("peer.invite")["token"]
    beta.call("peer.join", token=token)
    pair = make_pair(alpha, beta)
    psk = (alpha.root / f"var/lib/pathctl/keys/psk/{pair}.psk").read_text().strip().rpartition(":")[2]
    with pytest.raises(PathctlError):
        alpha.call("peer.join", token=token)
    wait_until(lambda: alpha.volume("v")["invalid"] == 0, "copied")
    alpha.call("pair.delete", pair=pair, force=True)
    for daemon in hosts:
        lines = daemon.log.read_text().splitlines()
        assert [
            line for line in lines if not re.match(r"time=\S+Z level=(info|warning|error) part=\S+ msg=", line)
        ] == []
        assert any(
            "event=connection.created" in line and f"pair={pair}" in line and "volume=v" in line for line in lines
        )
        logs = [daemon.log, *(daemon.root / "var/lib/pathctl/log").iterdir()]
        assert len(logs) > 1
        for secret in (token, psk, "PRIVATE KEY"):
            assert [str(file) for file in logs if secret in file.read_text()] == []


def test_the_log_of_a_volume_is_bounded_while_its_process_runs(hosts: tuple[Daemon, Daemon]) -> None:
    alpha, beta = hosts
    add(alpha, "[log]\nvolume_bytes = 65536")
    set_up(hosts)
    make_pair(alpha, beta)
    file = alpha.root / "var/lib/pathctl/log/v.log"
    pid = alpha.volume("v")["pid"]
    with file.open("ab") as writer:
        writer.write(b"old\n" * 50_000 + b"the last\n")
    wait_until(lambda: file.stat().st_size < 65536, "it is short again")
    kept = Path(f"{file}.1").read_bytes()
    assert b"old\nthe last\n" in kept, "whatever the process has said since"
    assert len(kept) < 3 * 65536
    os.kill(beta.volume("v")["pid"], signal.SIGKILL)  # the source's data plane has something to say
    wait_until(lambda: b"session" in file.read_bytes(), "the process goes on writing to the same file")
    assert alpha.volume("v")["pid"] == pid
