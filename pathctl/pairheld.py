"""pairheld - what either side of a pair holds while the two are apart, so that a person can decide between them.

The source's host asks the destination's, and says its own line of generations: the destination's volume was written
since the two were last equal if its generation is not of that line.  A destination that has ended its half, and was
written since, remembers who asks, to show the pair as Split here too.
"""

from typing import Annotated, Any

import msgspec

from pathctl import apart, controlclient, db, pairsteps, peers, planes, protocol, shapes
from pathctl.node import HeldThere, Left, Node

LINE_MOST = 64  # generations of one line, as another host says them
Generation = Annotated[str, msgspec.Meta(max_length=64)]


class Ask(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    operation: pairsteps.Uuid
    pair: pairsteps.Uuid
    volume: pairsteps.Name
    peer_volume: pairsteps.Name
    line: Annotated[list[Generation], msgspec.Meta(max_length=LINE_MOST)]  # the source's generation and its ancestors


class Told(msgspec.Struct, frozen=True):
    """What is answered to it.  `held` has the fields of shapes.Held, of any release."""

    is_there: bool  # the half of the pair
    held: dict[str, Any] | None
    is_newer: bool
    is_related: bool


# at the source's host


async def ask(node: Node, row: db.Connection, found: controlclient.Status) -> None:
    """Ask the other host what it has of a pair whose source is here; raises PathctlError."""
    limit_s = node.cfg.timeouts.peer_look_s
    if await peers.version(node, row.peer) < protocol.SINCE["pair.held"]:
        which = pairsteps.Which(row.operation, row.pair, row.peer_volume, row.volume)
        answer = await peers.call(node, row.peer, "pair.outcome", which, limit_s)
        # "unknown": it was set up anew, or put back to what it was before the pair.
        _note(node, row.pair, None, is_there=answer.get("outcome") in ("open", "done"))
        return
    wanted = Ask(row.operation, row.pair, row.peer_volume, row.volume, [found.generation, *found.ancestors])
    told = peers.read(row.peer, "pair.held", await peers.call(node, row.peer, "pair.held", wanted, limit_s), Told)
    held = None if told.held is None else _held(row.peer, told.held)
    _note(node, row.pair, HeldThere(held, told.is_newer, told.is_related), is_there=told.is_there)


def _note(node: Node, pair: str, held: HeldThere | None, *, is_there: bool) -> None:
    before = (pair in node.ended_there, node.held_there.get(pair))
    (node.ended_there.discard if is_there else node.ended_there.add)(pair)
    if held is None:
        node.held_there.pop(pair, None)
    else:
        node.held_there[pair] = held
    if (pair in node.ended_there, held) != before:
        node.look_soon(pair)


def forget(node: Node, pair: str) -> None:
    """The two agree again."""
    node.ended_there.discard(pair)
    node.held_there.pop(pair, None)


def _held(peer: str, fields: dict[str, Any]) -> shapes.Held:
    known = {name: value for name, value in fields.items() if name in shapes.Held.__struct_fields__}
    return peers.read(peer, "pair.held", known, shapes.Held)


def is_resolvable(node: Node, pair: str, found: controlclient.Status) -> bool:
    """Whether it is only about whose data is the good one."""
    return pair in node.ended_there or (found.link == "refused" and found.verdict in apart.RESOLVABLE)


def is_parted(node: Node, pair: str, found: controlclient.Status) -> bool:
    """Whether either side may hold data that the other lacks."""
    there = node.held_there.get(pair)
    was_written = pair in node.ended_there and there is not None and there.is_newer
    return was_written or (found.link == "refused" and found.verdict == "both_moved")


def sides(node: Node, row: db.Connection, found: controlclient.Status) -> shapes.Sides:
    """Both, as far as they are known."""
    there = node.held_there.get(row.pair)
    held = there.held if there is not None else None
    if held is None:
        held = shapes.Held(row.peer, row.peer_volume, found.peer_last_write, ended=row.pair in node.ended_there)
    return shapes.Sides(_own(node, row.volume, found, owed=found.owed), held)


def _own(
    node: Node, volume: str, found: controlclient.Status | None, *, owed: int | None = None, ended: bool = False
) -> shapes.Held:
    row = node.volume(volume)
    return shapes.Held(
        host=node.host().name,
        volume=volume,
        last_write=found.last_write if found else None,
        owed=owed,
        generation=(found.generation or None) if found else None,
        incomplete=found.incomplete if found else None,
        in_use=row.attached or bool(found and found.clients),
        device=row.device_path if row.attached else None,
        ended=ended,
    )


# at the destination's


async def tell(node: Node, peer: str, body: Ask) -> dict[str, Any]:
    """Served to the source's host; changes nothing but what is shown here."""
    row = node.db.connection(body.pair)
    which = pairsteps.Which(body.operation, body.pair, body.volume, body.peer_volume)
    outcome = (await pairsteps.outcome(node, peer, which))["outcome"]
    is_there = row.state != "deleting" if row is not None else outcome == "open"
    volume = row.volume if row is not None else body.volume
    if node.db.volume(volume) is None or (row is not None and row.peer != peer):
        node.left.pop(body.pair, None)
        return msgspec.structs.asdict(Told(is_there, None, is_newer=False, is_related=False))
    found = (await planes.look(node, volume)).status
    line = {found.generation, *found.ancestors} if found is not None else set()
    is_newer = found is not None and found.generation not in body.line
    _note_left(node, peer, body, is_newer=is_newer and not is_there)
    held = msgspec.to_builtins(_own(node, volume, found, ended=not is_there))
    return msgspec.structs.asdict(Told(is_there, held, is_newer, is_related=not line.isdisjoint(body.line)))


def _note_left(node: Node, peer: str, body: Ask, *, is_newer: bool) -> None:
    is_free = node.db.connection_of(body.volume) is None and node.db.entry_of(body.volume) is None
    if is_newer and is_free and node.db.outcome(body.pair) is not None:
        node.left[body.pair] = Left(body.volume, peer, body.peer_volume)
    else:
        node.left.pop(body.pair, None)
