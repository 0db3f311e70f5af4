"""reach - what is known of each peer's pathctld: whether it answers, why not, how its clock goes.

Told by every call to a peer (peers) and by every request of one (api); the observer asks each from time to time.
Changes are recorded as pathctld's own finding, whoever made the call.
"""

import time

import msgspec

from pathctl import actor, errors, units
from pathctl.errors import ErrorCode, NoAnswer
from pathctl.node import Node, Reach

ASK_AGAIN_S = 1.0  # after it did not answer, for somebody who wants to know


def heard(node: Node, name: str) -> None:
    """It has answered."""
    before = node.reach.get(name)
    if before is not None and before.is_reachable:
        node.reach[name] = msgspec.structs.replace(before, at=time.time())
        return
    node.reach[name] = Reach(True, time.time(), is_clock_off=before.is_clock_off if before else False)
    if before is not None:
        with actor.by():
            node.db.record("peer.reachable", f"pathctld of host {name} answers again", peer=name)
        node.look_soon()


def unheard(node: Node, name: str, error: errors.PathctlError) -> None:
    """It was asked and has not answered."""
    before = node.reach.get(name)
    was_off = before.is_clock_off if before else False
    node.reach[name] = Reach(False, time.time(), error.message, is_clock_off=was_off)
    if before is None or before.is_reachable:
        with actor.by():
            message = f"pathctld of host {name} does not answer"
            node.db.record("peer.unreachable", message, peer=name, cause=error.message)
        node.look_soon()


def asked_by(node: Node, name: str) -> None:
    """It has sent us a request: if it was away, it may be back."""
    known = node.reach.get(name)
    if known is not None and not known.is_reachable:
        node.ping_now.set()


def note_clock(node: Node, name: str, their_time: float, asked: float, answered: float) -> None:
    """Its clock less ours, as good as the time of the way allows."""
    known = node.reach[name]
    skew_s = round(their_time - (asked + answered) / 2, 3)
    limit_s = node.cfg.settings.peers.clock_skew_s + (answered - asked) / 2
    is_off = abs(skew_s) > limit_s
    note = _clock_note(name, skew_s) if is_off else None
    node.reach[name] = msgspec.structs.replace(known, clock_skew_s=skew_s, note=note, is_clock_off=is_off)
    if is_off != known.is_clock_off:
        with actor.by():
            said = note or f"the clock of host {name} agrees with this host's again"
            node.db.record("peer.clock", said, peer=name, after=f"{skew_s:+.1f} s")


def _clock_note(name: str, skew_s: float) -> str:
    way = "ahead of" if skew_s > 0 else "behind"
    off = units.format_duration(abs(skew_s)) if abs(skew_s) >= 60 else f"{abs(skew_s):.1f} s"
    return f"the clock of host {name} is {off} {way} this host's; set one of them, times in events differ"


def why_away(node: Node, name: str) -> NoAnswer | None:
    """Why a peer need not be asked: it was away a moment ago, and is asked again meanwhile."""
    known = node.reach.get(name)
    if known is None or known.is_reachable:
        return None
    if time.time() - known.at > ASK_AGAIN_S:
        node.ping_now.set()
    return NoAnswer(ErrorCode.UNREACHABLE, known.note or f"host {name} does not answer", sent=False)
