"""pairrecover - goes on with what was left unfinished: by a crash, or because the other host did not answer.

At a coordinator: what the journal holds is undone, finished or deleted to its end.  At a destination: it asks the
source's host what has become of the operation, and until that has answered it does nothing on its own.
"""

import asyncio
import logging

from pathctl import db, errors, logs, paircreate, pairdelete, pairresolve, pairsteps, volumes
from pathctl.node import Node

log = logging.getLogger(__name__)


async def run(node: Node) -> None:
    """Until cancelled: look at all open entries, again after a while or when woken."""
    await _clean_volumes(node)
    while True:
        node.wake.clear()
        for entry in node.db.journal():
            await _go_on(node, entry)
        await _end_deleting(node)
        try:
            await asyncio.wait_for(node.wake.wait(), node.cfg.timeouts.retry_s)
            await asyncio.sleep(0.1)  # let the one who woke us end what it is doing
        except TimeoutError:
            pass


async def _clean_volumes(node: Node) -> None:
    """Volumes whose making or deleting was cut off by a crash: nobody was told that they exist."""
    for row in node.db.volumes():
        if row.state == "deleting" or (row.state == "creating" and row.operation is None):
            async with node.locks[row.name]:
                volumes.remove(node, row.name)


async def _go_on(node: Node, entry: db.Entry) -> None:
    if entry.operation in node.in_hand or node.db.entry(entry.operation) is None:
        return
    try:
        with node.holding(entry.operation):
            if entry.role == "participant":
                await _ask_coordinator(node, entry)
            elif entry.verb == "pair.delete":
                await pairdelete.run(node, entry)
                _record(node, entry, "recovery.finished")
            elif entry.verb == "pair.resolve":
                _record(node, entry, await pairresolve.go_on(node, entry))
            else:
                _record(node, entry, await paircreate.go_on(node, entry))
    except errors.PathctlError as error:
        if error.message != entry.note:
            about = logs.of(volume=entry.volume, pair=entry.pair)
            log.warning("%s of pair %s stays open: %s", entry.verb, entry.pair, error.message, extra=about)
        if node.db.entry(entry.operation) is not None:
            node.db.set_note(entry.operation, error.message)


_WHAT = {"pair.create": "the creation", "pair.delete": "the deletion", "pair.resolve": "the resolving"}


def _record(node: Node, entry: db.Entry, kind: str | None) -> None:
    """The operation has come to its end, if it has."""
    if kind is not None and node.db.entry(entry.operation) is None:
        what = _WHAT[entry.verb]
        end = "is undone" if kind == "recovery.undone" else "is finished"
        message = (
            f"{what} of the pair of {entry.volume} with {entry.peer}:{entry.peer_volume}, which was cut off, {end} here"
        )
        node.db.record(kind, message, volume=entry.volume, pair=entry.pair, peer=entry.peer)


async def _ask_coordinator(node: Node, entry: db.Entry) -> None:
    which = pairsteps.Which(entry.operation, entry.pair, entry.peer_volume, entry.volume)
    answer = await pairsteps.ask(
        node, entry.operation, entry.peer, "pair.outcome", which, node.cfg.timeouts.peer_look_s
    )
    mine = pairsteps.Which(entry.operation, entry.pair, entry.volume, entry.peer_volume)
    match answer.get("outcome"):
        case "open":
            return
        case "done":
            await pairsteps.finish(node, entry.peer, mine)
            _record(node, entry, "recovery.finished")
        case "undone" | "deleted":
            await pairsteps.undo(node, entry.peer, mine)
            _record(node, entry, "recovery.undone")
        case _:
            raise errors.refused(
                f"host {entry.peer} knows nothing of the operation on pair {entry.pair}; if it was set up anew, free "
                "this half with `pathctl pair delete --half`"
            )


async def _end_deleting(node: Node) -> None:
    """A destination that was told to end a pair, and crashed over it."""
    for row in node.db.connections():
        if row.side == "destination" and row.state == "deleting":
            try:
                await pairsteps.end_here(node, row.pair, row.volume, row.operation)
            except errors.PathctlError as error:
                about = logs.of(volume=row.volume, pair=row.pair)
                log.warning("pair %s cannot be ended yet: %s", row.pair, error.message, extra=about)
