"""pairdelete - the sequence that ends a pair, and the half of it for when the other host is gone.

Runs at the source's host; only ever forward.  The source stops durably, the destination records the pair as ended and
refuses its greetings for ever, the source drops its row.  While the destination does not answer, the entry stays in
the journal and `pairrecover` goes on with it.
"""

import contextlib
import uuid
from typing import Any

import msgspec

from pathctl import controlclient, db, devices, errors, faults, pairsteps, pairview, peers, pki, planes, volumes
from pathctl.errors import NoAnswer, PathctlError
from pathctl.node import Node


class Delete(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Defaults are left out when it is forwarded: a host of an older version knows fewer fields."""

    pair: str
    half: bool = False
    force: bool = False
    dry_run: bool = False


async def delete(node: Node, row: db.Connection, *, force: bool) -> None:
    """End the pair at both hosts; `row` is the source's."""
    entry = node.db.entry_of(row.volume)
    _refuse_creating(entry, row)
    await _refuse_damaged(node, row)
    if entry is None:
        _refuse_losing_data(row, await planes.status(node, row.volume), force)
        entry = db.Entry(
            operation=str(uuid.uuid4()),
            verb="pair.delete",
            role="coordinator",
            pair=row.pair,
            volume=row.volume,
            peer=row.peer,
            peer_volume=row.peer_volume,
            spec="{}",
        )
    with node.working_on(entry.operation):
        node.db.open_deleting(entry)
        await run(node, entry)


def _refuse_creating(entry: db.Entry | None, row: db.Connection) -> None:
    if entry is not None and entry.verb == "pair.resolve":
        raise errors.refused(
            f"pair {row.pair} is being resolved ({entry.note or entry.state}); wait until that has ended, or free this "
            f"host's half with `pathctl pair delete {row.volume} --half`"
        )
    if entry is not None and entry.verb == "pair.create":
        raise errors.refused(
            f"pair {row.pair} is still being created ({entry.note or entry.state}); wait until that has ended, or free "
            f"this host's half with `pathctl pair delete {row.volume} --half`"
        )


async def _damage(node: Node, volume: str, *, force: bool = False) -> str | None:
    """What is lost of the volume, if its process does not run for that; refused where it hangs, unless forced."""
    if await volumes.is_served(node, volume):
        await _refuse_hanging(node, volume, force)
        return None
    return await volumes.damage(node, node.volume(volume))


async def _refuse_hanging(node: Node, volume: str, force: bool) -> None:
    if force:
        return
    try:
        await planes.status(node, volume)
    except NoAnswer as error:
        raise PathctlError(
            error.code,
            f"{error.message}; nothing was changed: repeat the command when it answers, or end its process and free "
            f"this half with `pathctl pair delete {volume} --half --force --yes`",
        ) from error


async def _refuse_damaged(node: Node, row: db.Connection) -> None:
    """The source has to be asked to end a pair at both hosts."""
    fault = await _damage(node, row.volume)
    if fault is None:
        return
    here, there = _names(node, row)
    own, _, _ = here.partition(":")
    found = await _look(node, row.volume)
    raise errors.refused(
        f"{here} cannot be used, because {fault}, so the pair cannot be ended at both hosts at once; nothing was "
        f"changed: put that back, or type `pathctl pair delete {row.volume} --half --yes` at {own}, then `pathctl pair "
        f"delete {row.peer_volume} --half --yes` at {row.peer}; {_what_there_is(row, there, found)}"
    )


def _what_there_is(row: db.Connection, there: str, found: controlclient.Status | None) -> str:
    """How good the other copy is, as far as a volume tells that has lost its own."""
    look = f"see `pathctl pair show {row.peer_volume}` there"
    if row.side == "destination":
        return f"the copy to go on with is {there}; what of it was only here is not known on this host: {look}"
    if found is None or found.pair != row.pair:
        return f"how much of it {there} has is not known on this host: {look}"
    if found.owed:
        return f"the copy to go on with is {there}, of which {found.owed} of {found.tracks} tracks are out of date"
    return f"the copy to go on with is {there}, which has all but what may have been written in the last moment"


def _refuse_losing_data(row: db.Connection, found: controlclient.Status, force: bool) -> None:
    """Without its pair, a source with invalid tracks has holes, and a destination that is owed some is out of date."""
    if force:
        return
    if found.invalid:
        raise errors.refused(
            f"{found.invalid} of {found.tracks} tracks of volume {row.volume} are still only at "
            f"{row.peer}:{row.peer_volume} and could not be read any more; wait for Synchronized, or give --force"
        )
    if found.owed:
        raise errors.refused(
            f"{found.owed} of {found.tracks} tracks of {row.peer}:{row.peer_volume} are out of date, and the volume "
            "would be left incomplete; wait for Synchronized, or give --force"
        )


async def plan(node: Node, row: db.Connection, *, force: bool) -> dict[str, Any]:
    """What `delete` would do and lose, after all checks; changes nothing."""
    _refuse_creating(node.db.entry_of(row.volume), row)
    await _refuse_damaged(node, row)
    found = await planes.status(node, row.volume)
    if node.db.entry_of(row.volume) is None:
        _refuse_losing_data(row, found, force)
    try:
        await peers.call(node, row.peer, "ping", peers.Nothing(), node.cfg.timeouts.peer_look_s)
    except NoAnswer as error:
        raise PathctlError(
            error.code,
            f"{error.message}; nothing was changed: see that pathctld runs there, then repeat the command, or free "
            f"this host's half with `pathctl pair delete {row.volume} --half`",
        ) from error
    here, there = _names(node, row)
    steps = [
        f"stop the path at the source, {here}: nothing is copied or mirrored any more",
        f"free {there} from the pair",
        f"free {here} from the pair",
    ]
    return {"plan": {"steps": [*steps, _what_is_left(node, row, found)], "loses": _what_is_lost(node, row, found)}}


def _names(node: Node, row: db.Connection) -> tuple[str, str]:
    return f"{node.host().name}:{row.volume}", f"{row.peer}:{row.peer_volume}"


def _what_is_lost(node: Node, row: db.Connection, found: controlclient.Status | None) -> list[str]:
    """Data of our volume that only the other side has."""
    here, there = _names(node, row)
    if found is None:
        return [f"what of {here} exists only at {there} is not known and could not be read any more"]
    if not found.incomplete:
        return []
    if not found.invalid:
        return [f"some tracks of {here} exist only at {there} and could not be brought over any more"]
    size = volumes.both(min(found.invalid * found.track_size, found.size))
    tracks = f"{found.invalid} of {found.tracks} tracks, {size}, of {here}"
    used = _use(node, row)
    return [f"{tracks} exist only at {there} and could not be read any more{f'; {used}' if used else ''}"]


def _use(node: Node, row: db.Connection) -> str | None:
    """What becomes of a block device whose volume is left with holes."""
    device = node.volume(row.volume).device_path
    if device is None:
        return None
    used = devices.use(device)
    return f"{device} is attached{f' and {used}' if used else ''}, and reading them from it will be an I/O error"


def _what_is_left(node: Node, row: db.Connection, found: controlclient.Status | None, fault: str | None = None) -> str:
    """One sentence: whether the data of the volume that is left here is complete."""
    here, there = _names(node, row)
    if fault is not None:
        forget = f"`pathctl volume delete {row.volume} --yes`"
        if node.volume(row.volume).attached:
            forget = f"`pathctl detach {row.volume}`, then {forget}"
        return (
            f"{here} cannot be used, because {fault}: put that back, or forget the volume with {forget}; "
            + _what_there_is(row, there, found)
        )
    if found is None or found.pair not in (None, row.pair):
        return f"whether the data of {here} is complete is not known: see `pathctl volume show {row.volume}`"
    if found.incomplete:
        lacking = f"{found.invalid} of {found.tracks} tracks" if found.invalid else "some tracks"
        return (
            f"{here} is left incomplete, {lacking} of it exist only at {there}: it cannot be attached until a new pair "
            f"has made it complete or `pathctl volume accept {row.volume}` takes it as it is"
        )
    if row.side == "destination":
        return f"the data of {here} is complete, as of the last moment at which {there} was connected with it"
    if found.owed:
        return f"the data of {here} is complete; {found.owed} of {found.tracks} tracks of {there} are out of date"
    return f"the data of {here} is complete"


async def run(node: Node, entry: db.Entry) -> None:
    """Carry the entry out, or on from wherever it was left: every step may be repeated."""
    done: list[str] = []
    here, there = f"{node.host().name}:{entry.volume}", f"{entry.peer}:{entry.peer_volume}"
    failed = f"stop of the source ({here})"
    try:
        await faults.point("delete.journal")
        await _stop(node, entry)
        done.append(failed)
        failed = f"end of the destination connection ({there})"
        await faults.point("delete.stop")
        body = pairsteps.Which(entry.operation, entry.pair, entry.peer_volume, entry.volume)
        await pairsteps.ask(node, entry.operation, entry.peer, "pair.end", body, node.cfg.timeouts.control_s)
        done.append(failed)
        failed = f"end of the source connection ({here})"
        await faults.point("delete.destination")
        await pairsteps.end_here(node, entry.pair, entry.volume, entry.operation)
        await faults.point("delete.source")
    except PathctlError as error:
        raise PathctlError(
            error.code,
            f"pair {entry.pair} is not deleted yet, because the {failed} failed: {error.message}; pathctld goes on "
            f"by itself, and `pathctl pair delete {entry.volume} --half` frees this host's half without the other",
            done=done,
            failed=failed,
            pending=[failed],
        ) from error
    await faults.point("delete.done")


async def _stop(node: Node, entry: db.Entry) -> None:
    async with node.locks[entry.volume]:
        if node.db.connection(entry.pair) is None:
            return
        await planes.settle(node, entry.volume)
        await planes.command(node, entry.volume, "stop", operation=entry.operation, pair=entry.pair)


async def plan_half(node: Node, pair: str, volume: str, *, force: bool) -> dict[str, Any]:
    """What `delete_half` would do and lose; changes nothing and asks nobody else."""
    row = node.db.connection(pair)
    freed = f"free {node.host().name}:{volume} from pair {pair} without asking the other host"
    steps = [f"{freed}: nothing is copied any more, unless `pathctl pair resolve` says whose data is kept"]
    if row is None:
        return {"plan": {"steps": steps, "loses": []}}
    fault = await _damage(node, volume, force=force)
    found = await _look(node, volume)
    steps.append(_what_is_left(node, row, found, fault))
    return {"plan": {"steps": steps, "loses": _what_is_lost(node, row, found)}}


async def delete_half(node: Node, pair: str, volume: str, *, force: bool) -> str:
    """Free this host's half without asking the other; the pair can never become ready again.

    -> one sentence: whether the data of the volume that is left is complete.
    """
    entry = node.db.entry_of(volume)
    operation = entry.operation if entry is not None else str(uuid.uuid4())
    node.freeing.add(operation)
    try:
        if operation in node.asking:
            node.asking[operation].cancel()  # whoever works on it waits for a host that is gone
        await node.until_free(operation)
        with node.working_on(operation):
            return await _free(node, pair, volume, operation, force)
    finally:
        node.freeing.discard(operation)


async def _look(node: Node, volume: str) -> controlclient.Status | None:
    """What the volume says of itself: its process, or its metadata file where that does not answer."""
    found = (await planes.look(node, volume)).status
    if found is None:
        with contextlib.suppress(PathctlError):
            found = await planes.read_meta(node, volume)
    return found


async def find_unknown(node: Node, volume: str) -> pairview.Half | None:
    """The pair that a volume of ours is in by its metadata only."""
    if node.db.volume(volume) is None or node.db.connection_of(volume) is not None:
        return None
    found = await _look(node, volume)
    if found is None or found.pair is None:
        return None
    if node.volume(volume).attached:
        raise errors.refused(f"volume {volume} is attached; run `pathctl detach {volume}` first")
    side: db.Side = "destination" if found.side == "destination" else "source"
    return pairview.Half(found.pair, volume, side, found.peer or "", "", None, None)


async def _free(node: Node, pair: str, volume: str, operation: str, force: bool) -> str:
    row = node.db.connection(pair)
    fault = await _damage(node, volume, force=force) if row is not None else None
    if row is not None and row.side == "source" and not force:
        await _stop_half(node, row, operation)
    found = await _look(node, volume)
    if row is not None and found is not None and found.pair != row.pair:
        force = True  # its data plane knows another pair, or none: there is nothing to be told to it
    await pairsteps.end_here(node, pair, volume, operation, force=force)
    pki.remove_psk(node.cfg, pair)
    await release_unknown(node, volume)
    return _what_is_left(node, row, found, fault) if row is not None else f"nothing of pair {pair} is left on this host"


async def release_unknown(node: Node, volume: str) -> str | None:
    """Free a volume that is in no pair here, but in one by its metadata; -> that pair.

    So it is after an older configuration was restored, and where the data plane could not be told of the end.
    """
    async with node.locks[volume]:
        row = node.db.volume(volume)
        if row is None or row.attached or node.db.connection_of(volume) or node.supervisor.get(volume) is not None:
            return None
        found = await _look(node, volume)
        if found is None or found.pair is None:
            return None
        await planes.run_format("release", "--meta", str(node.cfg.meta(volume)), "--pair", found.pair)
        node.db.end_pair(found.pair)
        pki.remove_psk(node.cfg, found.pair)
        return found.pair


async def _stop_half(node: Node, row: db.Connection, operation: str) -> None:
    """Stop durably, if the pair ever came so far as to be recorded in the volume."""
    async with node.locks[row.volume]:
        if not await planes.can_run(node, row.volume):
            return  # nothing is served, and what may start it is dropped next
        if (await planes.status(node, row.volume)).pair == row.pair:
            await planes.command(node, row.volume, "stop", operation=operation, pair=row.pair)
