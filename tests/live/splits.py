"""splits - pairs of two real pathctld whose sides went different ways, made as it happens in the field."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import nbd
from live.daemons import Daemon
from waiting import wait_until

from pathctl import config

SIZE = 2 << 20
TRACK = 64 << 10
SETTINGS = "[peers]\nlook_every_s = 0.5\n"  # the other host is asked soon what it has


def set_up(host: Daemon) -> Daemon:
    file = host.root / "etc/pathctl/pathctl.toml"
    file.write_text(file.read_text() + SETTINGS)
    return host


def make_pair(alpha: Daemon, beta: Daemon, **fields: Any) -> str:
    """alpha:va with random data and beta:vb, Synchronized; -> the pair."""
    alpha.call("volume.create", name="va", size=SIZE)
    beta.call("volume.create", name="vb", size=SIZE)
    alpha.image("va").write_bytes(os.urandom(SIZE).replace(b"A", b"a").replace(b"B", b"b"))  # what tests write is new
    made = alpha.call("pair.create", source="va", destination="beta:vb", invalidate="destination", **fields)
    wait_state(alpha, "Synchronized")
    return str(made["pair"]["pair"])


def states(host: Daemon) -> list[str]:
    return [pair["state"] for pair in host.call("pair.list")["pairs"]]


def wait_state(host: Daemon, wanted: str) -> None:
    wait_until(lambda: states(host) == [wanted], f"{host.name} shows {wanted}")


def get_session(alpha: Daemon) -> int:
    """The number of the session that va has now; 0 while there is none."""
    return int(alpha.call("pair.show", pair="va")["pair"]["session"] or 0)


def write(host: Daemon, volume: str, track: int, letter: bytes) -> None:
    """A host's write of one track, flushed; the volume is attached, or a source."""
    handle = nbd.NBD()
    handle.connect_unix(str(config.at(host.root).nbd_socket(volume)))
    handle.pwrite(letter * TRACK, track * TRACK)
    handle.flush()
    handle.shutdown()


def wait_incomplete(beta: Daemon) -> None:
    """vb's process has it on disk that the volume lacks data, which comes a moment after the path is ready."""
    wait_until(lambda: beta.volume("vb")["incomplete"], "vb knows that it is incomplete")


def track(host: Daemon, volume: str, number: int) -> bytes:
    """The first byte of a track, as it lies in the backing."""
    with host.image(volume).open("rb") as file:
        file.seek(number * TRACK)
        return file.read(1)


def write_freed(beta: Daemon, letter: bytes) -> None:
    """beta:vb is used and written as a volume of its own."""
    beta.call("attach", volume="vb")
    write(beta, "vb", 1, letter)
    beta.call("detach", volume="vb")


def part(alpha: Daemon, beta: Daemon) -> None:
    """The hosts do not hear each other, beta frees its half, both volumes are written; then they hear each other."""
    alpha.kill()
    beta.call("pair.delete", pair="vb", half=True)
    write_freed(beta, b"B")
    write(alpha, "va", 2, b"A")
    alpha.start()
    wait_state(alpha, "Split")


class Older:
    """A copy of a volume's backing and metadata, for when its machine is set back to it."""

    def __init__(self, host: Daemon, volume: str, folder: Path) -> None:
        self._host, self._volume = host, volume
        self._folder = folder / f"{host.name}-{volume}"
        self._folder.mkdir()
        host.stop_all()
        for file in self._files():
            shutil.copy(file, self._folder)
        host.start()

    def _files(self) -> list[Path]:
        image = self._host.image(self._volume)
        return [image, image.with_suffix(".meta")]

    def put_back(self) -> None:
        self._host.stop_all()
        for file in self._files():
            shutil.copy(self._folder / file.name, file)
        self._host.start()
