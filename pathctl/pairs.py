"""pairs - the verbs about pairs: who has to do it, and what is answered.

The source's daemon does the work; asked at the destination's, the verb is forwarded there with the names translated.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Literal

import msgspec

from pathctl import (
    actor,
    apart,
    config,
    copyrate,
    db,
    errors,
    paircreate,
    pairdelete,
    pairresolve,
    pairstate,
    pairview,
    peers,
    planes,
    protocol,
    volumes,
)
from pathctl.errors import ErrorCode, NoAnswer, PathctlError
from pathctl.node import Node
from pathctl.pairview import Forward, Half, Which

MEET_LIMIT_S = 2.0
MEET_LOOK_S = 0.02
MEETING = (pairstate.State.PARTITIONED.value,)
MEETING_AGAIN = (*MEETING, *apart.STATES)  # an answer that was under way may still be a refusal


class Set(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is unset stays as it is."""

    pair: str
    copy_rate_bytes_s: int | msgspec.UnsetType | None = msgspec.UNSET
    on_path_loss: db.OnPathLoss | msgspec.UnsetType = msgspec.UNSET


# creating


async def create(node: Node, body: paircreate.Create) -> dict[str, Any]:
    own = node.host().name
    (source_host, source), (destination_host, destination) = (
        config.split_volume(body.source),
        config.split_volume(body.destination),
    )
    source_host, destination_host = source_host or own, destination_host or own
    if (source_host, source) == (destination_host, destination):
        raise errors.usage(f"source and destination are both volume {source} of host {source_host}; name two volumes")
    if source_host == destination_host:
        raise errors.usage(
            f"both volumes are on host {source_host}; a pair needs two hosts: name one of them HOST:NAME"
        )
    if own not in (source_host, destination_host):
        raise errors.usage(f"one of the two volumes must be on this host ({own}); run the command on one of them")
    if source_host != own:
        full = msgspec.structs.replace(body, source=source, destination=f"{own}:{destination}")
        try:
            await _require_dry_run(node, source_host, body.dry_run)
            if body.on_path_loss is not None:
                await _require_policy(node, source_host)
            answer = await _forward(node, source_host, "pair.create", full, node.cfg.timeouts.verb_s)
        except NoAnswer as error:
            if error.sent:
                raise
            raise paircreate.unchanged(error) from error
        return answer
    if body.dry_run:
        return await paircreate.plan(node, body, source, destination_host, destination)
    created = await paircreate.create(node, body, source, destination_host, destination)
    if not created.steps and (body.copy_rate_bytes_s is not None or body.on_path_loss is not None):
        rate, policy = (_unset(value) for value in (body.copy_rate_bytes_s, body.on_path_loss))
        await set_values(node, Set(created.pair, rate, policy))
    device = await _attach(node, source, created.steps) if body.attach else None
    return {"pair": await _shown_settled(node, created.pair), "device": device, "steps": created.steps}


def _unset(value: Any) -> Any:
    return msgspec.UNSET if value is None else value


async def _shown_settled(node: Node, pair: str, meeting: Sequence[str] = MEETING) -> dict[str, Any]:
    """The pair as soon as its data planes have met or refused each other; as it is when that takes too long.

    Without it the answer to a create or resume would be "Partitioned" for the tenth of a second that greeting takes.
    `meeting`: the states that it may still be in until then.
    """
    deadline = asyncio.get_running_loop().time() + MEET_LIMIT_S
    while True:
        shown = await _shown(node, pairview.find(node, pair))
        if shown["state"] not in meeting or asyncio.get_running_loop().time() > deadline:
            return shown
        await asyncio.sleep(MEET_LOOK_S)


async def _attach(node: Node, volume: str, steps: list[dict[str, Any]]) -> str:
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        async with node.locks[volume]:
            device = await volumes.attach_locked(node, volume)
    except PathctlError as error:
        raise PathctlError(
            error.code,
            f"the pair was created, but volume {volume} was not attached: {error.message}; repeat `pathctl attach`",
            done=[step["step"] for step in steps],
            failed="attach",
        ) from error
    steps.append({"step": "attach", "ms": round((loop.time() - started) * 1000, 1)})
    return device


# changing


async def suspend(node: Node, body: Which) -> dict[str, Any]:
    return await _switch(node, body, "pair.suspend", "suspended")


async def resume(node: Node, body: Which) -> dict[str, Any]:
    return await _switch(node, body, "pair.resume", "ready")


async def _switch(node: Node, body: Which, verb: str, state: Literal["ready", "suspended"]) -> dict[str, Any]:
    half = pairview.find(node, body.pair)
    if half.side == "destination":
        return await _forward_pair(node, half, verb, msgspec.structs.replace(body, pair=half.pair))
    async with node.locks[half.volume]:
        row = _settled_row(node, half)
        node.db.set_connection_state(row.pair, state)
        with _reconciled(node, row.volume, verb):
            await planes.settle(node, row.volume)
            await planes.bring(node, row.volume)
            if state == "ready":
                await planes.hurry(node, row)
    return {"pair": await _shown_settled(node, half.pair)}


async def set_values(node: Node, body: Set) -> dict[str, Any]:
    rate, policy = body.copy_rate_bytes_s, body.on_path_loss
    if rate is msgspec.UNSET and policy is msgspec.UNSET:
        raise errors.usage("nothing is said to be set; give --copy-rate or --on-path-loss")
    if rate is not msgspec.UNSET:
        config.check_rate(rate)
    half = pairview.find(node, body.pair)
    if half.side == "destination":
        if policy is not msgspec.UNSET:
            await _require_policy(node, half.peer)
        return await _forward_pair(node, half, "pair.set", msgspec.structs.replace(body, pair=half.pair))
    async with node.locks[half.volume]:
        row = _settled_row(node, half)
        if policy is not msgspec.UNSET:
            await _refuse_without_policy(node, row.volume)
            node.db.set_on_path_loss(row.pair, policy)
        if rate is not msgspec.UNSET:
            node.db.set_copy_rate(row.pair, rate)
        with _reconciled(node, row.volume, "pair.set"):
            await planes.settle(node, row.volume)
            if policy is not msgspec.UNSET:
                await planes.set_policy(node, msgspec.structs.replace(row, on_path_loss=policy))
            if rate is not msgspec.UNSET:
                share = copyrate.wanted(node, row.pair, rate)
                await planes.command(node, row.volume, "set", copy_rate_bytes_s=share)
    return {"pair": await _shown(node, pairview.find(node, half.pair))}


async def _refuse_without_policy(node: Node, volume: str) -> None:
    """A process that was started by an older release goes on as it does."""
    found = (await planes.look(node, volume)).status
    if found is not None and found.pid is not None and found.on_path_loss is None:
        raise errors.refused(
            f"the process of volume {volume} is of an older release, which has no --on-path-loss; nothing was changed: "
            "start it anew with `pathctld --stop-all`, when its devices may be away for a moment, and pathctld again"
        )


async def _require_policy(node: Node, peer: str) -> None:
    protocol.require(peer, await peers.version(node, peer), protocol.POLICY, "--on-path-loss")


@contextlib.contextmanager
def _reconciled(node: Node, volume: str, verb: str) -> Iterator[None]:
    """The row is changed already: when its process cannot be told, or did not answer, it is told until it does."""
    try:
        yield
    except PathctlError as error:
        node.supervisor.bring_again(volume)
        wish = f"{verb.replace('.', ' ')} of {node.host().name}:{volume}"
        raise PathctlError(
            error.code,
            f"{error.message}; the wish is recorded and pathctld goes on by itself until it is so: see `pathctl events "
            f"--pair {volume}`, or take it back with another command",
            pending=[wish],
        ) from error


def _settled_row(node: Node, half: Half) -> db.Connection:
    row, entry = node.db.connection(half.pair), node.db.entry_of(half.volume)
    if entry is not None and entry.verb == "pair.resolve":
        raise errors.refused(f"pair {half.pair} is being resolved; wait until that is finished")
    if row is None or row.state not in ("ready", "suspended"):
        raise errors.refused(f"pair {half.pair} is {half.busy or 'ended'}; wait until that is finished")
    return row


async def resolve(node: Node, body: pairresolve.Resolve) -> dict[str, Any]:
    """Whose data is to be kept, where the two sides went different ways."""
    half = pairview.find(node, body.pair)
    if half.side == "destination":
        return await _resolve_from_destination(node, half, body)
    if half.row is None:
        raise errors.refused(f"pair {half.pair} is still being created; wait until that has ended")
    if body.dry_run:
        return await pairresolve.plan(node, half.row, body)
    resolved = await pairresolve.resolve(node, half.row, body)
    return {"pair": await _shown_settled(node, half.pair, MEETING_AGAIN), "resolved": msgspec.to_builtins(resolved)}


async def _resolve_from_destination(node: Node, half: Half, body: pairresolve.Resolve) -> dict[str, Any]:
    try:
        protocol.require(half.peer, await peers.version(node, half.peer), protocol.RESOLVE, "`pair resolve`")
        return await _forward_pair(node, half, "pair.resolve", msgspec.structs.replace(body, pair=half.pair))
    except NoAnswer as error:
        state = "whether anything was changed is not known" if error.sent else "nothing was changed"
        raise PathctlError(
            error.code,
            f"{error.message}; {state}: a pair is resolved at both hosts, so see that pathctld runs there and that the "
            "network lets us through, then repeat the command",
        ) from error
    except PathctlError as error:
        if error.code != ErrorCode.NOT_FOUND:
            raise
        raise errors.refused(
            f"host {half.peer} has no such pair any more, so there is nothing to resolve; nothing was changed: free "
            f"this half with `pathctl pair delete {half.volume} --half`, then create the pair anew"
        ) from error


async def delete(node: Node, body: pairdelete.Delete) -> dict[str, Any]:
    half = await _find_to_delete(node, body)
    if body.half:
        return await _delete_half(node, half, body)
    if half.side == "destination":
        return await _delete_from_destination(node, half, body)
    if half.row is None:
        assert half.entry is not None
        raise errors.refused(
            f"pair {half.pair} is still being created ({half.entry.note or half.entry.state}); wait until that has "
            f"ended, or free this host's half with `pathctl pair delete {half.volume} --half`"
        )
    if body.dry_run:
        return await pairdelete.plan(node, half.row, force=body.force)
    shown = await _shown(node, half)
    await pairdelete.delete(node, half.row, force=body.force)
    return {"pair": _as_deleted(shown)}


async def _find_to_delete(node: Node, body: pairdelete.Delete) -> Half:
    """The pair, or with --half the one that only the volume's metadata knows."""
    try:
        return pairview.find(node, body.pair)
    except PathctlError as error:
        unknown = await pairdelete.find_unknown(node, body.pair) if body.half else None
        if error.code != ErrorCode.NOT_FOUND or unknown is None:
            raise
        return unknown


def _as_deleted(shown: dict[str, Any]) -> dict[str, Any]:
    return shown | {"state": pairstate.State.DELETING.value, "ready": False, "direction": None}


async def _delete_half(node: Node, half: Half, body: pairdelete.Delete) -> dict[str, Any]:
    """Asks nobody else, not even what the pair's state is."""
    if body.dry_run:
        return await pairdelete.plan_half(node, half.pair, half.volume, force=body.force)
    (shown,) = pairview.as_json([node.samples.get(half.pair) or await pairview.look(node, half)])
    left = await pairdelete.delete_half(node, half.pair, half.volume, force=body.force)
    return {"pair": _as_deleted(shown) | {"reason": left}}


async def _delete_from_destination(node: Node, half: Half, body: pairdelete.Delete) -> dict[str, Any]:
    """The source's daemon does it; when the source has ended its half already, ours is all that is left."""
    try:
        await _require_dry_run(node, half.peer, body.dry_run)
        full = msgspec.structs.replace(body, pair=half.pair)
        answer = await _forward(node, half.peer, "pair.delete", full, node.cfg.timeouts.verb_s)
    except NoAnswer as error:
        state = "whether anything was changed is not known" if error.sent else "nothing was changed"
        raise PathctlError(
            error.code,
            f"{error.message}; {state}: see that pathctld runs there, then repeat the command, or free this host's "
            f"half with `pathctl pair delete {half.volume} --half`",
        ) from error
    except PathctlError as error:
        if error.code != ErrorCode.NOT_FOUND:
            raise
        return await _delete_half(node, half, body)
    return answer


async def _require_dry_run(node: Node, peer: str, is_wanted: bool) -> None:
    if is_wanted:
        protocol.require_dry_run(peer, await peers.version(node, peer))


# forwarding


async def _forward_pair(node: Node, half: Half, verb: str, body: msgspec.Struct) -> dict[str, Any]:
    return await _forward(node, half.peer, verb, body, node.cfg.timeouts.verb_s)


async def _forward(node: Node, peer: str, verb: str, body: msgspec.Struct, limit_s: float) -> dict[str, Any]:
    """The source's answer, its pair as seen from here."""
    look, pair = pairview.begin_look(), str(getattr(body, "pair", ""))
    who = actor.who.get()
    wanted = Forward(verb, msgspec.to_builtins(body), who if await _knows_actor(node, peer) else None)
    node.forwarding[pair] = (who, verb)
    try:
        answer = await peers.call(node, peer, "forward", wanted, limit_s)
    finally:
        node.forwarding.pop(pair, None)
    return {**answer, "pair": pairview.take_answer(node, peer, answer["pair"], look)} if "pair" in answer else answer


async def _knows_actor(node: Node, peer: str) -> bool:
    try:
        return await peers.version(node, peer) >= protocol.ACTOR
    except NoAnswer as error:  # nothing but that was asked
        raise NoAnswer(error.code, error.message, sent=False) from error


async def forwarded(node: Node, peer: str, body: Forward) -> dict[str, Any]:
    """A verb that a peer's user asked for about a pair of ours with that peer."""
    if body.verb not in VERBS:
        raise errors.usage(f"{body.verb} is not forwarded between hosts")
    kind, handler = VERBS[body.verb]
    try:
        inner = msgspec.convert(body.body, kind)
    except msgspec.ValidationError as error:
        raise errors.usage(f"{body.verb}: {error}") from error
    _check_forwarded(node, peer, inner)
    actor.who.set(actor.of_peer(peer, body.actor))
    actor.why.set(body.verb)
    answer = await handler(node, inner)
    return answer | {"pair": pairview.for_peer(node, peer, answer["pair"])} if "pair" in answer else answer


def _check_forwarded(node: Node, peer: str, body: Any) -> None:
    """Only what concerns the caller, and never forwarded on."""
    if isinstance(body, paircreate.Create):
        if not body.destination.startswith(f"{peer}:") or config.split_volume(body.source)[0] is not None:
            raise errors.refused(f"host {peer} asked for a pair that is not between it and this host")
        return
    half = pairview.find(node, body.pair)
    if half.peer != peer or half.side != "source":
        raise errors.refused(f"pair {half.pair} is not one with its source here and its destination at {peer}")


# showing


async def show(node: Node, body: Which) -> dict[str, Any]:
    half = pairview.find(node, body.pair)
    shown = await _shown(node, half)
    if shown["side"] == "source" and shown["state"] in apart.STATES:
        await pairview.ask_whether_there(node, [half])  # somebody is going to decide by what the other side holds now
        shown = await _shown(node, half)
    return {"pair": shown}


async def list_all(node: Node, body: msgspec.Struct) -> dict[str, Any]:
    return {"pairs": await show_all(node)}


async def show_all(node: Node, looks: planes.Looks | None = None) -> list[dict[str, Any]]:
    found = await pairview.look_all(node, pairview.halves(node), looks=looks)
    known = {half.pair for half in pairview.halves(node)}  # a pair may turn out to be no more
    return pairview.as_json(sample for sample in found if sample.pair.pair in known)


async def _shown(node: Node, half: Half) -> dict[str, Any]:
    """P of the API."""
    (found,) = pairview.as_json([await pairview.look(node, half)])
    return found


async def connections(node: Node, body: msgspec.Struct) -> dict[str, Any]:
    """C of the API: the rows of this host's configuration table as they stand."""
    return {
        "connections": [
            {
                "pair": row.pair,
                "side": row.side,
                "volume": row.volume,
                "peer": row.peer,
                "peer_volume": row.peer_volume,
                "invalidated": row.invalidated,
                "ready": row.state == "ready",
                "state": row.state,
                "port": row.port,
            }
            for row in node.db.connections()
        ]
    }


Handler = Callable[[Node, Any], Awaitable[dict[str, Any]]]
VERBS: dict[str, tuple[type[msgspec.Struct], Handler]] = {
    "pair.create": (paircreate.Create, create),
    "pair.show": (Which, show),
    "pair.suspend": (Which, suspend),
    "pair.resume": (Which, resume),
    "pair.set": (Set, set_values),
    "pair.resolve": (pairresolve.Resolve, resolve),
    "pair.delete": (pairdelete.Delete, delete),
}
