"""apart - the sentences about a pair whose two volumes may have gone different ways.  Pure.

For both ends of the command line: a pair and what each of its sides holds come in as they stand in an answer (see
shapes.Pair and shapes.Held).  Every sentence that a person decides by at three in the morning is made here.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from pathctl import units

STATES = ("Split", "Refused")
# What the other data plane answered (nbdplugin/lineage.py) that is about whose data is the good one.
RESOLVABLE = ("both_moved", "peer_ahead", "rolled_back", "unrelated", "wrong_pair")
STOP = "host writes wait and then fail while the path is lost, so that the copies never part"
CONTINUE = "host writes go on at the source while the path is lost, and are copied later"

Found = Mapping[str, Any]


def end(side: Found) -> str:
    return f"{side['host']}:{side['volume']}"


def handle(pair: Found) -> str:
    """What a person on this host calls the pair: the name of its volume here."""
    return str(pair[pair["side"]]["volume"])


def holds(held: Found, pair: Found, moment: Callable[[float], str] = units.format_time) -> str:
    """What one side holds: `last written 2026-11-22 03:10:04 UTC (2h05m ago); 17 of 128 tracks (1M) that ...`."""
    words = [_written(held["last_write"], moment)]
    if held["owed"] is not None:
        size = units.format_size(min(held["owed"] * pair["track_size"], pair["size"]))
        words.append(f"{held['owed']} of {pair['tracks']} tracks ({size}) are owed to the other")
    if held["incomplete"]:
        words.append("incomplete")
    if held["ended"]:
        words.append("its half of the pair was ended")
    words.append(_use(held))
    words.append(f"generation {held['generation'][:8] if held['generation'] else 'not known'}")
    return "; ".join(words)


def _written(at: float | None, moment: Callable[[float], str]) -> str:
    if at is None:
        return "when it was last written is not known"
    return f"last written {moment(at)} ({units.format_duration(time.time() - at)} ago)"


def _use(held: Found) -> str:
    if held["in_use"] is None:
        return "whether it is in use is not known"
    if not held["in_use"]:
        return "not in use"
    return f"in use ({held['device']})" if held["device"] else "in use"


def both(pair: Found) -> str:
    """What both sides hold, as two sentences; empty where nothing is known of either."""
    sides = pair["sides"]
    if sides is None:
        return ""
    return " ".join(f"{end(sides[side])}: {holds(sides[side], pair)}." for side in ("source", "destination"))


def resolve(pair: Found, discard: str) -> str:
    """What is typed on this host to see what it loses to discard one side."""
    return f"pathctl pair resolve {handle(pair)} --discard {discard}"


def ways_out(pair: Found) -> str:
    """Either command, by what it keeps."""
    source, destination = end(pair["source"]), end(pair["destination"])
    return (
        f"to keep the data of {source} and discard that of {destination}: `{resolve(pair, 'destination')} --dry-run`; "
        f"to keep the data of {destination} and discard that of {source}: `{resolve(pair, 'source')} --dry-run`. "
        "Either says what it loses, and with --yes in place of --dry-run does it: the side that is kept is copied over "
        "the other as a whole. Save first what is needed of the other."
    )


def ended(peer: str, peer_volume: str, volume: str, *, is_split: bool) -> str:
    """The reason that is shown where the other host has freed its half of a pair."""
    if is_split:
        return (
            f"host {peer} ended its half of the pair, and {peer}:{peer_volume} was written since: both volumes may "
            "hold data that the other lacks"
        )
    return (
        f"host {peer} has no such pair any more; free this half with `pathctl pair delete {volume} --half`, with "
        "--dry-run first to see what that loses, or go on with the pair (pair resolve)"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def disk(volume: Found) -> str:
    """What is told of a volume whose disk gives read errors; counted since its process was started."""
    counters = volume["counters"]
    failed, answered, repaired = (counters.get(key, 0) for key in ("read_errors", "peer_reads", "repaired_tracks"))
    return (
        f"volume {volume['name']}: its disk failed to read {_times(failed)}, {_times(answered)} the other side's data "
        f"was given instead, {_times(repaired)} a track was written anew; look at the disk (dmesg, SMART) under "
        f"{volume['backing']}"
    )
