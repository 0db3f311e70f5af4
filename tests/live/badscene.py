"""badscene - three hosts for the table of bad input, the command line as a real process, and what must not change.

alpha and beta are enrolled, share a pair and have volumes of other kinds.  gamma is enrolled with alpha and is not
running: a case may put another program at its address, or start it in some odd way.  Everything is as it was after
each case, which is what makes it possible to go through all of them with the same daemons.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import sqlite3
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from live.daemons import BIN, Daemon, enrol
from waiting import WAIT_S, wait_until

from pathctl import config, pki

SIZE = 8 << 20
TABLES = ("host", "peers", "invites", "volumes", "connections", "journal", "steps")
OBSERVED = ("peer.reachable", "peer.unreachable", "peer.clock", "path.", "pair.state", "process.", "daemon.", "db.")


@dataclass(frozen=True)
class Outcome:
    """How one command ended."""

    argv: tuple[str, ...]
    code: int
    out: str
    err: str


class Scene:
    """The three hosts below one short folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.alpha, self.beta, self.gamma = (Daemon(folder, name) for name in ("alpha", "beta", "gamma"))
        self.hosts = {host.name: host for host in (self.alpha, self.beta, self.gamma)}
        self.words: dict[str, str] = {}  # what a case may name in braces

    def set_up(self) -> Scene:
        alpha, beta, gamma = (host.start() for host in self.hosts.values())
        enrol(alpha, beta)
        gamma.call("host.init", name="gamma", address="127.0.0.1", port=gamma.port)
        gamma.call("peer.join", token=alpha.call("peer.invite")["token"])
        for host in self.hosts.values():
            initial = host.name[0]
            for name, size in (("free", SIZE), ("big", 2 * SIZE), ("att", SIZE), ("paired", SIZE)):
                host.call("volume.create", name=initial + name, size=size)
        alpha.call("volume.create", name="atracks", size=SIZE, track_size=4096)
        alpha.call("attach", volume="aatt")
        beta.call("attach", volume="batt")
        alpha.call("pair.create", source="apaired", destination="beta:bpaired", invalidate="destination")
        wait_until(lambda: alpha.call("pair.list")["pairs"][0]["state"] == "Synchronized", "the pair is Synchronized")
        gamma.terminate()
        self.words = self._words()
        return self

    def tear_down(self) -> None:
        for host in self.hosts.values():
            host.stop_all()

    def _words(self) -> dict[str, str]:
        """What a case's command line may name in braces."""
        pair = self.alpha.call("connection.list")["connections"][0]["pair"]
        return {
            "folder": str(self.folder),
            "beta_port": str(self.beta.port),
            "gamma_port": str(self.gamma.port),
            "alpha_root": str(self.alpha.root),
            "pair": pair,
            "pair3": pair[:3],
            "device": self.alpha.volume("aatt")["device"],
        }

    def command(self, at: str, argv: Sequence[str], program: str = "pathctl") -> list[str]:
        return [str(BIN / program), "--root", str(self.root(at)), *argv]

    def root(self, at: str) -> Path:
        return self.hosts[at].root if at in self.hosts else self.folder / at

    def snapshot(self) -> dict[str, Any]:
        """The rows of all hosts, and the names and sizes of their files."""
        return {
            f"{name} {what}": found for name, host in self.hosts.items() for what, found in state(host.root).items()
        }

    def changes(self, before: dict[str, Any]) -> list[str]:
        """What is not as it was, in words."""
        after = self.snapshot()
        return [f"{what} was {before[what]} and is {after[what]}" for what in before if before[what] != after[what]]

    def newest_events(self) -> dict[str, int]:
        return {name: newest_event(host.root) for name, host in self.hosts.items()}

    def changing_events(self, before: dict[str, int]) -> list[str]:
        """The events since then that tell of a change of configuration or role."""
        return [
            f"{name} has recorded {kind}"
            for name, host in self.hosts.items()
            for kind in event_kinds(host.root, before[name])
            if kind != "command.failed" and not kind.startswith(OBSERVED)
        ]


def run(argv: Sequence[str], **options: Any) -> Outcome:
    """One command as a process of its own; not a terminal at any end, unless the options say so."""
    piped: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    done = subprocess.run(argv, **(piped | options), timeout=WAIT_S, check=False)
    out, err = ((stream or b"").decode(errors="surrogateescape") for stream in (done.stdout, done.stderr))
    return Outcome(tuple(argv), done.returncode, out, err)


# -- what must not change ---------------------------------------------------------------------------------


def _read(root: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{root}/var/lib/pathctl/pathctl.db?mode=ro", uri=True, timeout=WAIT_S)


def state(root: Path) -> dict[str, Any]:
    """Each table, the files of volumes, and the keys; of a database that cannot be read, its content."""
    folder = root / "var/lib/pathctl"
    try:
        found = rows(root)
    except sqlite3.DatabaseError:
        found = {"damaged database": hashlib.sha256((folder / "pathctl.db").read_bytes()).hexdigest()}
    return found | {f"files of {kind}": files(folder / kind) for kind in ("volumes", "keys")}


def rows(root: Path) -> dict[str, Any]:
    """Everything configured; not the events, and not the list of operations that have ended."""
    with contextlib.closing(_read(root)) as sql:
        return {table: sorted(sql.execute(f"SELECT * FROM {table}"), key=repr) for table in TABLES}


def files(folder: Path) -> list[tuple[str, int]]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted((str(path.relative_to(folder)), path.stat().st_size) for path in found)


def newest_event(root: Path) -> int:
    try:
        with contextlib.closing(_read(root)) as sql:
            return int(sql.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0


def event_kinds(root: Path, after: int) -> list[str]:
    try:
        with contextlib.closing(_read(root)) as sql:
            return [str(row[0]) for row in sql.execute("SELECT kind FROM events WHERE id > ? ORDER BY id", (after,))]
    except sqlite3.DatabaseError:
        return []


# -- who else may be at an address -------------------------------------------------------------------------


@contextlib.contextmanager
def answering(port: int, raw: bytes | None, context: ssl.SSLContext | None = None) -> Iterator[None]:
    """A server that answers whatever it is asked with `raw`, and with silence if that is None."""
    over = threading.Event()
    clients: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", port)) as listener:
        acceptor = threading.Thread(target=_accept, args=(listener, raw, context, over, clients))
        acceptor.start()
        try:
            yield
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (acceptor, *clients):
                thread.join(WAIT_S)


def _accept(
    listener: socket.socket,
    raw: bytes | None,
    context: ssl.SSLContext | None,
    over: threading.Event,
    clients: list[threading.Thread],
) -> None:
    while not over.is_set():
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        clients.append(threading.Thread(target=_reply, args=(connection, raw, context, over)))
        clients[-1].start()


def _reply(connection: socket.socket, raw: bytes | None, context: ssl.SSLContext | None, over: threading.Event) -> None:
    with contextlib.suppress(OSError), connection:
        connection.settimeout(WAIT_S)
        stream = context.wrap_socket(connection, server_side=True) if context is not None else connection
        with stream:
            _read_request(stream)
            if raw is None:
                over.wait(WAIT_S)
            else:
                stream.sendall(raw)


def _read_request(stream: socket.socket) -> None:
    """All of it, or the answer would be lost with what was not read."""
    asked = stream.recv(1 << 16)
    head, _, body = asked.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length[1]) and (more := stream.recv(1 << 16)):
        body += more


def as_host(root: Path, knows: Path | None = None) -> ssl.SSLContext:
    """TLS with the key and the certificate of the host below `root`, to whom the other host is known."""
    known = [config.load(knows).host_certificate.read_text()] if knows is not None else []
    return pki.server_context(config.load(root), known)


def as_stranger(folder: Path) -> ssl.SSLContext:
    """TLS with a key that nobody knows."""
    cfg = config.Config(folder / "stranger")
    cfg.make_folders()
    pki.ensure_identity(cfg, "gamma")
    return as_host(cfg.root)


def http(body: bytes, status: str = "200 OK", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


# -- devices and file systems ------------------------------------------------------------------------------


@contextlib.contextmanager
def loop_device(file: Path, *options: str) -> Iterator[str]:
    made = subprocess.run(
        ["losetup", "--find", "--show", *options, file], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        yield made
    finally:
        subprocess.run(["losetup", "--detach", made], check=True)


@contextlib.contextmanager
def mounted(what: str, place: Path, *options: str) -> Iterator[Path]:
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *options, what, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@contextlib.contextmanager
def held_open(path: str) -> Iterator[int]:
    """Another process has the file open for writing; -> its id."""
    holder = subprocess.Popen(
        ["sh", "-c", 'exec 3<>"$0"; echo; read x', path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        yield holder.pid
    finally:
        holder.communicate(b"\n", timeout=WAIT_S)


def sparse(path: Path, size: int = SIZE) -> Path:
    with path.open("wb") as file:
        os.truncate(file.fileno(), size)
    return path


def fill(filler: Path) -> None:
    """Take all room of its file system, to the last byte."""
    with filler.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass
    assert os.statvfs(filler.parent).f_bavail == 0
