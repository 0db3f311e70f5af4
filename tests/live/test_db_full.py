"""The database on a file system without a byte left: nothing is begun, everything can be ended."""

import contextlib
import subprocess
from pathlib import Path

import msgspec
import pytest

from pathctl import db

VOLUME = db.Volume("v1", "uuid-1", 1 << 20, 65536, "/x/v1.img", True)
ROW = db.Connection("pair-1", "op-1", "v1", "source", "beta", "v2", "destination")
ENTRY = db.Entry("op-1", "pair.create", "coordinator", "pair-1", "v1", "beta", "v2", "{}")


@pytest.fixture
def small(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8M", "pathctl-test", folder], check=True, timeout=60)
    yield folder
    subprocess.run(["umount", folder], check=True, timeout=60)


@pytest.fixture
def database(small):
    found = db.Database(small / "pathctl.db")
    found.upsert_peer(db.Peer("beta", "10.0.0.2", 7630, "PEM of beta"))
    yield found
    found.close()


def fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for piece in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(piece))
    return filler


def insert_volumes(database: db.Database, number: int) -> None:
    for name in map(str, range(number)):
        database.insert_volume(msgspec.structs.replace(VOLUME, name=name, uuid=name))


def test_what_was_begun_is_ended_on_a_full_disk_and_nothing_new_begins_until_there_is_room(small, database):
    for number in range(3):
        database.insert_volume(msgspec.structs.replace(VOLUME, name=f"v{number}", uuid=f"u{number}", operation="op-1"))
    database.open_entry(ENTRY)
    database.insert_connection(ROW)
    filler = fill(small)
    database.set_entry_state("op-1", "undoing")
    database.delete_connection("pair-1")
    for number in range(3):
        database.set_volume_state(f"v{number}", "deleting")
        database.delete_volume(f"v{number}")
    database.close_entry("op-1", "undone")
    assert (database.connections(), database.volumes(), database.journal()) == ([], [], [])
    fill(small)
    with pytest.raises(db.NoSpace, match="is full; nothing was changed"):
        insert_volumes(database, 1000)  # the log still has some room of its own
    assert len(database.volumes()) < 1000
    filler.unlink()
    database.insert_volume(msgspec.structs.replace(VOLUME, name="last", uuid="last"))
    assert database.reserve.path.exists()


def test_an_event_that_cannot_be_recorded_stops_nobody(small, database):
    fill(small)
    database.reserve.release()
    fill(small)
    said = [database.record("daemon.started", "x" * 4000) for _ in range(500)]
    assert said[-1] is False
    assert len(database.events(limit=1000)) < 500
