"""show - answers of pathctld as people read them: tables, one-line sentences, facts.

On a terminal with colour and in columns that fit it (rich, imported only then), piped as plain aligned text, one line
for each thing, never wrapped.  The values are those of the API (see shapes); what a field may be is written there.
"""

import math
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from pathctl import apart, units

Row = Sequence[str]
Found = dict[str, Any]

DONE_STATE = "Synchronized"
APART = ("Suspended", "Partitioned", "Split", "Refused")
KIND = 20  # columns of the longest kind of event: a test holds it to schema.KINDS
COLOURS = {"Synchronized": "green", "SyncInProg": "cyan", "Suspended": "yellow", "Creating": "yellow"}
COLOURS |= {"Deleting": "yellow", "Partitioned": "red", "Split": "red", "Refused": "red"}
_LONG = {"SOURCE", "DESTINATION", "VOLUME", "PEER", "PEER VOLUME", "KEY", "VALUE", "FROM", "WHY", "NOTE"}  # may wrap
_DIRECTIONS = {"to_source": "destination to source", "to_destination": "source to destination"}


def is_terminal() -> bool:
    return sys.stdout.isatty()


def clean(text: object) -> str:
    """What would move the cursor or cannot be seen is shown as an escape: names come from others."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in str(text))


def table(headings: Row, rows: Sequence[Row], nothing: str, optional: Sequence[str] = ()) -> None:
    """Print rows under headings, or `nothing` if there are none.

    On a terminal that is too narrow for all, the columns of `optional` go, one by one from its first.
    """
    cleaned = [[clean(cell) for cell in row] for row in rows]
    if not rows:
        print(nothing)
    elif is_terminal():
        _rich_table(*_narrowed(headings, cleaned, optional))
    else:
        _plain_table(headings, cleaned)


def _narrowed(headings: Row, rows: Sequence[Row], optional: Sequence[str]) -> tuple[Row, Sequence[Row]]:
    import shutil

    width = shutil.get_terminal_size().columns
    for name in optional:
        needed = sum(max(map(len, column)) + 2 for column in zip(headings, *rows, strict=True)) - 2
        if needed <= width:
            break
        at = headings.index(name)
        headings, rows = [*headings[:at], *headings[at + 1 :]], [[*row[:at], *row[at + 1 :]] for row in rows]
    return headings, rows


def _rich_table(headings: Row, rows: Sequence[Row]) -> None:
    from rich import console, table, text

    grid = table.Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        grid.add_column(heading, overflow="fold", no_wrap=heading not in _LONG)
    for row in rows:
        grid.add_row(*(text.Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    console.Console().print(grid)


def _plain_table(headings: Row, rows: Sequence[Row]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print one thing's names and values, one a line; without those that have none."""
    lines = [(name, clean(value)) for name, value in pairs if value not in (None, "")]
    width = max(len(name) for name, _value in lines)
    for name, value in lines:
        print(f"{name.ljust(width)}  {value}")


# -- times ------------------------------------------------------------------------------------------------


def moment(at: float | None) -> str:
    """Local time, with its offset: `2026-11-22 14:03:10 +0100`."""
    return "-" if at is None else time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at))


def short_moment(at: float | None) -> str:
    """The time of day of today, else month, day and time."""
    if at is None:
        return "-"
    when = time.localtime(at)
    is_today = when[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if is_today else "%m-%d %H:%M", when)


def ago(at: float | None) -> str:
    """`2026-11-22 14:03:10 +0100 (3m10s ago)`."""
    return "" if at is None else f"{moment(at)} ({units.format_duration(time.time() - at)} ago)"


# -- volumes ----------------------------------------------------------------------------------------------


def volumes(found: Sequence[Found]) -> None:
    headings = ("VOLUME", "SIZE", "TRACK", "SIDE", "PAIR", "DEVICE", "CLIENTS", "INVALID", "NOTE")
    table(headings, [_volume_row(volume) for volume in found], "no volumes")


def _volume_row(volume: Found) -> Row:
    return (
        volume["name"],
        units.format_size(volume["size"]),
        units.format_size(volume["track_size"]),
        volume["side"] or "-",
        short(volume["pair"]),
        volume["device"] or "-",
        number(volume["clients"]),
        number(volume["invalid"]),
        volume_note(volume) or "-",
    )


def volume_note(volume: Found) -> str:
    return volume["failed"] or ("incomplete" if volume["incomplete"] else "")


def _incompleteness(volume: Found) -> str:
    """All about a volume that lacks data, and what to do."""
    if not volume["incomplete"]:
        return ""
    if volume["pair"]:
        return "incomplete until its pair is Synchronized"
    tracks = -(-volume["size"] // volume["track_size"])
    lacking = f"{volume['invalid']} of {tracks} tracks" if volume["invalid"] else "some tracks"
    return (
        f"incomplete: {lacking} were only on another host; make it complete as the side of a new pair that is marked "
        f"invalid, or take it as it is with `pathctl volume accept {volume['name']}`"
    )


def volume(found: Found) -> None:
    kind = "managed: deleted with the volume" if found["managed"] else "kept when the volume is deleted"
    facts(
        [
            ("volume", found["name"]),
            ("uuid", found["uuid"]),
            ("size", f"{units.format_size(found['size'])} ({found['size']} bytes)"),
            ("track size", units.format_size(found["track_size"])),
            ("backing", f"{found['backing']} ({kind})"),
            ("pair", f"{found['side']} of {found['pair']}" if found["pair"] else "none"),
            ("device", found["device"] or ("attached" if found["attached"] else "not attached")),
            ("process", f"{found['pid']}, {counted(found['clients'], 'client')}" if found["pid"] else "none"),
            ("invalid", counted(found["invalid"], "track")),
            ("note", found["failed"] or _incompleteness(found)),
        ]
    )


# -- pairs ------------------------------------------------------------------------------------------------


def pairs(found: Sequence[Found]) -> None:
    headings = ("PAIR", "STATE", "SOURCE", "DESTINATION", "HERE", "INVALID", "OWED", "DONE", "RATE LIMIT")
    table(headings, [_pair_row(pair) for pair in found], "no pairs")


def _pair_row(pair: Found) -> Row:
    return (
        short(pair["pair"]),
        pair["state"],
        end(pair["source"]),
        end(pair["destination"]),
        pair["side"],
        number(pair["invalid"]),
        number(pair["owed"]),
        done(pair),
        rate_limit(pair),
    )


def pair(found: Found) -> None:
    direction = found["direction"]
    facts(
        [
            ("pair", found["pair"]),
            ("state", found["state"] + (f", {_DIRECTIONS.get(direction, direction)}" if direction else "")),
            ("since", ago(found.get("since"))),
            ("reason", found["reason"]),
            ("source", end(found["source"])),
            ("destination", end(found["destination"])),
            *_side_facts(found),
            ("this side", found["side"]),
            ("path", path(found)),
            ("path loss", on_path_loss(found)),
            ("invalidated", found["invalidated"]),
            ("size", f"{units.format_size(found['size'])}, {counted(found['tracks'], 'track')}"),
            ("invalid", number(found["invalid"])),
            ("owed", number(found["owed"])),
            ("done", done(found)),
            *_progress_facts(found),
            ("copied", f"{counted(found['copied_tracks'], 'track')} in the background"),
            ("fetched", f"{counted(found['fetched_tracks'], 'track')} on demand"),
            ("waiting", counted(found["waiting"], "request")),
            ("rate limit", rate_limit(found)),
        ]
    )


def _side_facts(found: Found) -> list[tuple[str, object]]:
    """What a person decides by where the two volumes may have gone different ways."""
    sides = found.get("sides")
    if sides is None:
        return []
    told = [(f"at {side}", apart.holds(sides[side], found, moment)) for side in ("source", "destination")]
    return [
        *told,
        ("keep source", apart.resolve(found, "destination")),
        ("keep destination", apart.resolve(found, "source")),
    ]


def on_path_loss(found: Found) -> str:
    words = {"continue": f"continue: {apart.CONTINUE}", "stop": f"stop: {apart.STOP}"}
    return words.get(found.get("on_path_loss") or "", "-")


def _progress_facts(found: Found) -> list[tuple[str, object]]:
    progress = found.get("progress")
    if not progress:
        return []
    return [
        ("copy began", ago(progress["started_at"])),
        ("at start", _tracks(progress["start_tracks"], found)),
        ("left", _tracks(progress["left_tracks"], found)),
        ("added", f"{_tracks(progress['added_tracks'], found)} by writes and lost links since"),
        ("rate", rate(found)),
        ("to go", to_go(found)),
    ]


def _tracks(count: int, found: Found) -> str:
    return f"{counted(count, 'track')} ({units.format_size(count * found['track_size'])})"


def pair_line(found: Found) -> str:
    """One line of `pair watch`: pair, volume here, state, direction, how much is done and left, the reason."""
    words = [short(found["pair"]), clean(handle(found)), found["state"]]
    if found["direction"]:
        words.append(_DIRECTIONS.get(found["direction"], found["direction"]))
    words += [done(found), left_words(found), *_speed_words(found)]
    if found["reason"]:
        words.append(clean(found["reason"]))
    return "  ".join(words)


def left_words(found: Found) -> str:
    """What is left of the copy under way, what it began with and what came to it since; else what is, of the volume."""
    count, progress = left(found), found.get("progress")
    if not count or progress is None or found["state"] != "SyncInProg":
        return f"{number(count)} of {found['tracks']} tracks left"
    added = f" and {progress['added_tracks']} added since" if progress["added_tracks"] else ""
    return f"{counted(count, 'track')} left of {progress['start_tracks']} at the start{added}"


def progress_words(found: Found, with_parts: bool) -> str:
    """What stands beside a bar: how much is done and left in bytes, of what, how fast, how long."""
    count = left(found)
    words = [f"{done(found):>5}"]
    if count is not None:
        words.append(
            f"{units.format_size(count * found['track_size'])} left{_parts(found, count) if with_parts else ''}"
        )
    return "  ".join([*words, *_speed_words(found)])


def _parts(found: Found, count: int) -> str:
    """` of 256M+3M`: what the copy under way began with, and what has been added since."""
    progress = found.get("progress")
    if not count or progress is None or found["state"] != "SyncInProg":
        return ""
    start, added = (units.format_size(progress[key] * found["track_size"]) for key in ("start_tracks", "added_tracks"))
    return f" of {start}+{added}" if progress["added_tracks"] else f" of {start}"


def _speed_words(found: Found) -> list[str]:
    goes = to_go(found)
    words = [rate(found), f"{goes} to go" if goes and goes[0].isdigit() else goes]
    return [word for word in words if word]


def left(found: Found) -> int | None:
    """Tracks that have still to be copied, either way; None when the source's data plane was not heard."""
    if found["invalid"] is None or found["owed"] is None:
        return None
    return int(found["invalid"] + found["owed"])


def percent(found: Found) -> float | None:
    """Of the copy under way, 0 to 99.9, which ends at 100 when the destination has confirmed it.

    While the path is away none is under way: then 100 where nothing is left (what the destination had not made
    durable would be owed again), else None: what there will be to copy is `left`, of a copy that is still to come.
    """
    if found["state"] == DONE_STATE or (found["state"] in APART and left(found) == 0):
        return 100.0
    progress = found.get("progress")
    if found["state"] != "SyncInProg" or not progress:
        return None
    return max(0.0, min(99.9, _finite(progress["percent"])))


def _finite(value: float) -> float:
    return value if value == value else 0.0


def done(found: Found) -> str:
    """As `percent`; `-` where that is not known or there is no copy."""
    value = percent(found)
    return "-" if value is None else units.format_percent(value, value == 100)


def rate(found: Found) -> str:
    """How fast the copy has been of late; empty where that is not known."""
    progress = found.get("progress") or {}
    value = progress.get("rate_bytes_s")
    return "" if value is None or found["state"] != "SyncInProg" else f"{units.format_size(value)}/s"


def to_go(found: Found) -> str:
    """How long the copy will take, or why that cannot be said; empty when nothing is copied."""
    progress = found.get("progress") or {}
    if found["state"] != "SyncInProg":
        return ""
    if found["copy_rate_bytes_s"] == 0:
        return "paused"
    if progress.get("converging") is False:
        return "not converging"
    seconds = progress.get("eta_s")
    return "" if seconds is None or seconds != seconds else units.format_duration(max(1, math.ceil(min(seconds, 1e11))))


class Floor:
    """Within one copy, a percentage that has been shown never falls: also if pathctld begins to count anew."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[str, float]] = {}

    def raised(self, found: Found) -> Found:
        progress = found.get("progress")
        if not progress:
            return found
        copy, before = self._shown.get(found["pair"], ("", 0.0))
        value = max(0.0, min(100.0, _finite(progress["percent"])), before if copy == progress["copy"] else 0.0)
        if progress["left_tracks"] and value > 99.9:
            value = 99.9
        self._shown[found["pair"]] = (progress["copy"], value)
        return found | {"progress": progress | {"percent": value}}


def path(found: Found) -> str:
    if found["ready"] is None:
        return "-"
    return ("ready" if found["ready"] else "not ready") + ("" if found["committed"] else ", not committed")


def rate_limit(found: Found) -> str:
    """None of a pair whose source was not heard is not `none`."""
    return "-" if found["ready"] is None else units.format_rate(found["copy_rate_bytes_s"])


def end(side: Found) -> str:
    return f"{side['host']}:{side['volume']}"


def short(uuid: str | None) -> str:
    """Enough of a UUID to name it."""
    return uuid[:8] if uuid else "-"


def handle(found: Found) -> str:
    """What to type for a pair on this host: the name of its volume here."""
    return str(found[found["side"]]["volume"])


def number(value: int | None) -> str:
    return "-" if value is None else str(value)


def counted(value: int | None, thing: str) -> str:
    """`1 track`, `2 tracks`, `- tracks`."""
    return f"{number(value)} {thing}{'' if value == 1 else 's'}"


# -- hosts and connections --------------------------------------------------------------------------------


def host(found: Found) -> None:
    facts([("host", found["name"]), ("address", place(found)), ("key", found["fingerprint"])])


def peers(found: Sequence[Found]) -> None:
    table(
        ("PEER", "ADDRESS", "REACHABLE", "KEY", "NOTE"),
        [(*_peer_row(peer), peer_note(peer)) for peer in found],
        "no peers",
    )


def _peer_row(peer: Found) -> Row:
    answers = {True: "yes", False: "no", None: "-"}
    return peer["name"], place(peer), answers[peer.get("reachable")], peer["fingerprint"][:16]


def peer_note(peer: Found) -> str:
    return peer.get("note") or "-"


def place(found: Found) -> str:
    """Address and port, as they can be typed."""
    address = found["address"]
    return f"[{address}]:{found['port']}" if ":" in address else f"{address}:{found['port']}"


def connections(found: Sequence[Found]) -> None:
    headings = ("PAIR", "SIDE", "VOLUME", "PEER", "PEER VOLUME", "INVALIDATED", "READY", "STATE", "PORT")
    rows = [
        (
            short(row["pair"]),
            row["side"],
            row["volume"],
            row["peer"],
            row["peer_volume"],
            row["invalidated"],
            "ready" if row["ready"] else "not ready",
            row["state"],
            number(row["port"]),
        )
        for row in found
    ]
    table(headings, rows, "no connections")


# -- plans, settings, events ------------------------------------------------------------------------------


def plan(found: Found) -> None:
    for step in found["steps"]:
        print(f"would: {clean(step)}")
    for sentence in found["loses"]:
        print(f"LOSES: {clean(sentence)}")
    print(
        "nothing was changed; to do it, repeat with --yes" if found["loses"] else "nothing is lost; nothing was changed"
    )


def settings(title: str, file: str, found: Sequence[Found], with_reasons: bool) -> None:
    """A line for each setting below the title; FROM is the line in the file, or that it is the default."""
    print(clean(title))
    headings = ("SETTING", "VALUE", "DEFAULT", "UNIT", "FROM", "WHY")
    rows = [
        (
            row["key"],
            value(row["value"]),
            value(row["default"]),
            row["unit"] or "-",
            row["source"].replace(f"{file}:", "line "),
            row["reason"],
        )
        for row in found
    ]
    count = len(headings) - (not with_reasons)
    table(headings[:count], [row[:count] for row in rows], "no settings")


def value(found: object) -> str:
    """As it would stand in the file."""
    if isinstance(found, bool):
        return str(found).lower()
    return "none" if found is None else repr(found).replace("'", '"') if isinstance(found, str) else str(found)


def events(found: Sequence[Found]) -> None:
    for event in found:
        who = "" if event["actor"] == "pathctld" else f"  by {event['actor']}"
        line = f"{moment(event['at'])}  {event['kind']:<{KIND}}  {event['message']}{_because(event)}{who}"
        print(clean(line), flush=True)


def _because(event: Found) -> str:
    """A verb in brackets; a sentence, which may have some of its own, without."""
    cause = event["cause"]
    if not cause or cause in event["message"]:
        return ""
    return f": {cause}" if " " in cause else f"  ({cause})"


def why(found: Found) -> None:
    since = f" since {ago(found['since'])}" if found["since"] is not None else ""
    lines = [("", f"{short(found['pair'])} is {found['state']}{since}: {found['meaning']}")]
    lines += [("Why:  ", found["cause"]), ("Safe: ", found["safe"]), ("Next: ", found["next"])]
    if found["command"]:
        lines.append(("Type: ", found["command"]))
    for label, sentence in lines:
        print(_filled(label, clean(sentence)))


def _filled(label: str, sentence: str) -> str:
    """Cut into lines on a terminal only; what is to be typed stays in one."""
    if not is_terminal() or label.startswith("Type"):
        return label + sentence
    import shutil
    import textwrap

    width = max(40, min(100, shutil.get_terminal_size().columns))
    return textwrap.fill(sentence, width, initial_indent=label, subsequent_indent=" " * len(label))
