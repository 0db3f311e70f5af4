"""badprepare - how the scene of bad input is prepared: who answers, what is in use, what is damaged.

Each is a context manager that undoes itself and gives words for the command line.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from live import badscene
from live.badscene import SIZE, Scene
from live.daemons import Daemon
from waiting import WAIT_S, wait_until

from pathctl import db

Words = dict[str, str]
Prepare = Callable[[Scene], AbstractContextManager[Words]]


@contextlib.contextmanager
def as_it_is(scene: Scene) -> Iterator[Words]:
    yield {}


# -- who answers at gamma's address ----------------------------------------------------------


def at_gamma(name: str, raw: bytes | None, context: Callable[[Scene], object] = lambda scene: None) -> Prepare:
    @contextlib.contextmanager
    def prepare(scene: Scene) -> Iterator[Words]:
        with badscene.answering(scene.gamma.port, raw, context(scene)):  # type: ignore[arg-type]
            yield {}

    prepare.__name__ = name
    return prepare


def own_key(scene: Scene) -> object:
    return badscene.as_host(scene.gamma.root, knows=scene.alpha.root)


def foreign_key(scene: Scene) -> object:
    return badscene.as_stranger(scene.folder)


garbage = at_gamma("garbage", os.urandom(512))
mail_server = at_gamma("a mail server", b"220 mail.example.org ESMTP\r\n500 what?\r\n")
plain_http = at_gamma("HTTP without TLS", badscene.http(b"<html>It works!</html>", kind="text/html"))
foreign_tls = at_gamma("a foreign certificate", badscene.http(b"{}"), foreign_key)
silence = at_gamma("silence", None, own_key)
hang_up = at_gamma("it hangs up", b"", own_key)
web_page = at_gamma("its key, a web page", badscene.http(b"<html>It works!</html>", kind="text/html"), own_key)
other_json = at_gamma("its key, other JSON", badscene.http(b'{"size": "big", "track_size": [1]}'), own_key)
json_list = at_gamma("its key, a JSON list", badscene.http(b"[1, 2, 3]"), own_key)
strange_error = at_gamma("its key, a strange error", badscene.http(b'{"error": 7}', "500 Oops"), own_key)
huge_answer = at_gamma("its key, 2 MiB", badscene.http(b'"' + b"x" * (2 << 20) + b'"'), own_key)
UNHEARD = (garbage, mail_server, plain_http, foreign_tls, silence, hang_up)
NONSENSE = (web_page, other_json, json_list, strange_error, huge_answer)


@contextlib.contextmanager
def token_of_gamma(scene: Scene) -> Iterator[Words]:
    """An invitation of a host that has gone since."""
    scene.gamma.start()
    try:
        token = scene.gamma.call("peer.invite")["token"]
    finally:
        scene.gamma.terminate()
    yield {"token": token}


@contextlib.contextmanager
def own_token(scene: Scene) -> Iterator[Words]:
    yield {"token": scene.alpha.call("peer.invite")["token"]}


# -- files and devices -----------------------------------------------------------------------


@contextlib.contextmanager
def plain_file(scene: Scene) -> Iterator[Words]:
    file = badscene.sparse(scene.folder / "plain.img")
    yield {"file": str(file), "missing": str(scene.folder / "missing.img")}
    file.unlink()


@contextlib.contextmanager
def uneven_file(scene: Scene) -> Iterator[Words]:
    file = badscene.sparse(scene.folder / "uneven.img", 1000)
    yield {"file": str(file)}
    file.unlink()


@contextlib.contextmanager
def mounted_device(scene: Scene) -> Iterator[Words]:
    file = badscene.sparse(scene.folder / "fs.img")
    with badscene.loop_device(file) as device:
        badscene.run(["mkfs.ext4", "-q", device])
        with badscene.mounted(device, scene.folder / "mnt"):
            yield {"device": device, "file": str(file)}
    file.unlink()


@contextlib.contextmanager
def loop_over_file(scene: Scene) -> Iterator[Words]:
    file = badscene.sparse(scene.folder / "looped.img")
    with badscene.loop_device(file) as device:
        yield {"device": device, "file": str(file)}
    file.unlink()


@contextlib.contextmanager
def loop_over_loop(scene: Scene) -> Iterator[Words]:
    file = badscene.sparse(scene.folder / "looped.img")
    with badscene.loop_device(file) as below, badscene.loop_device(Path(below)) as above:
        yield {"device": below, "above": above}
    file.unlink()


@contextlib.contextmanager
def opened_file(scene: Scene) -> Iterator[Words]:
    file = badscene.sparse(scene.folder / "opened.img")
    with badscene.held_open(str(file)) as pid:
        yield {"file": str(file), "pid": str(pid)}
    file.unlink()


@contextlib.contextmanager
def opened_device(scene: Scene) -> Iterator[Words]:
    file = badscene.sparse(scene.folder / "opened.img")
    with badscene.loop_device(file) as device, badscene.held_open(device) as pid:
        yield {"device": device, "pid": str(pid)}
    file.unlink()


@contextlib.contextmanager
def read_only_device(scene: Scene) -> Iterator[Words]:
    file = badscene.sparse(scene.folder / "ro.img")
    with badscene.loop_device(file, "--read-only") as device:
        yield {"device": device}
    file.unlink()


@contextlib.contextmanager
def read_only_mount(scene: Scene) -> Iterator[Words]:
    with badscene.mounted("none", scene.folder / "ro", "-t", "tmpfs") as place:
        badscene.sparse(place / "disk.img")
        badscene.run(["mount", "-o", "remount,ro", str(place)])
        yield {"file": str(place / "disk.img")}


@contextlib.contextmanager
def odd_files(scene: Scene) -> Iterator[Words]:
    fifo, door = scene.folder / "fifo", scene.folder / "door"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(door))
        yield {"fifo": str(fifo), "socket": str(door)}
    fifo.unlink()
    door.unlink()


@contextlib.contextmanager
def nowhere(scene: Scene) -> Iterator[Words]:
    (scene.folder / "nowhere").mkdir(exist_ok=True)
    yield {"root": str(scene.folder / "nowhere")}


# -- gamma in another way --------------------------------------------------------------------


def shut_down(host: Daemon) -> None:
    """End pathctld and all processes that it has started, without a word on our stderr."""
    assert host.process is not None
    host.call("host.shutdown")
    host.process.wait(WAIT_S)


@contextlib.contextmanager
def ambiguous(scene: Scene) -> Iterator[Words]:
    """gamma with two pairs whose UUIDs begin alike: 300 real ones would be needed for that, so their rows are
    written by pathctl's own Database while no pathctld runs."""
    alike = ("abcd1234-0000-4000-8000-00000000000", "abcd9876-0000-4000-8000-00000000000")
    database = db.Database(scene.gamma.root / "var/lib/pathctl/pathctl.db")
    for number, (pair, volume) in enumerate(zip(alike, ("gfree", "gbig"), strict=True)):
        database.insert_connection(
            db.Connection(
                f"{pair}{number}", f"{pair}{number}", volume, "source", "alpha", "x", "destination", "suspended"
            )
        )
    database.close()
    scene.gamma.start()
    try:
        yield {}
    finally:
        shut_down(scene.gamma)
        database = db.Database(scene.gamma.root / "var/lib/pathctl/pathctl.db")
        for number, pair in enumerate(alike):
            database.delete_connection(f"{pair}{number}")
        database.close()


@contextlib.contextmanager
def damaged_table(scene: Scene) -> Iterator[Words]:
    """gamma with a volume whose metadata has a byte flipped in both copies of its header."""
    meta = scene.gamma.root / "var/lib/pathctl/volumes/gfree.meta"
    whole = meta.read_bytes()
    bad = bytearray(whole)
    for offset in range(0, len(bad), 512):
        bad[offset + 100] ^= 0xFF
    meta.write_bytes(bad)
    scene.gamma.start()
    try:
        yield {}
    finally:
        scene.gamma.terminate()
        assert meta.read_bytes() == bad, "a damaged table is not touched"
        meta.write_bytes(whole)


def damaged_database(name: str, damage: Callable[[bytearray], object]) -> Prepare:
    @contextlib.contextmanager
    def prepare(scene: Scene) -> Iterator[Words]:
        path = scene.gamma.root / "var/lib/pathctl/pathctl.db"
        whole = path.read_bytes()
        bad = bytearray(whole)
        damage(bad)
        path.write_bytes(bad)
        try:
            yield {"path": str(path)}
        finally:
            assert path.read_bytes() == bad, "a damaged database is not touched"
            path.write_bytes(whole)

    prepare.__name__ = name
    return prepare


def _flip(raw: bytearray) -> None:
    for offset in range(4096, len(raw), 64):
        raw[offset] ^= 0xFF


def _overwrite(raw: bytearray) -> None:
    raw[:] = b"this is no database\n" * 400


flipped = damaged_database("bytes flipped", _flip)
cut_off = damaged_database("cut off", lambda raw: raw.__delitem__(slice(len(raw) // 2, None)))
overwritten = damaged_database("overwritten", _overwrite)


def started_as(name: str, **environment: str) -> Prepare:
    """gamma, started in an odd way."""

    @contextlib.contextmanager
    def prepare(scene: Scene) -> Iterator[Words]:
        scene.gamma.environment = environment
        scene.gamma.start()
        try:
            yield {}
        finally:
            scene.gamma.environment = {}
            shut_down(scene.gamma)

    prepare.__name__ = name
    return prepare


newer_control = started_as("gamma speaks a newer control protocol", PATHCTL_PROTOCOL="9-10")
newer_data = started_as("gamma speaks a newer data protocol", PATHCTL_DATA_PROTOCOL="9-10")


def with_clock(name: str, when: str) -> Prepare:
    """gamma's pathctld with libfaketime; its monotonic clock is left alone, as by a wrong date."""
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    started = started_as(name, LD_PRELOAD=str(library), FAKETIME=when, FAKETIME_DONT_FAKE_MONOTONIC="1")

    @contextlib.contextmanager
    def prepare(scene: Scene) -> Iterator[Words]:
        with started(scene):
            yield {}

    prepare.__name__ = name
    return prepare


days_ahead = with_clock("gamma's clock is 3 days ahead", "+3d")
in_2009 = with_clock("gamma's clock says 2009", "@2009-02-13 23:31:30")


@contextlib.contextmanager
def new_pair(scene: Scene) -> Iterator[Words]:
    """Another pair, and its volumes, which stay when the pair has gone."""
    scene.alpha.call(
        "pair.create", source="anew", destination="beta:bnew", invalidate="destination", create=True, size=SIZE
    )
    wait_until(
        lambda: scene.alpha.call("pair.show", pair="anew")["pair"]["state"] == "Synchronized", "it is Synchronized"
    )
    try:
        yield {}
    finally:
        scene.alpha.call("volume.delete", name="anew")
        scene.beta.call("volume.delete", name="bnew")


@contextlib.contextmanager
def suspended(scene: Scene) -> Iterator[Words]:
    """The pair that is there already."""
    scene.alpha.call("pair.suspend", pair="apaired")
    try:
        yield {}
    finally:
        scene.alpha.call("pair.resume", pair="apaired")
        wait_until(
            lambda: scene.alpha.call("pair.show", pair="apaired")["pair"]["state"] == "Synchronized", "it goes on"
        )


@contextlib.contextmanager
def full_disk(scene: Scene) -> Iterator[Words]:
    """gamma with its state folder on a file system that is full to the last byte."""
    state, kept = scene.gamma.root / "var/lib/pathctl", scene.folder / "kept"
    subprocess.run(["cp", "--archive", state, kept], check=True)
    with badscene.mounted("none", state, "-t", "tmpfs", "-o", "size=16M,mode=700"):
        subprocess.run(["cp", "--archive", f"{kept}/.", state], check=True)
        try:
            scene.gamma.start()
            badscene.fill(state / "filler")
            yield {"state": str(state)}
        finally:
            shut_down(scene.gamma)
            shutil.rmtree(kept)
