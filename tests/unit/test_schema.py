"""Events that changes record themselves, and files of an older schema, on real database files."""

import re
import sqlite3
from pathlib import Path

import msgspec
import pytest

from pathctl import actor, db, schema, shapes
from pathctl.errors import PathctlError

PEER = db.Peer("beta", "10.0.0.2", 7630, "PEM of beta")
VOLUME = db.Volume("v1", "uuid-1", 1 << 20, 65536, "/x/v1.img", True)
ROW = db.Connection("pair-1", "op-1", "v1", "source", "beta", "v2", "destination")


@pytest.fixture
def database(tmp_path):
    found = db.Database(tmp_path / "pathctl.db")
    yield found
    found.close()


def fill(database: db.Database) -> None:
    database.insert_host(db.Host("alpha", "10.0.0.1", 7630))
    database.upsert_peer(PEER)
    database.insert_volume(VOLUME)
    database.insert_connection(ROW)


def kinds(database: db.Database) -> list[str]:
    return [event.kind for event in database.events()]


def test_every_change_of_configuration_records_itself_once(database):
    fill(database)
    database.set_volume_state("v1", "ready")
    database.set_volume_state("v1", "ready")
    database.set_attached("v1")
    database.set_detached("v1")
    database.set_copy_rate("pair-1", 1 << 20)
    database.set_copy_rate("pair-1", 1 << 20)
    database.set_connection_state("pair-1", "ready")
    database.set_connection_state("pair-1", "suspended")
    database.set_host(db.Host("alpha", "10.0.0.9", 7631))
    database.upsert_peer(msgspec.structs.replace(PEER, address="10.0.0.8"))
    database.upsert_peer(msgspec.structs.replace(PEER, address="10.0.0.8"))
    database.delete_connection("pair-1")
    database.delete_volume("v1")
    assert kinds(database) == [
        "host.created",
        "peer.added",
        "volume.created",
        "connection.created",
        "volume.ready",
        "volume.attached",
        "volume.detached",
        "connection.rate",
        "connection.ready",
        "connection.suspended",
        "host.changed",
        "peer.changed",
        "connection.deleted",
        "volume.deleted",
    ]
    assert all(event.kind in schema.KINDS for event in database.events())


def test_an_event_says_who_asked_for_what_and_names_what_is_concerned(database):
    fill(database)
    actor.who.set("uid 0 (root)")
    actor.why.set("pair.suspend")
    try:
        database.set_connection_state("pair-1", "suspended")
    finally:
        actor.who.set("pathctld")
        actor.why.set(None)
    event = database.events()[-1]
    assert (event.actor, event.cause, event.kind) == ("uid 0 (root)", "pair.suspend", "connection.suspended")
    assert (event.volume, event.pair, event.peer) == ("v1", "pair-1", "beta")
    assert (event.before, event.after) == ("creating", "suspended")
    assert event.message == "connection of volume v1 as source of pair pair-1 with beta:v2 is suspended"


def test_a_change_that_fails_leaves_no_event(database):
    fill(database)
    before = kinds(database)
    with pytest.raises(sqlite3.IntegrityError):
        database.insert_connection(msgspec.structs.replace(ROW, pair="pair-2", operation="op-1", peer="nobody"))
    assert kinds(database) == before


def test_who_listens_is_told_each_event_once_after_its_commit(database):
    heard: list[shapes.Event] = []
    database.on_event = heard.append
    fill(database)
    database.set_note("op-1", "no event comes of this")
    database.record("daemon.started", "pathctld was started")
    assert heard == database.events()


def test_the_newest_events_stay_and_the_number_never_goes_back(database):
    database.keep_events = 5
    for number in range(12):
        database.record("daemon.started", f"start {number}")
    assert [event.message for event in database.events()] == [f"start {number}" for number in range(7, 12)]
    assert [event.id for event in database.events()] == list(range(8, 13))


def test_events_are_found_by_number_time_and_pair(database):
    fill(database)
    for pair in ("pair-1", "pair-2", "pair-1"):
        database.record("pair.state", f"{pair} changed", pair=pair, before="Suspended", after="Synchronized")
    assert [event.message for event in database.events(pair="pair-2")] == ["pair-2 changed"]
    newest = database.events()[-1]
    assert database.events(after_id=newest.id - 1) == database.events(since=newest.at) == [newest]
    assert database.events(limit=2) == database.events()[-2:]


def test_a_pairs_state_is_known_also_when_its_event_was_dropped(database):
    fill(database)
    assert database.last_state("pair-1") is None
    database.record("pair.state", "…", pair="pair-1", before=None, after="Suspended")
    at = database.events()[-1].at
    database.keep_events = 1
    database.record("daemon.started", "…")
    assert database.last_state("pair-1") == ("Suspended", at)
    database.end_pair("pair-1")
    assert database.last_state("pair-1") is None


def test_a_file_of_the_first_schema_is_copied_and_brought_up_to_date(tmp_path):
    path = tmp_path / "pathctl.db"
    with sqlite3.connect(path) as old:
        old.executescript((Path(__file__).parent / "schema-1.sql").read_text())
        old.execute("INSERT INTO host VALUES (1, 'alpha', '10.0.0.1', 7630)")
        old.execute("INSERT INTO peers VALUES ('beta', '10.0.0.2', 7630, 'PEM')")
    old.close()
    for _ in range(2):  # the second time there is nothing to do
        database = db.Database(path)
        assert database.host() == db.Host("alpha", "10.0.0.1", 7630)
        database.set_copy_rate("no such pair", 1)
        for address in ("10.0.0.3", "10.0.0.1"):
            database.set_host(db.Host("alpha", address, 7630))
        database.close()
    (backup,) = tmp_path.glob("*.schema-*")
    assert (backup.name, backup.stat().st_mode & 0o777) == ("pathctl.db.schema-1", 0o600)
    copy = sqlite3.connect(backup)
    assert copy.execute("PRAGMA user_version").fetchone() == (1,)
    assert copy.execute("SELECT address FROM host").fetchall() == [("10.0.0.1",)]
    copy.close()
    database = db.Database(path)
    assert kinds(database)[0] == "db.migrated"
    assert str(backup) in database.events()[0].message
    database.close()


def test_a_file_of_the_second_schema_keeps_what_is_under_way(tmp_path):
    path = tmp_path / "pathctl.db"
    with sqlite3.connect(path) as old:
        for name, count in (("pathctl_now", 0), ("pathctl_actor", 0), ("pathctl_cause", 0), ("pathctl_keep", 0)):
            old.create_function(name, count, lambda: 9)
        old.executescript((Path(__file__).parent / "schema-2.sql").read_text())
        old.executescript("""
            INSERT INTO peers VALUES ('beta', '10.0.0.2', 7630, 'PEM');
            INSERT INTO volumes (name, uuid, size, track_size, backing, managed, state)
                VALUES ('v1', 'u1', 4096, 4096, '/x', 1, 'ready');
            INSERT INTO connections VALUES
                ('pair-1', 'op-1', 'v1', 'source', 'beta', 'v2', 'destination', 'ready', 7700, 5);
            INSERT INTO journal VALUES
                ('op-1', 'pair.create', 'coordinator', 'pair-1', 'v1', 'beta', 'v2', 'committed', '{}', NULL);
            INSERT INTO steps VALUES ('op-1', 0, 'journal');
            DELETE FROM events;
        """)
    old.close()
    database = db.Database(path)
    (row,) = database.connections()
    assert (row.port, row.copy_rate_bytes_s, row.on_path_loss) == (7700, 5, "continue")
    assert [entry.operation for entry in database.journal()] == ["op-1"]
    assert database.steps("op-1") == ["journal"]
    assert kinds(database) == ["db.migrated"]
    database.set_on_path_loss("pair-1", "stop")
    assert [(e.kind, e.before, e.after) for e in database.events()[1:]] == [("connection.policy", "continue", "stop")]
    database.close_entry("op-1", "done")
    assert database.steps("op-1") == []
    database.close()


@pytest.mark.parametrize("version", range(1, schema.VERSION))
def test_a_migrated_file_and_a_new_one_have_the_same_schema(tmp_path, version):
    def layout(path: Path) -> list[tuple[str, str]]:
        sql = sqlite3.connect(path)
        rows = sql.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name").fetchall()
        sql.close()
        return [(name, re.sub(r"\s+", " ", text)) for name, text in rows]

    with sqlite3.connect(tmp_path / "old.db") as old:
        old.executescript((Path(__file__).parent / f"schema-{version}.sql").read_text())
    old.close()
    for name in ("old.db", "new.db"):
        db.Database(tmp_path / name).close()
    assert layout(tmp_path / "old.db") == layout(tmp_path / "new.db")


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "pathctl.db"
    with sqlite3.connect(path) as old:
        old.executescript((Path(__file__).parent / "schema-1.sql").read_text())
    old.close()
    monkeypatch.setitem(schema.MIGRATIONS, 1, schema.MIGRATIONS[1] + "CREATE TABLE peers (x);")
    with pytest.raises(sqlite3.OperationalError):
        db.Database(path)
    sql = sqlite3.connect(path)
    assert sql.execute("PRAGMA user_version").fetchone() == (1,)
    assert sql.execute("SELECT count(*) FROM sqlite_master WHERE name = 'events'").fetchone() == (0,)
    sql.close()


@pytest.mark.parametrize("damage", ["header", "middle", "cut"])
def test_a_damaged_file_is_told_in_a_sentence_and_left_as_it_is(tmp_path, damage):
    path = tmp_path / "pathctl.db"
    database = db.Database(path)
    fill(database)
    database.close()
    raw = bytearray(path.read_bytes())
    if damage == "header":
        raw[:16] = b"\0" * 16
    elif damage == "middle":
        raw[4096:] = b"\xa5" * (len(raw) - 4096)
    else:
        del raw[4096 * 2 :]
    path.write_bytes(raw)
    with pytest.raises(PathctlError, match="is damaged"):
        db.Database(path)
    assert path.read_bytes() == raw
