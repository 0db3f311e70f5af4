"""pairsteps - what one host does for a pair: its half of each step, and of undoing it.

Used by the coordinator for its own side, and served to the peer's coordinator (daemon to daemon, `peer` is the caller).
Every step carries its operation's UUID, may be repeated, is durable when answered, and is refused once the operation
has ended here.  Each takes its volume's lock, so that a late step and its undo never run at once.
"""

import asyncio
import contextlib
from typing import Annotated, Any

import msgspec

from pathctl import backings, config, copyrate, db, errors, faults, peers, pki, planes, supervise, volumes
from pathctl.errors import ErrorCode
from pathctl.node import Node

Uuid = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
Name = Annotated[str, msgspec.Meta(pattern=rf"\A{config.NAME.pattern}\Z")]


class LookVolume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    volume: Name


class Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A dry run: could this volume be the destination of such a pair?  `create`: make it if it is not there."""

    volume: Name
    peer_volume: Name
    invalidate: db.Side
    size: int
    track_size: int
    create: bool


class Look(msgspec.Struct, frozen=True):
    """What is answered to it; null where there is no such volume."""

    size: int | None
    track_size: int | None
    use: str | None = None  # why it is not to be deleted for another; a host of an older release does not say


class CreateVolume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    operation: Uuid
    pair: Uuid
    volume: Name
    peer_volume: Name
    size: int
    track_size: int


class Connect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    operation: Uuid
    pair: Uuid
    volume: Name
    peer_volume: Name
    invalidate: db.Side
    psk: str
    size: int
    track_size: int


class Rejoin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As Connect, for a pair that may have ended here and is going to be resolved."""

    operation: Uuid
    pair: Uuid
    volume: Name
    peer_volume: Name
    discard: db.Side
    psk: str
    size: int
    track_size: int

    @property
    def connect(self) -> Connect:
        return Connect(
            self.operation,
            self.pair,
            self.volume,
            self.peer_volume,
            self.discard,
            self.psk,
            self.size,
            self.track_size,
        )


class Resolved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    operation: Uuid
    pair: Uuid
    volume: Name
    peer_volume: Name
    discarded: db.Side


class Rejoined(msgspec.Struct, frozen=True):
    """What a participant's journal keeps of a Rejoin."""

    discard: db.Side
    had_ended: bool


class Which(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One operation on one pair, and our volume in it."""

    operation: Uuid
    pair: Uuid
    volume: Name
    peer_volume: Name


# served to the source's daemon


async def look_volume(node: Node, peer: str, body: LookVolume) -> dict[str, Any]:
    found = look_own_volume(node, body.volume)
    return {"size": None, "track_size": None} if found is None else msgspec.structs.asdict(found)


def look_own_volume(node: Node, name: str) -> Look | None:
    row = node.db.volume(name)
    return None if row is None else Look(row.size, row.track_size, _use(node, row))


def _use(node: Node, row: db.Volume) -> str | None:
    connection = node.db.connection_of(row.name)
    if connection is not None:
        return f"the {connection.side} of a pair with {connection.peer}:{connection.peer_volume}"
    return "attached as a block device" if row.attached else None


async def check(node: Node, peer: str, body: Check) -> dict[str, Any]:
    """All that a real create would be refused for on this host; changes nothing."""
    async with node.locks[body.volume]:
        if node.db.volume(body.volume) is None and body.create:
            volumes.check_make(node, body.volume, body.size, body.track_size)
            return {}
        row = _check_destination(node, body)
        await check_free(node, row)
        if body.invalidate == "source":
            await volumes.refuse_incomplete(node, row)
        _free_port(node)
    return {}


async def check_free(node: Node, row: db.Volume) -> None:
    """Refuse a volume that is in a pair, claimed by an operation, or whose backing somebody else uses."""
    node.db.refuse_taken(row.name)
    if node.supervisor.get(row.name) is None:
        await asyncio.to_thread(backings.refuse_in_use, row.backing, managed=row.managed)


async def create_volume(node: Node, peer: str, body: CreateVolume) -> dict[str, Any]:
    config.check_name(body.volume, "volume")
    config.check_size(body.size)
    config.check_track_size(body.track_size)
    async with node.locks[body.volume]:
        row = node.db.volume(body.volume)
        if row is not None and row.operation != body.operation:
            raise errors.refused(f"there is a volume {body.volume} already; leave --create away, or take another name")
        node.db.open_entry(_participant(peer, body))
        await volumes.make(node, body.volume, body.size, body.track_size, operation=body.operation)
        await faults.point("peer.create_volume")
    return {}


async def connect_destination(node: Node, peer: str, body: Connect) -> dict[str, Any]:
    """Reserve the volume, start its process and record the pair in it; -> the data port."""
    async with node.locks[body.volume]:
        _check_destination(node, body)
        node.db.open_entry(_participant(peer, body))
        row = node.db.connection(body.pair)
        is_new = row is None
        if row is None:
            row = _new_row(body, peer, "destination", port=_free_port(node))
            pki.write_psk(node.cfg, body.pair, body.psk)
            node.db.insert_connection(row)
        try:
            row = await _listen(node, row)
        except errors.PathctlError:
            if is_new:
                await _forget(node, row)
            raise
        if is_new and body.invalidate == "source":
            await volumes.refuse_incomplete(node, node.volume(body.volume))
        await _record(node, row)
        await faults.point("connect.destination")
    return {"port": row.port}


async def _listen(node: Node, row: db.Connection) -> db.Connection:
    """Start the destination's process; on another port where somebody took ours after the look at it."""
    try:
        await planes.settle(node, row.volume)
    except errors.PathctlError:
        assert row.port is not None
        if supervise.is_free(node.host().address, row.port):
            raise
        await node.supervisor.stop(row.volume, drain=False)
        row = msgspec.structs.replace(row, port=_free_port(node))
        assert row.port is not None
        node.db.set_port(row.pair, row.port)
        await planes.settle(node, row.volume)
    return row


async def _forget(node: Node, row: db.Connection) -> None:
    """Drop a new row whose process does not run: it was never told of the pair, and undo could not ask it either."""
    node.db.delete_connection(row.pair)
    with contextlib.suppress(errors.PathctlError):  # that of an attached volume goes on being tried
        await planes.settle(node, row.volume)


async def rejoin(node: Node, peer: str, body: Rejoin) -> dict[str, Any]:
    """Make this half of a pair again if it is no more, although it has ended here; -> the data port."""
    async with node.locks[body.volume]:
        _refuse_over(node, body)
        _check_peer(node, peer, body.pair)
        row = node.db.connection(body.pair)
        if row is None:
            row = await _make_again(node, peer, body)
        elif row.volume != body.volume or row.state == "deleting":
            raise errors.refused(
                f"pair {body.pair} is being deleted here, or has another volume; see `pathctl pair list`"
            )
        if row.operation == body.operation:
            pki.write_psk(node.cfg, body.pair, body.psk)
        row = await _listen(node, row)
        await _record(node, row)
        await faults.point("rejoin.destination")
    return {"port": row.port}


def _refuse_over(node: Node, body: Rejoin) -> None:
    if node.db.outcome(body.operation) is not None:
        raise errors.refused(f"the resolving of pair {body.pair} has ended here; nothing was changed, repeat it")


async def _make_again(node: Node, peer: str, body: Rejoin) -> db.Connection:
    wanted = body.connect
    volume = _check_destination(node, wanted)
    await check_free(node, volume)
    if body.discard == "source":
        await volumes.refuse_incomplete(node, volume)
    row = _new_row(wanted, peer, "destination", port=_free_port(node))
    spec = Rejoined(body.discard, had_ended=node.db.outcome(body.pair) is not None)
    entry = _participant(peer, wanted, verb="pair.resolve", spec=msgspec.json.encode(spec).decode())
    node.db.open_rejoining(entry, row)
    node.left.pop(body.pair, None)
    return row


async def resolved(node: Node, peer: str, body: Resolved) -> dict[str, Any]:
    """The pair goes on with the other side's data: record it."""
    _check_peer(node, peer, body.pair)
    async with node.locks[body.volume]:
        if node.db.outcome(body.operation) not in (None, "done"):
            raise errors.refused(f"pair {body.pair} has ended here; delete it at the source too")
        end_resolving(node, body, peer)
        await faults.point("peer.resolved")
    return {}


def end_resolving(node: Node, body: Resolved, peer: str) -> None:
    """At either host, once; by whom is the task's actor."""
    if node.db.outcome(body.operation) is not None:
        return
    node.db.commit_resolved(body.operation, body.pair, body.discarded)
    row = node.db.connection(body.pair)
    if row is not None:
        ours, theirs = f"{node.host().name}:{row.volume}", f"{peer}:{row.peer_volume}"
        lost, kept = (ours, theirs) if row.side == body.discarded else (theirs, ours)
        message = f"the pair of {ours} with {theirs} was resolved: all data of {lost} is replaced by that of {kept}"
        node.db.record(
            "pair.resolved", message, volume=row.volume, pair=row.pair, peer=peer, after=f"{body.discarded} discarded"
        )
    node.db.close_entry(body.operation, "done")


def _check_destination(node: Node, body: Connect | Check) -> db.Volume:
    row = node.volume(body.volume)
    if (row.size, row.track_size) != (body.size, body.track_size):
        raise errors.refused(
            f"volume {row.name} has {volumes.sizes(row.size, row.track_size)}, the source has "
            f"{volumes.sizes(body.size, body.track_size)}; both must be equal"
        )
    if row.attached:
        raise errors.refused(f"volume {row.name} is in use: it is attached; detach it, or take another volume")
    if row.state != "ready":
        raise errors.refused(f"volume {row.name} is being made or deleted; wait until that is finished")
    return row


def _participant(
    peer: str, body: CreateVolume | Connect, *, verb: db.Verb = "pair.create", spec: str = "{}"
) -> db.Entry:
    return db.Entry(
        operation=body.operation,
        verb=verb,
        role="participant",
        pair=body.pair,
        volume=body.volume,
        peer=peer,
        peer_volume=body.peer_volume,
        spec=spec,
    )


def _free_port(node: Node) -> int:
    taken = {row.port for row in node.db.connections() if row.side == "destination"}
    address = node.host().address
    ports = node.cfg.settings.data.ports
    for port in ports:
        if port not in taken and supervise.is_free(address, port):
            return port
    raise errors.refused(
        f"no data port from {ports.start} to {ports.stop - 1} is free on host {node.host().name}; delete a pair "
        "there, or allow more with data.port_first and data.port_last in its pathctl.toml"
    )


async def finish(node: Node, peer: str, body: Which) -> dict[str, Any]:
    """The source was made ready: the pair is the user's now."""
    _check_peer(node, peer, body.pair)
    async with node.locks[body.volume]:
        outcome = node.db.outcome(body.operation)
        if outcome not in (None, "done"):
            raise errors.refused(f"pair {body.pair} has ended here ({outcome}); delete it at the source too")
        entry = node.db.entry(body.operation)
        if entry is not None and entry.verb == "pair.resolve":
            discard = msgspec.json.decode(entry.spec, type=Rejoined).discard
            end_resolving(node, Resolved(**msgspec.structs.asdict(body), discarded=discard), peer)
        else:
            node.db.commit_pair(body.operation, body.pair)
            node.db.close_entry(body.operation, "done")
        await faults.point("peer.finish")
    return {}


async def undo(node: Node, peer: str, body: Which) -> dict[str, Any]:
    """End the operation: whatever it did here is undone, and what arrives late of it is refused."""
    _check_peer(node, peer, body.pair)
    entry = node.db.entry(body.operation)
    if node.db.outcome(body.operation) == "done":
        raise errors.refused(f"pair {body.pair} was finished here; delete it instead")
    # The volume as we recorded it, if we did: the caller's word alone touches nothing.
    volume = entry.volume if entry is not None else body.volume
    undone = await drop(node, body.operation, body.pair, volume, cut=True)
    if entry is not None and entry.verb == "pair.resolve":
        had_ended = msgspec.json.decode(entry.spec, type=Rejoined).had_ended
        node.db.undo_rejoining(entry, had_ended=had_ended)
    else:
        node.db.close_entry(body.operation, "undone")
    await faults.point("peer.undo")
    return {"undone": undone}


async def end(node: Node, peer: str, body: Which) -> dict[str, Any]:
    """The destination's part of deleting a pair: it is recorded as ended, for ever."""
    _check_peer(node, peer, body.pair)
    await end_here(node, body.pair, body.volume, body.operation)
    await faults.point("peer.end")
    return {}


async def outcome(node: Node, peer: str, body: Which) -> dict[str, Any]:
    """Asked by a destination: what has become of the operation?"""
    entry = node.db.entry(body.operation)
    if node.db.outcome(body.pair) is not None:
        return {"outcome": "deleted"}
    if entry is None:
        return {"outcome": node.db.outcome(body.operation) or "unknown"}
    return {"outcome": {"forward": "open", "committed": "done", "undoing": "undone"}[entry.state]}


def _check_peer(node: Node, peer: str, pair: str) -> None:
    row = node.db.connection(pair)
    if row is not None and row.peer != peer:
        raise errors.refused(f"pair {pair} is not with host {peer}")


# at either side


def _new_row(body: Connect, peer: str, side: db.Side, port: int | None) -> db.Connection:
    return db.Connection(
        pair=body.pair,
        operation=body.operation,
        volume=body.volume,
        side=side,
        peer=peer,
        peer_volume=body.peer_volume,
        invalidated=body.invalidate,
        port=port,
    )


async def connect_source(
    node: Node, peer: str, body: Connect, rate_bytes_s: int | None, on_path_loss: db.OnPathLoss
) -> None:
    """The source connection: a row, the process, and the pair recorded in the volume, not ready."""
    async with node.locks[body.volume]:
        row = node.db.connection(body.pair)
        is_new = row is None
        if row is None:
            row = _new_row(body, peer, "source", None)
            row = msgspec.structs.replace(row, copy_rate_bytes_s=rate_bytes_s, on_path_loss=on_path_loss)
            node.db.insert_connection(row)
        try:
            await planes.settle(node, body.volume)
        except errors.PathctlError:
            if is_new:
                await _forget(node, row)
            raise
        if is_new and body.invalidate == "destination":
            await volumes.refuse_incomplete(node, node.volume(body.volume))
        await _record(node, row)
        await planes.command(node, body.volume, "set", copy_rate_bytes_s=copyrate.wanted(node, body.pair, rate_bytes_s))
        await faults.point("connect.source")


async def _record(node: Node, row: db.Connection) -> None:
    await planes.command(
        node,
        row.volume,
        "connect",
        operation=row.operation,
        pair=row.pair,
        side=row.side,
        invalid=row.invalidated,
        peer=row.peer,
        on_path_loss=row.on_path_loss,
    )


async def drop(node: Node, operation: str, pair: str, volume: str, *, cut: bool) -> list[str]:
    """Undo what the operation did here; -> what was undone, in words.

    `cut`: a command of it may still be under way inside nbdkit; start nbdkit anew first, so that none comes late.
    """
    undone: list[str] = []
    async with node.locks[volume]:
        volume_row, row = node.db.volume(volume), node.db.connection(pair)
        is_ours = volume_row is not None and volume_row.operation == operation
        if row is not None and row.operation == operation:
            if not is_ours:
                await disconnect(node, row, operation, cut=cut)
            node.db.delete_connection(pair)
            undone.append(label(node, row.side, "connection", volume))
        if row is None or row.operation == operation:
            pki.remove_psk(node.cfg, pair)
        if volume_row is not None and not is_ours:
            await planes.can_run(node, volume)
        if is_ours:
            await node.supervisor.stop(volume, drain=False)
            volumes.remove(node, volume)
            undone.append(label(node, row.side if row else None, "volume", volume))
    return undone


async def disconnect(node: Node, row: db.Connection, operation: str, *, cut: bool) -> None:
    """Drop the pair from the volume's metadata.  The caller holds the volume's lock.

    Where its process does not start, because its backing or its metadata is lost, it is not needed for that.
    """
    if not await planes.can_run(node, row.volume):
        await _release(node, row)
        return
    if cut:
        await node.supervisor.restart(row.volume)
    await planes.command(node, row.volume, "disconnect", operation=operation, pair=row.pair)


async def _release(node: Node, row: db.Connection) -> None:
    """Drop the pair from the volume's metadata, as far as there is any, after its process was killed."""
    await node.supervisor.stop(row.volume, drain=False)
    if await planes.is_readable(node, row.volume):
        await planes.run_format("release", "--meta", str(node.cfg.meta(row.volume)), "--pair", row.pair)


async def _answers(node: Node, volume: str) -> bool:
    try:
        await planes.status(node, volume)
    except errors.NoAnswer:
        return False
    return True


async def end_here(node: Node, pair: str, volume: str, operation: str, *, force: bool = False) -> None:
    """End the pair on this host.  `force`: also when the data plane cannot be told."""
    async with node.locks[volume]:
        row = node.db.connection(pair)
        if row is not None:
            node.db.set_connection_state(pair, "deleting")
            try:
                if force and not await _answers(node, volume):
                    await _release(node, row)
                else:
                    await disconnect(node, row, operation, cut=False)
            except errors.PathctlError:
                if not force:
                    raise
        node.db.end_pair(pair)
        pki.remove_psk(node.cfg, pair)
        if row is not None:
            await planes.can_run(node, row.volume)  # it was ended whether or not an attached volume's process runs


async def ask(node: Node, operation: str, peer: str, verb: str, body: msgspec.Struct, limit_s: float) -> dict[str, Any]:
    """One verb at a peer for an operation; given up when this host's half is freed meanwhile (`pair delete --half`)."""
    freed = f"host {peer} is not waited for any longer, because this half of the pair is being freed"
    if operation in node.freeing:
        raise errors.NoAnswer(ErrorCode.UNREACHABLE, freed, sent=False)
    task = asyncio.create_task(peers.call(node, peer, verb, body, limit_s))
    node.asking[operation] = task
    try:
        await asyncio.wait([task])
        if task.cancelled():
            raise errors.NoAnswer(ErrorCode.UNREACHABLE, freed, sent=True)
        return task.result()
    finally:
        task.cancel()
        node.asking.pop(operation, None)


def label(node: Node, side: db.Side | None, what: str, volume: str) -> str:
    """`source connection (alpha:v1)`."""
    return f"{side + ' ' if side else ''}{what} ({node.host().name}:{volume})"


async def look_peer_volume(node: Node, peer: str, volume: str) -> Look | None:
    """A volume at a peer; None when there is no such volume."""
    answer = await peers.call(node, peer, "volume.look", LookVolume(volume), node.cfg.timeouts.peer_look_s)
    found = peers.read(peer, "volume.look", answer, Look)
    if not found.size or not found.track_size:
        return None
    config.check_size(found.size)
    config.check_track_size(found.track_size)
    return found
