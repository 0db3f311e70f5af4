"""The configuration table, on a real file."""

import sqlite3

import msgspec
import pytest

from pathctl import db
from pathctl.errors import PathctlError

PEER = db.Peer("beta", "10.0.0.2", 7630, "PEM of beta")
VOLUME = db.Volume("v1", "uuid-1", 1 << 20, 65536, "/x/v1.img", True)
ROW = db.Connection("pair-1", "op-1", "v1", "source", "beta", "v2", "destination")
ENTRY = db.Entry("op-1", "pair.create", "coordinator", "pair-1", "v1", "beta", "v2", "{}")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "pathctl.db"


@pytest.fixture
def database(path):
    found = db.Database(path)
    found.insert_host(db.Host("alpha", "10.0.0.1", 7630))
    found.upsert_peer(PEER)
    found.insert_volume(VOLUME)
    yield found
    found.close()


def test_everything_is_there_again_after_reopening(database, path):
    database.open_entry(ENTRY)
    database.begin_step("op-1", "first")
    database.begin_step("op-1", "second")
    database.insert_connection(ROW)
    database.set_device("v1", ("/dev/loop0", 17, 12.5))
    database.close()
    again = db.Database(path)
    assert (again.host(), again.peers()) == (db.Host("alpha", "10.0.0.1", 7630), [PEER])
    assert (again.connection("pair-1"), again.connection_of("v1"), again.entry("op-1")) == (ROW, ROW, ENTRY)
    assert again.steps("op-1") == ["first", "second"]
    volume = again.volume("v1")
    assert volume == msgspec.structs.replace(VOLUME, device_path="/dev/loop0", device_pid=17, device_pid_started=12.5)
    again.close()


def test_every_commit_is_durable_and_the_file_is_ours_alone(database, path):
    (synchronous,) = database._sql.execute("PRAGMA synchronous").fetchone()
    (mode,) = database._sql.execute("PRAGMA journal_mode").fetchone()
    assert (synchronous, mode, path.stat().st_mode & 0o777) == (2, "wal", 0o600)


def test_a_later_schema_is_refused_and_left_alone(database, path):
    database._sql.execute("PRAGMA user_version = 99")
    database.close()
    before = path.read_bytes()
    with pytest.raises(PathctlError, match=r"newer pathctld \(schema 99, this one knows 3\)"):
        db.Database(path)
    assert path.read_bytes() == before


def test_a_second_operation_on_a_volume_is_refused_and_told_which_one_runs(database):
    database.open_entry(ENTRY)
    database.open_entry(ENTRY)
    with pytest.raises(PathctlError, match=r"pair\.create of pair pair-1"):
        database.open_entry(msgspec.structs.replace(ENTRY, operation="op-2", pair="pair-2"))
    assert [entry.operation for entry in database.journal()] == ["op-1"]


def test_a_volume_in_a_pair_cannot_be_claimed_or_connected_again(database):
    database.insert_connection(ROW)
    for change in (database.open_entry, database.insert_connection):
        other = ENTRY if change == database.open_entry else ROW
        with pytest.raises(PathctlError, match="already in pair pair-1"):
            change(msgspec.structs.replace(other, operation="op-2", pair="pair-2"))
    assert database.connections() == [ROW]
    assert database.journal() == []


def test_what_has_ended_is_refused_for_ever(database):
    database.open_entry(ENTRY)
    database.close_entry("op-1", "undone")
    assert database.outcome("op-1") == "undone"
    with pytest.raises(PathctlError, match="has ended here"):
        database.insert_connection(ROW)
    with pytest.raises(PathctlError, match="has ended here"):
        database.open_entry(ENTRY)
    database.end_pair("pair-9")
    with pytest.raises(PathctlError, match="has ended here"):
        database.insert_connection(msgspec.structs.replace(ROW, operation="op-9", pair="pair-9"))


def test_the_first_end_of_an_operation_stays(database):
    database.close_entry("op-1", "done")
    database.close_entry("op-1", "undone")
    assert database.outcome("op-1") == "done"


def test_a_deleted_pair_leaves_no_row_and_no_open_operation(database):
    database.open_entry(ENTRY)
    database.insert_connection(ROW)
    database.end_pair("pair-1")
    assert (database.connections(), database.journal(), database.steps("op-1")) == ([], [], [])
    assert (database.outcome("pair-1"), database.outcome("op-1")) == ("deleted", "deleted")


def test_a_volume_made_by_an_operation_is_the_users_once_it_has_ended(database):
    made = msgspec.structs.replace(VOLUME, name="v3", uuid="uuid-3", operation="op-1")
    database.insert_volume(made)
    database.close_entry("op-1", "done")
    found = database.volume("v3")
    assert found is not None
    assert found.operation is None


def test_a_step_is_remembered_once_and_forgotten_when_never_sent(database):
    database.open_entry(ENTRY)
    for step in ("first", "second", "first"):
        database.begin_step("op-1", step)
    database.forget_step("op-1", "second")
    assert database.steps("op-1") == ["first"]


def test_an_invitation_serves_one_host_until_it_expires(database):
    gamma = db.Peer("gamma", "10.0.0.3", 7630, "PEM of gamma")
    delta = db.Peer("delta", "10.0.0.4", 7630, "PEM of delta")
    database.insert_invite("digest", expires_at=100.0, now=0.0)
    with pytest.raises(PathctlError, match="expired"):
        database.redeem_invite("digest", 101.0, "f3", gamma)
    database.redeem_invite("digest", 99.0, "f3", gamma)
    database.redeem_invite("digest", 99.5, "f3", gamma)  # its answer was lost
    with pytest.raises(PathctlError, match="used"):
        database.redeem_invite("digest", 99.5, "f4", delta)
    assert [peer.name for peer in database.peers()] == ["beta", "gamma"]


def test_a_peers_name_cannot_be_taken_over_with_another_certificate(database):
    with pytest.raises(PathctlError, match="another certificate"):
        database.upsert_peer(msgspec.structs.replace(PEER, certificate="other"))
    moved = msgspec.structs.replace(PEER, address="10.0.0.9")
    database.upsert_peer(moved)
    assert database.peers() == [moved]


def test_a_change_that_fails_changes_nothing(database):
    with pytest.raises(sqlite3.IntegrityError):
        database.insert_connection(msgspec.structs.replace(ROW, peer="nobody"))
    assert database.connections() == []
    database.insert_connection(ROW)
