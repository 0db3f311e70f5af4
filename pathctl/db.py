"""db - this host's configuration: the schema, all SQL, and nothing else.

A row says what is wanted; the volume's metadata file says what is so.  Every method is one transaction and is durable
when it returns (WAL, synchronous=FULL).  Called from the event loop's thread only: rows are few and each call is one
short commit, so it is not worth a thread of its own.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from pathctl import errors

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 5.0

Side = Literal["source", "destination"]
VolumeState = Literal["creating", "ready", "deleting"]
ConnectionState = Literal["creating", "ready", "suspended", "deleting"]
Verb = Literal["pair.create", "pair.delete"]
Role = Literal["coordinator", "participant"]
JournalState = Literal["forward", "committed", "undoing"]
Outcome = Literal["done", "undone", "deleted"]

SCHEMA = """
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

-- The connections: this host's half of each pair.  A row is reserved for its operation while 'creating'.
CREATE TABLE connections (
    pair        TEXT PRIMARY KEY,    -- UUID
    operation   TEXT NOT NULL,       -- the pair.create that made it
    volume      TEXT NOT NULL UNIQUE REFERENCES volumes (name),
    side        TEXT NOT NULL CHECK (side IN ('source', 'destination')),  -- what our volume is
    peer        TEXT NOT NULL REFERENCES peers (name),
    peer_volume TEXT NOT NULL,
    invalidated TEXT NOT NULL CHECK (invalidated IN ('source', 'destination')),
    state       TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'suspended', 'deleting')),
    port        INTEGER,             -- TCP data port at the destination; NULL at a source that has not been told yet
    copy_rate_bytes_s INTEGER        -- NULL: no limit, 0: paused
) STRICT;

-- Operations that are under way here, written before their first effect.  At most one per volume: this is the claim.
CREATE TABLE journal (
    operation   TEXT PRIMARY KEY,    -- UUID
    verb        TEXT NOT NULL CHECK (verb IN ('pair.create', 'pair.delete')),
    role        TEXT NOT NULL CHECK (role IN ('coordinator', 'participant')),
    pair        TEXT NOT NULL,
    volume      TEXT NOT NULL UNIQUE,  -- ours
    peer        TEXT NOT NULL,
    peer_volume TEXT NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('forward', 'committed', 'undoing')),
    spec        TEXT NOT NULL,       -- JSON of what was asked for, as the coordinator's module defines it
    note        TEXT                 -- one sentence: what it waits for, else NULL
) STRICT;

-- The steps of an operation that were begun; the last one may or may not have been carried out, the others were.
CREATE TABLE steps (
    operation   TEXT NOT NULL REFERENCES journal (operation) ON DELETE CASCADE,
    position    INTEGER NOT NULL,
    step        TEXT NOT NULL,
    PRIMARY KEY (operation, step)
) STRICT;

-- Operations and pairs that have ended here: a step of theirs that arrives late is refused, for ever.
CREATE TABLE ended (
    id          TEXT PRIMARY KEY,    -- UUID of an operation or of a pair
    outcome     TEXT NOT NULL CHECK (outcome IN ('done', 'undone', 'deleted'))
) STRICT;
"""


class Host(msgspec.Struct, frozen=True):
    name: str
    address: str
    port: int


class Peer(msgspec.Struct, frozen=True):
    name: str
    address: str
    port: int
    certificate: str


class Volume(msgspec.Struct, frozen=True):
    name: str
    uuid: str
    size: int
    track_size: int
    backing: str
    managed: bool
    state: VolumeState = "creating"
    operation: str | None = None
    attached: bool = False
    device_path: str | None = None
    device_pid: int | None = None
    device_pid_started: float | None = None


class Connection(msgspec.Struct, frozen=True):
    pair: str
    operation: str
    volume: str
    side: Side
    peer: str
    peer_volume: str
    invalidated: Side
    state: ConnectionState = "creating"
    port: int | None = None
    copy_rate_bytes_s: int | None = None


class Entry(msgspec.Struct, frozen=True):
    """A journal row."""

    operation: str
    verb: Verb
    role: Role
    pair: str
    volume: str
    peer: str
    peer_volume: str
    spec: str
    state: JournalState = "forward"
    note: str | None = None


Row = TypeVar("Row", bound=msgspec.Struct)


class Database:
    """The one connection to the database file."""

    def __init__(self, path: Path) -> None:
        self._sql = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        self._sql.row_factory = sqlite3.Row
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA synchronous = FULL")
        self._sql.execute("PRAGMA foreign_keys = ON")
        path.chmod(0o600)
        self._ensure_schema(path)

    def close(self) -> None:
        self._sql.close()

    def _ensure_schema(self, path: Path) -> None:
        (version,) = self._sql.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._sql.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise errors.internal(
                f"{path} has schema {version}, this pathctld knows {SCHEMA_VERSION}; start the version that wrote it"
            )

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        self._sql.execute("BEGIN IMMEDIATE")
        try:
            yield self._sql
        except BaseException:
            self._sql.execute("ROLLBACK")
            raise
        self._sql.execute("COMMIT")

    def _all(self, kind: type[Row], query: str, *values: object) -> list[Row]:
        return [msgspec.convert(dict(row), kind, strict=False) for row in self._sql.execute(query, values)]

    def _one(self, kind: type[Row], query: str, *values: object) -> Row | None:
        row = self._sql.execute(query, values).fetchone()
        return None if row is None else msgspec.convert(dict(row), kind, strict=False)

    # host and peers

    def host(self) -> Host | None:
        return self._one(Host, "SELECT name, address, port FROM host")

    def insert_host(self, host: Host) -> None:
        with self._change() as sql:
            sql.execute("INSERT INTO host VALUES (1, ?, ?, ?)", (host.name, host.address, host.port))

    def peers(self) -> list[Peer]:
        return self._all(Peer, "SELECT * FROM peers ORDER BY name")

    def peer(self, name: str) -> Peer | None:
        return self._one(Peer, "SELECT * FROM peers WHERE name = ?", name)

    def upsert_peer(self, peer: Peer) -> None:
        """Enrol a peer, or take over the new endpoint of one whose certificate is the same."""
        with self._change() as sql:
            _upsert_peer(sql, peer)

    def insert_invite(self, digest: str, expires_at: float, now: float) -> None:
        with self._change() as sql:
            sql.execute("DELETE FROM invites WHERE expires_at < ?", (now,))
            sql.execute("INSERT INTO invites VALUES (?, ?, NULL)", (digest, expires_at))

    def redeem_invite(self, digest: str, now: float, fingerprint: str, peer: Peer) -> None:
        """Use an invitation up and enrol its bearer; the same host may repeat it until it expires."""
        with self._change() as sql:
            row = sql.execute(
                "SELECT used_by FROM invites WHERE digest = ? AND expires_at >= ?", (digest, now)
            ).fetchone()
            if row is None or row["used_by"] not in (None, fingerprint):
                raise errors.refused("the token is unknown, used or expired; make a new one with `pathctl peer invite`")
            _upsert_peer(sql, peer)
            sql.execute("UPDATE invites SET used_by = ? WHERE digest = ?", (fingerprint, digest))

    # volumes

    def volumes(self) -> list[Volume]:
        return self._all(Volume, "SELECT * FROM volumes ORDER BY name")

    def volume(self, name: str) -> Volume | None:
        return self._one(Volume, "SELECT * FROM volumes WHERE name = ?", name)

    def insert_volume(self, volume: Volume) -> None:
        with self._change() as sql:
            sql.execute(
                "INSERT INTO volumes (name, uuid, size, track_size, backing, managed, state, operation)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    volume.name,
                    volume.uuid,
                    volume.size,
                    volume.track_size,
                    volume.backing,
                    volume.managed,
                    volume.state,
                    volume.operation,
                ),
            )

    def set_volume_state(self, name: str, state: VolumeState) -> None:
        with self._change() as sql:
            sql.execute("UPDATE volumes SET state = ? WHERE name = ?", (state, name))

    def set_attached(self, name: str, attached: bool) -> None:
        with self._change() as sql:
            sql.execute("UPDATE volumes SET attached = ? WHERE name = ?", (attached, name))

    def set_device(self, name: str, device: tuple[str, int, float] | None) -> None:
        with self._change() as sql:
            sql.execute(
                "UPDATE volumes SET device_path = ?, device_pid = ?, device_pid_started = ? WHERE name = ?",
                (*(device or (None, None, None)), name),
            )

    def delete_volume(self, name: str) -> None:
        with self._change() as sql:
            sql.execute("DELETE FROM volumes WHERE name = ?", (name,))

    # connections

    def connections(self) -> list[Connection]:
        return self._all(Connection, "SELECT * FROM connections ORDER BY volume")

    def connection(self, pair: str) -> Connection | None:
        return self._one(Connection, "SELECT * FROM connections WHERE pair = ?", pair)

    def connection_of(self, volume: str) -> Connection | None:
        return self._one(Connection, "SELECT * FROM connections WHERE volume = ?", volume)

    def insert_connection(self, row: Connection) -> None:
        """Reserve the volume; refused when it has a connection or when the operation has ended here."""
        with self._change() as sql:
            _refuse_ended(sql, row.operation, row.pair)
            _refuse_taken(sql, row.volume, row.operation)
            columns = msgspec.structs.asdict(row)
            names, marks = ", ".join(columns), ", ".join("?" * len(columns))
            sql.execute(f"INSERT INTO connections ({names}) VALUES ({marks})", tuple(columns.values()))

    def set_connection_state(self, pair: str, state: ConnectionState) -> None:
        with self._change() as sql:
            sql.execute("UPDATE connections SET state = ? WHERE pair = ?", (state, pair))

    def set_port(self, pair: str, port: int) -> None:
        with self._change() as sql:
            sql.execute("UPDATE connections SET port = ? WHERE pair = ?", (port, pair))

    def set_copy_rate(self, pair: str, rate_bytes_s: int | None) -> None:
        with self._change() as sql:
            sql.execute("UPDATE connections SET copy_rate_bytes_s = ? WHERE pair = ?", (rate_bytes_s, pair))

    def delete_connection(self, pair: str) -> None:
        with self._change() as sql:
            sql.execute("DELETE FROM connections WHERE pair = ?", (pair,))

    # the journal

    def journal(self) -> list[Entry]:
        return self._all(Entry, "SELECT * FROM journal ORDER BY rowid")

    def entry(self, operation: str) -> Entry | None:
        return self._one(Entry, "SELECT * FROM journal WHERE operation = ?", operation)

    def entry_of(self, volume: str) -> Entry | None:
        return self._one(Entry, "SELECT * FROM journal WHERE volume = ?", volume)

    def open_entry(self, entry: Entry) -> None:
        """Claim the volume for an operation; the same entry again is fine, any other claim on the volume refuses."""
        with self._change() as sql:
            _refuse_ended(sql, entry.operation, entry.pair)
            found = sql.execute("SELECT * FROM journal WHERE volume = ?", (entry.volume,)).fetchone()
            if found is not None and found["operation"] == entry.operation:
                return
            if found is not None:
                raise errors.refused(
                    f"volume {entry.volume} is busy with {found['verb']} of pair {found['pair']} "
                    f"(with {found['peer']}:{found['peer_volume']}); wait until that is finished, then try again"
                )
            if entry.verb == "pair.create":
                _refuse_taken(sql, entry.volume, entry.operation)
            columns = msgspec.structs.asdict(entry)
            names, marks = ", ".join(columns), ", ".join("?" * len(columns))
            sql.execute(f"INSERT INTO journal ({names}) VALUES ({marks})", tuple(columns.values()))
            if entry.verb == "pair.delete":
                sql.execute("UPDATE connections SET state = 'deleting' WHERE pair = ?", (entry.pair,))

    def begin_step(self, operation: str, step: str) -> None:
        with self._change() as sql:
            sql.execute(
                "INSERT OR IGNORE INTO steps SELECT ?, count(*), ? FROM steps WHERE operation = ?",
                (operation, step, operation),
            )

    def forget_step(self, operation: str, step: str) -> None:
        """The step was never sent: nothing of it can have happened."""
        with self._change() as sql:
            sql.execute("DELETE FROM steps WHERE operation = ? AND step = ?", (operation, step))

    def steps(self, operation: str) -> list[str]:
        rows = self._sql.execute("SELECT step FROM steps WHERE operation = ? ORDER BY position", (operation,))
        return [row["step"] for row in rows]

    def set_entry_state(self, operation: str, state: JournalState) -> None:
        with self._change() as sql:
            sql.execute("UPDATE journal SET state = ? WHERE operation = ? AND state <> ?", (state, operation, state))

    def set_note(self, operation: str, note: str | None) -> None:
        with self._change() as sql:
            sql.execute("UPDATE journal SET note = ? WHERE operation = ? AND note IS NOT ?", (note, operation, note))

    def commit_pair(self, operation: str, pair: str) -> None:
        """The pair is ready here: from now on nothing of its operation is undone."""
        with self._change() as sql:
            sql.execute("UPDATE journal SET state = 'committed' WHERE operation = ?", (operation,))
            sql.execute("UPDATE connections SET state = 'ready' WHERE pair = ? AND state = 'creating'", (pair,))

    def close_entry(self, operation: str, outcome: Outcome) -> None:
        """The operation has ended here; whatever it created belongs to the user now."""
        with self._change() as sql:
            sql.execute("DELETE FROM journal WHERE operation = ?", (operation,))
            sql.execute("UPDATE volumes SET operation = NULL WHERE operation = ?", (operation,))
            sql.execute("INSERT OR IGNORE INTO ended VALUES (?, ?)", (operation, outcome))

    def end_pair(self, pair: str) -> None:
        """Drop the connection, close what is open for the pair, and refuse it for ever, in one change."""
        with self._change() as sql:
            sql.execute("DELETE FROM connections WHERE pair = ?", (pair,))
            sql.execute("INSERT OR IGNORE INTO ended SELECT operation, 'deleted' FROM journal WHERE pair = ?", (pair,))
            sql.execute(
                "UPDATE volumes SET operation = NULL WHERE operation IN (SELECT operation FROM journal WHERE pair = ?)",
                (pair,),
            )
            sql.execute("DELETE FROM journal WHERE pair = ?", (pair,))
            sql.execute("INSERT OR IGNORE INTO ended VALUES (?, 'deleted')", (pair,))

    def outcome(self, identifier: str) -> Outcome | None:
        """How an operation or a pair ended here; None while it is open or was never heard of."""
        row = self._sql.execute("SELECT outcome FROM ended WHERE id = ?", (identifier,)).fetchone()
        return None if row is None else msgspec.convert(row["outcome"], Outcome)


def _upsert_peer(sql: sqlite3.Connection, peer: Peer) -> None:
    found = sql.execute("SELECT certificate FROM peers WHERE name = ?", (peer.name,)).fetchone()
    if found and found["certificate"] != peer.certificate:
        raise errors.refused(
            f"a host called {peer.name} is enrolled with another certificate; give the new host another name"
        )
    sql.execute(
        "INSERT INTO peers VALUES (?, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET address = excluded.address, port = excluded.port",
        (peer.name, peer.address, peer.port, peer.certificate),
    )


def _refuse_taken(sql: sqlite3.Connection, volume: str, operation: str) -> None:
    row: Any = sql.execute(
        "SELECT pair, peer, peer_volume FROM connections WHERE volume = ? AND operation <> ?", (volume, operation)
    ).fetchone()
    if row is not None:
        raise errors.refused(
            f"volume {volume} is already in pair {row['pair']} with {row['peer']}:{row['peer_volume']}; "
            "delete that pair or take another volume"
        )


def _refuse_ended(sql: sqlite3.Connection, operation: str, pair: str) -> None:
    row: Any = sql.execute("SELECT id, outcome FROM ended WHERE id IN (?, ?)", (operation, pair)).fetchone()
    if row is not None:
        raise errors.refused(f"pair {pair} has ended here ({row['outcome']}); nothing was changed, create a new pair")
