"""Read errors become few events, and none is left untold for ever."""

from types import SimpleNamespace

import pytest

from pathctl import db, diskerrors
from pathctl.controlclient import Status


@pytest.fixture
def node(tmp_path):
    database = db.Database(tmp_path / "pathctl.db")
    yield SimpleNamespace(db=database, disk_errors={})
    database.close()


def look(node, count, pid=7):
    diskerrors.note(node, "v", Status(pid=pid, counters={"read_errors": count, "peer_reads": count}))
    return [(event.before, event.after) for event in node.db.events() if event.kind == "disk.failing"]


def test_the_first_error_is_told_at_once_and_a_storm_once_a_minute(node, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(diskerrors.time, "monotonic", lambda: now[0])
    assert look(node, 0) == []
    assert look(node, 1) == [("0", "1")]
    for count in range(2, 50):
        now[0] += 1
        assert look(node, count) == [("0", "1")]
    now[0] += diskerrors.AGAIN_S
    assert look(node, 50) == [("0", "1"), ("1", "50")]
    now[0] += diskerrors.AGAIN_S
    assert look(node, 50) == [("0", "1"), ("1", "50")], "nothing new"


def test_a_new_process_counts_anew_and_a_new_pathctld_does_not_tell_it_twice(node):
    assert look(node, 3) == [("0", "3")]
    assert look(node, 2, pid=8) == [("0", "3"), ("0", "2")]
    node.disk_errors.clear()
    assert look(node, 2, pid=8) == [("0", "3"), ("0", "2")]
