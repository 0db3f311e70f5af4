"""events - the verbs that tell what has happened (events.list) and why a pair is as it is (pair.why).

A follower asks again and again, each time with the number of the last event it has; it may wait here for the next.
How many may wait at once is bounded: a client that has gone away is noticed only when its wait ends.
"""

import asyncio
from typing import Annotated, Any

import msgspec

from pathctl import errors, pairstate, pairview, peers, statelog, volumes, why
from pathctl.errors import ErrorCode, PathctlError
from pathctl.node import Node, Sample

FOLLOWERS_MOST = 50


class List(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    after_id: Annotated[int, msgspec.Meta(ge=0)] = 0
    since: float | None = None  # seconds since the epoch
    pair: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)] = 0.0


async def list_events(node: Node, body: List) -> dict[str, Any]:
    """The newest that fit, the oldest of them first; with `wait_s`, one at least if it comes in that time."""
    pair = _find_pair(node, body.pair) if body.pair is not None else None
    deadline = asyncio.get_running_loop().time() + body.wait_s
    while True:
        news = node.news
        found = node.db.events(body.after_id, body.since, pair, body.limit)
        left_s = deadline - asyncio.get_running_loop().time()
        if found or left_s <= 0:
            return {"events": msgspec.to_builtins(found)}
        await _wait(node, news, left_s)


async def _wait(node: Node, news: asyncio.Event, limit_s: float) -> None:
    if node.followers >= FOLLOWERS_MOST:
        raise errors.refused(f"{FOLLOWERS_MOST} commands follow the events already; end one of them, then try again")
    node.followers += 1
    try:
        await asyncio.wait_for(news.wait(), limit_s)
    except TimeoutError:
        return
    finally:
        node.followers -= 1


def announce(node: Node) -> None:
    """Wake those who wait for an event."""
    news, node.news = node.news, asyncio.Event()
    news.set()


def _find_pair(node: Node, name: str) -> str:
    """Also one that is no more, by its whole UUID, as long as there are events of it."""
    try:
        return pairview.find(node, name).pair
    except PathctlError as error:
        if error.code == ErrorCode.NOT_FOUND and node.db.events(pair=name.lower(), limit=1):
            return name.lower()
        raise


async def explain(node: Node, body: pairview.Which) -> dict[str, Any]:
    half = pairview.find(node, body.pair)
    # The peer is asked now: what was heard of it some seconds ago may be what has just changed.
    sample, _ = await asyncio.gather(pairview.look(node, half), peers.ping(node, half.peer))
    if half.side == "source" and sample.status is not None and sample.status.session is None:
        await pairview.ask_whether_there(node, [half])
        sample = await pairview.look(node, half)
    return {"why": msgspec.to_builtins(why.explain(_facts(node, half, sample)))}


def _facts(node: Node, half: pairview.Half, sample: Sample) -> why.Facts:
    status, known = sample.status, node.reach.get(half.peer)
    actor, cause = statelog.last_change(node, half.pair)
    row = node.db.volume(half.volume)
    is_source = half.side == "source"
    return why.Facts(
        pair=sample.pair,
        peer=half.peer,
        is_reachable=known.is_reachable if known else None,
        peer_note=known.note if known and not known.is_reachable else None,
        note=half.entry.note if half.entry else None,
        is_heard=sample.is_heard,
        is_linked=status is not None and status.session is not None,
        heard_s=status.heard_s if status else None,
        is_ended_there=sample.is_ended_there,
        link_error=pairstate.named(status.link_error, half.peer) if status and is_source else None,
        copy_error=pairstate.named(status.copy_error, half.peer) if status and is_source else None,
        failed=status.failed if status else None,
        silent=sample.failed if status is None else None,
        hung=sample.hung,
        is_down=sample.is_down,
        fetch_timeout_s=status.limits.get("fetch_timeout_s") if status and is_source else None,
        incomplete=status.incomplete if status else None,
        read_errors=status.counters.get("read_errors", 0) if status else 0,
        peer_reads=status.counters.get("peer_reads", 0) if status else 0,
        repaired_tracks=status.counters.get("repaired_tracks", 0) if status else 0,
        device_failed=volumes.device_failure(row) if row else None,
        limit_bytes_s=status.copy_rate_bytes_s if status and is_source else None,
        actor=actor,
        cause=cause,
    )
