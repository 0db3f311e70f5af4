"""db - this host's configuration and what has happened to it: all questions to the tables of `schema`, all changes.

A row says what is wanted; the volume's metadata file says what is so.  Every method is one transaction and is durable
when it returns (WAL, synchronous=FULL).  Called from the event loop's thread only: rows are few and each call is one
short commit, so it is not worth a thread of its own.

Full file system: whatever begins something is refused while the reserve cannot be had; whatever ends, undoes or gives
something up may use the reserve up (methods marked `_ends`).
"""

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import msgspec

from pathctl import actor, errors, schema, shapes
from pathctl.reserve import Reserve

log = logging.getLogger(__name__)

KEEP_EVENTS = 10_000

Side = Literal["source", "destination"]
VolumeState = Literal["creating", "ready", "deleting"]
ConnectionState = Literal["creating", "ready", "suspended", "deleting"]
OnPathLoss = Literal["continue", "stop"]
Verb = Literal["pair.create", "pair.delete", "pair.resolve"]
Role = Literal["coordinator", "participant"]
JournalState = Literal["forward", "committed", "undoing"]
Outcome = Literal["done", "undone", "deleted"]


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
    on_path_loss: OnPathLoss = "continue"


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
P = ParamSpec("P")
T = TypeVar("T")


class NoSpace(errors.PathctlError):
    """The file system of the database is full and nothing was changed.  What must end may use the reserve."""


def _ends(method: "Callable[Concatenate[Database, P], T]") -> "Callable[Concatenate[Database, P], T]":
    """A method that ends something: on a full file system it is tried again with the reserve given up.

    Where there is room the reserve is taken again at once: a restart may need it before anything new begins.
    """

    def end(database: "Database", /, *values: P.args, **named: P.kwargs) -> T:
        try:
            with database.using_reserve():
                found = method(database, *values, **named)
        except NoSpace:
            database.reserve.release()
            with database.using_reserve():
                return method(database, *values, **named)
        database.reserve.ensure()
        return found

    end.__doc__ = method.__doc__
    return end


class Database:
    """The one connection to the database file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reserve = Reserve(path.with_name(path.name + ".reserve"))
        self.keep_events = KEEP_EVENTS
        self.on_event: Callable[[shapes.Event], None] | None = None
        self._is_ending = False
        try:
            backup = self._open(path)
        except NoSpace:  # SQLite needs some for its log, even to read
            self.reserve.release()
            backup = self._open(path)
        self._last_event = self._newest_event()
        if backup is not None:
            self.record("db.migrated", f"{path} was brought to schema {schema.VERSION}; as it was it is in {backup}")

    def _open(self, path: Path) -> Path | None:
        """Connect, check, and bring to this version's schema; -> the copy made of an older one."""
        with self._told():
            self._sql = schema.connect(path, lambda: self.keep_events)
            path.chmod(0o600)
            self._check(path)
            return schema.ensure(self._sql, path)

    def close(self) -> None:
        self._sql.close()

    def copy(self, path: Path) -> None:
        """A consistent copy of the file, without a log of its own."""
        with self._told():
            target = sqlite3.connect(path, isolation_level=None)
            try:
                self._sql.backup(target)
                target.execute("PRAGMA journal_mode = DELETE")
            finally:
                target.close()

    def _check(self, path: Path) -> None:
        (found,) = self._sql.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise _damaged(path, str(found).replace("\n", " "))

    @contextmanager
    def using_reserve(self) -> Iterator[None]:
        """Changes made meanwhile end something: they do not ask for the reserve first."""
        before, self._is_ending = self._is_ending, True
        try:
            yield
        finally:
            self._is_ending = before

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite says about the file and its file system, in a sentence; other errors are mistakes of ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            told = _tell(self.path, error)
            if told is None:
                raise
            raise told from error

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        if not self._is_ending and not self.reserve.ensure():
            raise _no_space(self.path)
        with self._told():
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:  # SQLite has ended it already where the disk is full
                    self._sql.execute("ROLLBACK")
                raise
        self._announce()

    def _all(self, kind: type[Row], query: str, *values: object) -> list[Row]:
        with self._told():
            return [msgspec.convert(dict(row), kind, strict=False) for row in self._sql.execute(query, values)]

    def _one(self, kind: type[Row], query: str, *values: object) -> Row | None:
        with self._told():
            row = self._sql.execute(query, values).fetchone()
        return None if row is None else msgspec.convert(dict(row), kind, strict=False)

    # events

    def events(
        self, after_id: int = 0, since: float | None = None, pair: str | None = None, limit: int = 1000
    ) -> list[shapes.Event]:
        """The newest `limit` that fit, the oldest of them first."""
        found = self._all(
            shapes.Event,
            "SELECT * FROM events WHERE id > ?1 AND at >= coalesce(?2, at) AND pair IS coalesce(?3, pair)"
            " ORDER BY id DESC LIMIT ?4",
            after_id,
            since,
            pair,
            limit,
        )
        return found[::-1]

    def last_event(self, kind: str, volume: str) -> shapes.Event | None:
        """The newest one of that kind about that volume, as far as events are kept."""
        query = "SELECT * FROM events WHERE kind = ? AND volume = ? ORDER BY id DESC LIMIT 1"
        return self._one(shapes.Event, query, kind, volume)

    def _newest_event(self) -> int:
        with self._told():
            (found,) = self._sql.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
        return int(found)

    def _announce(self) -> None:
        newest = self._newest_event()
        if newest == self._last_event or self.on_event is None:  # what happened before is told with the next
            return
        after, self._last_event = self._last_event, newest
        for event in self.events(after_id=after):
            self.on_event(event)

    def record(
        self,
        kind: str,
        message: str,
        *,
        volume: str | None = None,
        pair: str | None = None,
        peer: str | None = None,
        before: str | None = None,
        after: str | None = None,
        cause: str | None = None,
    ) -> bool:
        """Record what has happened; False, and a line in the log, when there is no room.  Never raises for that."""
        assert kind in schema.KINDS, kind
        try:
            with self.using_reserve(), self._change() as sql:
                sql.execute(
                    "INSERT INTO events (at, kind, volume, pair, peer, actor, before, after, cause, message)"
                    " VALUES (pathctl_now(), ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (kind, volume, pair, peer, actor.who.get(), before, after, cause or actor.why.get(), message),
                )
        except errors.PathctlError as error:
            log.error("an event cannot be recorded (%s): %s %s", error.message, kind, message)
            return False
        return True

    def last_state(self, pair: str) -> tuple[str, float] | None:
        """The pair's state as last recorded, and since when."""
        with self._told():
            row = self._sql.execute("SELECT state, since FROM states WHERE pair = ?", (pair,)).fetchone()
        return None if row is None else (row["state"], row["since"])

    # host and peers

    def host(self) -> Host | None:
        return self._one(Host, "SELECT name, address, port FROM host")

    def insert_host(self, host: Host) -> None:
        with self._change() as sql:
            sql.execute("INSERT INTO host VALUES (1, ?, ?, ?)", (host.name, host.address, host.port))

    def set_host(self, host: Host) -> None:
        with self._change() as sql:
            sql.execute("UPDATE host SET address = ?, port = ?", (host.address, host.port))

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

    @_ends
    def set_volume_state(self, name: str, state: VolumeState) -> None:
        with self._change() as sql:
            sql.execute("UPDATE volumes SET state = ? WHERE name = ?", (state, name))

    def set_attached(self, name: str) -> None:
        with self._change() as sql:
            sql.execute("UPDATE volumes SET attached = 1 WHERE name = ?", (name,))

    @_ends
    def set_detached(self, name: str) -> None:
        with self._change() as sql:
            sql.execute("UPDATE volumes SET attached = 0 WHERE name = ?", (name,))

    @_ends
    def set_device(self, name: str, device: tuple[str, int, float] | None) -> None:
        with self._change() as sql:
            sql.execute(
                "UPDATE volumes SET device_path = ?, device_pid = ?, device_pid_started = ? WHERE name = ?",
                (*(device or (None, None, None)), name),
            )

    @_ends
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
            _insert(sql, "connections", row)

    @_ends
    def set_connection_state(self, pair: str, state: ConnectionState) -> None:
        with self._change() as sql:
            sql.execute("UPDATE connections SET state = ? WHERE pair = ?", (state, pair))

    def set_port(self, pair: str, port: int) -> None:
        with self._change() as sql:
            sql.execute("UPDATE connections SET port = ? WHERE pair = ?", (port, pair))

    def set_copy_rate(self, pair: str, rate_bytes_s: int | None) -> None:
        with self._change() as sql:
            sql.execute("UPDATE connections SET copy_rate_bytes_s = ? WHERE pair = ?", (rate_bytes_s, pair))

    def set_on_path_loss(self, pair: str, on_path_loss: OnPathLoss) -> None:
        with self._change() as sql:
            sql.execute("UPDATE connections SET on_path_loss = ? WHERE pair = ?", (on_path_loss, pair))

    @_ends
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

    def refuse_taken(self, volume: str) -> None:
        """Refuse a volume that is in a pair or claimed by an operation."""
        found = self._sql.execute("SELECT * FROM journal WHERE volume = ?", (volume,)).fetchone()
        if found is not None:
            raise _busy(volume, found)
        _refuse_taken(self._sql, volume, "")

    def open_entry(self, entry: Entry) -> None:
        """Claim the volume for an operation; the same entry again is fine, any other claim on the volume refuses."""
        with self._change() as sql:
            _refuse_ended(sql, entry.operation, entry.pair)
            found = sql.execute("SELECT * FROM journal WHERE volume = ?", (entry.volume,)).fetchone()
            if found is not None and found["operation"] == entry.operation:
                return
            if found is not None:
                raise _busy(entry.volume, found)
            if entry.verb == "pair.create":
                _refuse_taken(sql, entry.volume, entry.operation)
            _insert(sql, "journal", entry)
            if entry.verb == "pair.delete":
                sql.execute("UPDATE connections SET state = 'deleting' WHERE pair = ?", (entry.pair,))

    @_ends
    def open_deleting(self, entry: Entry) -> None:
        """As `open_entry`, for an operation that ends something."""
        self.open_entry(entry)

    def open_rejoining(self, entry: Entry, row: Connection) -> None:
        """Make this host's half of a pair again for an operation that resolves it, although the pair has ended here.

        The same again is fine.  The entry's `spec` says whether it had, for `undo_rejoining`.
        """
        with self._change() as sql:
            found = sql.execute("SELECT * FROM journal WHERE volume = ?", (entry.volume,)).fetchone()
            if found is not None and found["operation"] == entry.operation:
                return
            if found is not None:
                raise _busy(entry.volume, found)
            _refuse_ended(sql, entry.operation, entry.operation)
            _refuse_taken(sql, entry.volume, entry.operation)
            _insert(sql, "journal", entry)
            sql.execute("DELETE FROM ended WHERE id = ?", (entry.pair,))
            _insert(sql, "connections", row)

    @_ends
    def undo_rejoining(self, entry: Entry, *, had_ended: bool) -> None:
        """As before `open_rejoining`, and what arrives late of the operation is refused."""
        with self._change() as sql:
            sql.execute("DELETE FROM connections WHERE pair = ? AND operation = ?", (entry.pair, entry.operation))
            sql.execute("DELETE FROM journal WHERE operation = ?", (entry.operation,))
            sql.execute("INSERT OR IGNORE INTO ended VALUES (?, 'undone')", (entry.operation,))
            if had_ended:
                sql.execute("INSERT OR IGNORE INTO ended VALUES (?, 'deleted')", (entry.pair,))

    @_ends
    def commit_resolved(self, operation: str, pair: str, discarded: Side) -> None:
        """The pair goes on with the other side's data; from now on nothing of the operation is undone."""
        with self._change() as sql:
            sql.execute("UPDATE journal SET state = 'committed' WHERE operation = ?", (operation,))
            sql.execute(
                "UPDATE connections SET operation = ?, invalidated = ?,"
                " state = CASE state WHEN 'creating' THEN 'ready' ELSE state END WHERE pair = ?",
                (operation, discarded, pair),
            )

    def begin_step(self, operation: str, step: str) -> None:
        with self._change() as sql:
            sql.execute(
                "INSERT OR IGNORE INTO steps SELECT ?, count(*), ? FROM steps WHERE operation = ?",
                (operation, step, operation),
            )

    @_ends
    def forget_step(self, operation: str, step: str) -> None:
        """The step was never sent: nothing of it can have happened."""
        with self._change() as sql:
            sql.execute("DELETE FROM steps WHERE operation = ? AND step = ?", (operation, step))

    def steps(self, operation: str) -> list[str]:
        with self._told():
            rows = self._sql.execute("SELECT step FROM steps WHERE operation = ? ORDER BY position", (operation,))
            return [row["step"] for row in rows]

    @_ends
    def set_entry_state(self, operation: str, state: JournalState) -> None:
        with self._change() as sql:
            sql.execute("UPDATE journal SET state = ? WHERE operation = ? AND state <> ?", (state, operation, state))

    @_ends
    def set_note(self, operation: str, note: str | None) -> None:
        with self._change() as sql:
            sql.execute("UPDATE journal SET note = ? WHERE operation = ? AND note IS NOT ?", (note, operation, note))

    @_ends
    def commit_pair(self, operation: str, pair: str) -> None:
        """The pair is ready here: from now on nothing of its operation is undone."""
        with self._change() as sql:
            sql.execute("UPDATE journal SET state = 'committed' WHERE operation = ?", (operation,))
            sql.execute("UPDATE connections SET state = 'ready' WHERE pair = ? AND state = 'creating'", (pair,))

    @_ends
    def close_entry(self, operation: str, outcome: Outcome) -> None:
        """The operation has ended here; whatever it created belongs to the user now."""
        with self._change() as sql:
            sql.execute("DELETE FROM journal WHERE operation = ?", (operation,))
            sql.execute("UPDATE volumes SET operation = NULL WHERE operation = ?", (operation,))
            sql.execute("INSERT OR IGNORE INTO ended VALUES (?, ?)", (operation, outcome))

    @_ends
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
        with self._told():
            row = self._sql.execute("SELECT outcome FROM ended WHERE id = ?", (identifier,)).fetchone()
        return None if row is None else msgspec.convert(row["outcome"], Outcome)


def _insert(sql: sqlite3.Connection, table: str, row: msgspec.Struct) -> None:
    columns = msgspec.structs.asdict(row)
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    sql.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(columns.values()))


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


def _busy(volume: str, found: Any) -> errors.PathctlError:
    return errors.refused(
        f"volume {volume} is busy with {found['verb']} of pair {found['pair']} (with {found['peer']}:"
        f"{found['peer_volume']}); wait until that is finished, then try again"
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


def _tell(path: Path, error: sqlite3.DatabaseError) -> errors.PathctlError | None:
    """The sentence for what SQLite found wrong with the file; None for a mistake in our SQL or rows."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the rest its detail
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) and not Reserve.has_room(path.parent):
        return _no_space(path)
    if code == sqlite3.SQLITE_FULL:
        return _no_space(path)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(path, str(error))
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return errors.internal(f"{path} cannot be used ({error}); nothing was changed: see to its file system")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return errors.internal(f"{path} is locked by another program ({error}); nothing was changed: end that program")
    return None


def _damaged(path: Path, what: str) -> errors.PathctlError:
    return errors.internal(f"{path} is damaged ({what}) and was left as it is; put a copy back with `pathctl restore`")


def _no_space(path: Path) -> NoSpace:
    return NoSpace(
        errors.ErrorCode.INTERNAL,
        f"the file system of {path.parent} is full; nothing was changed: make room there, then repeat the command",
    )
