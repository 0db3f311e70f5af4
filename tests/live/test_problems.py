"""What `pathctl status` says first of a host that cannot go on as it should."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import badscene
from live.daemons import BIN, Daemon
from waiting import WAIT_S, wait_until

ROOM = 32 << 20


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Daemon]:
    """A host with a name, its state folder on a small file system of its own."""
    host = Daemon(tmp_path, "alpha")
    state = host.root / "var/lib/pathctl"
    state.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=700", "none", state], check=True)
    try:
        host.start()
        host.call("host.init", name="alpha", address="127.0.0.1", port=host.port)
        yield host
    finally:
        host.stop_all()
        subprocess.run(["umount", state], check=True)


def status(host: Daemon) -> list[str]:
    shown = subprocess.run(
        [BIN / "pathctl", "--root", host.root, "status"], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    return shown.stdout.splitlines()


def test_a_state_folder_without_room_is_told_until_there_is_some(host: Daemon) -> None:
    state = host.root / "var/lib/pathctl"
    assert status(host)[0].endswith(": all is well")
    filler = state / "filler"
    with filler.open("wb") as file:
        file.write(bytes(ROOM * 5 // 8))
    lines = status(host)
    assert lines[0].endswith(": 1 to look at")
    assert lines[1].startswith(f"! the file system of {state} has only ")
    badscene.fill(state / "more")
    assert status(host)[1] == (
        f"! the file system of {state} is full, so nothing new can be begun or recorded; make room there"
    )
    filler.unlink()
    (state / "more").unlink()
    assert status(host)[0].endswith(": all is well")


def test_a_host_that_its_peers_cannot_reach_says_so_until_they_can(host: Daemon) -> None:
    host.terminate()
    with contextlib.closing(socket.create_server(("127.0.0.1", host.port))):
        host.start(is_heard=False)
        wait_until(lambda: len(host.call("status")["problems"]) == 1, "it is told")
        assert status(host)[1] == (
            f"! 127.0.0.1:{host.port} cannot be listened on (Address already in use), so no peer reaches this host;"
            " pathctld tries on"
        )
    wait_until(lambda: host.call("status")["problems"] == [], "it listens")
