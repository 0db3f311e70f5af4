"""Planes and hosts for the live tests: each test has its own folder, and what it started is ended with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live.daemons import Daemon, running
from live.planes import Pair, Plane

MIB = 1 << 20
MakePair = Callable[..., Pair]


@pytest.fixture
def make_plane(tmp_path: Path) -> Iterator[Callable[..., Plane]]:
    planes: list[Plane] = []

    def make(name: str, role: str, size: int = 16 * MIB, **params: object) -> Plane:
        planes.append(Plane(tmp_path, name, role, size, **params))
        (tmp_path / "psk").touch()
        return planes[-1]

    yield make
    for plane in planes:
        plane.close()


@pytest.fixture
def make_pair(make_plane: Callable[..., Plane]) -> MakePair:
    """Two running planes, not yet connected; `source_data`, `destination_data` are put into the stores first."""

    def make(size: int = 16 * MIB, source_data: bytes = b"", destination_data: bytes = b"", **params: object) -> Pair:
        planes = [make_plane("source", "host", size, **params), make_plane("destination", "peer", size)]
        for plane, data in zip(planes, (source_data, destination_data), strict=True):
            with plane.backing.open("r+b") as file:
                file.write(data)
        pair = Pair(*planes)
        for plane in planes:
            plane.start()
        return pair

    return make


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """alpha and beta, running and enrolled with each other."""
    with running(Daemon(tmp_path, "alpha"), Daemon(tmp_path, "beta")) as both:
        yield both
