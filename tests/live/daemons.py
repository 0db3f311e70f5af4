"""daemons - two real pathctld on loopback, enrolled with each other, each with a root of its own.

For what needs no network of its own: sequences, crashes, adoption.  A Daemon can be killed and started again on the
same root; `stop_all` ends it with everything it started.
"""

from __future__ import annotations

import errno
import functools
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


class _Ports:
    """Ports that are this process's alone, below those that the kernel gives away: nobody takes one that is not in use.

    A block of them is claimed by a socket bound to its first; each daemon has a part, which is taken again when four
    later ones have come.
    """

    FIRST, BLOCKS, BLOCK, PART = 22_100, 50, 201, 50

    def __init__(self) -> None:
        self._parts = itertools.count()
        self._probes = itertools.count()
        self._claim = socket.socket()
        for number in range(self.BLOCKS):
            self._first = self.FIRST + (os.getpid() + number) % self.BLOCKS * self.BLOCK
            try:
                self._claim.bind(("127.0.0.1", self._first))
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
        raise AssertionError("all blocks of ports are claimed")

    def take_part(self) -> int:
        """The first of a daemon's own ports; of each part the last ten are not a daemon's."""
        return self._first + 1 + next(self._parts) % 4 * self.PART

    def take_one(self) -> int:
        """For anything else."""
        number = next(self._probes) % 40
        return self._first + 1 + number // 10 * self.PART + self.PART - 10 + number % 10


_ports = _Ports()


def free_port() -> int:
    """One that nobody uses and nobody else is given, for a while."""
    return _ports.take_one()


class Daemon:
    """One pathctld and its root."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.root = name, folder / name
        self.faults = folder / f"{name}-faults"
        self.faults.mkdir()
        self.port = _ports.take_part()
        self.data_port, self.data_port_last = self.port + 1, self.port + _Ports.PART - 11
        self.log = folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.environment: dict[str, str] = {}
        settings = self.root / "etc/pathctl/pathctl.toml"
        settings.parent.mkdir(parents=True)
        settings.write_text(
            "[timeouts]\nretry_s = 0.2\nstatus_s = 5.0\n"  # who is held up for some seconds is still there
            f"[data]\nport_first = {self.data_port}\nport_last = {self.data_port_last}\n"
        )

    def start(self, is_heard: bool = True) -> Daemon:
        """Answers, and unless told otherwise peers are heard too, if it has a name."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [BIN / "pathctld", "--root", self.root],
                env=os.environ | {"PATHCTL_FAULTS": str(self.faults)} | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._is_answering, f"pathctld {self.name} answers; see {self.log}")
        port = self._get_port() if is_heard else None
        if port is not None:
            wait_until(functools.partial(self._is_listening, port), f"{self.name} listens for peers; see {self.log}")
        return self

    def _get_port(self) -> int | None:
        """Where its peers are to find it; None before it has a name."""
        try:
            return int(self.call("host.show")["host"]["port"])
        except errors.PathctlError:
            return None

    def _is_listening(self, port: int) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return any(item.status == psutil.CONN_LISTEN and item.laddr.port == port for item in found)

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
