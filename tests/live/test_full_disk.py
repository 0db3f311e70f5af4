"""The state folder of a host on a file system that is full to the last byte: each command, and each step of a pair.

A small tmpfs, filled with a file.  Where nothing has to be written a command succeeds; else it says in one sentence
which file system is full, and everything is as it was.  With the filler gone the same command succeeds.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import badscene
from live.badscene import SIZE, Outcome
from live.daemons import BIN, Daemon, enrol, free_port
from waiting import WAIT_S, wait_until

ROOM = 24 << 20


class FullDisk:
    """A tmpfs over the state folder of one host, and the file that fills it."""

    def __init__(self, host: Daemon) -> None:
        self.host = host
        self.folder = host.root / "var/lib/pathctl"
        self._filler = self.folder / "filler"
        self._hungry: threading.Thread | None = None
        self._enough = threading.Event()

    def mount(self) -> None:
        self.folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM},mode=700", "none", self.folder], check=True)

    def unmount(self) -> None:
        self.empty()
        if os.path.ismount(self.folder):
            done = subprocess.run(["umount", self.folder], check=False)
            if done.returncode:
                subprocess.run(["umount", "--lazy", self.folder], check=True)
        assert not os.path.ismount(self.folder)

    def fill(self) -> None:
        badscene.fill(self._filler)

    def keep_full(self) -> None:
        """Fill it, and take at once whatever room is given up."""
        self.fill()
        self._enough.clear()
        self._hungry = threading.Thread(target=self._take)
        self._hungry.start()

    def _take(self) -> None:
        with self._filler.open("ab", buffering=0) as file:
            while not self._enough.wait(0.001):
                with contextlib.suppress(OSError):
                    file.write(bytes(1 << 16))

    def empty(self) -> None:
        if self._hungry is not None:
            self._enough.set()
            self._hungry.join(WAIT_S)
            self._hungry = None
        self._filler.unlink(missing_ok=True)


class Hosts:
    """alpha and beta; the state folder of `full` is on the tmpfs."""

    def __init__(self, folder: Path, full: str) -> None:
        self.alpha, self.beta, self.gamma = (Daemon(folder, name) for name in ("alpha", "beta", "gamma"))
        self.all = {"alpha": self.alpha, "beta": self.beta}
        self.disk = FullDisk(self.all[full])

    def set_up(self) -> None:
        self.disk.mount()
        enrol(self.alpha.start(), self.beta.start())
        for host in (self.alpha, self.beta):
            for name in ("free", "att", "paired"):
                host.call("volume.create", name=host.name[0] + name, size=SIZE)
            host.call("attach", volume=f"{host.name[0]}att")
        self.gamma.start().call("host.init", name="gamma", address="127.0.0.1", port=self.gamma.port)
        for volume, invalid in (("ainc", "source"), ("binc", "destination")):
            self._make_incomplete(volume, invalid)
        self.alpha.call("pair.create", source="apaired", destination="beta:bpaired", invalidate="destination")
        device = self.alpha.call("attach", volume="apaired")["device"]
        # All of both images is there: what a sparse one cannot take on a full file system is its users' affair.
        subprocess.run(
            ["dd", "if=/dev/urandom", f"of={device}", "bs=1M", "count=8", "oflag=direct"],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        self.wait_synchronized()

    def _make_incomplete(self, volume: str, invalid: str) -> None:
        """A volume of which some is only at the other host, in no pair any more."""
        ends = ("ainc", "beta:other") if invalid == "source" else ("other", "beta:binc")
        both = dict(zip(("source", "destination"), ends, strict=True))
        self.alpha.call("pair.create", **both, invalidate=invalid, create=True, size=SIZE, copy_rate_bytes_s=0)
        self.alpha.call("pair.delete", pair=ends[0], force=True)
        wait_until(self.has_ended, "the pair has gone")

    def wait_synchronized(self) -> None:
        wait_until(
            lambda: {pair["state"] for pair in self.alpha.call("pair.list")["pairs"]} == {"Synchronized"},
            "the pair is Synchronized",
        )

    def tear_down(self) -> None:
        with contextlib.ExitStack() as undo:  # each, whatever becomes of the others
            undo.callback(self.disk.unmount)
            for host in (*self.all.values(), self.gamma):
                undo.callback(host.stop_all)
            self.disk.empty()

    def run(self, at: str, *argv: str) -> Outcome:
        root = (self.all | {"gamma": self.gamma})[at].root
        return badscene.run([str(BIN / "pathctl"), "--root", str(root), *argv])

    def rows(self) -> dict[str, Any]:
        return {name: badscene.state(host.root) for name, host in self.all.items()}

    def use_the_pair(self, content: bytes) -> None:
        """Write to the pair's device and read it again, past the page cache."""
        device = self.alpha.volume("apaired")["device"]
        done = subprocess.run(
            ["dd", f"of={device}", "bs=4096", "count=1", "seek=3", "oflag=direct", "conv=fsync", "status=none"],
            input=content.ljust(4096, b"."),
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, "the pair's device takes writes"
        with open(device, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(3 * 4096)
            assert file.read(len(content)) == content

    def has_ended(self) -> bool:
        """Nothing is open at either host."""
        return all(not badscene.rows(host.root)[table] for host in self.all.values() for table in ("journal", "steps"))


@pytest.fixture(scope="module", params=["alpha", "beta"])
def hosts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    made = Hosts(tmp_path_factory.mktemp("full"), request.param)
    try:
        made.set_up()
        yield made
    finally:
        made.tear_down()


# -- each command ------------------------------------------------------------------------------------------

READING = (
    "--help",
    "status",
    "host show",
    "peer list",
    "volume list",
    "volume show {m}free",
    "pair list",
    "pair show {m}paired",
    "pair wait {m}paired",
    "pair watch {m}paired",
    "connection list",
    "why {m}paired",
    "events",
    "config show",
    "metrics",
)


@pytest.mark.parametrize("command", READING)
def test_what_only_looks_works_on_a_full_file_system(hosts: Hosts, command: str) -> None:
    name = hosts.disk.host.name
    hosts.disk.fill()
    try:
        found = hosts.run(name, *command.format(m=name[0]).split())
    finally:
        hosts.disk.empty()
    assert (found.code, found.err) == (0, "")


ENDING = ("detach ", "pair suspend ", "pair delete ", "volume delete ")  # work from the reserve
NEW_GONE = (
    "detach {m}new",
    "pair delete {m}new --force --yes",
    "volume delete {m}new --yes",
    "at peer: volume delete {p}new --yes",
)
# Each with what takes it back afterwards.  {m} and {p} are the first letters of this host and of its peer.
CHANGING = (
    ("volume create {m}new --size 4M", "volume delete {m}new --yes"),
    ("volume delete {m}free --yes", "volume create {m}free --size 8M"),
    ("attach {m}free", "detach {m}free"),
    ("detach {m}att", "attach {m}att"),
    ("pair create {m}free {peer}:{p}free --invalidate destination --yes", "pair delete {m}free --force --yes"),
    (
        "pair create {m}free {peer}:{p}free --invalidate source --first destination --yes",
        "pair delete {m}free --force --yes",
    ),
    ("pair create {peer}:{p}free {m}free --invalidate destination --yes", "pair delete {m}free --force --yes"),
    (
        "pair create {m}new {peer}:{p}new --create --size 4M --invalidate destination --attach --yes",
        "; ".join(NEW_GONE),
    ),
    ("pair suspend {m}paired", "pair resume {m}paired"),
    ("pair set {m}paired --copy-rate 100M", "pair set {m}paired --copy-rate none"),
    (
        "pair delete {m}paired --force --yes",
        "at alpha: pair create apaired beta:bpaired --invalidate destination --yes",
    ),
    ("volume accept {m}inc --yes", ""),
    ("peer invite", ""),
    ("peer join {invited}", ""),
    ("peer set {peer} --address 127.0.0.2 --force", "peer set {peer} --address 127.0.0.1:{peer_port}"),
    ("host set --address 127.0.0.1:{port}", "host set --address 127.0.0.1:{own_port}"),
    ("host init --name {name} --address 127.0.0.1:{own_port}", ""),
    ("backup {state}/copy", "rm {state}/copy"),
    ("backup {elsewhere}/copy", "rm {elsewhere}/copy"),
)


@pytest.mark.parametrize(("command", "back"), CHANGING, ids=[command for command, _ in CHANGING])
def test_a_command_on_a_full_file_system_succeeds_or_changes_nothing_and_says_why(
    hosts: Hosts, command: str, back: str
) -> None:
    name = hosts.disk.host.name
    peer = "beta" if name == "alpha" else "alpha"
    words = words_of(hosts, name, peer)
    argv = command.format(**words).split()
    before = hosts.rows()
    hosts.disk.fill()
    try:
        found = hosts.run(name, *argv)
        assert not (found.code and command.startswith(ENDING)), found.err
        if found.code:
            assert_told(found, hosts.disk.folder)
            assert hosts.rows() == before
        hosts.use_the_pair(command.encode()[:40])
        assert hosts.run(name, "status").code == 0
    finally:
        hosts.disk.empty()
    if found.code:
        again = hosts.run(name, *argv)
        assert (again.code, again.err) == (0, "")
    for step in filter(None, back.format(**words).split("; ")):
        take_back(hosts, name, peer, step)
    wait_until(hosts.has_ended, "nothing is left open")
    hosts.wait_synchronized()
    assert names_of(hosts.rows()) == names_of(before)


def words_of(hosts: Hosts, name: str, peer: str) -> dict[str, object]:
    return {
        "m": name[0],
        "p": peer[0],
        "name": name,
        "peer": peer,
        "state": hosts.disk.folder,
        "elsewhere": hosts.disk.host.faults,
        "invited": hosts.gamma.call("peer.invite")["token"],
        "port": free_port(),
        "own_port": hosts.disk.host.port,
        "peer_port": hosts.all[peer].port,
    }


def assert_told(found: Outcome, folder: Path) -> None:
    lines = found.err.splitlines()
    assert lines[0].startswith("pathctl: ")
    assert all(line.startswith("  ") for line in lines[1:])
    assert f"the file system of {folder}" in lines[0]
    assert "full" in lines[0]
    assert "make room" in lines[0]
    assert found.code == 1


def take_back(hosts: Hosts, name: str, peer: str, step: str) -> None:
    at, _, words = step.rpartition(": ")
    at = {"": name, "at peer": peer}.get(at, at.removeprefix("at "))
    if words.startswith("rm "):
        Path(words.removeprefix("rm ")).unlink()
        return
    found = hosts.run(at, *words.split())
    assert found.code == 0, found.err


def names_of(state: dict[str, Any]) -> dict[str, object]:
    """Which volumes and connections there are, without what is random in them."""
    return {
        name: (
            [row[0] for row in found["volumes"]],
            [row[2] for row in found["connections"]],
            found["files of volumes"],
        )
        for name, found in state.items()
    }


# -- each step of a pair -----------------------------------------------------------------------------------

CREATING = (
    *(f"alpha create.{step}" for step in ("journal", "create_source", "create_destination", "first", "second")),
    *(f"alpha create.{step}" for step in ("greet", "ready", "committed", "done")),
    "alpha connect.source",
    "beta peer.create_volume",
    "beta connect.destination",
    "beta peer.finish",
)
DELETING = (
    *(f"alpha delete.{step}" for step in ("journal", "stop", "destination", "source", "done")),
    "beta peer.end",
)
CREATE = "pair create astep beta:bstep --create --size 4M --invalidate destination --yes"
DELETE = "pair delete astep --force --yes"


@contextlib.contextmanager
def filled_at(hosts: Hosts, point: str, command: str) -> Iterator[list[Outcome]]:
    """The command, run until the point is reached, then the disk filled and kept full until it has ended."""
    at, _, name = point.partition(" ")
    host, ended = hosts.all[at], []
    pause = host.fault("pause", name)
    runner = threading.Thread(target=lambda: ended.append(hosts.run("alpha", *command.split())))
    runner.start()
    try:
        host.wait_reached(name)
        hosts.disk.keep_full()
        pause.unlink()
        runner.join(WAIT_S)
        assert not runner.is_alive()
        yield ended
    finally:
        pause.unlink(missing_ok=True)
        hosts.disk.empty()
        runner.join(WAIT_S)
        (host.faults / f"reached-{name}").unlink(missing_ok=True)


def pair_rows(hosts: Hosts) -> list[object]:
    """At each host: whether the new volume and its connection are there, and the connection's state."""
    found: list[object] = []
    for name, host in hosts.all.items():
        rows, volume = badscene.rows(host.root), f"{name[0]}step"
        found.append(([row for row in rows["volumes"] if row[0] == volume] != [], states_of(host, volume)))
    return found


def left_of(hosts: Hosts) -> set[str]:
    """The kinds of files of the new volumes."""
    folders = [host.root / "var/lib/pathctl" for host in hosts.all.values()]
    return {path.suffix for folder in folders for path in folder.glob("*/*step.*")}


def count_keys(hosts: Hosts) -> set[int]:
    return {len(found["files of keys"]) for found in hosts.rows().values()}


def states_of(host: Daemon, volume: str) -> list[str]:
    return [row["state"] for row in host.call("connection.list")["connections"] if row["volume"] == volume]


KEYS = 4  # the host's key, its certificate, the priority file, and the pair that is always there
NONE, BOTH = [(False, []), (False, [])], [(True, ["ready"]), (True, ["ready"])]


@pytest.fixture
def fresh(hosts: Hosts) -> Iterator[Hosts]:
    """Hosts without the new pair, also after a test that has failed."""
    yield hosts
    wait_until(hosts.has_ended, "nothing is left open")
    for at, command in (
        ("alpha", DELETE),
        ("alpha", "volume delete astep --yes"),
        ("beta", "volume delete bstep --yes"),
    ):
        hosts.run(at, *command.split())
    assert pair_rows(hosts) == NONE


@pytest.mark.parametrize("point", CREATING)
def test_a_create_on_a_disk_that_fills_up_leaves_all_or_nothing_and_needs_no_help(fresh: Hosts, point: str) -> None:
    hosts = fresh
    with filled_at(hosts, point, CREATE) as ended:
        if ended[0].code:
            assert "Traceback" not in ended[0].err
            assert f"the file system of {hosts.disk.folder}" in ended[0].err
        hosts.use_the_pair(point.encode())
    wait_until(hosts.has_ended, "the operation has ended at both hosts")
    wait_until(lambda: pair_rows(hosts) in (NONE, BOTH), "the pair is at both hosts or at none")
    is_there = pair_rows(hosts) == BOTH
    assert is_there or ended[0].code, "what was said to be done is there"
    if not is_there:
        wait_until(lambda: left_of(hosts) <= {".log"}, "no file of the new volumes is left")
        wait_until(lambda: count_keys(hosts) == {KEYS}, "no key of the new pair is left")
    found = hosts.run("alpha", *CREATE.split())
    assert found.code == 0, found.err
    hosts.wait_synchronized()


@pytest.mark.parametrize("point", DELETING)
def test_a_delete_on_a_disk_that_fills_up_is_finished_when_there_is_room(fresh: Hosts, point: str) -> None:
    hosts = fresh
    assert hosts.run("alpha", *CREATE.split()).code == 0
    with filled_at(hosts, point, DELETE) as ended:
        if ended[0].code:
            assert "Traceback" not in ended[0].err
            assert f"the file system of {hosts.disk.folder}" in ended[0].err
        hosts.use_the_pair(point.encode())
    wait_until(hosts.has_ended, "the operation has ended at both hosts")
    wait_until(lambda: pair_rows(hosts) == [(True, []), (True, [])], "the pair has gone from both hosts")


# -- pathctld itself ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_pathctld_starts_on_a_full_file_system_and_the_pair_goes_on(hosts: Hosts, end: str) -> None:
    host = hosts.disk.host
    getattr(host, end)()
    hosts.disk.fill()
    try:
        host.start()
        hosts.use_the_pair(end.encode())
        assert hosts.run(host.name, "status").code == 0
    finally:
        hosts.disk.empty()
    assert hosts.run(host.name, *f"volume create {host.name[0]}new --size 4M".split()).code == 0
    assert hosts.run(host.name, *f"volume delete {host.name[0]}new --yes".split()).code == 0


def test_a_host_gets_its_name_when_there_is_room(tmp_path: Path) -> None:
    host = Daemon(tmp_path, "new")
    disk = FullDisk(host)
    disk.mount()
    init = f"host init --name new --address 127.0.0.1:{host.port}".split()
    command = [str(BIN / "pathctl"), "--root", str(host.root), *init]
    try:
        host.start()
        disk.fill()
        assert_told(badscene.run(command), disk.folder)
        assert (badscene.rows(host.root)["host"], host.call("status")["host"]) == ([], None)
        assert [name for name, _ in badscene.files(disk.folder / "keys") if name.endswith(".new")] == []
        disk.empty()
        assert badscene.run(command).code == 0
    finally:
        disk.empty()
        host.stop_all()
        disk.unmount()


def test_a_restore_on_a_full_file_system_leaves_what_is_there(hosts: Hosts) -> None:
    host = hosts.disk.host
    copy = str(host.faults / "copy")
    assert hosts.run(host.name, "backup", copy).code == 0
    host.stop_all()
    database = hosts.disk.folder / "pathctl.db"
    before = database.read_bytes()
    hosts.disk.fill()
    try:
        assert_told(hosts.run(host.name, "restore", copy, "--yes"), hosts.disk.folder)
        assert database.read_bytes() == before
    finally:
        hosts.disk.empty()
    found = hosts.run(host.name, "restore", copy, "--yes")
    assert found.code == 0, found.err
    host.start()
    hosts.wait_synchronized()
    Path(copy).unlink()


@pytest.mark.parametrize("folder", ["var/lib/pathctl", "run/pathctl"])
def test_pathctld_that_cannot_make_its_files_says_which_file_system_is_full(tmp_path: Path, folder: str) -> None:
    place = tmp_path / "new" / folder
    with badscene.mounted("none", place, "-t", "tmpfs", "-o", "size=1M,mode=700"):
        badscene.fill(place / "filler")
        found = badscene.run([str(BIN / "pathctld"), "--root", str(tmp_path / "new")])
    assert found.code == 1
    assert found.err.splitlines()[-1].startswith(f"pathctld: the file system of {place} is full")
    assert "make room" in found.err
    assert "Traceback" not in found.err
