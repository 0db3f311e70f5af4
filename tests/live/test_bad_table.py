"""Metadata files that are not what they should be: recovered from the twin and told, or refused and left alone.

Every byte position of a file is tried in process; the real process and the tool are asked about a sample.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live.conftest import MIB
from live.daemons import Daemon
from live.planes import Plane
from waiting import WAIT_S, wait_until

from nbdplugin import layout, metafile
from nbdplugin.errors import TableDamaged
from nbdplugin.geometry import Span
from nbdplugin.metafile import MetaFile
from nbdplugin.tracks import Header

SMALL, LARGE = 100, 3 * layout.TRACKS_PER_PAGE  # tracks: one page, and three of which the second is never written
PAGE = layout.PAGE_SIZE


class Table:
    """A good metadata file, and its bytes to compare with; in memory, where a sync costs nothing."""

    def __init__(self, folder: Path, track_count: int) -> None:
        self.tracks = track_count
        self.header = Header(str(uuid.uuid4()), track_count * 4096, 4096, generation=str(uuid.uuid4()))
        made = folder / f"{self.header.volume}.meta"
        metafile.create(made, self.header)
        self.good = made.read_bytes()
        self.fd = os.memfd_create("meta")
        self.path = Path(f"/proc/self/fd/{self.fd}")
        self.restore()
        file = MetaFile(self.path)
        table = file.table
        table.header.pair, table.header.side, table.header.committed = str(uuid.uuid4()), "source", True
        table.mark_invalid(Span(3, 5))
        table.mark_owed(Span(track_count - 9, 4))
        self.pages = [0] if track_count == SMALL else [0, 2]
        file.write(table.build_change(self.pages, {}, header=False, active=frozenset([0])))
        os.close(file._fd)
        self.good = self.path.read_bytes()
        self.count = layout.count_pages(track_count)

    def open(self) -> MetaFile:
        """As the process does it; the caller's file is closed again."""
        file = MetaFile(self.path)
        os.close(file._fd)
        return file

    def put(self, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data, offset)

    def flip(self, position: int, bit: int) -> None:
        self.put(position, bytes([os.pread(self.fd, 1, position)[0] ^ 1 << bit]))

    def restore(self) -> None:
        """As it was, holes too."""
        os.truncate(self.fd, 0)
        os.truncate(self.fd, len(self.good))
        for at in range(0, len(self.good), PAGE):
            if any(self.good[at : at + PAGE]):
                self.put(at, self.good[at : at + PAGE])

    def get_twin(self, position: int) -> int:
        """The same position in the other copy."""
        step = layout.HEADER_SIZE if position < layout.BITS_START else self.count * PAGE
        start = 0 if position < layout.BITS_START else layout.BITS_START
        return position + step if position - start < step else position - step

    def name(self, position: int) -> str:
        """What the log calls the copy at a position."""
        if position < layout.BITS_START:
            return f"copy {'AB'[position // layout.HEADER_SIZE]} of the header"
        copy, page = divmod((position - layout.BITS_START) // PAGE, self.count)
        return f"copy {'AB'[copy]} of page {page}"

    def check_recovered(self) -> MetaFile:
        file = self.open()
        table = file.table
        assert (table.invalid.count, table.owed.count) == (5, 4)
        assert table.invalid.is_all(3, 5)
        assert table.owed.is_all(self.tracks - 9, 4)
        assert table.header.active == [0]
        assert os.pread(self.fd, len(self.good) + 1, 0) == self.good
        return file

    def check_refused(self, *said: str) -> str:
        before = self.path.read_bytes()
        with pytest.raises(TableDamaged) as caught:
            MetaFile(self.path)
        text = str(caught.value)
        assert all(part in text for part in said), text
        assert self.path.read_bytes() == before, "a file that is refused is left as it is"
        return text


@pytest.fixture(params=[SMALL, LARGE], ids=["one page", "several pages"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path, request.param)
    yield table
    os.close(table.fd)


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Table]:
    table = Table(tmp_path, LARGE)
    yield table
    os.close(table.fd)


def test_a_flipped_bit_at_any_position_is_mended_from_the_twin_and_told(table: Table) -> None:
    for position in range(len(table.good)):
        table.flip(position, position % 8)
        file = table.check_recovered()
        assert len(file.bad) == 1
        assert file.bad[0].startswith(table.name(position)), position
        assert not file.behind
    print(len(table.good), "positions")


def test_a_bit_flipped_in_both_copies_is_refused_with_what_to_do(table: Table) -> None:
    positions = [p for p in range(len(table.good)) if table.get_twin(p) > p]
    for position in positions:
        for place in (position, table.get_twin(position)):
            table.flip(place, 0)
        said = "create the volume anew" if position < layout.BITS_START else "pathctl pair delete --half"
        with pytest.raises(TableDamaged, match="both copies") as caught:
            MetaFile(table.path)
        assert said in str(caught.value)
        for place in (position, table.get_twin(position)):
            table.flip(place, 0)
    assert table.path.read_bytes() == table.good
    print(len(positions), "positions")


def test_a_page_of_zeroes_is_mended_from_the_twin(table: Table) -> None:
    for position in range(0, len(table.good), PAGE):
        size = layout.HEADER_SIZE if position < layout.BITS_START else PAGE
        table.put(position // size * size, bytes(size))
        file = table.check_recovered()
        assert not file.bad
        is_written = position < layout.BITS_START or (position - layout.BITS_START) // PAGE % table.count in table.pages
        assert [what.startswith(table.name(position)) for what in file.behind] == [True] * is_written


def test_a_page_that_is_zero_in_both_copies_is_not_taken_for_one_that_was_never_written(table: Table) -> None:
    for page in table.pages:
        for copy in (0, 1):
            table.put(layout.get_page_offset(page, copy, table.count), bytes(PAGE))
        table.check_refused("1 pages of", "empty in both copies", "pathctl pair delete --half")
        table.restore()
        for copy in (0, 1):  # the one zero, the other bad
            table.put(layout.get_page_offset(page, copy, table.count), bytes(PAGE))
            table.put(layout.get_page_offset(page, 1 - copy, table.count) + 100, b"bad")
            table.check_refused("1 pages of", "empty in both copies")
            table.restore()
    table.put(0, bytes(2 * layout.HEADER_SIZE))
    table.check_refused("both copies of the header", "create the volume anew")


def test_pages_that_a_fill_made_void_may_be_lost(large: Table) -> None:
    file = MetaFile(large.path)
    file.write(file.table.build_fill(invalid=False, owed=True))
    os.close(file._fd)
    for copy in (0, 1):
        large.put(layout.get_page_offset(0, copy, large.count), bytes(PAGE))
    assert large.open().table.owed.count == LARGE
    file = MetaFile(large.path)
    file.table.clear_owed(Span(0, 8))
    file.write(file.table.build_change([0], file.table.note_clearer(), header=False))
    os.close(file._fd)
    assert large.open().table.owed.count == LARGE - 8
    for copy in (0, 1):
        large.put(layout.get_page_offset(0, copy, large.count), bytes(PAGE))
    large.check_refused("1 pages of")


def test_a_file_of_before_pages_were_counted_is_read_and_counts_them_from_then_on(large: Table) -> None:
    file = large.open()
    fields = json.loads(file.table.header.encode())
    assert fields.pop("pages") == 2
    del fields["pages_since"]
    old = json.dumps(fields).encode()
    sealed = layout.encode(layout.KIND_HEADER, 0, file.table.sequence, file.table.volume, old)
    for copy in (0, 1):
        large.put(layout.get_header_offset(copy), sealed)
    file = MetaFile(large.path)
    assert (file.table.invalid.count, file.table.owed.count) == (5, 4)
    file.write(file.table.build_change([0], {}, header=False))
    os.close(file._fd)
    for copy in (0, 1):
        large.put(layout.get_page_offset(2, copy, large.count), bytes(PAGE))
    large.check_refused("1 pages of")


@pytest.mark.parametrize("copy", [0, 1])
def test_an_older_twin_is_brought_up_to_date_and_told(large: Table, copy: int) -> None:
    old = large.good
    file = MetaFile(large.path)
    file.table.mark_owed(Span(20, 6))
    file.write(file.table.build_change([0], {}, header=True))
    os.close(file._fd)
    large.good = large.path.read_bytes()
    page = layout.get_page_offset(0, copy, large.count)
    large.put(page, old[page : page + PAGE])
    header = layout.get_header_offset(1 - copy)
    large.put(header, old[header : header + layout.HEADER_SIZE])
    file = large.open()
    assert file.table.owed.count == 10
    assert large.path.read_bytes() == large.good
    assert file.bad == []
    assert [what.split(" of the track")[0] for what in file.behind] == [
        f"copy {'AB'[1 - copy]} of the header",
        f"copy {'AB'[copy]} of page 0",
    ]


def test_a_file_cut_short_anywhere_is_refused(table: Table) -> None:
    rng = random.Random(4)
    places = {*range(0, len(table.good), PAGE), 1, 63, 64, layout.HEADER_SIZE - 1, len(table.good) - 1}
    places |= {place + 1 for place in places if place + 1 < len(table.good)}
    places |= {rng.randrange(len(table.good)) for _ in range(200)}
    for place in sorted(places, reverse=True):
        os.truncate(table.path, place)
        text = table.check_refused()
        assert "too short" in text or "shorter than" in text, text
    print(len(places), "places")


def test_pages_of_another_volume_are_no_pages(large: Table, tmp_path: Path) -> None:
    other = Table(tmp_path, LARGE)
    os.close(other.fd)
    page = layout.get_page_offset(2, 0, large.count)
    large.put(page, other.good[page : page + PAGE])
    assert large.check_recovered().bad[0].startswith("copy A of page 2")
    large.put(layout.BITS_START, other.good[layout.BITS_START :])
    large.check_refused("both copies of page 0")


def test_the_pages_of_one_place_are_no_pages_of_another(large: Table) -> None:
    for copy in (0, 1):
        page = layout.get_page_offset(2, copy, large.count)
        large.put(layout.get_page_offset(0, copy, large.count), large.good[page : page + PAGE])
    large.check_refused("both copies of page 0")


def test_another_version_is_refused_and_named(large: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(layout, "VERSION", 7)
        payload = large.header.encode()
        sealed = layout.encode(layout.KIND_HEADER, 0, 9, uuid.UUID(large.header.volume), payload)
    for copy in (0, 1):
        large.put(layout.get_header_offset(copy), sealed)
        large.check_refused("format 7", "start the pathctl that wrote it")


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": -4096},
        {"size": "4096"},
        {"size": 1 << 80},
        {"track_size": 0},
        {"track_size": 4097},
        {"volume": "nobody"},
        {"volume": 5},
        {"active": [999999]},
        {"active": [-1]},
        {"active": "all"},
        {"planes": {}},
        {"planes": {"invalid": 1, "owed": 2}},
        {"unheard_of": 1},
        {"session": "x"},
        {"ancestors": 3},
        {"generation": None},
    ],
    ids=str,
)
def test_a_header_whose_fields_make_no_sense_is_refused(large: Table, change: dict[str, object]) -> None:
    fields = json.loads(large.header.encode()) | change
    raw = json.dumps(fields).encode()
    sealed = layout.encode(layout.KIND_HEADER, 0, 9, uuid.UUID(large.header.volume), raw)
    for copy in (0, 1):
        large.put(layout.get_header_offset(copy), sealed)
    large.check_refused("the metadata")


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"5", b"null", b"{}", b"\xff\xfe", b'{"size": 1', b"[" * 8000], ids=lambda raw: repr(raw[:8])
)
def test_a_header_that_is_no_object_is_refused(large: Table, raw: bytes) -> None:
    sealed = layout.encode(layout.KIND_HEADER, 0, 9, uuid.UUID(large.header.volume), raw)
    for copy in (0, 1):
        large.put(layout.get_header_offset(copy), sealed)
    large.check_refused("the metadata header cannot be read")


def test_random_bytes_are_refused(large: Table) -> None:
    large.put(0, random.Random(5).randbytes(len(large.good)))
    large.check_refused("both copies of the header")


# --- the real process, the real tool ---


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def write(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


BAD: dict[str, tuple[Callable[[Plane], object], str]] = {
    "empty": (lambda plane: os.truncate(plane.meta, 0), "too short"),
    "cut": (lambda plane: os.truncate(plane.meta, layout.BITS_START + 5), "shorter than"),
    "header": (lambda plane: write(plane.meta, 0, b"x" * layout.BITS_START), "both copies of the header"),
    "zero": (lambda plane: write(plane.meta, layout.BITS_START, bytes(2 * PAGE)), "empty in both copies"),
    "page": (lambda plane: write(plane.meta, layout.BITS_START, b"x" * 2 * PAGE), "both copies of page 0"),
    "folder": (lambda plane: make_folder(plane.meta), "metadata"),
    "missing": (lambda plane: plane.meta.unlink(), "cannot be opened"),
}


@pytest.fixture
def plane(make_plane: Callable[..., Plane]) -> Plane:
    """A volume with a page written."""
    plane = make_plane("source", "host")
    file = MetaFile(plane.meta)
    file.table.mark_invalid(Span(3, 5))
    file.write(file.table.build_change([0], {}, header=False))
    os.close(file._fd)
    return plane


def show(plane: Plane) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nbdplugin.format", "show", "--meta", str(plane.meta)]
    return subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)


@pytest.mark.parametrize("kind", BAD)
def test_process_and_tool_say_one_sentence_and_end(plane: Plane, kind: str) -> None:
    spoil, said = BAD[kind]
    spoil(plane)
    shown = show(plane)
    assert (shown.returncode, shown.stdout, len(shown.stderr.splitlines())) == (1, "", 1), shown.stderr
    assert said in shown.stderr
    with pytest.raises(AssertionError):
        plane.start()
    lines = (plane.folder / "source.log").read_text().splitlines()
    assert len(lines) == 1, lines
    assert said in lines[0]


def test_a_repair_is_logged_once_by_the_process_and_served_as_before(plane: Plane) -> None:
    good = plane.meta.read_bytes()
    write(plane.meta, layout.get_page_offset(0, 0, 1) + 900, b"torn")
    shown = show(plane)
    assert json.loads(shown.stdout)["invalid"] == 5
    assert len(shown.stderr.splitlines()) == 1
    assert "copy A of page 0" in shown.stderr
    plane.start()
    assert plane.get_status()["invalid"] == 5
    plane.kill()
    plane.start()
    lines = [line for line in (plane.folder / "source.log").read_text().splitlines() if "copy A of page 0" in line]
    assert len(lines) == 1
    assert "level=warning" in lines[0]
    assert plane.meta.read_bytes() == good
    assert show(plane).stderr == ""


def test_files_of_two_volumes_that_were_swapped_are_refused_and_put_back_they_serve(
    hosts: tuple[Daemon, Daemon],
) -> None:
    alpha, _ = hosts
    for name in ("one", "two"):
        alpha.call("volume.create", name=name, size=MIB)
    alpha.call("attach", volume="one")
    one, two = (alpha.image(name).with_suffix(".meta") for name in ("one", "two"))
    swap(one, two)
    os.kill(alpha.volume("one")["pid"], signal.SIGKILL)
    wait_until(lambda: "another volume" in (alpha.volume("one")["failed"] or ""), "the process says why")
    wait_until(lambda: "another volume" in (alpha.volume("two")["failed"] or ""), "and who reads the file")
    swap(one, two)
    wait_until(lambda: alpha.volume("one")["pid"] and not alpha.volume("one")["failed"], "it serves again")
    assert alpha.volume("two")["failed"] is None


def swap(one: Path, two: Path) -> None:
    draft = one.with_suffix(".swap")
    one.rename(draft)
    two.rename(one)
    draft.rename(two)


def test_the_metadata_of_another_volume_is_refused_by_the_process(plane: Plane) -> None:
    plane.params["uuid"] = str(uuid.uuid4())
    with pytest.raises(AssertionError, match="is the metadata of another volume"):
        plane.start()
