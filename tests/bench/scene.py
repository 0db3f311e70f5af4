"""scene - two real pathctld on loopback with the settings of a user, and how long and how much they take.

The hosts' data ports are the only setting that is not the default: both live on one address here.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbd
import psutil
from live.daemons import Daemon, nbdkits, running
from waiting import wait_until

BIN = Path(sys.executable).parent
FIRST_PORTS = {"alpha": 20_000, "beta": 21_000}
PORTS = 1_000
COMMAND_LIMIT_S = 120


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """alpha and beta, enrolled with each other; everything that was started is ended."""
    with running(*(_daemon(folder, name) for name in FIRST_PORTS)) as hosts:
        yield hosts


def _daemon(folder: Path, name: str) -> Daemon:
    daemon = Daemon(folder, name)
    first = FIRST_PORTS[name]
    settings = daemon.root / "etc/pathctl/pathctl.toml"
    settings.write_text(f"[data]\nport_first = {first}\nport_last = {first + PORTS - 1}\n")
    return daemon


def run_command(daemon: Daemon, *words: str) -> float:
    """Run `pathctl WORDS` as a process of its own; -> how long it took, s."""
    started = time.perf_counter()
    command = [str(BIN / "pathctl"), "--root", str(daemon.root), *words]
    # Its output is read: without a pipe, a wait with a limit only looks every 50 ms.
    subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=COMMAND_LIMIT_S)
    return time.perf_counter() - started


def create_pair(alpha: Daemon, beta: Daemon, name: str, size: int, invalidate: str = "destination") -> float:
    """`pathctl pair create --create` at alpha; -> how long it took, s."""
    words = ("--invalidate", invalidate, "--create", "--size", str(size))
    return run_command(alpha, "pair", "create", name, f"{beta.name}:{name}", *words)


def socket_path(daemon: Daemon, volume: str) -> Path:
    return daemon.root / f"run/pathctl/{volume}.sock"


def read_first(daemon: Daemon, volume: str, offset: int) -> float:
    """Connect to a volume and read 4 KiB; -> how long both took, s."""
    started = time.perf_counter()
    handle = nbd.NBD()
    handle.connect_unix(str(socket_path(daemon, volume)))
    handle.pread(4096, offset)
    took = time.perf_counter() - started
    handle.shutdown()
    return took


def time_call(daemon: Daemon, verb: str, **fields: Any) -> float:
    """One verb over the Unix socket; -> how long it took, s."""
    started = time.perf_counter()
    daemon.call(verb, **fields)
    return time.perf_counter() - started


def wait_synchronized(daemon: Daemon, count: int) -> None:
    """Until all pairs of a host are copied, so that what is measured next is at rest."""

    def is_at_rest() -> bool:
        found = daemon.call("pair.list")["pairs"]
        assert len(found) == count, found
        return all(pair["state"] == "Synchronized" for pair in found)

    wait_until(is_at_rest, f"{count} pairs of {daemon.name} are synchronized", 120)


def planes_of(daemon: Daemon) -> list[psutil.Process]:
    """The nbdkit processes of one host."""
    return [psutil.Process(pid) for pid in nbdkits(daemon.root)]
