"""daemons - two real pathctld on loopback, enrolled with each other, each with a root of its own.

For what needs no network of its own: sequences, crashes, adoption.  A Daemon can be killed and started again on the
same root; `stop_all` ends it with everything it started.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from waiting import WAIT_S, wait_until

from pathctl import client, errors

BIN = Path(sys.executable).parent
SIZE = 8 << 20  # bytes, of make_volumes


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


_numbers = itertools.count()


def _find_data_port() -> int:
    """The first of a daemon's own data ports: nobody beside it must take one while its volume's process is down."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    block = os.getppid() % 50 * 2 + worker % 2  # two workers of one run, and runs side by side
    return 10_000 + block * 200 + next(_numbers) % 4 * 50


class Daemon:
    """One pathctld and its root."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.root = name, folder / name
        self.faults = folder / f"{name}-faults"
        self.faults.mkdir()
        self.port, self.data_port = free_port(), _find_data_port()
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        settings = self.root / "etc/pathctl/pathctl.toml"
        settings.parent.mkdir(parents=True)
        settings.write_text(
            "[timeouts]\nretry_s = 0.2\npeer_look_s = 2.0\n"
            f"[data]\nport_first = {self.data_port}\nport_last = {self.data_port + 49}\n"
        )

    def start(self) -> Daemon:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "pathctld", "--root", self.root],
                env=os.environ | {"PATHCTL_FAULTS": str(self.faults)} | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_answering, f"pathctld {self.name} answers; see {self.log}")
        return self

    def _is_answering(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            self.call("pair.list")
        except errors.PathctlError as error:
            if error.code != errors.ErrorCode.UNREACHABLE:
                raise
            return False
        return True

    def call(self, verb: str, **fields: Any) -> dict[str, Any]:
        return client.call(self.root, verb, **fields)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S)

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == 0, self.log.read_text()

    def stop_all(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        subprocess.run([BIN / "pathctld", "--root", self.root, "--stop-all"], check=True, timeout=60)

    def fault(self, kind: str, point: str) -> Path:
        file = self.faults / f"{kind}-{point}"
        file.touch()
        return file

    def wait_reached(self, point: str) -> None:
        wait_until((self.faults / f"reached-{point}").exists, f"{self.name} reaches {point}")

    def volume(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.call("volume.show", name=name)["volume"]
        return found

    def image(self, name: str) -> Path:
        return self.root / f"var/lib/pathctl/volumes/{name}.img"

    def rows(self) -> list[dict[str, Any]]:
        """What the configuration table holds: pairs open or not, connections, volumes."""
        pairs = [{"pair": pair["pair"]} for pair in self.call("pair.list")["pairs"]]
        volumes = [{"volume": row["name"]} for row in self.call("volume.list")["volumes"]]
        return pairs + self.call("connection.list")["connections"] + volumes


def enrol(alpha: Daemon, beta: Daemon) -> None:
    for daemon in (alpha, beta):
        daemon.call("host.init", name=daemon.name, address="127.0.0.1", port=daemon.port)
    beta.call("peer.join", token=alpha.call("peer.invite")["token"])


@contextmanager
def running(alpha: Daemon, beta: Daemon) -> Iterator[tuple[Daemon, Daemon]]:
    """Both, enrolled with each other; they lie in one folder, of which no nbdkit is left behind."""
    try:
        alpha.start()
        beta.start()
        enrol(alpha, beta)
        yield alpha, beta
    finally:
        alpha.stop_all()
        beta.stop_all()
        assert not nbdkits(alpha.root.parent), "nothing is left behind"


def nbdkits(folder: Path) -> list[int]:
    """The nbdkit processes of all roots below the folder."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if any(str(folder) in word for word in words) and any(word.startswith("control=") for word in words):
            found += [process.pid] if process.info["status"] != psutil.STATUS_ZOMBIE else []
    return found


def make_volumes(alpha: Daemon, beta: Daemon) -> None:
    """alpha:va and beta:vb, of SIZE random bytes each."""
    alpha.call("volume.create", name="va", size=SIZE)
    beta.call("volume.create", name="vb", size=SIZE)
    alpha.image("va").write_bytes(os.urandom(SIZE))
    beta.image("vb").write_bytes(os.urandom(SIZE))
