"""peers - what a user would otherwise take, each started on files or a server of its own and ended with its `with`.

All of them work through the page cache, as the product does.  nbdkit's file and nbd plugins are taken as they come.
QEMU's mirror is measured as it comes, with aio=threads, and with aio=io_uring, which makes its reads twice as fast and
its writes the same (aio=native needs to go past the page cache).  What it mirrors to is nbdkit here: with another
qemu-storage-daemon behind TCP, its random writes at depth 16 fell from 20,000 to 400 a second.  An export in an
iothread of its own is no choice: version 7.2 aborts when a client leaves it.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
from waiting import wait_until

READY_LIMIT_S = 120.0
LAUNCHER = ("/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh")  # LISTEN_PID must be the server's own: exec keeps it
LISTEN_FD = 3
IO_URING_SETUP = 425  # asm-generic/unistd.h
IO_URING_PARAMS_SIZE = 120  # struct io_uring_params, linux/io_uring.h


class PeerError(Exception):
    """A peer does not run as it was asked to: nothing can be compared with it."""


@contextmanager
def run_server(command: list[str], log: Path, is_ready: Callable[[], bool], fd: int | None = None) -> Iterator[None]:
    """A process until the end of the `with`; `fd`: a listening socket that it takes over, see sd_listen_fds(3)."""
    environment = os.environ | {"LISTEN_FDS": "1"}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [*LAUNCHER, *command] if fd is not None else command,
            env=environment if fd is not None else None,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            preexec_fn=None if fd is None else functools.partial(os.dup2, fd, LISTEN_FD),
            pass_fds=() if fd is None else (LISTEN_FD,),
        )

    def is_up() -> bool:
        if process.poll() is not None:
            raise PeerError(f"{command[0]} ended with {process.returncode}: {log.read_text().strip()}")
        return is_ready()

    try:
        wait_until(is_up, f"{command[0]} answers; see {log}")
        yield
    finally:
        process.kill()
        process.wait()


def _answers(uri: str) -> bool:
    """Whether a client gets through the handshake."""
    handle = nbd.NBD()
    try:
        handle.connect_uri(uri)
    except nbd.Error:
        return False
    handle.shutdown()
    return True


@contextmanager
def run_file(folder: Path, name: str, file: Path) -> Iterator[Path]:
    """`nbdkit file`, the limit for one copy of the data: gives its Unix socket."""
    path = folder / f"{name}.sock"
    command = ["nbdkit", "--foreground", "--unix", str(path), "file", str(file)]
    with run_server(command, folder / f"{name}.log", lambda: _answers(f"nbd+unix:///?socket={path}")):
        yield path


@contextmanager
def run_file_tcp(folder: Path, name: str, file: Path) -> Iterator[int]:
    """`nbdkit file` on TCP loopback, what the mirrors and proxies have behind them: gives its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        port = int(listener.getsockname()[1])
        command, log = ["nbdkit", "--foreground", "file", str(file)], folder / f"{name}.log"
        with run_server(command, log, lambda: _answers(f"nbd://127.0.0.1:{port}"), listener.fileno()):
            yield port


@contextmanager
def run_proxy(folder: Path, name: str, port: int) -> Iterator[Path]:
    """`nbdkit nbd`: no copy here, every request goes over to the server at `port`; gives its Unix socket."""
    path = folder / f"{name}.sock"
    command = ["nbdkit", "--foreground", "--unix", str(path), "nbd", f"uri=nbd://127.0.0.1:{port}"]
    with run_server(command, folder / f"{name}.log", lambda: _answers(f"nbd+unix:///?socket={path}")):
        yield path


class Monitor:
    """QEMU's monitor: JSON lines on a Unix socket (QEMU's docs/interop/qmp-spec)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(READY_LIMIT_S)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()  # the greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: object) -> Any:
        """What the command returns; events in between are passed over; raises PeerError."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise PeerError(f"qemu-storage-daemon refused {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise PeerError(f"qemu-storage-daemon closed its monitor at {command}")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def has_io_uring() -> bool:
    """Whether the kernel lets this process have one: a container often does not."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = int(libc.syscall(IO_URING_SETUP, 1, ctypes.create_string_buffer(IO_URING_PARAMS_SIZE)))
    if found >= 0:
        os.close(found)
    return found >= 0


@contextmanager
def run_mirror(folder: Path, name: str, file: Path, port: int, aio: str = "threads") -> Iterator[Path]:
    """QEMU's mirror of `file` to the NBD server at `port`, once it has copied everything and sends each write to both.

    Gives the Unix socket on which it serves.
    """
    path, control = folder / f"{name}.sock", folder / f"{name}.qmp"
    command = ["qemu-storage-daemon", "--chardev", f"socket,id=control,path={control},server=on,wait=off"]
    command += ["--monitor", "chardev=control"]
    command += ["--blockdev", f"driver=file,node-name=source,filename={file},aio={aio},cache.direct=off"]
    command += ["--blockdev", f"driver=nbd,node-name=target,server.type=inet,server.host=127.0.0.1,server.port={port}"]
    command += ["--nbd-server", f"addr.type=unix,addr.path={path},max-connections=0"]
    command += ["--export", "type=nbd,id=export,node-name=source,name=,writable=on"]
    with run_server(command, folder / f"{name}.log", lambda: _answers(f"nbd+unix:///?socket={path}")):
        monitor = Monitor(control)
        try:
            settings = {"sync": "full", "copy-mode": "write-blocking"}
            monitor.ask("blockdev-mirror", **{"job-id": "mirror", "device": "source", "target": "target"}, **settings)
            wait_until(lambda: _is_ready(monitor), "QEMU's mirror is ready", READY_LIMIT_S)
            yield path
            if not _is_ready(monitor):
                raise PeerError("QEMU's mirror did not stay ready: what was measured is no mirror")
        finally:
            monitor.close()


def _is_ready(monitor: Monitor) -> bool:
    jobs = monitor.ask("query-block-jobs")
    if len(jobs) != 1:
        raise PeerError(f"QEMU's mirror is no job any more: {jobs}")
    return bool(jobs[0]["status"] == "ready" and jobs[0]["ready"])
