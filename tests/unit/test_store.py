"""The store: real files, real holes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbdplugin.errors import BadRequest, StoreFailed
from nbdplugin.store import EXTENTS_MOST, Store, is_zero

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "volume.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    return path


def test_what_was_written_is_read(path: Path) -> None:
    store = Store(path, 8 * MIB)
    data = os.urandom(3 * MIB)
    store.write(12345, len(data), memoryview(data))
    assert store.read(12345, len(data)) == data
    store.sync()


def test_zeroes_make_a_hole(path: Path) -> None:
    store = Store(path, 8 * MIB)
    store.write(0, 8 * MIB, os.urandom(8 * MIB))
    full = path.stat().st_blocks
    store.write(MIB, 4 * MIB, None)
    assert store.read(MIB, 4 * MIB) == bytes(4 * MIB)
    assert path.stat().st_blocks <= full - 4 * MIB // 512


def test_extents_tell_holes_from_data(path: Path) -> None:
    store = Store(path, 8 * MIB)
    store.write(2 * MIB, MIB, os.urandom(MIB))
    assert store.find_extent(0, 8 * MIB) == (2 * MIB, True)
    assert store.find_extent(2 * MIB, 8 * MIB) == (MIB, False)
    assert store.find_extent(3 * MIB, 5 * MIB) == (5 * MIB, True)
    assert store.find_extent(0, 4096) == (4096, True)
    assert store.find_extents(MIB, 6 * MIB) == [(MIB, True), (MIB, False), (4 * MIB, True)]


def test_of_many_extents_the_first_are_told(path: Path) -> None:
    store = Store(path, 8 * MIB)
    for offset in range(0, 8 * MIB, 8192):
        store.write(offset, 4096, b"\1" * 4096)
    assert store.find_extents(0, 8 * MIB) == [(4096, False), (4096, True)] * (EXTENTS_MOST // 2)


def test_a_backing_that_cannot_be_used_is_named(path: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="No such file"):
        Store(tmp_path / "missing", MIB)
    with pytest.raises(BadRequest, match="less than"):
        Store(path, 9 * MIB)
    with pytest.raises(BadRequest, match="directory"):
        Store(tmp_path, MIB)


def test_a_backing_in_use_by_another_store_is_refused(path: Path) -> None:
    first = Store(path, MIB)
    with pytest.raises(BadRequest, match="locked"):
        Store(path, MIB)
    assert first.read(0, 512) == bytes(512)


def test_an_error_of_the_file_system_is_told_with_its_errno(path: Path) -> None:
    store = Store(path, 8 * MIB)
    os.truncate(path, MIB)
    with pytest.raises(StoreFailed, match="a read failed"):
        store.read(2 * MIB, 512)


@pytest.mark.parametrize("length", [0, 1, 512, MIB, MIB + 1, 3 * MIB])
def test_zero_data_is_recognised_whatever_its_length(length: int) -> None:
    data = bytearray(length)
    assert is_zero(data)
    if length:
        data[-1] = 1
        assert not is_zero(data)
