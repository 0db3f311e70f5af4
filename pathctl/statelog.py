"""statelog - records each change of a pair's state, and of its path, once, with its cause and who asked for it.

Looks may be under way at the same time and end in any order: what an older look saw is not recorded after a newer
one's.  A change that a command made is its caller's, whoever saw it first: the configuration rows that the command
changed have recorded him.
"""

import json
import time

import msgspec

from pathctl import actor, controlclient, copyprogress, pairstate, shapes, units
from pathctl.node import Node, Recorded
from pathctl.pairstate import State

# The events of this host's row that make a change of state the work of a command, by the state before or after it.
_ASKED_BEFORE = {State.CREATING: "connection.ready", State.SUSPENDED: "connection.ready"}
_ASKED_AFTER = {
    State.CREATING: "connection.created",
    State.DELETING: "connection.deleting",
    State.SUSPENDED: "connection.suspended",
}
_VERBS = {  # steps that a peer's command consists of here
    "pair.create_volume": "pair.create",
    "pair.connect": "pair.create",
    "pair.finish": "pair.create",
    "pair.undo": "pair.create, which was undone",
    "pair.end": "pair.delete",
    "pair.resolved": "pair.resolve",
}
_CHANGING = ("pair.create", "pair.suspend", "pair.resume", "pair.delete", "pair.set")
_APART = (State.SPLIT, State.REFUSED)
_COMMAND = "pathctl {}"


class Told(msgspec.Struct, frozen=True):
    """What the source's host says of the last change of state: who asked there, and why it happened."""

    host: str
    actor: str | None
    cause: str | None


def note(node: Node, pair: shapes.Pair, look: int, told: Told | None = None, *, is_alone: bool = False) -> float | None:
    """Record the state that look number `look` saw, if it is another; -> since when the pair is in it.

    `is_alone`: it is what a destination can say that does not hear the source's host.
    """
    known = _recorded(node, pair.pair)
    is_new = look >= known.look and known.state != pair.state and not _is_meeting(pair, known)
    if is_new and _is_there(node, pair):
        who, cause = _reason(node, pair, known, told)
        message = _message(pair, known.state, cause)
        with actor.by(who, cause):
            is_kept = node.db.record("pair.state", message, before=known.state, after=pair.state, **_names(pair))
        if is_kept:
            known.state, known.since = node.db.last_state(pair.pair) or (None, None)
            known.actor, known.cause, known.is_alone = who, cause, is_alone
    known.look = max(look, known.look)
    return known.since if known.state == pair.state else None


def _is_meeting(pair: shapes.Pair, known: Recorded) -> bool:
    """The tenth of a second that the greeting takes after a create, resume or resolve is not worth an event."""
    is_begun = known.state in _ASKED_BEFORE or known.state in _APART
    return pair.state == State.PARTITIONED.value and pair.reason is None and is_begun


def _recorded(node: Node, pair: str) -> Recorded:
    if pair not in node.recorded:
        state, since = node.db.last_state(pair) or (None, None)
        node.recorded[pair] = Recorded(state, since)
    return node.recorded[pair]


def _is_there(node: Node, pair: shapes.Pair) -> bool:
    """Not deleted while it was looked at; nor is an intent worth an event before it has a row, which tells whose."""
    if node.db.connection(pair.pair) is not None:
        return True
    return pair.state != State.CREATING.value and any(entry.pair == pair.pair for entry in node.db.journal())


def _names(pair: shapes.Pair) -> dict[str, str]:
    ours, theirs = (pair.source, pair.destination) if pair.side == "source" else (pair.destination, pair.source)
    return {"volume": ours.volume, "pair": pair.pair, "peer": theirs.host}


def _message(pair: shapes.Pair, before: str | None, cause: str) -> str:
    ends = f"{pair.source.host}:{pair.source.volume} -> {pair.destination.host}:{pair.destination.volume}"
    was = f", was {before}" if before else ""
    return f"pair {ends} is {pair.state}{was}: {cause}"


def _reason(node: Node, pair: shapes.Pair, known: Recorded, told: Told | None) -> tuple[str, str]:
    """(who asked, why) in words."""
    is_asked_for = pair.state in _ASKED_AFTER or known.state in _ASKED_BEFORE
    if actor.who.get() != actor.ITSELF and actor.why.get() in _CHANGING and is_asked_for:
        return actor.who.get(), _command(actor.why.get())
    if told is not None and pair.pair in node.forwarding and is_asked_for:
        who, verb = node.forwarding[pair.pair]
        return who, _command(verb)
    if told is not None and known.is_alone:
        return actor.ITSELF, f"pathctld of host {told.host} is heard again"
    if told is not None and told.cause is not None:
        if told.actor in (None, actor.ITSELF):
            return actor.ITSELF, told.cause
        asked = actor.at_host(told.actor, told.host, node.host().name)
        return f"host {told.host}", f"{told.cause} (asked for by {asked})"
    resolver = _resolving(node, pair.pair) if known.state in _APART else None
    if resolver is not None:
        return resolver, _command("pair.resolve")
    since: str = pair.state
    kind = _ASKED_AFTER.get(State(since))
    if kind is None and known.state is not None:
        since = known.state
        kind = "pair.resolved" if known.state in _APART else _ASKED_BEFORE.get(State(since))
    found = _asked(node, pair.pair, kind, since) if kind else None
    if found is not None and found.actor != actor.ITSELF:
        return found.actor, _command(found.cause)
    return actor.ITSELF, _cause(pair, known.state)


def _resolving(node: Node, pair: str) -> str | None:
    """Who asked for the resolve that has taken effect and is being recorded."""
    for entry in node.db.journal():
        is_it = (entry.pair, entry.verb, entry.role) == (pair, "pair.resolve", "coordinator")
        if is_it and entry.state == "committed":
            return str(json.loads(entry.spec).get("asked_by", actor.ITSELF))
    return None


def _asked(node: Node, pair: str, kind: str, since: str) -> shapes.Event | None:
    """The row's last change of that kind since the pair came into state `since`; others meanwhile undo no wish."""
    for event in reversed(node.db.events(pair=pair, limit=100)):
        if event.kind == kind:
            return event
        if event.kind == "pair.state" and event.after == since:
            return None
    return None


def _command(verb: str | None) -> str:
    return _COMMAND.format(_VERBS.get(verb, verb).replace(".", " ")) if verb else "by command"


def _cause(pair: shapes.Pair, before: str | None) -> str:
    """Why a state changed by itself."""
    match pair.state:
        case State.SYNCHRONIZED if before == State.SYNC_IN_PROG:
            return "the copy is finished and the destination has confirmed it"
        case State.SYNCHRONIZED | State.SYNC_IN_PROG:
            return f"host {pair.destination.host} accepted the greeting (session {pair.session})"
        case State.PARTITIONED | State.SPLIT | State.REFUSED:
            return pair.reason or "the data connection is not there yet"
        case State.CREATING:
            return pair.reason or "the pair is being created"
        case State.DELETING:
            return pair.reason or "the pair is being deleted"
        case _:
            return "the path is not ready by command"


def last_change(node: Node, pair: str) -> tuple[str | None, str | None]:
    """(who asked, cause) of the pair's last change of state, while its event is still kept."""
    known = _recorded(node, pair)
    if known.cause is None and known.state is not None:
        events = reversed(node.db.events(pair=pair, limit=1000))
        found = next((event for event in events if event.kind == "pair.state"), None)
        known.actor, known.cause = (found.actor, found.cause or "") if found is not None else (None, "")
    return known.actor, known.cause or None


# the copy, and the path, of a pair whose source is here


def read_copy(node: Node, status: controlclient.Status) -> shapes.Progress | None:
    """What the source's data plane says is a reading of its copy."""
    reading = copyprogress.reading_of(
        status.counters,
        at=time.monotonic(),
        wall=time.time(),
        pid=status.pid,
        left=status.invalid + status.owed,
        tracks=status.tracks,
        track_size=status.track_size,
        is_up=status.session is not None,
        limit_bytes_s=status.copy_rate_bytes_s,
    )
    return node.copies.read(status.pair, reading) if status.pair is not None else None


def note_path(node: Node, pair: shapes.Pair, status: controlclient.Status, look: int) -> None:
    """Record that the data connection came, went or is refused, unless a newer look did."""
    is_first = pair.pair not in node.recorded
    known = _recorded(node, pair.pair)
    if look < known.path_look:
        return
    known.path_look = look
    before, known.session = known.session, status.session
    error = pairstate.named(status.link_error, pair.destination.host)
    refusal = error if status.link == "refused" and status.session is None else None
    old_refusal, known.refusal = known.refusal, refusal if status.session is None else None
    if is_first and node.db.last_state(pair.pair) is not None:
        return  # pathctld has just started: this is how things were all the time
    with actor.by():
        if status.session not in (None, before):
            if before is not None:
                _record_path(node, pair, "path.lost", f"session {before}", None, "and made anew between two looks")
            _record_path(node, pair, "path.up", f"session {before}" if before else None, f"session {status.session}")
        elif refusal is not None and refusal != old_refusal:
            _record_path(node, pair, "path.refused", None, None, refusal)
        elif before is not None and status.session is None and status.ready:
            _record_path(node, pair, "path.lost", f"session {before}", None, error)
            if status.on_path_loss == "stop":
                _record_halt(node, pair, status)


def _record_halt(node: Node, pair: shapes.Pair, status: controlclient.Status) -> None:
    limit_s = status.limits.get("fetch_timeout_s")
    fail = f"fail after {units.format_duration(limit_s)}" if limit_s else "then fail"
    where = f"{pair.source.host}:{pair.source.volume}"
    message = f"host writes to {where} wait for the path and {fail} (--on-path-loss stop)"
    node.db.record("path.halted", message, **_names(pair))


def _record_path(
    node: Node, pair: shapes.Pair, kind: str, before: str | None, after: str | None, cause: str | None = None
) -> None:
    ends = f"{pair.source.host}:{pair.source.volume} -> {pair.destination.host}:{pair.destination.volume}"
    what = {"path.up": "is there", "path.lost": "is lost", "path.refused": "is refused"}[kind]
    message = f"the data connection of pair {ends} {what}" + (f": {cause or after}" if cause or after else "")
    node.db.record(kind, message, before=before, after=after, cause=cause, **_names(pair))


def forget_others(node: Node, pairs: set[str]) -> None:
    for pair in node.recorded.keys() - pairs:
        del node.recorded[pair]
    for pair in node.samples.keys() - pairs:
        del node.samples[pair]
    node.ended_there &= pairs
    for pair in node.held_there.keys() - pairs:
        del node.held_there[pair]
    node.copies.forget_others(pairs)
