"""planes - real nbdkit processes with the real plugin for the tests, without pathctld.

A Plane is one volume and its process; it listens by socket activation as under pathctld, and can be killed and
started again on the same sockets.  Everything lies in the test's own folder and listens on loopback or Unix sockets.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
from waiting import WAIT_S, wait_until

from pathctl import lanefile

PLUGIN = Path(__file__).parents[2] / "nbdplugin" / "plugin.py"
PRIORITY = "[overrides]\ntls-disabled-cipher = chacha20-poly1305\n"


class ControlError(Exception):
    """The data plane answered with an error."""


class Plane:
    """One volume and the nbdkit process that serves it."""

    def __init__(
        self,
        folder: Path,
        name: str,
        role: str,
        size: int,
        track_size: int = 65536,
        disk: Path | None = None,
        is_plain: bool = False,
        **params: object,
    ) -> None:
        """`disk`: where the metadata file and the backing lie, if not in `folder`; `is_plain`: no TLS on the link."""
        self.folder, self.name, self.role, self.size, self.track_size = folder, name, role, size, track_size
        self.meta, self.backing = (disk or folder) / f"{name}.meta", (disk or folder) / f"{name}.img"
        self.control, self.socket_path = folder / f"{name}.ctl", folder / f"{name}.sock"
        self.params, self.is_plain = params, is_plain
        self.psk_file = folder / "psk"
        self.process: subprocess.Popen[bytes] | None = None
        if not self.backing.exists():
            with self.backing.open("wb") as file:
                file.truncate(size)
        self.format()
        self.listener = self._listen()

    def format(self) -> None:
        command = [sys.executable, "-m", "nbdplugin.format", "create", "--meta", str(self.meta)]
        command += ["--uuid", str(uuid.uuid5(uuid.NAMESPACE_OID, self.name)), "--size", str(self.size)]
        subprocess.run([*command, "--track-size", str(self.track_size)], check=True, timeout=WAIT_S)

    def _listen(self) -> socket.socket:
        if self.role == "peer":
            return socket.create_server(("127.0.0.1", 0), backlog=64)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.socket_path))
        listener.listen(64)
        return listener

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def start(self) -> Plane:
        priority = self.folder / "priority"
        priority.write_text(PRIORITY)
        tls = ["--tls=require", f"--tls-psk={self.psk_file}"] if self.role == "peer" and not self.is_plain else []
        settings = {"role": self.role, "volume": self.name, "meta": self.meta, "backing": self.backing}
        settings |= {"control": self.control, **self.params}
        threads = "288" if self.role == "host" else "1"
        lane = lanefile.find(lanefile.find_nbdkit(), str(PLUGIN)).file
        command = ["nbdkit", "--foreground", "-t", threads, *tls, *([f"--filter={lane}"] if lane else [])]
        command += ["python", str(PLUGIN)]
        command += [f"{key}={value}" for key, value in settings.items()]
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "LISTEN_FDS": "1",
            "MALLOC_MMAP_THRESHOLD_": "131072",
            "MALLOC_ARENA_MAX": "2",
            "GNUTLS_SYSTEM_PRIORITY_FILE": str(priority),
        }
        self.control.unlink(missing_ok=True)
        with (self.folder / f"{self.name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *command],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=functools.partial(os.dup2, self.listener.fileno(), 3),
                pass_fds=(3,),
            )
        wait_until(self._is_answering, f"{self.name} answers; see {self.folder}/{self.name}.log")
        return self

    def _is_answering(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / f"{self.name}.log").read_text()
        try:
            self.ask("status")
        except OSError:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL, and gone."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(WAIT_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.kill()
        self.listener.close()

    def ask(self, op: str, **fields: object) -> dict[str, Any]:
        """One control request; raises ControlError."""
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(str(self.control))
            client.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
            with client.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        if "error" in answer:
            raise ControlError(answer["error"]["message"])
        result: dict[str, Any] = answer["ok"]
        return result

    def get_status(self) -> dict[str, Any]:
        return self.ask("status")

    @contextmanager
    def open(self) -> Iterator[nbd.NBD]:
        """A client of the host's socket."""
        handle = nbd.NBD()
        handle.connect_unix(str(self.socket_path))
        try:
            yield handle
        finally:
            handle.shutdown()

    def read_store(self) -> bytes:
        return self.backing.read_bytes()


class Pair:
    """Two planes and the commands that pathctld would send."""

    def __init__(self, source: Plane, destination: Plane) -> None:
        self.source, self.destination = source, destination
        self.uuid = str(uuid.uuid4())
        for plane in (source, destination):
            plane.psk_file.write_text(f"{self.uuid}:{'5a' * 32}\n")

    def connect(self, invalid: str) -> None:
        for plane, side, peer in ((self.source, "source", "beta"), (self.destination, "destination", "alpha")):
            plane.ask("connect", operation="op", pair=self.uuid, side=side, invalid=invalid, peer=peer)

    def link(self, port: int | None = None) -> None:
        self.source.ask(
            "link",
            pair=self.uuid,
            address="127.0.0.1",
            port=port or self.destination.port,
            psk_file=None if self.source.is_plain else str(self.source.psk_file),
            identity=self.uuid,
        )

    def create(self, invalid: str, force: bool = False, rate: int | None = None, port: int | None = None) -> None:
        self.connect(invalid)
        self.link(port)
        self.source.ask("set", copy_rate_bytes_s=rate)
        self.source.ask("greet", pair=self.uuid, timeout_s=WAIT_S)
        self.source.ask("commit", operation="op", pair=self.uuid, invalid=invalid, force=force)

    def wait_up(self) -> None:
        wait_until(lambda: self.source.get_status()["link"] == "up", "the path is ready")

    def is_synchronized(self) -> bool:
        status = self.source.get_status()
        return status["complete"] and not status["invalid"] and not status["owed"] and status["session"] is not None

    def wait_synchronized(self, limit_s: float = WAIT_S) -> None:
        wait_until(self.is_synchronized, "synchronized", limit_s)
