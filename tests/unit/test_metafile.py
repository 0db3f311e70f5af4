"""The metadata file: what is written comes back, a bad page is replaced by its twin, and two bad ones are refused."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from nbdplugin import layout, metafile
from nbdplugin.errors import BadRequest, StoreFailed, TableDamaged
from nbdplugin.geometry import Span
from nbdplugin.metafile import MetaFile
from nbdplugin.tracks import Header, Table

TRACKS = 3 * layout.TRACKS_PER_PAGE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "volume.meta"
    metafile.create(path, Header(str(uuid.uuid4()), TRACKS * 4096, 4096, generation=str(uuid.uuid4())))
    return path


def write_owed(file: MetaFile, span: Span) -> None:
    table = file.table
    table.mark_owed(span)
    change = table.build_change(table.get_pages([span]), {}, header=True)
    file.write(change)
    table.note_written(change)


def close(file: MetaFile) -> None:
    os.close(file._fd)


def spoil(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset + 100)
        byte = file.read(1)
        file.seek(offset + 100)
        file.write(bytes([byte[0] ^ 1]))


def get_offset(copy: int, page: int) -> int:
    return layout.get_page_offset(page, copy, 3)


def test_what_was_written_is_read_again(path: Path) -> None:
    first = MetaFile(path)
    write_owed(first, Span(layout.TRACKS_PER_PAGE - 5, 10))
    close(first)
    table = MetaFile(path).table
    assert table.owed.count == 10
    assert table.owed.is_all(layout.TRACKS_PER_PAGE - 5, 10)
    assert table.get_differing() == set()


@pytest.mark.parametrize("copy", [0, 1])
def test_a_bad_page_is_replaced_by_its_twin(path: Path, copy: int) -> None:
    first = MetaFile(path)
    write_owed(first, Span(7, 3))
    close(first)
    spoil(path, get_offset(copy, 0))
    second = MetaFile(path)
    assert second.table.owed.count == 3
    close(second)
    spoil(path, get_offset(1 - copy, 0))  # the repaired copy alone has to do now
    assert MetaFile(path).table.owed.count == 3


def test_two_bad_copies_of_a_page_are_refused(path: Path) -> None:
    first = MetaFile(path)
    write_owed(first, Span(7, 3))
    close(first)
    for copy in (0, 1):
        spoil(path, get_offset(copy, 0))
    with pytest.raises(TableDamaged, match="both copies of page 0"):
        MetaFile(path)


@pytest.mark.parametrize("copies", [(0,), (1,)])
def test_a_bad_header_is_replaced_by_its_twin(path: Path, copies: tuple[int, ...]) -> None:
    for copy in copies:
        spoil(path, layout.get_header_offset(copy))
    assert MetaFile(path).table.geometry.tracks == TRACKS


def test_two_bad_headers_are_refused_and_the_sentence_says_what_to_do(path: Path) -> None:
    for copy in (0, 1):
        spoil(path, layout.get_header_offset(copy))
    with pytest.raises(TableDamaged, match="create the volume anew"):
        MetaFile(path)


def test_a_fill_makes_every_page_written_before_void(path: Path) -> None:
    file = MetaFile(path)
    write_owed(file, Span(7, 3))
    change = file.table.build_fill(invalid=True, owed=False)
    file.write(change)
    file.table.note_written(change)
    close(file)
    table = MetaFile(path).table
    assert (table.invalid.count, table.owed.count) == (TRACKS, 0)


def test_a_second_writer_is_kept_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metafile, "_LOCK_WAIT_S", 0.1)
    first = MetaFile(path)
    with pytest.raises(BadRequest, match="another process"):
        MetaFile(path)
    assert first.table.invalid.count == 0


def test_creating_the_same_again_changes_nothing_and_another_is_refused(path: Path) -> None:
    before = path.read_bytes()
    header = MetaFile(path, is_writer=False).table.header
    metafile.create(path, header)
    assert path.read_bytes() == before
    with pytest.raises(BadRequest, match="another volume"):
        metafile.create(path, Header(header.volume, 8192, 4096, generation=header.generation))


def test_a_write_that_fails_is_told(path: Path) -> None:
    file = MetaFile(path)
    table: Table = file.table
    change = table.build_change((), {}, header=True)
    close(file)
    with pytest.raises(StoreFailed, match="track table"):
        file.write(change)


def test_all_room_that_the_file_will_need_is_taken_when_it_is_made(path: Path) -> None:
    found = path.stat()
    assert found.st_size == layout.get_file_size(TRACKS)
    assert found.st_blocks * 512 >= found.st_size
    assert list(MetaFile(path)._find_written(MetaFile(path, is_writer=False).table)) == []


@pytest.mark.parametrize("size", [0, 100, layout.BITS_START - 1])
def test_a_file_that_is_too_short_is_refused(path: Path, size: int) -> None:
    os.truncate(path, size)
    with pytest.raises(TableDamaged, match=r"too short|shorter"):
        MetaFile(path)


def test_at_64_kib_tracks_the_file_is_less_than_a_hundred_thousandth_of_the_volume() -> None:
    size = 10 << 40
    assert layout.get_file_size(size // 65536) < size / 100_000
