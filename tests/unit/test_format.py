"""The format tool on volumes without a process: accepted and released in one step, and never while paired or in use."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from nbdplugin import format as tool
from nbdplugin import layout, metafile, status
from nbdplugin.errors import Refused, StoreFailed
from nbdplugin.metafile import MetaFile
from nbdplugin.tracks import Header

TRACKS = 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "volume.meta"


def make(path: Path, **fields: object) -> None:
    header = Header(str(uuid.uuid4()), TRACKS * 4096, 4096, generation="g", **fields)  # type: ignore[arg-type]
    metafile.create(path, header)


def make_invalid(path: Path, pair: str | None) -> None:
    make(path, side="source" if pair else None, pair=pair)
    file = MetaFile(path)
    file.write(file.table.build_fill(invalid=True, owed=None))
    os.close(file._fd)


def look(path: Path) -> MetaFile:
    file = MetaFile(path, is_writer=False)
    os.close(file._fd)
    return file


def run(path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nbdplugin.format", words[0], "--meta", str(path), *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize("kind", ["invalid", "incomplete"])
def test_an_accepted_volume_is_complete_and_of_a_lineage_of_its_own(path: Path, kind: str) -> None:
    make(path, incomplete=True) if kind == "incomplete" else make_invalid(path, None)
    assert status.describe(look(path).table)["incomplete"]
    assert run(path, "accept").returncode == 0
    after = look(path).table
    assert not status.describe(after)["incomplete"]
    assert (after.invalid.count, after.header.ancestors, after.header.generation != "g") == (0, [], True)


def test_accepting_a_complete_volume_changes_nothing(path: Path) -> None:
    make(path)
    before = path.read_bytes()
    for _ in range(2):
        assert run(path, "accept").returncode == 0
    assert path.read_bytes() == before


def test_a_paired_volume_is_not_accepted_and_the_sentence_says_what_to_do(path: Path) -> None:
    make_invalid(path, "p1")
    before = path.read_bytes()
    found = run(path, "accept")
    assert (found.returncode, found.stderr) == (1, "the volume belongs to pair p1; delete that pair first\n")
    assert path.read_bytes() == before


def test_a_volume_with_a_process_is_not_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(path, incomplete=True)
    monkeypatch.setattr(metafile, "_LOCK_WAIT_S", 0.0)
    holder = MetaFile(path)
    with pytest.raises(Exception, match="another process serves this volume"):
        tool.accept(MetaFile(path))
    os.close(holder._fd)


@pytest.mark.parametrize("writes", [0, 1])
def test_a_crash_while_accepting_leaves_the_old_state_or_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    make_invalid(path, None)
    left = [writes]
    real = os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        if not left[0]:
            real(fd, data[:100], offset)  # the page is torn
            raise OSError(5, "power failed")
        left[0] -= 1
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", write)
    file = MetaFile(path)
    with pytest.raises(StoreFailed):
        tool.accept(file)
    os.close(file._fd)
    monkeypatch.setattr(os, "pwrite", real)
    table = look(path).table
    assert table.invalid.count == (0 if writes else TRACKS)
    assert (table.header.generation == "g") == (not writes)


def test_a_released_volume_is_unpaired_and_as_incomplete_as_before(path: Path) -> None:
    make_invalid(path, "p1")
    assert run(path, "release", "--pair", "other").returncode == 0
    assert look(path).table.header.pair == "p1"
    for _ in range(2):
        assert run(path, "release", "--pair", "p1").returncode == 0
    header = look(path).table.header
    assert (header.pair, header.side, header.session, header.ready) == (None, None, 0, False)
    assert look(path).table.invalid.count == TRACKS


def test_accept_refuses_what_is_paired_before_it_looks_at_anything_else(path: Path) -> None:
    make(path, pair="p1", side="destination")
    file = MetaFile(path)
    with pytest.raises(Refused):
        tool.accept(file)
    os.close(file._fd)
    assert path.stat().st_size == layout.get_file_size(TRACKS)
