"""pairdelete - the sequence that ends a pair, and the half of it for when the other host is gone.

Runs at the source's host; only ever forward.  The source stops durably, the destination records the pair as ended and
refuses its greetings for ever, the source drops its row.  While the destination does not answer, the entry stays in
the journal and `pairrecover` goes on with it.
"""

import uuid

import msgspec

from pathctl import db, errors, faults, pairsteps, peers, pki, planes
from pathctl.errors import PathctlError
from pathctl.node import Node


class Delete(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pair: str
    half: bool = False
    force: bool = False


async def delete(node: Node, row: db.Connection, *, force: bool) -> None:
    """End the pair at both hosts; `row` is the source's."""
    entry = node.db.entry_of(row.volume)
    if entry is not None and entry.verb == "pair.create":
        raise errors.refused(
            f"pair {row.pair} is still being created ({entry.note or entry.state}); wait until that has ended, or free "
            "this host's half with `pathctl pair delete --half`"
        )
    if entry is None:
        await _refuse_losing_data(node, row, force)
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
        node.db.open_entry(entry)
        await run(node, entry)


async def _refuse_losing_data(node: Node, row: db.Connection, force: bool) -> None:
    """Without its pair, a source with invalid tracks has holes, and a destination that is owed some is out of date."""
    if force:
        return
    found = await planes.status(node, row.volume)
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
        await peers.call(node, entry.peer, "pair.end", body, node.cfg.timeouts.control_s)
        done.append(failed)
        failed = f"end of the source connection ({here})"
        await faults.point("delete.destination")
        await pairsteps.end_here(node, entry.pair, entry.volume, entry.operation)
        await faults.point("delete.source")
    except PathctlError as error:
        raise PathctlError(
            error.code,
            f"pair {entry.pair} is not deleted yet, because the {failed} failed: {error.message}; pathctld goes on "
            "by itself, and `pathctl pair delete --half` frees this host's half without the other",
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


async def delete_half(node: Node, pair: str, volume: str, *, force: bool) -> None:
    """Free this host's half without asking the other; the pair can never become ready again."""
    entry = node.db.entry_of(volume)
    operation = entry.operation if entry is not None else str(uuid.uuid4())
    await node.until_free(operation)  # the background task is at it for seconds at a time while the peer is cut off
    with node.working_on(operation):
        row = node.db.connection(pair)
        if row is not None and row.side == "source" and not force:
            await _stop_half(node, row, operation)
        await pairsteps.end_here(node, pair, volume, operation, force=force)
        pki.remove_psk(node.cfg, pair)


async def _stop_half(node: Node, row: db.Connection, operation: str) -> None:
    """Stop durably, if the pair ever came so far as to be recorded in the volume."""
    async with node.locks[row.volume]:
        await planes.settle(node, row.volume)
        if (await planes.status(node, row.volume)).pair == row.pair:
            await planes.command(node, row.volume, "stop", operation=operation, pair=row.pair)
