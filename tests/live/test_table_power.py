"""Power is lost while a metadata file is made, changed or repaired: each state of it that a disk may hold is opened."""

from __future__ import annotations

import dataclasses
import itertools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.faultdisk import CREATE, PUNCH, RENAME, SIZE, SYNC, UNLINK, WRITE, Entry, FaultDisk
from live.powercheck import open_table

from nbdplugin import layout, metafile
from nbdplugin.errors import StoreFailed
from nbdplugin.geometry import Span
from nbdplugin.metafile import MetaFile
from nbdplugin.tracks import Header

TRACKS = 2 * layout.TRACKS_PER_PAGE


def make_header() -> Header:
    return Header(str(uuid.uuid4()), TRACKS * 4096, 4096, generation=str(uuid.uuid4()))


@dataclasses.dataclass
class Content:
    """One file's bytes: durable, and what is pending."""

    durable: bytearray
    pending: list[Entry]

    def list_images(self) -> Iterator[bytearray]:
        """Of each pending entry: nothing, all, its first part, its last part."""
        for choice in itertools.product(range(4), repeat=len(self.pending)):
            image = bytearray(self.durable)
            for entry, part in zip(self.pending, choice, strict=True):
                put(image, entry, part)
            yield image


def put(image: bytearray, entry: Entry, part: int = 1) -> None:
    if part == 0:
        return
    if entry.kind == SIZE:
        image.extend(bytes(max(0, entry.offset - len(image))))
        del image[entry.offset :]
        return
    cut = entry.length // 2 + 13
    low, high = {1: (0, entry.length), 2: (0, cut), 3: (cut, entry.length)}[part]
    data = bytes(entry.data) if entry.kind == WRITE else bytes(entry.length)
    image.extend(bytes(max(0, entry.offset + high - len(image))))
    image[entry.offset + low : entry.offset + high] = data[low:high]


class Folder:
    """A folder after each entry of a record: names and files, durable or pending."""

    def __init__(self) -> None:
        self.durable: dict[str, Content] = {}
        self.now: dict[str, Content] = {}
        self.pending: list[Entry] = []

    def take(self, entry: Entry) -> None:
        if entry.kind in (CREATE, RENAME, UNLINK):
            before = dict(self.now)
            self.now = self._rename(before, entry)
            self.pending.append(entry)
        elif entry.kind == SYNC and not entry.name:
            self.durable, self.pending = dict(self.now), []
        elif entry.kind == SYNC:
            content = self.now[entry.name]
            for one in content.pending:
                put(content.durable, one)
            content.pending.clear()
        elif entry.kind in (WRITE, PUNCH, SIZE):
            self.now[entry.name].pending.append(entry)

    def _rename(self, names: dict[str, Content], entry: Entry) -> dict[str, Content]:
        names = dict(names)
        if entry.kind == CREATE:
            names[entry.name] = self.now.get(entry.name) or Content(bytearray(), [])
        elif entry.kind == UNLINK:
            names.pop(entry.name, None)
        elif entry.name in names:
            names[bytes(entry.data).decode()] = names.pop(entry.name)
        return names

    def list_states(self) -> Iterator[dict[str, bytearray]]:
        """Any first part of what happened to the names, with any choice of what was written to the files."""
        for count in range(len(self.pending) + 1):
            names = dict(self.durable)
            for entry in self.pending[:count]:
                names = self._rename(names, entry)
                if entry.kind == CREATE:  # the file as it is now, perhaps under another name
                    following = [bytes(e.data).decode() for e in self.pending if e.kind == RENAME]
                    names[entry.name] = next(self.now[n] for n in [entry.name, *following] if n in self.now)
            for images in itertools.product(*(list(content.list_images()) for content in names.values())):
                yield dict(zip(names, images, strict=True))


def test_the_file_is_there_whole_or_not_at_all_wherever_its_creation_ends(tmp_path: Path) -> None:
    header = make_header()
    with FaultDisk(tmp_path / "disk", tmp_path / "record") as disk:
        metafile.create(disk.path("v.meta"), header)
        entries = disk.read_entries()
    folder, states, found = Folder(), 0, set()
    for entry in entries:
        folder.take(entry)
        for state in folder.list_states():
            place = tmp_path / f"s{states}"
            place.mkdir()
            states += 1
            for name, image in state.items():
                (place / name).write_bytes(image)
            path = place / "v.meta"
            found.add(path.exists())
            if path.exists():
                assert MetaFile(path, is_writer=False).table.header.volume == header.volume
            metafile.create(path, header)  # the command is repeated
            assert [file.name for file in place.iterdir()] == ["v.meta"]
            assert MetaFile(path).table.geometry.tracks == TRACKS
            assert path.stat().st_size == layout.get_file_size(TRACKS)
    assert folder.pending == []
    assert set(folder.durable) == {"v.meta"}
    assert found == {True, False}
    print(states, "states")


@pytest.mark.parametrize("what", ["page", "header", "both"])
def test_a_repair_that_is_cut_off_leaves_a_file_that_can_be_read(tmp_path: Path, what: str) -> None:
    """A process is killed between the copies, so that the younger one is not durable; the next one repairs."""
    with FaultDisk(tmp_path / "disk", tmp_path / "record") as disk:
        path = disk.path("v.meta")
        metafile.create(path, make_header())
        first = MetaFile(path)
        write(first, "both", 3)
        disk.fail("v.meta", "sync", count=1)
        begun = len(disk.read_entries())
        with pytest.raises(StoreFailed):
            write(first, what, 4)
        os.close(first._fd)
        os.close(MetaFile(path)._fd)
        entries = disk.read_entries()
    content, states = Content(bytearray(), []), 0
    for number, entry in enumerate(entries):
        if entry.kind == SYNC:
            for one in content.pending:
                put(content.durable, one)
            content.pending.clear()
        elif entry.kind in (WRITE, SIZE):
            content.pending.append(entry)
        if number < begun:
            continue
        for image in content.list_images():
            states += 1
            with open_table(image) as file:
                assert file.table.owed.count in (3, 4)
                assert file.table.header.session in (3, 4)
    print(states, "states")
    assert states >= 8


def write(file: MetaFile, what: str, count: int) -> None:
    table = file.table
    if what != "header":
        table.mark_owed(Span(0, count))
    if what != "page":
        table.header.session = count
    change = table.build_change(() if what == "header" else (0,), {}, header=what != "page")
    file.write(change)
    table.note_written(change)
