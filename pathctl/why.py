"""why - what a pair's state means, for somebody who was woken by it.  Pure: facts in, five sentences out.

`situation` finds the first row that fits the facts; SITUATIONS (and, for a refusal, refusals) say what each of
them means and what to do; what is safe follows from what is left, and where.  A command is named only where it is
right as it stands: where a person has to decide first, `next` says what about and what the commands for either way are.
"""

import enum
import re
from collections.abc import Mapping

import msgspec

from pathctl import apart, refusals, shapes, units


class Situation(enum.Enum):
    CREATING = enum.auto()
    CREATING_AWAY = enum.auto()
    DELETING = enum.auto()
    DELETING_AWAY = enum.auto()
    ENDED_THERE = enum.auto()
    FAILED = enum.auto()
    HUNG = enum.auto()
    DOWN = enum.auto()
    SILENT = enum.auto()
    SUSPENDED = enum.auto()
    SPLIT = enum.auto()
    REFUSED = enum.auto()
    OTHER_PAIR = enum.auto()
    CONNECTING = enum.auto()
    LINK_DOWN = enum.auto()
    PEER_DOWN = enum.auto()
    SOURCE_AWAY = enum.auto()
    SOURCE_AWAY_LINKED = enum.auto()
    COPY_FAILING = enum.auto()
    PAUSED = enum.auto()
    PAUSED_HOST = enum.auto()
    STUCK = enum.auto()
    COPYING = enum.auto()
    CONFIRMING = enum.auto()
    DEVICE_FAILED = enum.auto()
    DISK_FAILING = enum.auto()
    SYNCHRONIZED = enum.auto()


class Facts(msgspec.Struct, frozen=True):
    """What this host knows of the pair.  `peer` is the other host; the volume `failed` and so on is the local one."""

    pair: shapes.Pair
    peer: str
    is_reachable: bool | None = None  # the peer's pathctld
    peer_note: str | None = None
    note: str | None = None  # of the journal: what the operation waits for
    is_heard: bool = True  # the source's data plane told its part
    is_linked: bool = False  # seen from a destination: its data plane has a session
    heard_s: float | None = None  # seen from a destination: since when nothing has come from the source
    is_ended_there: bool = False  # the other host has no such pair any more
    link_error: str | None = None
    copy_error: str | None = None
    failed: str | None = None  # as the volume's process says itself
    silent: str | None = None  # why the volume's process says nothing
    hung: int | None = None  # the process: alive, and it does not answer
    is_down: bool = False  # the process does not start
    fetch_timeout_s: float | None = None
    incomplete: bool | None = None
    device_failed: str | None = None
    read_errors: int = 0  # of the local volume's disk
    peer_reads: int = 0  # those of them that were answered with the other side's data
    repaired_tracks: int = 0
    limit_bytes_s: int | None = None  # in force at the source's data plane: of the pair, or its share of the host's
    actor: str | None = None  # of the last change of state
    cause: str | None = None


class Text(msgspec.Struct, frozen=True):
    """Templates: `_names` says what is filled in."""

    meaning: str
    next: str
    command: str | None = None
    cause: str | None = None  # where the facts have none


_HALF = "pathctl pair delete {volume} --half --dry-run"
_FREE = " says what that loses{loss}. The same with --yes in place of --dry-run does it."

SITUATIONS: Mapping[Situation, Text] = {
    Situation.CREATING: Text(
        "The pair is being created; its volumes are reserved for it, and nothing of it is promised yet.",
        "pathctld finishes it or undoes it by itself, usually within seconds.",
        cause="A `pair create` is under way.",
    ),
    Situation.CREATING_AWAY: Text(
        "The pair was being created and this could not be ended, because host {peer} has to be asked and does not "
        "answer.",
        "As soon as {peer} answers, pathctld finishes or undoes it by itself: bring {peer} or the network back. Only "
        "if {peer} is gone for good, free this host's half: the command below" + _FREE,
        _HALF,
    ),
    Situation.DELETING: Text(
        "The pair is being deleted; both volumes stay.",
        "pathctld finishes it by itself, usually within seconds.",
        cause="A `pair delete` is under way.",
    ),
    Situation.DELETING_AWAY: Text(
        "The pair is being deleted, and host {peer} has not confirmed its half yet.",
        "As soon as {peer} answers, pathctld finishes it by itself: bring {peer} or the network back. Only if {peer} "
        "is gone for good, free this host's half: the command below" + _FREE,
        _HALF,
    ),
    Situation.ENDED_THERE: Text(
        "Host {peer} has no such pair any more; this half of it is left over, and nothing is copied.",
        "Nothing happens by itself. Free this half, the volume stays: the command below" + _FREE + "{goes_on}",
        _HALF,
        cause="The pair was ended at {peer} without this host (`pair delete --half`, or {peer} was set up anew).",
    ),
    Situation.FAILED: Text(
        "Volume {volume} on this host has failed: its store or its track table gave an error.",
        "Nothing is repaired by itself, and a failed write or flush is not tried again as if it had not happened. See "
        "what the disk under it says (dmesg, SMART). Then put the data on a good disk: delete the pair (`"
        + refusals.DELETE
        + "`"
        + refusals.DELETES
        + "), make a volume there and create the pair anew with the failed side as the invalid one.",
    ),
    Situation.SPLIT: Text(
        "Both volumes may hold data that the other lacks (split brain): nothing is copied, and neither is changed.",
        "Nothing happens by itself, and no program can decide this.{ways}",
        cause="Both volumes were written without the other.",
    ),
    Situation.SUSPENDED: Text(
        "The path was made not ready by command: nothing is copied, host writes stay on {source} and are remembered.",
        "It stays so until somebody resumes it; then what is left is copied by itself.",
        "pathctl pair resume {volume}",
    ),
    Situation.HUNG: Text(
        "Process {hung} of volume {volume} is alive but does not answer{still}.",
        "Nothing happens by itself. `ps {hung}` shows its state: with D it waits for a disk (see dmesg) and ends only "
        "once that answers, with T it was stopped (`kill -CONT {hung}`). Else end it with the command below: "
        "acknowledged writes survive that, and pathctld starts it again at once.",
        "kill -9 {hung}",
    ),
    Situation.DOWN: Text(
        "The process of volume {volume} does not start{still}.",
        "pathctld tries it every few seconds and goes on by itself once the cause is gone. More is in its log: "
        "log/{volume}.log in pathctl's state folder.",
        "pathctl volume show {volume}",
    ),
    Situation.SILENT: Text(
        "The process of volume {volume} does not answer{still}.",
        "If it has ended, pathctld starts it again by itself, at once and then every few seconds. If that does not "
        "help, its log says why: log/{volume}.log in pathctl's state folder.",
        "pathctl volume show {volume}",
    ),
    Situation.OTHER_PAIR: Text(
        "The configuration of this host and what volume {volume} itself has recorded do not agree: by its own record "
        "it is not in this pair.",
        "Nothing happens by itself; the configuration is probably an older one that was restored. Free the volume: the "
        "command below" + _FREE + " Then see with `pathctl volume show {volume}` whether its "
        "data is complete, and create the pair anew.",
        _HALF,
    ),
    Situation.CONNECTING: Text(
        "The path is wanted and its data connection is just being made.",
        "It is up within seconds, or the reason shows here.",
        cause="The data connection from {source} to {destination} is being made.",
    ),
    Situation.LINK_DOWN: Text(
        "Host {peer} answers, but the data connection from {source} to {destination} is down.",
        "The data plane of {source} goes on trying by itself and copies what is left once it is through. See that the "
        "firewalls let the data ports through (the destination's, 7700 to 7899 unless set otherwise), and on "
        "{destination_host} that the process of {destination} runs (`pathctl volume list`).",
        cause="The data connection cannot be made.",
    ),
    Situation.PEER_DOWN: Text(
        "Host {peer} is not heard at all: neither its pathctld nor its data plane answers.",
        "Both go on trying by themselves and what is left is copied once it is back. Bring {peer} or the network "
        "between the hosts back. If {peer} moved to another address: `pathctl peer set {peer} --address ADDRESS`. If "
        "it is gone for good: `" + _HALF + "`" + _FREE + " Then pair {volume} with another host.",
        cause="Host {peer} does not answer.",
    ),
    Situation.SOURCE_AWAY: Text(
        "Host {peer}, which has the source, is not heard: neither its pathctld nor its data connection.{heard}",
        "Once it is back, everything goes on by itself. If {peer} is gone for good and this copy is to take over, "
        "make sure that {peer} cannot come back with the old volume in use, then: `" + _HALF + "`" + _FREE + " Then "
        "{accept}`pathctl attach {volume}`.",
        cause="Host {peer} does not answer.",
    ),
    Situation.SOURCE_AWAY_LINKED: Text(
        "The data connection from {source} was heard {heard_s} ago; pathctld on {peer}, which knows the state, is not "
        "heard.",
        "As long as the data connection is there, writes and the copy, if one is under way, go on without pathctld. "
        "See on {peer} that it runs, and that its port (7630 unless set otherwise) is let through.",
        cause="pathctld on {peer} does not answer.",
    ),
    Situation.COPY_FAILING: Text(
        "The path is there, but the copy meets errors.",
        "It is tried again every second. If the error stays, look at the disk that it names.",
    ),
    Situation.PAUSED: Text(
        "The path is there and host writes go to both sides, but the background copy is paused: its rate is 0.",
        "Nothing gets less until it may run again: with `none` for no limit, or a rate as in 50M.",
        "pathctl pair set {volume} --copy-rate none",
        "The rate of this copy was set to 0 (`--copy-rate`).",
    ),
    Situation.PAUSED_HOST: Text(
        "The path is there and host writes go to both sides, but the background copies of host {source_host} are "
        "paused.",
        "Nothing gets less until they may run again. On {source_host}, `pathctl config show` says where "
        "copy.rate_bytes_s or copy.pair_rate_bytes_s is set to 0: change it there and restart pathctld.",
        cause="The settings of host {source_host} pause all copies, or those without a rate of their own.",
    ),
    Situation.STUCK: Text(
        "The copy runs but does not get nearer to its end: {left} left, {rate}.",
        "It goes on like this until the copy becomes faster or less is written.{limit}",
        cause="As much is added as is copied, or the network or a disk brings nothing over.",
    ),
    Situation.COPYING: Text(
        "The path is there and the copy runs: {left} left, {rate}.",
        "{eta}",
        cause="Not everything is on both sides yet, and what is missing is being copied.",
    ),
    Situation.CONFIRMING: Text(
        "Everything has been copied; {destination} is making it durable and has not confirmed yet.",
        "It is Synchronized within seconds.",
        cause="The copy has just ended.",
    ),
    Situation.DEVICE_FAILED: Text(
        "The pair is well, but the block device of volume {volume} on this host is dead: the process behind it ended.",
        "End what uses the device (unmount it), then attach the volume again. Acknowledged writes are on the volume; "
        "what was in a page cache and not flushed is lost.",
        "pathctl attach {volume}",
    ),
    Situation.DISK_FAILING: Text(
        "The pair is well, but the disk under volume {volume} on this host fails: {read_errors} reads of it gave an "
        "error, and {peer_reads} of them were answered with the data of the other side.",
        "See what the disk says (dmesg, SMART) and put the data on a good one before the other side is lost too: "
        "delete the pair (`"
        + refusals.DELETE
        + "`"
        + refusals.DELETES
        + "), make a volume there and create the pair anew with it as the invalid one.",
        cause="The disk of volume {volume}; {repaired_tracks} tracks were written anew with the other side's data.",
    ),
    Situation.SYNCHRONIZED: Text(
        "Both volumes hold the same data, and every write goes to both before it is acknowledged.",
        "It stays so until the path is lost or somebody changes it.",
        cause="Nothing is left to be copied and {destination} has confirmed it.",
    ),
}


_HALF_DEAF = (
    " But pathctld on host {peer} does not answer: data goes on without it, commands need it. See on {peer} that it "
    "runs, and that its port (7630 unless set otherwise) is let through."
)
_REFUSED = "The path is wanted, but {destination} refuses {source}: no data moves, and the refusal has changed nothing."


# The process of the volume here says nothing of this pair.
_UNKNOWN = (Situation.HUNG, Situation.DOWN, Situation.SILENT, Situation.OTHER_PAIR)


def situation(facts: Facts) -> Situation:
    """The first that fits."""
    pair = facts.pair
    is_away = facts.is_reachable is False or facts.note is not None
    if pair.state == "Creating":
        return Situation.CREATING_AWAY if is_away else Situation.CREATING
    if pair.state == "Deleting":
        return Situation.DELETING_AWAY if is_away else Situation.DELETING
    if pair.state == "Split" and facts.failed is None and facts.silent is None:
        return Situation.SPLIT
    if facts.is_ended_there:
        return Situation.ENDED_THERE
    if facts.failed is not None:
        return Situation.FAILED
    if facts.silent is not None:
        return Situation.HUNG if facts.hung is not None else Situation.DOWN if facts.is_down else Situation.SILENT
    match pair.state:
        case "Suspended":
            return Situation.SUSPENDED
        case "Refused":
            return Situation.REFUSED
        case "Partitioned":
            return _why_apart(facts)
        case "SyncInProg":
            return _why_copying(facts)
        case _:
            return _why_well(facts) or Situation.SYNCHRONIZED


def _why_well(facts: Facts) -> Situation | None:
    """What is wrong beside the pair itself."""
    if facts.device_failed:
        return Situation.DEVICE_FAILED
    return Situation.DISK_FAILING if facts.read_errors else None


def _why_apart(facts: Facts) -> Situation:
    if not facts.is_heard and facts.pair.side == "destination":
        return Situation.SOURCE_AWAY_LINKED if facts.is_linked else Situation.SOURCE_AWAY
    if not facts.is_heard:
        return Situation.OTHER_PAIR
    if facts.is_reachable is False:
        return Situation.PEER_DOWN
    return Situation.LINK_DOWN if facts.link_error or facts.pair.reason else Situation.CONNECTING


def _why_copying(facts: Facts) -> Situation:
    pair = facts.pair
    if facts.copy_error or pair.reason:
        return Situation.COPY_FAILING
    if not pair.invalid and not pair.owed:
        return Situation.CONFIRMING
    if pair.copy_rate_bytes_s == 0:
        return Situation.PAUSED
    if facts.limit_bytes_s == 0:
        return Situation.PAUSED_HOST
    if pair.progress is not None and pair.progress.converging is False:
        return Situation.STUCK
    return _why_well(facts) or Situation.COPYING


def explain(facts: Facts) -> shapes.Why:
    """All that is to be said of the pair."""
    found, names = situation(facts), _names(facts)
    if found is Situation.REFUSED:
        refusal = refusals.find(facts.link_error or facts.pair.reason or "")
        text = Text(_REFUSED, refusal.next, refusal.command, "{destination} refuses the path.")
        if refusal.decide is not None and facts.pair.sides is not None:
            text = Text(_REFUSED, f"Nothing happens by itself. {refusal.decide}{{ways}}", None, text.cause)
    else:
        text = SITUATIONS[found]
    return shapes.Why(
        pair=facts.pair.pair,
        state=facts.pair.state,
        since=facts.pair.since,
        meaning=text.meaning.format_map(names) + _halted(facts, names),
        cause=_cause(facts, found) or (text.cause or "The cause is not known.").format_map(names),
        safe=_safe(facts, found, names) + _stopping(facts),
        next=text.next.format_map(names) + (_HALF_DEAF.format_map(names) if _is_half_deaf(facts, found) else ""),
        command=None if text.command is None else text.command.format_map(names),
    )


_APART = ("Partitioned", "Split", "Refused")


def _is_halted(facts: Facts) -> bool:
    """Host writes wait now."""
    return facts.pair.on_path_loss == "stop" and facts.pair.state in _APART


def _halted(facts: Facts, names: dict[str, str]) -> str:
    if not _is_halted(facts):
        return ""
    limit = units.format_duration(facts.fetch_timeout_s) if facts.fetch_timeout_s else "data.fetch_timeout_s"
    return (
        f" Host writes to {names['source']} wait for the path and fail after {limit}, as the pair has --on-path-loss "
        f"stop; `pathctl pair set {names['volume']} --on-path-loss continue` lets them go on, and the copies part."
    )


def _stopping(facts: Facts) -> str:
    """What is going to be if the path is lost."""
    is_up = facts.pair.on_path_loss == "stop" and facts.pair.state in ("Synchronized", "SyncInProg")
    return f" Policy stop: {apart.STOP}." if is_up else ""


def _is_half_deaf(facts: Facts, found: Situation) -> bool:
    """The data connection is up, and the peer's pathctld is away."""
    return facts.is_reachable is False and found in (
        Situation.COPYING,
        Situation.CONFIRMING,
        Situation.PAUSED,
        Situation.STUCK,
        Situation.SYNCHRONIZED,
    )


def _names(facts: Facts) -> dict[str, str]:
    pair, progress = facts.pair, facts.pair.progress
    source, destination = (f"{end.host}:{end.volume}" for end in (pair.source, pair.destination))
    is_source = pair.side == "source"
    mine = pair.source if is_source else pair.destination
    eta = progress.eta_s if progress is not None else None
    rate = progress.rate_bytes_s if progress is not None else None
    limit = (
        f" It is limited to {units.format_rate(pair.copy_rate_bytes_s)}: lift that with `pathctl pair set "
        f"{mine.volume} --copy-rate none`."
    )
    return {
        "peer": facts.peer,
        "source": source,
        "destination": destination,
        "source_host": pair.source.host,
        "destination_host": pair.destination.host,
        # As `pair create` wants them on this host.
        "source_at": pair.source.volume if is_source else source,
        "destination_at": destination if is_source else pair.destination.volume,
        "volume": mine.volume,
        "hung": str(facts.hung),
        "still": ", so the state of its data is not known and its device stands still"
        if is_source
        else f", so {source} cannot reach this copy",
        "heard": "" if facts.heard_s is None else f" Nothing came from it for {units.format_duration(facts.heard_s)}.",
        "heard_s": "a moment" if (facts.heard_s or 0) < 2 else units.format_duration(facts.heard_s or 0),
        "loss": _loss(facts, destination),
        "ways": _ways(facts),
        "goes_on": f" Or let the pair go on.{_ways(facts)}" if pair.sides is not None else "",
        "read_errors": str(facts.read_errors),
        "peer_reads": str(facts.peer_reads),
        "repaired_tracks": str(facts.repaired_tracks),
        "usable": "can be read, while writes wait" if _is_halted(facts) else "can be used",
        "left": _tracks(pair, (pair.invalid or 0) + (pair.owed or 0)),
        "rate": "at a rate not known yet" if rate is None else f"at {units.format_size(rate)}/s",
        "eta": "It ends by itself; how long it takes is not known yet."
        if eta is None
        else f"It ends by itself, in about {units.format_duration(eta)} if that goes on getting less as it does now.",
        "limit": limit if pair.copy_rate_bytes_s else "",
        "accept": f"`pathctl volume accept {mine.volume} --dry-run` (this copy is a mixture: what was copied "
        "so far, and what lay here before; see what that loses, then the same with --yes) and "
        if facts.incomplete
        else "",
    }


def _ways(facts: Facts) -> str:
    """Either way to resolve the pair, where there is one."""
    if facts.pair.sides is None:
        return ""
    said = apart.ways_out(msgspec.to_builtins(facts.pair))
    away = f" Host {facts.peer} has to be reachable for it." if facts.is_reachable is False else ""
    return f" Whose data is kept is yours to say: {said}{away}"


def _loss(facts: Facts, destination: str) -> str:
    """What freeing this half alone costs, where that is known."""
    pair = facts.pair
    if pair.side == "source" and pair.invalid:
        return f": {_tracks(pair, pair.invalid)}, which are only at {destination}"
    if pair.side == "destination" and facts.incomplete:
        return ": this copy stays incomplete, since some of the data is only at the source"
    return ""


def _tracks(pair: shapes.Pair, count: int) -> str:
    return f"{count} of {pair.tracks} tracks ({units.format_size(min(count * pair.track_size, pair.size))})"


def _cause(facts: Facts, found: Situation) -> str | None:
    """What is known of why, the nearest first."""
    for known in _causes(facts, found):
        if known:
            return _sentence(known)
    return None


def _causes(facts: Facts, found: Situation) -> tuple[str | None, ...]:
    reason = facts.pair.reason
    match found:
        case Situation.FAILED:
            return (facts.failed,)
        case Situation.DEVICE_FAILED:
            return (facts.device_failed,)
        case Situation.CREATING_AWAY | Situation.DELETING_AWAY:
            return facts.note, facts.peer_note, f"host {facts.peer} does not answer"
        case Situation.SUSPENDED | Situation.CREATING | Situation.DELETING:
            return (_by_whom(facts),)
        case Situation.SPLIT:
            return reason, facts.link_error
        case Situation.REFUSED | Situation.LINK_DOWN:
            return facts.link_error, reason
        case Situation.PEER_DOWN:
            return facts.peer_note, facts.link_error, reason
        case Situation.HUNG | Situation.DOWN | Situation.SILENT:
            return facts.silent, reason
        case Situation.OTHER_PAIR | Situation.ENDED_THERE:
            return (reason if found is Situation.OTHER_PAIR else None,)
        case Situation.SOURCE_AWAY | Situation.SOURCE_AWAY_LINKED:
            return facts.peer_note, reason
        case Situation.COPY_FAILING:
            return facts.copy_error, reason
        case _:
            return (None,)


def _by_whom(facts: Facts) -> str | None:
    if facts.actor is None or facts.actor == "pathctld":
        return facts.cause
    return f"it was asked for by {facts.actor}" + (f": {facts.cause}" if facts.cause else "")


def _sentence(text: str) -> str:
    """First letter large unless it is a name or command, a full stop at the end."""
    first = text[0].upper() + text[1:] if re.match(r"[a-z]+ ", text) else text
    return first if first.endswith((".", "!", "?")) else f"{first}."


def _safe(facts: Facts, found: Situation, names: dict[str, str]) -> str:
    """What may be relied on, and what must be kept."""
    pair = facts.pair
    if found in (Situation.CREATING, Situation.CREATING_AWAY):
        return (
            f"The data of both volumes is as it was, unless the pair was already made ready; {names['source']} can be "
            "used, and its writes are remembered. Do not write to the other volume."
        )
    if found in (Situation.DELETING, Situation.DELETING_AWAY):
        return f"Both volumes keep what they hold; {names['source']} can be used. {_whole_here(facts)}"
    if pair.side == "destination" and (not facts.is_heard or facts.is_ended_there):
        return f"Nothing is lost by waiting. {_whole_here(facts)}"
    if pair.side == "source" and found in _UNKNOWN:
        return (
            "Every acknowledged write was put on the disk or sent to the other host. Leave both volumes and their "
            "metadata files as they are; delete neither."
        )
    if found is Situation.FAILED:
        return (
            f"What was acknowledged before is at {names['source']}, at {names['destination']} or both: delete neither. "
            f"{_safe_left(facts, names)}"
        )
    return _safe_left(facts, names)


def _whole_here(facts: Facts) -> str:
    volume = "this host's volume"
    if facts.incomplete is None:
        return f"Whether {volume} is complete is not known; see `pathctl volume list`."
    if facts.incomplete:
        return (
            f"The copy on {volume} is incomplete: some of the data is only on host {facts.peer}. Do not use it alone."
        )
    return f"The copy on {volume} is complete as of when the hosts last heard each other."


def _reading(facts: Facts) -> str:
    """Whether the source can be used, of which something is only at the destination."""
    limit = units.format_duration(facts.fetch_timeout_s) if facts.fetch_timeout_s else "data.fetch_timeout_s, 10m00s"
    if facts.pair.state in ("SyncInProg", "Synchronized"):
        return (
            f"All of it can be read and written while the path is there; without, reading those waits ({limit}) and "
            "then fails."
        )
    return f"The path is not there: reading those waits ({limit}) and then fails; the rest can be read and written."


def _safe_left(facts: Facts, names: dict[str, str]) -> str:
    """By what is left: both tables are the source's, which knows."""
    pair = facts.pair
    if pair.sides is not None:
        return (
            "Neither is changed, and nothing is lost by waiting; what is still written to either is what the other "
            f"lacks, too. {apart.both(msgspec.to_builtins(pair))}"
        )
    source, destination = names["source"], names["destination"]
    if pair.invalid is None or pair.owed is None:
        return "How much is left is not known; delete neither volume."
    if pair.invalid and pair.owed:
        return (
            f"{_tracks(pair, pair.invalid)} of {source} are only at {destination}. {_reading(facts)} "
            f"{_tracks(pair, pair.owed)} are only at {source}: both volumes are needed, delete neither."
        )
    if pair.invalid:
        return (
            f"{_tracks(pair, pair.invalid)} of {source} are only at {destination}. {_reading(facts)} Do not touch "
            f"{destination}."
        )
    if pair.owed:
        return (
            f"{source} is complete and {names['usable']}. {destination} lacks {_tracks(pair, pair.owed)} and must not "
            f"be used yet: until they are copied, {source} is the only good copy."
        )
    if pair.state == "Synchronized":
        return "Either host may fail now and the data is complete on the other."
    whole = f"{source} is complete and {names['usable']}"
    return f"Nothing is known to differ: {whole}, {destination} has all that was copied."
