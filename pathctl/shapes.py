"""shapes - what pathctl answers, as types: the JSON of `--json` and of pathctld's API.

One struct for each kind of thing, one for each answer.  The daemon builds them, the command line prints them with
`"version": VERSION` in front, `pathctl/schema.json` is made of them (`python -m pathctl.shapes`), and a test holds
the file to them and what is really printed to the file.

A new field raises nothing; a field that goes, or changes what it means, raises VERSION.  Times are seconds since the
epoch, lengths of time seconds, sizes bytes, and everything called tracks, `invalid` or `owed` is counted in tracks.
`null` means that it is not known or does not apply, never zero.
"""

import json
import sys
from typing import Any, Literal

import msgspec

VERSION = 1

Side = Literal["source", "destination"]
Direction = Literal["to_source", "to_destination"]


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This host, as its peers know it."""

    name: str
    address: str
    port: int
    fingerprint: str  # SHA-256 of its certificate, hex


class Peer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another host that this one knows."""

    name: str
    address: str
    port: int
    fingerprint: str
    reachable: bool | None  # null: not asked yet
    protocol: int | None = None  # the control protocol spoken with it
    clock_skew_s: float | None = None  # its clock less ours
    note: str | None = None  # why it is not reachable, or what is odd about it


class Volume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A volume of this host."""

    name: str
    uuid: str
    size: int
    track_size: int
    backing: str
    managed: bool  # the backing is deleted with the volume
    side: Side | None
    pair: str | None
    attached: bool  # wanted as a block device
    device: str | None
    pid: int | None  # of its nbdkit; null: it needs none
    clients: int | None
    invalid: int | None
    incomplete: bool | None  # some of its data is, or was when its pair ended, only on another host
    failed: str | None
    counters: dict[str, int] = {}


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host: str
    volume: str


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One background copy: it begins with the first track to be copied and ends when none is left.

    done_tracks + left_tracks = start_tracks + added_tracks.
    """

    copy: str  # names this copy: another value is another copy
    started_at: float
    start_tracks: int  # left to be copied when it began
    added_tracks: int  # what host writes, and losses of the link, have added since
    done_tracks: int
    left_tracks: int
    percent: float  # 0 to 100, never falls within one copy, 100 only when nothing is left
    rate_bytes_s: int | None  # of late; null: not known yet
    eta_s: float | None  # null: not known, paused, or not converging
    converging: bool | None  # false: what is left does not get less; null: too early to say


class Held(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one volume of a pair that is apart holds, so that a person can decide between the two."""

    host: str
    volume: str
    last_write: float | None = None  # by its host, at a destination by its source; may be a minute too early
    owed: int | None = None  # tracks that are known to be newer here than there; only a source counts them
    generation: str | None = None  # names its line of data: another one has another history
    incomplete: bool | None = None  # some of its data is, or was, only on another host
    in_use: bool | None = None  # attached, or served to somebody
    device: str | None = None
    ended: bool | None = None  # its host has ended its half of the pair


class Sides(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Held
    destination: Held


class Pair(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pair; what only its source knows is null while that is not heard."""

    pair: str
    state: Literal["Synchronized", "SyncInProg", "Suspended", "Partitioned", "Split", "Refused", "Creating", "Deleting"]
    since: float | None
    direction: Direction | None
    reason: str | None
    side: Side  # what the volume of this host is
    source: End
    destination: End
    invalidated: Side | None
    ready: bool | None
    committed: bool | None
    size: int
    track_size: int
    tracks: int
    invalid: int | None
    owed: int | None
    waiting: int | None  # requests that wait for the path
    copy_rate_bytes_s: int | None  # the limit set for this pair; 0: paused
    copied_bytes: int | None
    fetched_tracks: int | None
    copied_tracks: int | None
    session: int | None
    progress: Progress | None
    counters: dict[str, int] = {}
    on_path_loss: Literal["continue", "stop"] | None = None  # stop: host writes wait and then fail without the path
    sides: Sides | None = None  # what either side holds; null unless Split or Refused


class Connection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of this host's configuration table."""

    pair: str
    side: Side
    volume: str
    peer: str
    peer_volume: str
    invalidated: Side
    ready: bool
    state: Literal["creating", "ready", "suspended", "deleting"]
    port: int | None


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    step: str
    ms: float


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that has changed."""

    id: int  # grows by the order of events
    at: float
    kind: str  # `pair.state`, `connection.created`, ...: schema.KINDS has all
    volume: str | None
    pair: str | None
    peer: str | None
    actor: str  # who asked: `uid 0 (root)`, `uid 0 (root) at host beta`, `host beta`, `pathctld`
    before: str | None
    after: str | None
    cause: str | None
    message: str  # all of it as one sentence


class Resolved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `pair resolve` did: all data of the discarded side is replaced by that of the other."""

    discarded: Side
    steps: list[Step]


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a pair's state is and what to make of it, in plain words."""

    pair: str
    state: str
    since: float | None
    meaning: str
    cause: str
    safe: str
    next: str
    command: str | None  # to type now, if anything


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a command would do, of which nothing has been done."""

    steps: list[str]
    loses: list[str]  # data that would be lost or overwritten, one sentence each


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str  # `data.link_timeout_s`
    value: Any
    default: Any
    unit: str
    source: str  # `default`, or file and line
    reason: str


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a command failed, and what became of its steps."""

    code: Literal["internal", "usage", "not_found", "refused", "unreachable", "timeout"]
    message: str
    done: list[str]
    failed: str | None
    undone: list[str]
    pending: list[str]


# -- answers ----------------------------------------------------------------------------------------------


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    version: int


class ErrorAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """Any command that failed."""

    error: Failure


class StatusAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """status"""

    host: Host | None
    problems: list[str]  # what is not well with the host as a whole, one sentence each
    peers: list[Peer]
    volumes: list[Volume]
    pairs: list[Pair]


class HostAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """host init, host set, host show"""

    host: Host


class InviteAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """peer invite"""

    token: str
    expires_s: int


class PeerAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """peer join, peer set"""

    peer: Peer


class PeersAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """peer list"""

    peers: list[Peer]


class VolumeAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """volume create, volume show, volume delete, volume accept, detach"""

    volume: Volume


class VolumesAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """volume list"""

    volumes: list[Volume]


class AttachAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """attach"""

    volume: Volume
    device: str


class PairAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """pair show, pair wait, pair suspend, pair resume, pair set, pair delete"""

    pair: Pair


class PairsAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """pair list; pair watch, one a line"""

    pairs: list[Pair]


class CreatedAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """pair create"""

    pair: Pair
    device: str | None
    steps: list[Step]


class ResolvedAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """pair resolve"""

    pair: Pair
    resolved: Resolved


class PlanAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """--dry-run of any command that has it"""

    plan: Plan


class ConnectionsAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """connection list"""

    connections: list[Connection]


class EventsAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """events; with --follow one a line, each with what is new"""

    events: list[Event]


class WhyAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """why"""

    why: Why


class ConfigAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """config show, config check"""

    file: str
    settings: list[Setting]


class FileAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """backup, restore"""

    file: str
    contains: list[str]


class TextAnswer(Answer, frozen=True, forbid_unknown_fields=True):
    """metrics, completion: what is made for another program, as one text"""

    text: str


ANSWERS: tuple[type[Answer], ...] = (
    ErrorAnswer,
    StatusAnswer,
    HostAnswer,
    InviteAnswer,
    PeerAnswer,
    PeersAnswer,
    VolumeAnswer,
    VolumesAnswer,
    AttachAnswer,
    PairAnswer,
    PairsAnswer,
    CreatedAnswer,
    ResolvedAnswer,
    PlanAnswer,
    ConnectionsAnswer,
    EventsAnswer,
    WhyAnswer,
    ConfigAnswer,
    FileAnswer,
    TextAnswer,
)


def schema() -> dict[str, Any]:
    """JSON Schema 2020-12: `$defs` has one entry for each answer and for each thing in one."""
    _, components = msgspec.json.schema_components(ANSWERS, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"What pathctl --json prints, version {VERSION}",
        "$defs": components,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(schema(), indent=1, sort_keys=True) + "\n")
