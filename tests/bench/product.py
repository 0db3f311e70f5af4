"""product - volumes and pairs as users run them, in the state that a measurement is about.

Real nbdkit with the real plugin and the command line of pathctl (tests/live/planes.py): table, gate, active extents
and counters on.  Each starts anew, on files that are there, and is ended with its `with`.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from live.planes import Pair, Plane
from waiting import wait_until

TRACK = 64 << 10
SYNC_LIMIT_S = 300.0
STRIPE = 16 << 20


class State(enum.Enum):
    UNPAIRED = "unpaired"
    SYNCHRONIZED = "synchronized"
    SUSPENDED = "suspended"
    TO_DESTINATION = "copying to the destination"
    TO_SOURCE = "copying to the source"


class CopyEnded(Exception):
    """The copy was over before the measurement was: what was measured is another state.  Take a larger volume."""


def make_file(path: Path, size: int, is_filled: bool = True) -> Path:
    """Data that no part of is zeroes, and in the page cache; or holes."""
    with path.open("wb") as file:
        data = os.urandom(STRIPE if is_filled else 0)
        for _ in range(size // STRIPE if is_filled else 0):
            file.write(data)
        file.truncate(size)
    return path


def _make_plane(folder: Path, name: str, role: str, size: int, is_plain: bool = False) -> Plane:
    """On `name`.img of the folder, whatever there was of an earlier one but that."""
    folder.mkdir(exist_ok=True)
    for path in (folder / f"{name}.meta", folder / f"{name}.sock"):
        path.unlink(missing_ok=True)
    return Plane(folder, name, role, size, TRACK, is_plain=is_plain)


@contextmanager
def run_volume(folder: Path, size: int) -> Iterator[Plane]:
    """Unpaired, on `folder`/source.img if that is there."""
    plane = _make_plane(folder, "source", "host", size)
    try:
        plane.psk_file.touch()
        yield plane.start()
    finally:
        plane.close()


@contextmanager
def run_pair(folder: Path, size: int, is_plain: bool) -> Iterator[Pair]:
    """Two planes that run and know nothing of each other yet, on source.img and destination.img if they are there."""
    planes: list[Plane] = []
    try:
        for name, role in (("source", "host"), ("destination", "peer")):
            planes.append(_make_plane(folder, name, role, size, is_plain))
        pair = Pair(*planes)
        for plane in planes:
            plane.start()
        yield pair
    finally:
        for plane in planes:
            plane.close()


@contextmanager
def run_state(folder: Path, size: int, state: State, is_plain: bool = True) -> Iterator[Plane]:
    """The plane that serves the volume, in a state that lasts."""
    if state is State.UNPAIRED:
        with run_volume(folder, size) as plane:
            yield plane
        return
    assert state in (State.SYNCHRONIZED, State.SUSPENDED)
    with run_pair(folder, size, is_plain) as pair:
        pair.create(invalid="destination")
        pair.wait_synchronized(SYNC_LIMIT_S)
        if state is State.SUSPENDED:
            pair.source.ask("suspend", pair=pair.uuid)
        yield pair.source


@contextmanager
def run_copy(folder: Path, size: int, state: State, is_plain: bool = True) -> Iterator[Pair]:
    """A pair whose copy has everything before it and is held until release_copy."""
    with run_pair(folder, size, is_plain) as pair:
        pair.create(invalid="source" if state is State.TO_SOURCE else "destination", rate=0)
        yield pair


def release_copy(pair: Pair) -> None:
    """As soon as there is a client, from whom it takes what it can."""
    wait_until(lambda: pair.source.get_status()["clients"] > 0, "the load is connected")
    pair.source.ask("set", copy_rate_bytes_s=None)


def check_copying(pair: Pair) -> None:
    """Raises CopyEnded."""
    left, size = count_left(pair.source), pair.source.size
    assert left < size // TRACK, "the copy has not begun"
    if not left:
        raise CopyEnded(f"{size >> 20} MiB: the copy ended before the measurement; take a larger volume")


def count_left(plane: Plane) -> int:
    """Tracks that still have to go over."""
    status = plane.get_status()
    return int(status["owed"] + status["invalid"])
