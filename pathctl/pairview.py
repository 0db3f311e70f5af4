"""pairview - the pairs of this host: which are meant, and what is known of each right now.

The source's data plane knows a pair's state.  The source's host asks it; a destination asks the source's host, for all
pairs with it at once, and does not wait for one that is known to be away.  Every look is a reading for the copy's
progress and is recorded if it shows another state (statelog).
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from pathctl import (
    apart,
    controlclient,
    db,
    errors,
    paircreate,
    pairheld,
    pairstate,
    peers,
    planes,
    protocol,
    reach,
    shapes,
    statelog,
)
from pathctl.errors import ErrorCode, PathctlError
from pathctl.node import Node, Sample

MIN_PREFIX = 4
ASKED_MOST = 32  # questions to other hosts at once
PAIRS_MOST = 200  # of one answer to a peer: it has a size limit
PAIR_FIELDS = frozenset(shapes.Pair.__struct_fields__)

_looks = itertools.count(1)


class Which(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pair by its local volume's name or a unique prefix of its UUID."""

    pair: str


class Look(msgspec.Struct, frozen=True):
    """Asked by a destination's host: pairs whose source is here.  Without `is_fresh` the last look will do."""

    pairs: list[str]
    is_fresh: bool = True


class Forward(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A verb about a pair that its source's host is to carry out."""

    verb: str
    body: dict[str, Any]
    actor: str | None = None  # who asked; version 1 of the control protocol does not know it


class Half(msgspec.Struct, frozen=True):
    """A pair as this host knows it: by its connection, by an open operation, or by both."""

    pair: str
    volume: str
    side: db.Side
    peer: str
    peer_volume: str
    row: db.Connection | None
    entry: db.Entry | None

    @property
    def is_left(self) -> bool:
        """It has ended here, and the source's host goes on asking for it."""
        return self.row is None and self.entry is None

    @property
    def busy(self) -> Literal["creating", "deleting"] | None:
        if (self.entry is not None and self.entry.verb == "pair.delete") or (
            self.row is not None and self.row.state == "deleting"
        ):
            return "deleting"
        if self.entry is not None and self.entry.verb == "pair.create" and self.entry.state != "committed":
            return "creating"
        return None


# which


def halves(node: Node) -> list[Half]:
    entries = {entry.pair: entry for entry in node.db.journal()}
    found = [
        Half(row.pair, row.volume, row.side, row.peer, row.peer_volume, row, entries.pop(row.pair, None))
        for row in node.db.connections()
    ]
    for entry in entries.values():
        side: db.Side = "source" if entry.role == "coordinator" else "destination"
        found.append(Half(entry.pair, entry.volume, side, entry.peer, entry.peer_volume, None, entry))
    known = {half.volume for half in found}
    for pair, left in node.left.items():
        if left.volume not in known and node.db.volume(left.volume) is not None:
            found.append(Half(pair, left.volume, "destination", left.peer, left.peer_volume, None, None))
    return sorted(found, key=lambda half: half.volume)


def find(node: Node, name: str) -> Half:
    """The pair that is meant by a local volume's name or by a unique UUID prefix."""
    known = halves(node)
    for half in known:
        if half.volume == name:
            return half
    uuid = name.lower()
    matching = [half for half in known if half.pair.startswith(uuid)]
    if matching and len(uuid) < MIN_PREFIX:
        raise errors.usage(f"{name!r} is too little of a pair's UUID; give at least {MIN_PREFIX} digits of it")
    if len(matching) > 1:
        some = ", ".join(f"{half.pair} ({half.volume})" for half in matching[:3])
        raise errors.usage(f"{name} is the beginning of {len(matching)} pairs, {some}; give more of the UUID")
    if matching:
        return matching[0]
    outcome = node.db.outcome(uuid)
    if outcome is not None:
        raise errors.not_found(f"pair {name} has ended here ({outcome})")
    gone = node.db.last_event("connection.deleted", name)
    if gone is not None:
        raise errors.not_found(f"volume {name} is in no pair any more: pair {gone.pair} has been deleted")
    if node.db.volume(name) is not None:
        raise errors.not_found(f"volume {name} is in no pair; look with `pathctl volume show {name}`")
    near = errors.see(name, (half.volume for half in known), "pathctl pair list")
    raise errors.not_found(
        f"no pair here is called {errors.quote(name)}, neither by a local volume's name nor by its UUID; {near}"
    )


# looking


async def look(node: Node, half: Half) -> Sample:
    (found,) = await look_all(node, [half])
    return found


async def look_all(
    node: Node, wanted: Sequence[Half], *, is_fresh: bool = True, looks: planes.Looks | None = None
) -> list[Sample]:
    """A sample of each, in their order; never raises for what cannot be asked.

    `looks`: at the data planes here, shared with others who want to know of them now.
    """
    number = begin_look()
    shared = looks or planes.Looks(node)
    by_peer: dict[str, list[Half]] = {}
    for half in wanted:
        if half.side == "destination":
            by_peer.setdefault(half.peer, []).append(half)
    ours, theirs = await asyncio.gather(
        asyncio.gather(*(_look_here(node, half, number, shared) for half in wanted if half.side == "source")),
        asyncio.gather(
            *(_look_there(node, peer, some, number, shared, is_fresh=is_fresh) for peer, some in by_peer.items())
        ),
    )
    samples = {sample.pair.pair: sample for sample in itertools.chain(ours, *theirs)}
    for half in wanted:
        if half.is_left and samples[half.pair].pair.state != pairstate.State.SPLIT.value:
            node.left.pop(half.pair, None)  # if it is so again, the source's host will ask again
    return [samples[half.pair] for half in wanted]


async def _look_here(node: Node, half: Half, number: int, looks: planes.Looks) -> Sample:
    """At the source."""
    found = await looks.at(half.volume)
    status = found.status
    is_known = status is not None and status.pair == half.pair
    if is_known and status is not None and status.session is not None:
        pairheld.forget(node, half.pair)  # a late answer to an old question says nothing any more
    is_ended = half.pair in node.ended_there
    facts = _facts(node, half, status if is_known else None)
    reason = half.entry.note if half.entry else None
    if half.busy is None and status is not None:
        reason = pairstate.named(status.copy_error if status.session else status.link_error, half.peer)
        if is_ended and not status.session:
            reason = apart.ended(half.peer, half.peer_volume, half.volume, is_split=facts.parted)
    if found.failed or (half.busy is None and not is_known):
        reason = found.failed or _other_pair(half, status.pair if status else None)
    if not is_known:
        status = None
    pair = _as_pair(node, half, facts, status, reason)
    if status is not None:
        pair = msgspec.structs.replace(pair, progress=statelog.read_copy(node, status))
        statelog.note_path(node, pair, status, number)
        if pair.state in apart.STATES and half.row is not None and pairheld.is_resolvable(node, half.pair, status):
            pair = msgspec.structs.replace(pair, sides=pairheld.sides(node, half.row, status))
    sample = _as_sample(pair, found, is_heard=is_known, is_ended_there=is_ended)
    # Without `status` when it is another pair's.
    return _noted(node, half, msgspec.structs.replace(sample, status=status), number)


def _as_sample(pair: shapes.Pair, found: planes.Look, *, is_heard: bool, is_ended_there: bool = False) -> Sample:
    return Sample(
        time.time(),
        pair,
        found.status,
        found.failed,
        is_heard=is_heard,
        is_ended_there=is_ended_there,
        hung=found.hung,
        is_down=found.is_down,
    )


def _ended_there(half: Half) -> str:
    return (
        f"host {half.peer} has no such pair any more; free this half with `pathctl pair delete {half.volume} --half`, "
        "with --dry-run first to see what that loses"
    )


def _other_pair(half: Half, pair: str | None) -> str:
    """The row and the volume's metadata do not agree, and the metadata is right."""
    is_in = f"in pair {pair}" if pair else "in no pair"
    return (
        f"volume {half.volume} is {is_in} by its metadata, so this configuration is an older one; free the volume with "
        f"`pathctl pair delete {half.volume} --half`"
    )


def _facts(node: Node, half: Half, status: controlclient.Status | None) -> pairstate.Facts:
    if status is None:
        return pairstate.Facts(journal=half.busy, answers=False)
    return pairstate.Facts(
        journal=half.busy,
        answers=True,
        ready=status.ready,
        session=status.session is not None,
        refused=status.link == "refused",
        invalid=status.invalid,
        owed=status.owed,
        complete=status.complete,
        ended_there=half.pair in node.ended_there,
        parted=pairheld.is_parted(node, half.pair, status),
    )


def _noted(node: Node, half: Half, sample: Sample, number: int, told: statelog.Told | None = None) -> Sample:
    since = statelog.note(node, sample.pair, number, told, is_alone=not sample.is_heard and half.side == "destination")
    if sample.pair.since is None:
        sample = msgspec.structs.replace(sample, pair=msgspec.structs.replace(sample.pair, since=since))
    node.samples[half.pair] = sample
    return sample


def note_busy(node: Node, half: Half) -> None:
    """Record what follows from the rows alone: that the pair is being created or deleted."""
    facts = pairstate.Facts(journal=half.busy, answers=False)
    statelog.note(node, _as_pair(node, half, facts, None, None), begin_look())


# from the destination


class _Seen(msgspec.Struct, frozen=True):
    """A pair as the source's host answers it, and who made its state what it is."""

    pair: dict[str, Any]
    actor: str | None = None
    cause: str | None = None


async def _look_there(
    node: Node, peer: str, wanted: list[Half], number: int, looks: planes.Looks, *, is_fresh: bool
) -> list[Sample]:
    """The source's host knows; when it does not answer, that is said, and no claim made about progress."""
    planes_here = dict(zip(wanted, await asyncio.gather(*(looks.at(half.volume) for half in wanted)), strict=True))
    found: dict[str, _Seen | PathctlError] = {}
    try:
        found = await _ask(node, peer, [half.pair for half in wanted], is_fresh=is_fresh)
    except PathctlError as error:
        found = dict.fromkeys((half.pair for half in wanted), error)
    samples = []
    for half in wanted:
        known, there = planes_here[half], found[half.pair]
        sample, told = (
            _alone(node, half, known, there) if isinstance(there, PathctlError) else _told(node, half, known, there)
        )
        samples.append(_noted(node, half, sample, number, told))
    return samples


async def _ask(node: Node, peer: str, pairs: list[str], *, is_fresh: bool) -> "dict[str, _Seen | PathctlError]":
    away = reach.why_away(node, peer)
    if away is not None:
        raise away
    try:
        knows_look = await peers.version(node, peer) >= protocol.SINCE["pairs.look"]
    except PathctlError as error:
        raise errors.NoAnswer(error.code, error.message, sent=False) from error
    if not knows_look:
        answers = await asyncio.gather(*(_ask_one(node, peer, pair) for pair in pairs))
        return dict(zip(pairs, answers, strict=True))
    found: dict[str, _Seen | PathctlError] = {}
    for first in range(0, len(pairs), PAIRS_MOST):
        some = pairs[first : first + PAIRS_MOST]
        # It asks its data planes in turn, and one of them may use up its time.
        limit_s = node.cfg.timeouts.status_s + node.cfg.timeouts.peer_look_s
        answer = await peers.call(node, peer, "pairs.look", Look(some, is_fresh), limit_s)
        try:
            seen = msgspec.convert(answer.get("pairs"), dict[str, _Seen])
        except msgspec.ValidationError as error:
            raise errors.internal(
                f"host {peer} tells of its pairs what this one does not understand: {error}"
            ) from error
        ended = errors.not_found("")
        found |= {pair: seen.get(pair, ended) for pair in some}
    return found


async def _ask_one(node: Node, peer: str, pair: str) -> "_Seen | PathctlError":
    """Of a host of version 1 of the control protocol."""
    try:
        body = Forward("pair.show", {"pair": pair})
        answer = await peers.call(node, peer, "forward", body, node.cfg.timeouts.peer_look_s)
        return msgspec.convert({"pair": answer.get("pair")}, _Seen)
    except PathctlError as error:
        return error
    except msgspec.ValidationError as error:
        return errors.internal(f"host {peer} tells of a pair what this one does not understand: {error}")


def _told(node: Node, half: Half, known: planes.Look, seen: _Seen) -> tuple[Sample, statelog.Told | None]:
    try:
        pair = _from_peer(half.peer, seen.pair)
    except PathctlError as error:
        return _alone(node, half, known, error)
    if pair.reason is not None:  # what it sees from its end
        pair = msgspec.structs.replace(pair, reason=f"host {half.peer} says: {pair.reason}")
    told = statelog.Told(half.peer, seen.actor, seen.cause)
    return _as_sample(pair, known, is_heard=True), told


def _from_peer(peer: str, fields: dict[str, Any]) -> shapes.Pair:
    """P as the source's host answered it, which may be of another release, seen from the destination."""
    known = {name: value for name, value in fields.items() if name in PAIR_FIELDS}
    try:
        return msgspec.convert({"since": None, "progress": None, **known, "side": "destination"}, shapes.Pair)
    except msgspec.ValidationError as error:
        raise errors.internal(f"host {peer} tells of a pair what this one does not understand: {error}") from error


def begin_look() -> int:
    """The number of a look that begins now: what it sees is not recorded after what a later one has seen."""
    return next(_looks)


def take_answer(node: Node, peer: str, fields: Any, look: int) -> dict[str, Any]:
    """P as a forwarded command was answered: recorded as what our user asked for."""
    pair = _from_peer(peer, fields if isinstance(fields, dict) else {})
    statelog.note(node, pair, look)
    shown: dict[str, Any] = msgspec.to_builtins(pair)
    return shown


def _alone(node: Node, half: Half, known: planes.Look, error: PathctlError) -> tuple[Sample, None]:
    is_ended = error.code == ErrorCode.NOT_FOUND and half.busy is None
    facts = pairstate.Facts(journal=half.busy, answers=False, ended_there=is_ended)
    if error.code == ErrorCode.NOT_FOUND and not is_ended:
        reason = f"host {half.peer} has no such pair; what was begun of it here is being ended"
    elif is_ended:
        reason = _ended_there(half)
    else:
        reason = f"the source's pathctld was not heard ({error.message})"
        if known.status is not None and known.status.session is not None:
            reason += "; its data connection was still heard a few seconds ago"
        elif known.status is not None and known.status.heard_s is not None:
            reason += "; its data connection is silent too"
    pair = _as_pair(node, half, facts, None, reason)
    return _as_sample(pair, known, is_heard=False, is_ended_there=is_ended), None


async def ask_whether_there(node: Node, wanted: Sequence[Half]) -> None:
    """Ask the other hosts what they have of pairs of ours that are not connected; who is away is not asked."""
    places = asyncio.Semaphore(ASKED_MOST)

    async def ask(row: db.Connection, status: controlclient.Status) -> None:
        async with places:
            with contextlib.suppress(PathctlError):
                await pairheld.ask(node, row, status)

    lost = [(half.row, _status_apart(node, half)) for half in wanted if reach.why_away(node, half.peer) is None]
    await asyncio.gather(*(ask(row, status) for row, status in lost if row is not None and status is not None))


def _status_apart(node: Node, half: Half) -> controlclient.Status | None:
    """What the source's data plane said last, if it wants the path and has none."""
    sample = node.samples.get(half.pair)
    if half.side != "source" or half.busy is not None or sample is None or sample.status is None:
        return None
    return sample.status if sample.status.ready and sample.status.session is None else None


async def look_for_peer(node: Node, peer: str, body: Look) -> dict[str, Any]:
    """Served to a destination's host: the pairs of ours with it that it asked for; what is missing is not there."""
    asked = set(body.pairs[:PAIRS_MOST])
    wanted = [half for half in halves(node) if half.pair in asked and half.peer == peer and half.side == "source"]
    old = {} if body.is_fresh else node.samples
    found = {half.pair: old[half.pair] for half in wanted if half.pair in old}
    fresh = await look_all(node, [half for half in wanted if half.pair not in found])
    found |= {sample.pair.pair: sample for sample in fresh}
    return {"pairs": {pair: _as_seen(node, peer, sample) for pair, sample in found.items()}}


def _as_seen(node: Node, peer: str, sample: Sample) -> _Seen:
    actor, cause = statelog.last_change(node, sample.pair.pair)
    return _Seen(for_peer(node, peer, msgspec.to_builtins(sample.pair)), actor, cause)


def for_peer(node: Node, peer: str, pair: dict[str, Any]) -> dict[str, Any]:
    """P as a peer of its release takes it."""
    knows_split = node.protocols.get(peer, 1) >= protocol.RESOLVE
    is_split = pair["state"] == pairstate.State.SPLIT
    return pair | {"state": pairstate.State.REFUSED.value} if is_split and not knows_split else pair


# P


def _as_pair(
    node: Node, half: Half, facts: pairstate.Facts, status: controlclient.Status | None, reason: str | None
) -> shapes.Pair:
    """`status` is the source's, and without it what only that knows is null."""
    volume = node.db.volume(half.volume)
    ours = shapes.End(node.host().name, half.volume)
    theirs = shapes.End(half.peer, half.peer_volume)
    counters = status.counters if status else {}
    return shapes.Pair(
        pair=half.pair,
        state=pairstate.name(facts),
        since=None,
        direction=pairstate.direction(facts),
        reason=reason,
        side=half.side,
        source=ours if half.side == "source" else theirs,
        destination=theirs if half.side == "source" else ours,
        invalidated=half.row.invalidated if half.row else _invalidated(half),
        ready=status.ready if status else None,
        committed=status.committed if status else None,
        size=volume.size if volume else 0,
        track_size=volume.track_size if volume else 0,
        tracks=-(-volume.size // volume.track_size) if volume else 0,
        invalid=status.invalid if status else None,
        owed=status.owed if status else None,
        waiting=status.waiting if status else None,
        copy_rate_bytes_s=half.row.copy_rate_bytes_s if half.row and status else None,
        copied_bytes=counters.get("copied_bytes", 0) if status else None,
        fetched_tracks=counters.get("fetched_tracks", 0) if status else None,
        copied_tracks=counters.get("copied_tracks", 0) if status else None,
        session=status.session if status else None,
        progress=None,
        counters=counters,
        on_path_loss=half.row.on_path_loss if half.row and status else None,
    )


def _invalidated(half: Half) -> db.Side | None:
    if half.entry is None or half.entry.role != "coordinator" or half.entry.verb != "pair.create":
        return None
    return paircreate.spec_of(half.entry).invalidate


def as_json(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(sample.pair) for sample in samples]
