"""schema - the tables of pathctl.db, what records their changes, and how an older file becomes one of today.

The file's `user_version` is the schema it holds.  An older one is copied to `pathctl.db.schema-N` beside it and then
brought up to date in one transaction; a newer one is refused and left alone.  Changes of configuration record
themselves: triggers write their event in the same transaction, so that none is missed and none is made up.  They
call functions that `connect` gives to the connection: whose wish it is (actor), the time, how many events are kept.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from pathctl import actor, errors

VERSION = 3
BUSY_TIMEOUT_S = 5.0
CHECKPOINT_PAGES = 100  # the log is put into the file this often: a short log is space that need not be there

_CONNECTIONS = """
-- The connections: this host's half of each pair.  A row is reserved for its operation while 'creating'.
CREATE TABLE connections (
    pair        TEXT PRIMARY KEY,    -- UUID
    operation   TEXT NOT NULL,       -- the pair.create or pair.resolve that made it
    volume      TEXT NOT NULL UNIQUE REFERENCES volumes (name),
    side        TEXT NOT NULL CHECK (side IN ('source', 'destination')),  -- what our volume is
    peer        TEXT NOT NULL REFERENCES peers (name),
    peer_volume TEXT NOT NULL,
    invalidated TEXT NOT NULL CHECK (invalidated IN ('source', 'destination')),
    state       TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'suspended', 'deleting')),
    port        INTEGER,             -- TCP data port at the destination; NULL at a source that has not been told yet
    copy_rate_bytes_s INTEGER,       -- NULL: no limit, 0: paused
    -- At a source: whether host writes go on without the path.  A destination's row has the default and means nothing.
    on_path_loss TEXT NOT NULL DEFAULT 'continue' CHECK (on_path_loss IN ('continue', 'stop'))
) STRICT;
"""

_JOURNAL = """
-- Operations that are under way here, written before their first effect.  At most one per volume: this is the claim.
CREATE TABLE journal (
    operation   TEXT PRIMARY KEY,    -- UUID
    verb        TEXT NOT NULL CHECK (verb IN ('pair.create', 'pair.delete', 'pair.resolve')),
    role        TEXT NOT NULL CHECK (role IN ('coordinator', 'participant')),
    pair        TEXT NOT NULL,
    volume      TEXT NOT NULL UNIQUE,  -- ours
    peer        TEXT NOT NULL,
    peer_volume TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('forward', 'committed', 'undoing')),
    spec        TEXT NOT NULL,       -- JSON of what was asked for, as the verb's module defines it for the role
    note        TEXT                 -- one sentence: what it waits for, else NULL
) STRICT;

-- The steps of an operation that were begun; the last one may or may not have been carried out, the others were.
CREATE TABLE steps (
    operation   TEXT NOT NULL REFERENCES journal (operation) ON DELETE CASCADE,
    position    INTEGER NOT NULL,
    step        TEXT NOT NULL,
    PRIMARY KEY (operation, step)
) STRICT;
"""

TABLES = (
    """
-- This host's own name and the endpoint on which its pathctld serves its peers.  One row, made by host.init.
CREATE TABLE host (
    id          INTEGER PRIMARY KEY CHECK (id = 1),
    name        TEXT NOT NULL,
    address     TEXT NOT NULL,       -- IP address; the data ports are bound to it too
    port        INTEGER NOT NULL     -- TCP port of the control traffic
) STRICT;

-- The other machines that may talk to this one, made by enrolment (peer.invite, peer.join).
CREATE TABLE peers (
    name        TEXT PRIMARY KEY,
    address     TEXT NOT NULL,
    port        INTEGER NOT NULL,
    certificate TEXT NOT NULL        -- PEM; the one certificate that this peer may show
) STRICT;

-- Open invitations.  The secret itself is only in the token.
CREATE TABLE invites (
    digest      TEXT PRIMARY KEY,    -- SHA-256 of the secret, hex
    expires_at  REAL NOT NULL,       -- seconds since the epoch
    used_by     TEXT                 -- fingerprint of the host that used it (it may repeat its join), else NULL
) STRICT;

-- The volumes of this host.
CREATE TABLE volumes (
    name        TEXT PRIMARY KEY,
    uuid        TEXT NOT NULL UNIQUE,
    size        INTEGER NOT NULL,    -- bytes
    track_size  INTEGER NOT NULL,    -- bytes
    backing     TEXT NOT NULL,       -- path of the file or block device
    managed     INTEGER NOT NULL,    -- 1: the backing was made by pathctl and goes with the volume; 0: it was given
    state       TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
    operation   TEXT,                -- the open pair.create that made it and deletes it when undone, else NULL
    attached    INTEGER NOT NULL DEFAULT 0,  -- 1: wanted as a block device of this host
    device_path TEXT,                -- the device as last attached: what devices.Device holds, else NULL
    device_pid  INTEGER,
    device_pid_started REAL
) STRICT;
"""
    + _CONNECTIONS
    + _JOURNAL
    + """
-- Operations and pairs that have ended here: a step of theirs that arrives late is refused, for ever.
CREATE TABLE ended (
    id          TEXT PRIMARY KEY,    -- UUID of an operation or of a pair
    outcome     TEXT NOT NULL CHECK (outcome IN ('done', 'undone', 'deleted'))
) STRICT;
"""
)

EVENTS = """
-- What has changed here: configuration (by the triggers below), states and the rest (Database.record).  The newest
-- `events.keep` stay.
CREATE TABLE events (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice
    at          REAL NOT NULL,       -- seconds since the epoch
    kind        TEXT NOT NULL,       -- one of KINDS
    volume      TEXT,                -- ours
    pair        TEXT,                -- UUID
    peer        TEXT,
    actor       TEXT NOT NULL,       -- who asked: 'uid 0 (root)', 'host beta', 'pathctld'
    before      TEXT,
    after       TEXT,
    cause       TEXT,                -- the verb that was asked for, or why it happened by itself
    message     TEXT NOT NULL        -- one sentence
) STRICT;
CREATE INDEX events_of_pair ON events (pair, id);
CREATE TRIGGER events_bound AFTER INSERT ON events BEGIN
    DELETE FROM events WHERE id <= NEW.id - pathctl_keep();
END;

-- The state of each pair as last recorded: the event itself may have been dropped since.
CREATE TABLE states (
    pair        TEXT PRIMARY KEY,
    state       TEXT NOT NULL,
    since       REAL NOT NULL        -- seconds since the epoch
) STRICT;
CREATE TRIGGER states_known AFTER INSERT ON events WHEN NEW.kind = 'pair.state' BEGIN
    INSERT INTO states VALUES (NEW.pair, NEW.after, NEW.at)
        ON CONFLICT (pair) DO UPDATE SET state = excluded.state, since = excluded.since;
END;
"""

_STATES_OVER = """
CREATE TRIGGER states_over AFTER DELETE ON connections BEGIN
    DELETE FROM states WHERE pair = OLD.pair;
END;
"""


def _trigger(name: str, when: str, kind: str, message: str, **values: str) -> str:
    """SQL that records one kind of change; `message` and the values are SQL expressions over OLD and NEW."""
    columns = {"kind": f"'{kind}'" if kind.replace(".", "").isalpha() else kind, "message": message, **values}
    columns |= {"at": "pathctl_now()", "actor": "pathctl_actor()", "cause": "pathctl_cause()"}
    return (
        f"CREATE TRIGGER {name} AFTER {when} BEGIN\n"
        f"    INSERT INTO events ({', '.join(columns)})\n    VALUES ({', '.join(columns.values())});\nEND;\n"
    )


def _endpoint(row: str) -> str:
    return f"{row}.address || ':' || {row}.port"


_SHORT = "substr({}.pair, 1, 8)"  # the column `pair` has all of it


def _half(row: str) -> str:
    return (
        f"'volume ' || {row}.volume || ' as ' || {row}.side || ' of pair ' || {_SHORT.format(row)}"
        f" || ' with ' || {row}.peer || ':' || {row}.peer_volume"
    )


_HALF = {"volume": "NEW.volume", "pair": "NEW.pair", "peer": "NEW.peer"}
_CONNECTION = "'connection of ' || " + _half("NEW")
_RATE = "coalesce({}.copy_rate_bytes_s, 'none')"

_OTHER_TRIGGERS = "\n".join(
    [
        _trigger(
            "host_created",
            "INSERT ON host",
            "host.created",
            f"'this host is ' || NEW.name || ' at ' || {_endpoint('NEW')}",
            after=_endpoint("NEW"),
        ),
        _trigger(
            "host_changed",
            "UPDATE ON host",
            "host.changed",
            f"'this host moved from ' || {_endpoint('OLD')} || ' to ' || {_endpoint('NEW')}",
            before=_endpoint("OLD"),
            after=_endpoint("NEW"),
        ),
        _trigger(
            "peer_added",
            "INSERT ON peers",
            "peer.added",
            f"'host ' || NEW.name || ' at ' || {_endpoint('NEW')} || ' is a peer now'",
            peer="NEW.name",
            after=_endpoint("NEW"),
        ),
        _trigger(
            "peer_changed",
            f"UPDATE ON peers WHEN {_endpoint('NEW')} <> {_endpoint('OLD')}",
            "peer.changed",
            f"'peer ' || NEW.name || ' moved from ' || {_endpoint('OLD')} || ' to ' || {_endpoint('NEW')}",
            peer="NEW.name",
            before=_endpoint("OLD"),
            after=_endpoint("NEW"),
        ),
        _trigger(
            "peer_removed",
            "DELETE ON peers",
            "peer.removed",
            "'host ' || OLD.name || ' is no peer any more'",
            peer="OLD.name",
            before=_endpoint("OLD"),
        ),
        _trigger(
            "volume_created",
            "INSERT ON volumes",
            "volume.created",
            "'volume ' || NEW.name || ' of ' || NEW.size || ' bytes over ' || NEW.backing",
            volume="NEW.name",
            after="NEW.state",
        ),
        _trigger(
            "volume_state",
            "UPDATE OF state ON volumes WHEN NEW.state <> OLD.state",
            "'volume.' || NEW.state",
            "'volume ' || NEW.name || ' is ' || NEW.state",
            volume="NEW.name",
            before="OLD.state",
            after="NEW.state",
        ),
        _trigger(
            "volume_attached",
            "UPDATE OF attached ON volumes WHEN NEW.attached <> OLD.attached",
            "CASE NEW.attached WHEN 1 THEN 'volume.attached' ELSE 'volume.detached' END",
            "'volume ' || NEW.name || CASE NEW.attached WHEN 1 THEN ' is to be a block device'"
            " ELSE ' is no block device any more' END",
            volume="NEW.name",
        ),
        _trigger(
            "volume_deleted",
            "DELETE ON volumes",
            "volume.deleted",
            "'volume ' || OLD.name || ' is deleted'",
            volume="OLD.name",
            before="OLD.state",
        ),
    ]
)

CONNECTION_TRIGGERS = _STATES_OVER + "\n".join(
    [
        _trigger(
            "connection_created", "INSERT ON connections", "connection.created", _CONNECTION, after="NEW.state", **_HALF
        ),
        _trigger(
            "connection_state",
            "UPDATE OF state ON connections WHEN NEW.state <> OLD.state",
            "'connection.' || NEW.state",
            f"{_CONNECTION} || ' is ' || NEW.state",
            before="OLD.state",
            after="NEW.state",
            **_HALF,
        ),
        _trigger(
            "connection_rate",
            "UPDATE OF copy_rate_bytes_s ON connections WHEN NEW.copy_rate_bytes_s IS NOT OLD.copy_rate_bytes_s",
            "connection.rate",
            f"'the background copy of pair ' || {_SHORT.format('NEW')} || CASE NEW.copy_rate_bytes_s"
            " WHEN 0 THEN ' is paused' ELSE coalesce(' is limited to ' || NEW.copy_rate_bytes_s || ' bytes per second',"
            " ' has no limit of its own') END",
            before=f"{_RATE.format('OLD')}",
            after=f"{_RATE.format('NEW')}",
            **_HALF,
        ),
        _trigger(
            "connection_policy",
            "UPDATE OF on_path_loss ON connections WHEN NEW.on_path_loss <> OLD.on_path_loss",
            "connection.policy",
            f"'while the path of pair ' || {_SHORT.format('NEW')} || ' is lost, host writes ' || CASE NEW.on_path_loss"
            " WHEN 'stop' THEN 'wait and then fail' ELSE 'go on at the source' END",
            before="OLD.on_path_loss",
            after="NEW.on_path_loss",
            **_HALF,
        ),
        _trigger(
            "connection_deleted",
            "DELETE ON connections",
            "connection.deleted",
            f"'connection of ' || {_half('OLD')} || ' is deleted'",
            before="OLD.state",
            volume="OLD.volume",
            pair="OLD.pair",
            peer="OLD.peer",
        ),
    ]
)

TRIGGERS = _OTHER_TRIGGERS + CONNECTION_TRIGGERS

# What `kind` of an event may be, and when it is recorded.
KINDS = {
    "host.created": "host init",
    "host.changed": "this host's own address or port is another",
    "peer.added": "a host was enrolled",
    "peer.changed": "a peer's address or port is another",
    "peer.removed": "a host is no peer any more",
    "peer.reachable": "a peer's pathctld answers again",
    "peer.unreachable": "a peer's pathctld does not answer",
    "peer.clock": "a peer's clock differs from ours by much",
    "volume.created": "a volume is being made",
    "volume.ready": "a volume can be used",
    "volume.deleting": "a volume is being deleted",
    "volume.deleted": "a volume is gone",
    "volume.attached": "a volume is wanted as a block device",
    "volume.detached": "a volume is no block device any more",
    "volume.accepted": "an incomplete volume was declared good",
    "connection.created": "this host's half of a pair was reserved",
    "connection.ready": "this host's half of a pair is ready",
    "connection.suspended": "this host's half of a pair is not ready, by command",
    "connection.deleting": "this host's half of a pair is being deleted",
    "connection.deleted": "this host's half of a pair is gone",
    "connection.rate": "the limit of a pair's background copy is another",
    "connection.policy": "what host writes do while a pair's path is lost is another",
    "pair.state": "a pair's state is another: before and after say which",
    "path.up": "the data connection of a pair is there",
    "path.lost": "the data connection of a pair is lost",
    "path.refused": "the peer refuses the data connection of a pair",
    "path.halted": "the path is lost and host writes wait for it (--on-path-loss stop)",
    "pair.resolved": "a pair that was apart goes on: after says whose data was discarded",
    "process.started": "the process of a volume was started",
    "process.ended": "the process of a volume has ended by itself",
    "process.failed": "the process of a volume does not start",
    "process.hung": "the process of a volume is alive and has not answered for a while",
    "device.failed": "the process behind a block device has ended",
    "disk.failing": "the disk under a volume gave read errors; whether the peer's data stood in for them",
    "recovery.undone": "an operation that was cut off was undone",
    "recovery.finished": "an operation that was cut off was finished",
    "daemon.started": "pathctld was started",
    "daemon.stopped": "pathctld was stopped",
    "command.failed": "a command that would have changed something failed",
    "config.restored": "the configuration was restored from a backup",
    "db.migrated": "the database was brought up to a newer schema",
}

# SQLite changes no CHECK of a table that is there, so these are made anew.  Nothing of it is an event: to drop a table
# fires no trigger, and takes its own triggers along.
_COLUMNS_2 = "pair, operation, volume, side, peer, peer_volume, invalidated, state, port, copy_rate_bytes_s"
_TO_3 = f"""
CREATE TEMP TABLE old_connections AS SELECT * FROM connections;
CREATE TEMP TABLE old_journal AS SELECT * FROM journal;
CREATE TEMP TABLE old_steps AS SELECT * FROM steps;
DROP TABLE connections; DROP TABLE steps; DROP TABLE journal;
{_CONNECTIONS}{_JOURNAL}
INSERT INTO connections ({_COLUMNS_2}) SELECT {_COLUMNS_2} FROM old_connections;
INSERT INTO journal SELECT * FROM old_journal;
INSERT INTO steps SELECT * FROM old_steps;
DROP TABLE old_connections; DROP TABLE old_journal; DROP TABLE old_steps;
{CONNECTION_TRIGGERS}"""

# From schema N to N + 1.
MIGRATIONS = {1: EVENTS + _OTHER_TRIGGERS, 2: _TO_3}
assert set(MIGRATIONS) == set(range(1, VERSION))


def connect(path: Path, keep: Callable[[], int]) -> sqlite3.Connection:
    """A connection that can change what is in the file: durable at each commit, and known to the triggers."""
    sql = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    sql.row_factory = sqlite3.Row
    sql.create_function("pathctl_now", 0, time.time)
    sql.create_function("pathctl_actor", 0, actor.who.get)
    sql.create_function("pathctl_cause", 0, actor.why.get)
    sql.create_function("pathctl_keep", 0, keep)
    sql.execute("PRAGMA journal_mode = WAL")
    sql.execute("PRAGMA synchronous = FULL")
    sql.execute("PRAGMA foreign_keys = ON")
    sql.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    return sql


def ensure(sql: sqlite3.Connection, path: Path) -> Path | None:
    """Bring the file to VERSION; -> the backup, if it held an older schema."""
    (found,) = sql.execute("PRAGMA user_version").fetchone()
    if found == VERSION:
        return None
    if found > VERSION or found < 0:
        raise errors.refused(
            f"{path} was written by a newer pathctld (schema {found}, this one knows {VERSION}) and is left alone; "
            f"start that version, or put back the copy it has made ({path.name}.schema-{VERSION})"
        )
    if found == 0:
        _run(sql, TABLES + EVENTS + TRIGGERS, VERSION)
        return None
    backup = _back_up(sql, path, found)
    for version in range(found, VERSION):
        _run(sql, MIGRATIONS[version], version + 1)
    return backup


def _run(sql: sqlite3.Connection, script: str, version: int) -> None:
    try:
        sql.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {version}; COMMIT;")
    except BaseException:
        if sql.in_transaction:
            sql.execute("ROLLBACK")
        raise


def _back_up(sql: sqlite3.Connection, path: Path, version: int) -> Path:
    """A complete and durable copy of the file beside it, made under another name first."""
    target = path.with_name(f"{path.name}.schema-{version}")
    new = path.with_name(f"{target.name}.new")
    new.unlink(missing_ok=True)
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    copy = sqlite3.connect(new)
    try:
        sql.backup(copy)
    finally:
        copy.close()
    _sync(new)
    new.replace(target)
    _sync(path.parent)
    return target


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
