"""backup - the configuration of a host in one file, and back.

    FILE (tar, gzip, mode 0600)
        manifest.json     format, host, time; size and SHA-256 of each of the others
        pathctl.db        the configuration table
        pathctl.toml      the settings, if there are any
        keys/host.key, keys/host.crt, keys/psk/PAIR.psk

Not the volumes' data, and not their track tables: these say what state the data is in, and an old one would be a lie.
So a restored configuration may be older than what the metadata of a volume says; the metadata is right, and what to
type is told for each volume.

A restore checks everything before it changes anything.  The new files are made ready in `restoring.new`, whose
renaming to `restoring` is the one step that decides; from then on it is only ever carried on, by the next restore or
pathctld if need be (`finish`).  What it replaces is kept in a folder beside.
"""

import asyncio
import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sqlite3
import ssl
import subprocess
import sys
import tarfile
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from pathctl import backings, config, db, errors, pki, process, rootlock, schema, settings, shapes, units
from pathctl.errors import PathctlError
from pathctl.node import Node

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "pathctl.db"
SETTINGS = "pathctl.toml"
CERTIFICATE = "keys/host.crt"
KEY = "keys/host.key"
_PSK = re.compile(r"keys/psk/[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.psk")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
FILE_MOST = 1 << 20
DATABASE_MOST = 1 << 30
MEMBERS_MOST = 100_000
PIECE = 1 << 20
TOOL_LIMIT_S = 60.0

NOT_IN_IT = (
    "not the data of the volumes and not their track tables: those say what state the data is in, and an old one would "
    "be wrong"
)


class Make(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    path: str


class Member(msgspec.Struct, frozen=True):
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    format: int
    host: str
    made_at: float  # seconds since the epoch
    files: dict[str, Member]


class _Format(msgspec.Struct, frozen=True):
    format: int


# making


async def make(node: Node, body: Make) -> dict[str, Any]:
    """Write the backup; complete or absent, and never over a file that is there."""
    path = _check_target(body.path)
    host = node.host().name
    files = _collect(node)  # without a pause in between: rows and keys fit each other
    await asyncio.to_thread(_write, path, host, files)
    return {"file": str(path), "contains": [*_contents(node, files), NOT_IN_IT]}


def _check_target(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise errors.usage(f"{text!r} is no absolute path; pathctld has a working folder of its own")
    if os.path.lexists(path):
        raise errors.refused(f"{path} exists already; nothing was changed: give another name")
    if not path.parent.is_dir():
        raise errors.not_found(f"there is no folder {path.parent}; make it, or give another place")
    return path


def _collect(node: Node) -> dict[str, bytes]:
    cfg = node.cfg
    files = {DATABASE: _copy_database(node)}
    files |= {KEY: cfg.host_key.read_bytes(), CERTIFICATE: cfg.host_certificate.read_bytes()}
    for path in sorted(cfg.psk("x").parent.glob("*.psk")):
        files[f"keys/psk/{path.name}"] = path.read_bytes()
    with contextlib.suppress(FileNotFoundError):
        files[SETTINGS] = cfg.settings_file.read_bytes()
    return files


def _copy_database(node: Node) -> bytes:
    copy = node.cfg.state / "backup.db.new"
    copy.unlink(missing_ok=True)
    try:
        os.close(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        node.db.copy(copy)
        return copy.read_bytes()
    except OSError as error:
        raise errors.not_written(copy, error) from error
    finally:
        copy.unlink(missing_ok=True)


def _contents(node: Node, files: dict[str, bytes]) -> list[str]:
    tables = {"peer": len(node.db.peers()), "volume": len(node.db.volumes()), "connection": len(node.db.connections())}
    rows = ", ".join(_count(number, word) for word, number in tables.items())
    keys = _count(sum(name.startswith("keys/psk/") for name in files), "pair key")
    table = f"the configuration table of host {node.host().name}: {rows}"
    found = [table, f"its key, its certificate, {keys}"]
    return [*found, "its pathctl.toml"] if SETTINGS in files else found


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _write(path: Path, host: str, files: dict[str, bytes]) -> None:
    members = {name: Member(len(raw), hashlib.sha256(raw).hexdigest()) for name, raw in files.items()}
    manifest = msgspec.json.format(msgspec.json.encode(Manifest(FORMAT, host, time.time(), members)))
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w:gz") as tar:
                for name, raw in {MANIFEST: manifest, **files}.items():
                    member = tarfile.TarInfo(name)
                    member.size, member.mode, member.mtime = len(raw), 0o600, int(time.time())
                    tar.addfile(member, io.BytesIO(raw))
            file.flush()
            os.fsync(file.fileno())
        os.link(new, path)  # refuses a file that has come meanwhile
        new.unlink()
        pki.sync_folder(path.parent)
    except FileExistsError as error:
        raise errors.refused(f"{path} exists already; nothing was changed: give another name") from error
    except OSError as error:
        raise errors.not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


# restoring


def restore(cfg: config.Config, path: Path, dry_run: bool) -> shapes.Plan | shapes.FileAnswer:
    """Put the configuration back as it is in the backup.  In the place of pathctld, which must not run."""
    cfg.make_folders()
    if dry_run:
        return _plan(cfg, path)
    try:
        with rootlock.alone(cfg):
            return _restore(cfg, path)
    except rootlock.Taken as error:
        raise errors.refused(
            f"a pathctld is running; nothing was changed: end it and the processes of all volumes with `{cfg.stop_all}`"
            ", then repeat"
        ) from error


def _plan(cfg: config.Config, path: Path) -> shapes.Plan:
    """A look beside a pathctld that may be running."""
    staged = cfg.state / f"restoring.{os.getpid()}.look"
    try:
        manifest = _unpack(path, staged)
        rows = _check(cfg, path, staged, manifest)
        told = [*_look_at_volumes(cfg, rows), *_look_at_leftovers(cfg, rows)]
        return shapes.Plan(_steps(cfg, path, manifest, told), _what_is_forgotten(cfg, rows))
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _restore(cfg: config.Config, path: Path) -> shapes.FileAnswer:
    finish(cfg)
    _refuse_served(cfg)
    staged = cfg.state / "restoring.new"
    shutil.rmtree(staged, ignore_errors=True)
    is_new = not _is_configured(cfg)
    try:
        manifest = _unpack(path, staged)
        rows = _check(cfg, path, staged, manifest)
        told = [*_look_at_volumes(cfg, rows), *_look_at_leftovers(cfg, rows)]
        kept = _commit(cfg, staged, manifest)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    finish(cfg)
    done = [f"the configuration of host {manifest.host} as of {units.format_time(manifest.made_at)}", *told]
    if not is_new:
        done.append(f"what it has replaced is kept in {kept}")
    return shapes.FileAnswer(version=shapes.VERSION, file=str(path), contains=[*done, NOT_IN_IT])


def _is_configured(cfg: config.Config) -> bool:
    return any(path.exists() for path in (cfg.database, cfg.host_key, cfg.settings_file))


def _refuse_served(cfg: config.Config) -> None:
    served = sorted(process.find(cfg.run))
    if served:
        raise errors.refused(
            f"volume {', '.join(served)} still has a process; nothing was changed: end the processes of all volumes "
            f"with `{cfg.stop_all}`, then repeat"
        )


# what is in the file


def _refused(path: Path, why: str) -> PathctlError:
    return errors.refused(f"{path} cannot be restored: {why}; nothing was changed")


def _unpack(path: Path, folder: Path) -> Manifest:
    """Its members in a new folder, all as the manifest says; nothing of the file is trusted before."""
    try:
        folder.mkdir(mode=0o700)
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:gz") as tar:
            return _unpack_members(path, tar, folder)
    except FileNotFoundError as error:
        raise errors.not_found(f"there is no file {path}; give the file that `pathctl backup` has written") from error
    except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
        raise _refused(path, f"it is no backup of pathctl or is damaged ({error})") from error
    except OSError as error:
        if error.errno is None:  # gzip's
            raise _refused(path, f"it is no backup of pathctl or is damaged ({error})") from error
        if errors.is_full(error):
            raise errors.not_written(folder, error) from error
        raise errors.refused(f"{path} cannot be read: {error.strerror}; nothing was changed") from error


def _unpack_members(path: Path, tar: tarfile.TarFile, folder: Path) -> Manifest:
    manifest: Manifest | None = None
    seen: set[str] = set()
    for member in tar:
        name = member.name
        if name in seen or len(seen) > MEMBERS_MOST or not member.isreg() or not _is_known(name):
            raise _refused(path, f"it contains {name[:100]!r}, which does not belong into a backup")
        seen.add(name)
        content = tar.extractfile(member)
        assert content is not None, "a regular file"
        if manifest is None:
            manifest = _read_manifest(path, name, member.size, content)
        elif name not in manifest.files:
            raise _refused(path, f"its manifest does not name {name}")
        else:
            _unpack_one(path, name, manifest.files[name], content, folder)
    missing = {MANIFEST, *(manifest.files if manifest else ()), DATABASE, KEY, CERTIFICATE} - seen
    if manifest is None or missing:
        raise _refused(path, f"it is not complete, {sorted(missing)[0]} is missing")
    return manifest


def _is_known(name: str) -> bool:
    return name in (MANIFEST, DATABASE, SETTINGS, KEY, CERTIFICATE) or bool(_PSK.fullmatch(name))


def _read_manifest(path: Path, name: str, size: int, content: IO[bytes]) -> Manifest:
    if name != MANIFEST or size > FILE_MOST * 16:
        raise _refused(path, "it is no backup of pathctl")
    raw = content.read()
    try:
        found = msgspec.json.decode(raw, type=_Format).format
        if found > FORMAT:
            newer = (
                f"it was written by a newer pathctl (format {found}, this one reads up to {FORMAT}); install that one"
            )
            raise _refused(path, newer)
        return msgspec.json.decode(raw, type=Manifest)
    except msgspec.DecodeError as error:
        raise _refused(path, f"its manifest cannot be read ({error})") from error


def _unpack_one(path: Path, name: str, wanted: Member, content: IO[bytes], folder: Path) -> None:
    if not 0 <= wanted.size <= (DATABASE_MOST if name == DATABASE else FILE_MOST):
        raise _refused(path, f"{name} has {wanted.size} bytes, which cannot be")
    target = folder / name
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), wanted.size
    with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while piece := content.read(min(PIECE, left + 1)):
            digest.update(piece)
            left -= len(piece)
            if left < 0:
                break
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if left or digest.hexdigest() != wanted.sha256:
        raise _refused(path, f"{name} is damaged")


class _Rows(msgspec.Struct, frozen=True):
    """What a configuration table names."""

    host: str | None
    volumes: dict[str, db.Volume]
    connections: dict[str, db.Connection]  # by volume
    peers: list[str]


def _check(cfg: config.Config, path: Path, folder: Path, manifest: Manifest) -> _Rows:
    """That each part can be used, and that they are those of this host."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except ssl.SSLError as error:
        raise _refused(path, "its certificate and key do not fit each other") from error
    if cfg.host_certificate.exists() and cfg.host_certificate.read_bytes() != (folder / CERTIFICATE).read_bytes():
        raise _refused(
            path,
            f"it is of host {manifest.host}, and the certificate here ({cfg.host_certificate}) is another; if this "
            f"machine is to be that host, move {cfg.database} and {cfg.host_certificate.parent} away first",
        )
    if (folder / SETTINGS).exists():
        try:
            settings.read(folder / SETTINGS)
        except PathctlError as error:
            raise _refused(path, f"its pathctl.toml cannot be used ({error.message})") from error
    try:
        rows = _read_rows(folder / DATABASE)
    except (sqlite3.DatabaseError, msgspec.ValidationError) as error:
        raise _refused(path, f"its database is damaged ({error})") from error
    except PathctlError as error:
        raise _refused(path, f"its database was written by a newer pathctld ({error.message})") from error
    _check_rows(path, manifest, rows)
    return rows


def _read_rows(path: Path) -> _Rows:
    """Raises sqlite3.DatabaseError, PathctlError for a newer schema; writes nothing."""
    sql = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    sql.row_factory = sqlite3.Row
    try:
        (version,) = sql.execute("PRAGMA user_version").fetchone()
        if not 0 < version <= schema.VERSION:
            raise errors.refused(f"schema {version}, this pathctl knows up to {schema.VERSION}; install the newer one")
        (found,) = sql.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(str(found).replace("\n", " "))
        host = sql.execute("SELECT name FROM host").fetchone()
        volumes = [msgspec.convert(dict(row), db.Volume, strict=False) for row in sql.execute("SELECT * FROM volumes")]
        rows = sql.execute("SELECT * FROM connections")
        connections = [msgspec.convert(dict(row), db.Connection, strict=False) for row in rows]
        peers = [row["name"] for row in sql.execute("SELECT name FROM peers")]
    finally:
        sql.close()
    return _Rows(
        host["name"] if host else None,
        {volume.name: volume for volume in volumes},
        {row.volume: row for row in connections},
        peers,
    )


def _check_rows(path: Path, manifest: Manifest, rows: _Rows) -> None:
    """Names become parts of paths, so they are checked as if somebody had typed them."""
    if rows.host != manifest.host:
        raise _refused(path, f"its manifest says host {manifest.host}, its database {rows.host}")
    try:
        for name in (manifest.host, *rows.peers):
            config.check_name(name, "host")
        for name in rows.volumes:
            config.check_name(name, "volume")
    except PathctlError as error:
        raise _refused(path, f"its database is damaged ({error.message})") from error
    for row in rows.connections.values():
        if not _UUID.fullmatch(row.pair):
            raise _refused(path, f"its database is damaged ({row.pair[:80]!r} is no pair)")


# what is told


def _steps(cfg: config.Config, path: Path, manifest: Manifest, told: list[str]) -> list[str]:
    made_at = units.format_time(manifest.made_at)
    steps = []
    if rootlock.is_taken(cfg) or process.find(cfg.run):
        steps.append(f"refuse, until pathctld and the processes of all volumes are ended with `{cfg.stop_all}`")
    if _is_configured(cfg):
        steps.append(f"keep the present configuration in {cfg.state}/before-restore-TIME")
    return [*steps, f"put the configuration of host {manifest.host} as of {made_at} in place", *told]


def _what_is_forgotten(cfg: config.Config, rows: _Rows) -> list[str]:
    """What this host knows now and will not know afterwards."""
    try:
        now = _read_rows(cfg.database)
    except (sqlite3.DatabaseError, msgspec.ValidationError, PathctlError):
        return []  # there is none, or none that can be read
    gone = [f"volume {name} is not in the backup: its files stay, but are not known any more" for name in now.volumes]
    gone = [text for name, text in zip(now.volumes, gone, strict=True) if name not in rows.volumes]
    for volume, row in now.connections.items():
        known = rows.connections.get(volume)
        if known is None or known.pair != row.pair:
            gone.append(f"pair {row.pair} of volume {volume} with {row.peer}:{row.peer_volume} is not in the backup")
    return gone


def _look_at_volumes(cfg: config.Config, rows: _Rows) -> list[str]:
    return [f"volume {row.name}: {_look_at_volume(cfg, rows, row)}" for row in rows.volumes.values()]


def _look_at_volume(cfg: config.Config, rows: _Rows, row: db.Volume) -> str:
    """Whether what lies on this machine fits the row, and what to type where not."""
    forget = _how_to_forget(row, rows.connections.get(row.name))
    fault = backings.fault(row.backing, row.size)
    if fault is not None:
        return f"{fault}: {forget}"
    found = _show_meta(cfg.meta(row.name))
    if found is None:
        return f"its track table {cfg.meta(row.name)} is missing or damaged, so what is valid is not known: {forget}"
    if (found.get("uuid"), found.get("size"), found.get("track_size")) != (row.uuid, row.size, row.track_size):
        return f"its track table {cfg.meta(row.name)} is of another volume: {forget}"
    return _look_at_pair(row.name, rows.connections.get(row.name), found.get("pair"), found.get("incomplete") is True)


def _how_to_forget(row: db.Volume, connection: db.Connection | None) -> str:
    """With the commands in the order in which they work."""
    commands = [f"pathctl pair delete {row.name} --half --yes"] if connection is not None else []
    commands += [f"pathctl detach {row.name}"] if row.attached else []
    words = "`, then `".join([*commands, f"pathctl volume delete {row.name} --yes"])
    copy = f"; its copy is {connection.peer}:{connection.peer_volume}" if connection is not None else ""
    return f"restore its files, or start pathctld and forget it with `{words}`{copy}"


def _look_at_pair(name: str, row: db.Connection | None, pair: str | None, is_incomplete: bool) -> str:
    free = f"run `pathctl pair delete {name} --half`"
    if row is None:
        if pair is not None:
            return f"it is in pair {pair}, which is younger than the backup: {free}, here and at the other host"
        return "its backing and track table fit" + (", it is incomplete" if is_incomplete else "")
    if pair is None:
        return f"its pair {row.pair} has ended since: {free}"
    if pair != row.pair:
        return (
            f"its pair {row.pair} has ended since, and it is in pair {pair}, which is younger than the backup: {free}, "
            "here and at the other host, then create the pair anew"
        )
    return f"its backing and track table fit, it is in pair {pair}"


def _show_meta(path: Path) -> dict[str, Any] | None:
    command = [sys.executable, "-m", "nbdplugin.format", "show", "--meta", str(path)]
    try:
        found = subprocess.run(command, capture_output=True, timeout=TOOL_LIMIT_S)
        shown = json.loads(found.stdout) if found.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError):
        return None
    return shown if isinstance(shown, dict) else None


def _look_at_leftovers(cfg: config.Config, rows: _Rows) -> Iterator[str]:
    for path in sorted((cfg.state / "volumes").glob("*.meta")):
        if path.stem not in rows.volumes:
            yield (
                f"volume {path.stem} is not in the backup: its files stay, bring its data in anew with `pathctl volume "
                "create --backing` after moving them elsewhere"
            )


# putting it in place


def _commit(cfg: config.Config, staged: Path, manifest: Manifest) -> Path:
    """The step that decides; -> where what is replaced will be kept."""
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    kept = cfg.state / f"before-restore-{stamp}-{uuid.uuid4().hex[:6]}"
    pki.write_secret(staged / "kept", kept.name.encode())
    pki.write_secret(staged / MANIFEST, msgspec.json.encode(manifest))
    for folder in (staged / "keys", staged / "keys/psk"):
        if folder.exists():
            pki.sync_folder(folder)
    staged.rename(cfg.state / "restoring")
    pki.sync_folder(cfg.state)
    return kept


def finish(cfg: config.Config) -> None:
    """Carry on a restore that was decided, if there is one; each step may be repeated.  The root's lock is held."""
    staged = cfg.state / "restoring"
    if not staged.exists():
        return
    kept = cfg.state / (staged / "kept").read_text()
    manifest = msgspec.json.decode((staged / MANIFEST).read_bytes(), type=Manifest)
    targets = _targets(cfg, manifest)
    try:
        kept.mkdir(mode=0o700, exist_ok=True)
        if (staged / DATABASE).exists():  # else its successor is in place already, and these would be that one's
            for path in _extras(cfg, manifest):
                _move(path, kept / path.name)
        for name in sorted(targets, key=lambda name: name == DATABASE):  # the database last
            if (staged / name).exists():
                if targets[name].exists():
                    _move(targets[name], kept / targets[name].name)
                _move(staged / name, targets[name])
        for folder in {kept, *(path.parent for path in targets.values())}:
            pki.sync_folder(folder)
        shutil.rmtree(staged)
        pki.sync_folder(cfg.state)
    except OSError as error:
        raise errors.not_written(Path(error.filename or cfg.state), error) from error
    _record(cfg, manifest, kept)


def _targets(cfg: config.Config, manifest: Manifest) -> dict[str, Path]:
    places = {DATABASE: cfg.database, SETTINGS: cfg.settings_file, KEY: cfg.host_key, CERTIFICATE: cfg.host_certificate}
    return {name: places.get(name) or cfg.psk(Path(name).stem) for name in manifest.files}


def _extras(cfg: config.Config, manifest: Manifest) -> list[Path]:
    """What is there and has no successor in the backup."""
    logs = [cfg.database.with_name(cfg.database.name + end) for end in ("-wal", "-shm")]
    keys = [path for path in cfg.psk("x").parent.glob("*.psk") if f"keys/psk/{path.name}" not in manifest.files]
    own = [] if SETTINGS in manifest.files else [cfg.settings_file]
    return [path for path in [*logs, *keys, *own] if path.exists()]


def _move(source: Path, target: Path) -> None:
    """Also to another file system: /etc is often not on that of /var."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        new = target.with_name(target.name + ".new")
        shutil.copy2(source, new)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(target)
        source.unlink()


def _record(cfg: config.Config, manifest: Manifest, kept: Path) -> None:
    """In the restored table; that it cannot be recorded does not undo it."""
    made_at = units.format_time(manifest.made_at)
    message = f"the configuration was restored from a backup of {made_at}; what it replaced is in {kept}"
    with contextlib.suppress(PathctlError):
        database = db.Database(cfg.database)
        try:
            database.record("config.restored", message)
        finally:
            database.close()
