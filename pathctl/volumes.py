"""volumes - the volumes of this host: made, shown, attached, detached, deleted.

A managed backing is a sparse file that comes and goes with its volume; a given backing keeps its content and is never
deleted.  The row is written before the files and removed after them, so that a crash leaves nothing unknown.
"""

import asyncio
import errno
import os
import uuid
from pathlib import Path
from typing import Any

import msgspec

from pathctl import backings, config, controlclient, db, devices, errors, pki, planes, units
from pathctl.node import Node


class Create(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    size: int | None = None
    track_size: int | None = None
    backing: str | None = None
    dry_run: bool = False


class Name(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A volume to be deleted or accepted."""

    name: str
    dry_run: bool = False


class Attach(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    volume: str


# making and deleting


async def create(node: Node, body: Create) -> dict[str, Any]:
    config.check_name(body.name, "volume")
    track_size = config.check_track_size(config.DEFAULT_TRACK_SIZE if body.track_size is None else body.track_size)
    size = None if body.size is None else config.check_size(body.size)
    if _is_same(node, body, track_size):
        if body.dry_run:
            return _plan([f"nothing: volume {body.name} is there already"], [])
        return {"volume": await show_one(node, body.name)}
    if body.backing is not None:
        size = await asyncio.to_thread(backings.check, body.backing, size, node.cfg.folders)
    if size is None:
        raise errors.usage("a new volume needs a size; give --size, or --backing with an existing file or device")
    async with node.locks[body.name]:
        if body.dry_run:
            row = _new_row(node, body.name, config.check_size(size), track_size, body.backing, None)
            _check_new(node, row)
            return _plan(_steps_of_making(node, row), [])
        await make(node, body.name, config.check_size(size), track_size, backing=body.backing)
    return {"volume": await show_one(node, body.name)}


def _is_same(node: Node, body: Create, track_size: int) -> bool:
    """Whether it is there already, just as it is asked for."""
    row = node.db.volume(body.name)
    if row is None or row.state != "ready" or row.operation is not None or row.track_size != track_size:
        return False
    is_there = row.managed if body.backing is None else not row.managed and backings.real(body.backing) == row.backing
    return is_there and body.size in (row.size, None)


def _plan(steps: list[str], loses: list[str]) -> dict[str, Any]:
    return {"plan": {"steps": steps, "loses": loses}}


def _steps_of_making(node: Node, row: db.Volume) -> list[str]:
    taken = f"take {row.backing} as it is, with its content, for the first {both(row.size)}"
    made = f"make the file {row.backing} of {both(row.size)}, all zeroes, which takes room only where it is written"
    table = f"make its track table {node.cfg.meta(row.name)}"
    return [made if row.managed else taken, table, f"record volume {row.name}"]


def both(size: int) -> str:
    """`1G (1073741824 bytes)`."""
    return f"{units.format_size(size)} ({size} bytes)"


def sizes(size: int, track_size: int) -> str:
    """`1G (1073741824 bytes) in tracks of 64K`."""
    return f"{both(size)} in tracks of {units.format_size(track_size)}"


async def make(
    node: Node, name: str, size: int, track_size: int, *, backing: str | None = None, operation: str | None = None
) -> None:
    """Make the volume, or finish making it for the same operation.  The caller holds the volume's lock."""
    row = node.db.volume(name)
    if row is None or operation is None or row.operation != operation:
        row = _new_row(node, name, size, track_size, backing, operation)
        _check_new(node, row)
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


def _new_row(
    node: Node, name: str, size: int, track_size: int, backing: str | None, operation: str | None
) -> db.Volume:
    """The volume as it is going to be recorded; refused where the name is taken."""
    found = node.db.volume(name)
    if found is not None:
        raise errors.refused(
            f"there is a volume {name} already, of {both(found.size)}; nothing was changed: take another name, or "
            "delete it first"
        )
    claim = node.db.entry_of(name)
    if claim is not None and claim.operation != operation:
        raise errors.refused(f"the name {name} is taken by a {claim.verb} under way; take another name")
    return db.Volume(
        name=name,
        uuid=str(uuid.uuid4()),
        size=size,
        track_size=track_size,
        backing=backings.real(backing) if backing else str(node.cfg.image(name)),
        managed=backing is None,
        operation=operation,
    )


def check_make(node: Node, name: str, size: int, track_size: int) -> None:
    """All that a managed volume of this name and size would not be made for."""
    _check_new(node, _new_row(node, name, config.check_size(size), config.check_track_size(track_size), None, None))


def _check_new(node: Node, row: db.Volume) -> None:
    for path in [node.cfg.meta(row.name)] + ([Path(row.backing)] if row.managed else []):
        if path.exists():
            raise errors.refused(f"{path} exists but belongs to no volume; move it away, then try again")
    for other in node.db.volumes():
        if not row.managed and backings.overlap(row.backing, other.backing):
            raise errors.refused(f"{row.backing} already backs volume {other.name}; take another backing")
    if row.managed:
        _check_room(Path(row.backing), row.size)


def _check_room(path: Path, size: int) -> None:
    """Whether the file system has files of this size; tried on one without a name."""
    try:
        handle = os.open(path.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return  # it has no such files, or no room for one: making the real one will tell
    try:
        os.truncate(handle, size)
    except OSError as error:
        raise _no_image(path, size, error) from error
    finally:
        os.close(handle)


def _no_image(path: Path, size: int, error: OSError) -> errors.PathctlError:
    if error.errno in (errno.EFBIG, errno.EINVAL):
        return errors.refused(
            f"the file system of {path.parent} has no files of {both(size)}; the volume was not made: take a smaller "
            "size, or a block device with --backing"
        )
    return errors.not_written(path, error)


async def _make_files(node: Node, row: db.Volume) -> None:
    if row.managed:
        try:
            await asyncio.to_thread(_make_image, Path(row.backing), row.size)
        except OSError as error:
            raise _no_image(Path(row.backing), row.size, error) from error
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


async def delete(node: Node, body: Change) -> dict[str, Any]:
    async with node.locks[body.name]:
        _tell_deleted(node, body.name)
        row = node.volume(body.name)
        _refuse_in_use(node, row)
        if body.dry_run:
            return _plan(*await _what_goes(node, row))
        shown = await show_one(node, row.name)
        remove(node, row.name)
    return {"volume": shown}


def _tell_deleted(node: Node, name: str) -> None:
    """A command that is repeated: not found, but known."""
    event = None if node.db.volume(name) is not None else node.db.last_event("volume.deleted", name)
    if event is not None:
        at = units.format_time(event.at)
        raise errors.not_found(f"there is no volume {name} on this host any more: it has been deleted ({at})")


async def _what_goes(node: Node, row: db.Volume) -> tuple[list[str], list[str]]:
    table = f"delete the track table {node.cfg.meta(row.name)}"
    if not row.managed:
        steps = [f"leave {row.backing} as it is: it is not pathctl's", table, f"forget volume {row.name}"]
        return steps, await _what_is_forgotten(node, row)
    data = f"{row.backing} with all {both(row.size)} of volume {row.name} is deleted"
    return [f"delete the file {row.backing}", table, f"forget volume {row.name}"], [data]


async def _what_is_forgotten(node: Node, row: db.Volume) -> list[str]:
    """What only the metadata tells of a backing that stays: it is going to look like any good disk."""
    found = await planes.look(node, row.name)
    untold = "as a plain disk nothing tells that any more"
    if found.status is None:
        return [f"whether the data on {row.backing} is complete is not known ({found.failed}), and {untold}"]
    if found.status.incomplete or found.status.invalid:
        return [f"that {row.backing} is incomplete: {incompleteness(row, found.status)}, and {untold}"]
    if found.status.pair is not None:
        reason = unknown_pair(row.name, found.status)
        return [f"whether the data on {row.backing} is complete is not known, and {untold}: {reason}"]
    return []


async def accept(node: Node, body: Change) -> dict[str, Any]:
    """Declare what lies in an unpaired volume to be its data, whether it was complete or not."""
    async with node.locks[body.name]:
        row = node.volume(body.name)
        _refuse_in_use(node, row)
        if row.state != "ready" or node.supervisor.get(row.name) is not None:
            raise errors.refused(f"volume {row.name} is being made, deleted or served; wait until that is finished")
        found = await look_unpaired(node, row.name)
        if body.dry_run:
            return _plan(*_what_is_accepted(row, found))
        if found.incomplete:
            await planes.run_format("accept", "--meta", str(node.cfg.meta(row.name)))
            node.db.record(
                "volume.accepted",
                f"volume {row.name} is accepted as it is: {incompleteness(row, found)}",
                volume=row.name,
            )
    return {"volume": await show_one(node, row.name)}


def _what_is_accepted(row: db.Volume, found: controlclient.Status) -> tuple[list[str], list[str]]:
    if not found.incomplete:
        return [f"nothing: volume {row.name} is complete"], []
    steps = [f"take all that lies in {row.backing} for the data of volume {row.name}, as a new lineage"]
    which = "" if found.invalid else ", which of them only that host knows"
    given_up = (
        f"{incompleteness(row, found)}{which}, and are given up: what lies there from before counts as their data"
    )
    return steps, [f"{given_up}, a mixture of old and new: check it (a file system with fsck) before it is used"]


def incompleteness(row: db.Volume, found: controlclient.Status) -> str:
    """What a volume lacks, as the beginning of a sentence."""
    if found.invalid:
        size = min(found.invalid * row.track_size, row.size)
        total = -(-row.size // row.track_size)
        return f"{found.invalid} of {total} tracks, {both(size)}, of volume {row.name} were only on another host"
    return f"some tracks of volume {row.name} were only on another host"


async def is_served(node: Node, name: str) -> bool:
    """Whether the volume's process runs, or is only being started anew."""
    keeper = node.supervisor.get(name)
    if keeper is None:
        return False
    try:
        await keeper.running()
    except errors.PathctlError:
        return False
    return True


async def damage(node: Node, row: db.Volume) -> str | None:
    """What is lost of a volume whose process does not run, if anything: `its backing ...`, `its track table ...`."""
    found = await asyncio.to_thread(backings.fault, row.backing, row.size)
    if found is None and not await planes.is_readable(node, row.name):
        found = f"its track table {node.cfg.meta(row.name)} is missing or damaged"
    return found


async def look_unpaired(node: Node, name: str) -> controlclient.Status:
    """What the metadata of a volume without a connection says; refused where it is in a pair all the same."""
    found = await planes.look(node, name)
    if found.status is None:
        raise errors.internal(f"volume {name} cannot be looked at: {found.failed}")
    if found.status.pair is not None:
        raise errors.refused(unknown_pair(name, found.status))
    return found.status


def unknown_pair(name: str, found: controlclient.Status) -> str:
    return (
        f"the metadata of volume {name} says that it is the {found.side} of pair {found.pair} with host {found.peer}, "
        "of which this configuration knows nothing (was an older one restored?); free the volume with "
        f"`pathctl pair delete {name} --half`"
    )


def _refuse_in_use(node: Node, row: db.Volume) -> None:
    entry = node.db.entry_of(row.name)
    connection = node.db.connection_of(row.name)
    if row.attached:
        raise errors.refused(f"volume {row.name} is attached; run `pathctl detach {row.name}` first")
    if connection is not None:
        raise errors.refused(
            f"volume {row.name} is in pair {connection.pair}; end that first with `pathctl pair delete {row.name}`"
        )
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
    for path in (node.cfg.meta(name), node.cfg.meta(name).with_suffix(".meta.new")):  # new: its creation was cut off
        path.unlink(missing_ok=True)
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
        raise errors.refused(
            f"volume {name} is a destination: its peer writes to it, so it cannot be attached here; attach the source "
            "on that host, or delete the pair first"
        )
    if row.state != "ready" or row.operation is not None:
        raise errors.refused(f"volume {name} is still being made or deleted; wait until that is finished")
    if node.db.connection_of(name) is None and not row.attached:
        await refuse_incomplete(node, row)
    node.db.set_attached(name)
    try:
        await planes.settle(node, name)
        return await ensure_device(node, node.volume(name))
    except errors.PathctlError:
        if not row.attached:
            node.db.set_detached(name)
            await planes.settle(node, name)
        raise


async def refuse_incomplete(node: Node, row: db.Volume) -> None:
    """An unpaired volume that lacks data is not to be taken for a good one."""
    found = await look_unpaired(node, row.name)
    if found.incomplete:
        raise errors.refused(
            f"volume {row.name} is incomplete: {incompleteness(row, found)}; make it complete as the "
            f"side of a new pair that is marked invalid, or take it as it is with `pathctl volume accept {row.name}`"
        )


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
    except devices.InUse as error:
        raise errors.refused(f"volume {name} cannot be made a block device anew: {error}") from error
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
        await planes.can_run(node, row.name)  # a damaged one is detached too
    return {"volume": await show_one(node, body.volume)}


async def remove_device(node: Node, row: db.Volume) -> None:
    """Take the block device away, also one that a killed pathctld made and could not record.

    The row goes on saying whether one is wanted.
    """
    fault = None if await is_served(node, row.name) else await damage(node, row)
    try:
        fuse_file, link = node.cfg.fuse_file(row.name), node.cfg.device_link(row.name)
        await devices.detach(fuse_file, link, is_served=fault is None)
    except devices.DeviceError as error:
        hint = f"; what waits for it, because {fault}, fails after `kill {row.device_pid}`" if fault else ""
        raise errors.refused(f"volume {row.name} stays attached: {error}{hint}") from error
    node.db.set_device(row.name, None)


# showing


async def list_all(node: Node, body: msgspec.Struct) -> dict[str, Any]:
    return {"volumes": await show_all(node)}


async def show(node: Node, body: Name) -> dict[str, Any]:
    return {"volume": await show_one(node, body.name)}


async def show_all(node: Node, looks: planes.Looks | None = None) -> list[dict[str, Any]]:
    shared = looks or planes.Looks(node)
    return list(await asyncio.gather(*(_shown(node, row, shared) for row in node.db.volumes())))


async def show_one(node: Node, name: str) -> dict[str, Any]:
    return await _shown(node, node.volume(name), planes.Looks(node))


def _failure(found: planes.Look) -> str | None:
    if found.hung is None:
        return found.failed
    return f"{found.failed}; if it stays so: `kill -9 {found.hung}`, and pathctld starts it again at once"


def device_failure(row: db.Volume) -> str | None:
    known = device(row)
    if known is None or devices.is_alive(known):
        return None
    return f"the process behind {known.path} has ended: end the device's use, then `pathctl attach {row.name}` again"


def _strange_pair(node: Node, row: db.Volume, found: controlclient.Status | None) -> str | None:
    """A pair that only the metadata knows."""
    if found is None or found.pair is None or node.db.connection_of(row.name) or node.db.entry_of(row.name):
        return None
    return unknown_pair(row.name, found)


def _invalid(facts: controlclient.Status | None) -> int | None:
    """Tracks; an incomplete destination knows only that there are some: which, its source keeps."""
    return None if facts is None or (facts.incomplete and not facts.invalid) else facts.invalid


async def _shown(node: Node, row: db.Volume, looks: planes.Looks) -> dict[str, Any]:
    """V of the API: the row, and what its data plane says."""
    connection = node.db.connection_of(row.name)
    keeper = node.supervisor.get(row.name)
    found = await looks.at(row.name)
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
        "clients": facts.clients if facts else None,
        "invalid": _invalid(facts),
        "incomplete": facts.incomplete if facts else None,
        "failed": _failure(found) or device_failure(row) or _strange_pair(node, row, facts),
        "counters": facts.counters if facts else {},
    }
