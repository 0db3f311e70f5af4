"""volumes - the volumes of this host: made, shown, attached, detached, deleted.

A managed backing is a sparse file that comes and goes with its volume; a given backing keeps its content and is never
deleted.  The row is written before the files and removed after them, so that a crash leaves nothing unknown.
"""

import asyncio
import contextlib
import os
import stat
import uuid
from pathlib import Path
from typing import Any

import msgspec

from pathctl import config, db, devices, errors, pki, planes
from pathctl.node import Node


class Create(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size: int | None = None
    track_size: int | None = None
    backing: str | None = None


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class Attach(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    volume: str


# making and deleting


async def create(node: Node, body: Create) -> dict[str, Any]:
    config.check_name(body.name, "volume")
    track_size = config.check_track_size(body.track_size or config.DEFAULT_TRACK_SIZE)
    size = _given_size(node, body) if body.backing else body.size
    if size is None:
        raise errors.usage("a new volume needs a size; give --size, or --backing with an existing file or device")
    async with node.locks[body.name]:
        await make(node, body.name, config.check_size(size), track_size, backing=body.backing)
    return {"volume": await show_one(node, body.name)}


def _given_size(node: Node, body: Create) -> int:
    """The size of a volume over a given backing: that of the backing, unless a smaller one is asked for."""
    assert body.backing is not None
    path = Path(body.backing)
    if not path.is_absolute():
        raise errors.usage(f"{body.backing} is no absolute path; pathctld has a working folder of its own")
    _refuse_own(node, path)
    try:
        kind = path.stat().st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
            raise errors.usage(f"{path} is neither a file nor a block device; it cannot back a volume")
        with path.open("rb") as file:
            found = file.seek(0, os.SEEK_END)
        if stat.S_ISBLK(kind):
            _refuse_busy(path)
    except OSError as error:
        raise errors.not_found(f"{path} cannot be opened: {error.strerror}; give a file or device") from error
    if body.size is not None and body.size > found:
        raise errors.refused(f"{path} has only {found} bytes, {body.size} are asked for; nothing was changed")
    return found if body.size is None else body.size


def _refuse_own(node: Node, path: Path) -> None:
    """A volume over pathctl's own files, or over the device of another volume, would be written from two sides."""
    real = _real(str(path))
    for under in (real, devices.backing_file(real) if Path(real).is_block_device() else None):
        if under is not None and any(Path(under).is_relative_to(_real(str(own))) for own in node.cfg.folders):
            raise errors.refused(f"{path} belongs to pathctl itself and cannot back a volume; give another one")


def _refuse_busy(path: Path) -> None:
    """Linux: an exclusive open of a block device that is mounted, or part of another device, says EBUSY."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        raise errors.refused(
            f"{path} cannot be had for writing: {error.strerror}; end its other use (a mount, another device made of "
            "it), then try again"
        ) from error


async def make(
    node: Node, name: str, size: int, track_size: int, *, backing: str | None = None, operation: str | None = None
) -> None:
    """Make the volume, or finish making it for the same operation.  The caller holds the volume's lock."""
    row = node.db.volume(name)
    if row is not None and (operation is None or row.operation != operation):
        raise errors.refused(f"there is a volume {name} already; take another name, or delete it first")
    claim = node.db.entry_of(name)
    if claim is not None and claim.operation != operation:
        raise errors.refused(f"the name {name} is taken by a {claim.verb} under way; take another name")
    if row is None:
        row = db.Volume(
            name=name,
            uuid=str(uuid.uuid4()),
            size=size,
            track_size=track_size,
            backing=_real(backing) if backing else str(node.cfg.image(name)),
            managed=backing is None,
            operation=operation,
        )
        _refuse_leftovers(node, row)
        node.db.insert_volume(row)
    if row.state == "ready":
        return
    try:
        await _make_files(node, row)
    except errors.PathctlError:
        if operation is None:  # else the operation's undo does it
            remove(node, name)
        raise
    node.db.set_volume_state(name, "ready")


def _real(path: str) -> str:
    return os.path.realpath(path)


def _refuse_leftovers(node: Node, row: db.Volume) -> None:
    for path in [node.cfg.meta(row.name)] + ([Path(row.backing)] if row.managed else []):
        if path.exists():
            raise errors.refused(f"{path} exists but belongs to no volume; move it away, then try again")
    for other in node.db.volumes():
        with contextlib.suppress(OSError):
            if not row.managed and _same_storage(row.backing, other.backing):
                raise errors.refused(f"{row.backing} already backs volume {other.name}; take another backing")


def _same_storage(one: str, other: str) -> bool:
    a, b = os.stat(one), os.stat(other)
    both_devices = stat.S_ISBLK(a.st_mode) and stat.S_ISBLK(b.st_mode)
    return a.st_rdev == b.st_rdev if both_devices else os.path.samestat(a, b)


async def _make_files(node: Node, row: db.Volume) -> None:
    if row.managed:
        try:
            await asyncio.to_thread(_make_image, Path(row.backing), row.size)
        except OSError as error:
            raise errors.internal(f"{row.backing} cannot be made: {error.strerror}; the volume was not made") from error
    await planes.run_format(
        "create",
        "--meta",
        str(node.cfg.meta(row.name)),
        "--uuid",
        row.uuid,
        "--size",
        str(row.size),
        "--track-size",
        str(row.track_size),
    )


def _make_image(path: Path, size: int) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.truncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)
    pki.sync_folder(path.parent)


async def delete(node: Node, body: Name) -> dict[str, Any]:
    async with node.locks[body.name]:
        row = node.volume(body.name)
        _refuse_in_use(node, row)
        shown = await show_one(node, row.name)
        remove(node, row.name)
    return {"volume": shown}


def _refuse_in_use(node: Node, row: db.Volume) -> None:
    entry = node.db.entry_of(row.name)
    connection = node.db.connection_of(row.name)
    if row.attached:
        raise errors.refused(f"volume {row.name} is attached; run `pathctl detach {row.name}` first")
    if connection is not None:
        raise errors.refused(f"volume {row.name} is in pair {connection.pair}; delete the pair first")
    if entry is not None:
        raise errors.refused(f"volume {row.name} is part of a {entry.verb} under way; wait until it is finished")


def remove(node: Node, name: str) -> None:
    """Delete a volume that has no process: its files, then its row."""
    row = node.db.volume(name)
    if row is None:
        return
    node.db.set_volume_state(name, "deleting")
    if row.managed:
        Path(row.backing).unlink(missing_ok=True)
    node.cfg.meta(name).unlink(missing_ok=True)
    pki.sync_folder(node.cfg.meta(name).parent)
    node.db.delete_volume(name)


# attaching


async def attach(node: Node, body: Attach) -> dict[str, Any]:
    async with node.locks[body.volume]:
        path = await attach_locked(node, body.volume)
    return {"volume": await show_one(node, body.volume), "device": path}


async def attach_locked(node: Node, name: str) -> str:
    """Make the volume a block device; repeated, it answers the same device.  The caller holds the volume's lock."""
    row = node.volume(name)
    if _is_destination(node, name):
        raise errors.refused(f"volume {name} is a destination: its peer writes to it, so it cannot be attached here")
    if row.state != "ready" or row.operation is not None:
        raise errors.refused(f"volume {name} is still being made or deleted; wait until that is finished")
    node.db.set_attached(name)
    try:
        await planes.settle(node, name)
        return await ensure_device(node, node.volume(name))
    except errors.PathctlError:
        if not row.attached:
            node.db.set_detached(name)
            await planes.settle(node, name)
        raise


def _is_destination(node: Node, name: str) -> bool:
    connection, entry = node.db.connection_of(name), node.db.entry_of(name)
    return (connection is not None and connection.side == "destination") or (
        entry is not None and entry.role == "participant"
    )


async def ensure_device(node: Node, row: db.Volume) -> str:
    name = row.name
    known = device(row)
    if known is not None and devices.is_alive(known):
        return known.path
    try:
        made = await devices.attach(
            node.cfg.nbd_socket(name),
            node.cfg.fuse_file(name),
            node.cfg.device_link(name),
            node.cfg.device_log(name),
        )
    except devices.DeviceError as error:
        raise errors.internal(f"volume {name} cannot be made a block device: {error}") from error
    node.db.set_device(name, (made.path, made.pid, made.pid_started))
    return made.path


def device(row: db.Volume) -> devices.Device | None:
    if row.device_path is None or row.device_pid is None or row.device_pid_started is None:
        return None
    return devices.Device(row.device_path, row.device_pid, row.device_pid_started)


async def detach(node: Node, body: Attach) -> dict[str, Any]:
    async with node.locks[body.volume]:
        row = node.volume(body.volume)
        await remove_device(node, row)
        node.db.set_detached(row.name)
        await planes.settle(node, row.name)
    return {"volume": await show_one(node, body.volume)}


async def remove_device(node: Node, row: db.Volume) -> None:
    """Take the block device away, also one that a killed pathctld made and could not record.

    The row goes on saying whether one is wanted.
    """
    try:
        await devices.detach(node.cfg.fuse_file(row.name), node.cfg.device_link(row.name))
    except devices.DeviceError as error:
        raise errors.refused(f"volume {row.name} stays attached: {error}") from error
    node.db.set_device(row.name, None)


# showing


async def list_all(node: Node, body: msgspec.Struct) -> dict[str, Any]:
    return {"volumes": await show_all(node)}


async def show(node: Node, body: Name) -> dict[str, Any]:
    return {"volume": await show_one(node, body.name)}


async def show_all(node: Node) -> list[dict[str, Any]]:
    return list(await asyncio.gather(*(_shown(node, row) for row in node.db.volumes())))


async def show_one(node: Node, name: str) -> dict[str, Any]:
    return await _shown(node, node.volume(name))


def _device_failure(row: db.Volume) -> str | None:
    known = device(row)
    if known is None or devices.is_alive(known):
        return None
    return f"the process behind {known.path} has ended: end the device's use, then `pathctl attach {row.name}` again"


async def _shown(node: Node, row: db.Volume) -> dict[str, Any]:
    """V of the API: the row, and what its data plane says."""
    connection = node.db.connection_of(row.name)
    keeper = node.supervisor.get(row.name)
    found = await planes.look(node, row.name)
    facts = found.status
    return {
        "name": row.name,
        "uuid": row.uuid,
        "size": row.size,
        "track_size": row.track_size,
        "backing": row.backing,
        "managed": row.managed,
        "side": connection.side if connection else None,
        "pair": connection.pair if connection else None,
        "attached": row.attached,
        "device": row.device_path,
        "pid": keeper.pid if keeper else None,
        "clients": facts.clients if facts else 0,
        "invalid": facts.invalid if facts else 0,
        "incomplete": facts.incomplete if facts else False,
        "failed": found.failed or _device_failure(row),
        "counters": facts.counters if facts else {},
    }
