"""show - answers of pathctld as people read them: tables, one-line sentences, progress.

On a terminal with colour and lines (rich, imported only then), piped as plain aligned text.
The values are those of the API (see api); what a field may be is written there.
"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from pathctl import units

Row = Sequence[str]

DONE_STATE = "Synchronized"
_COLOURS = {"Synchronized": "green", "SyncInProg": "cyan", "Suspended": "yellow", "Creating": "yellow"}
_DIRECTIONS = {"to_source": "destination to source", "to_destination": "source to destination"}


def is_terminal() -> bool:
    return sys.stdout.isatty()


def table(headings: Row, rows: Sequence[Row], nothing: str) -> None:
    """Print rows under headings, or `nothing` if there are none."""
    if not rows:
        print(nothing)
    elif is_terminal():
        _rich_table(headings, rows)
    else:
        _plain_table(headings, rows)


def _rich_table(headings: Row, rows: Sequence[Row]) -> None:
    from rich import box, console, table, text

    grid = table.Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in headings:
        grid.add_column(heading, overflow="fold")
    for row in rows:
        grid.add_row(*(text.Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
    console.Console().print(grid)


def _plain_table(headings: Row, rows: Sequence[Row]) -> None:
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    for row in (headings, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print one thing's names and values, one a line; without those that have none."""
    lines = [(name, str(value)) for name, value in pairs if value not in (None, "")]
    width = max(len(name) for name, _value in lines)
    for name, value in lines:
        print(f"{name.ljust(width)}  {value}")


# -- volumes ----------------------------------------------------------------------------------------------


def volumes(found: Sequence[dict[str, Any]]) -> None:
    headings = ("VOLUME", "SIZE", "TRACK", "SIDE", "PAIR", "DEVICE", "CLIENTS", "INVALID", "NOTE")
    table(headings, [_volume_row(volume) for volume in found], "no volumes")


def _volume_row(volume: dict[str, Any]) -> Row:
    return (
        volume["name"],
        units.format_size(volume["size"]),
        units.format_size(volume["track_size"]),
        volume["side"] or "-",
        short(volume["pair"]),
        volume["device"] or "-",
        str(volume["clients"]),
        str(volume["invalid"]),
        volume_note(volume) or "-",
    )


def volume_note(volume: dict[str, Any]) -> str:
    return volume["failed"] or ("incomplete" if volume["incomplete"] else "")


def volume(found: dict[str, Any]) -> None:
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
            ("process", f"{found['pid']}, {found['clients']} clients" if found["pid"] else "none"),
            ("invalid", f"{found['invalid']} tracks"),
            ("note", volume_note(found)),
        ]
    )


# -- pairs ------------------------------------------------------------------------------------------------


def pairs(found: Sequence[dict[str, Any]]) -> None:
    headings = ("PAIR", "STATE", "SOURCE", "DESTINATION", "HERE", "INVALID", "OWED", "DONE", "RATE LIMIT")
    table(headings, [_pair_row(pair) for pair in found], "no pairs")


def _pair_row(pair: dict[str, Any]) -> Row:
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


def pair(found: dict[str, Any]) -> None:
    direction = found["direction"]
    facts(
        [
            ("pair", found["pair"]),
            ("state", found["state"] + (f", {_DIRECTIONS.get(direction, direction)}" if direction else "")),
            ("reason", found["reason"]),
            ("source", end(found["source"])),
            ("destination", end(found["destination"])),
            ("this side", found["side"]),
            ("path", path(found)),
            ("invalidated", found["invalidated"]),
            ("size", f"{units.format_size(found['size'])}, {found['tracks']} tracks"),
            ("invalid", number(found["invalid"])),
            ("owed", number(found["owed"])),
            ("done", done(found)),
            ("copied", f"{number(found['copied_tracks'])} tracks in the background"),
            ("fetched", f"{number(found['fetched_tracks'])} tracks on demand"),
            ("waiting", f"{number(found['waiting'])} requests"),
            ("rate limit", rate_limit(found)),
        ]
    )


def pair_line(found: dict[str, Any], rate_bytes_s: int | None = None) -> str:
    """One line of `pair watch`: state, direction, how much is left."""
    words = [short(found["pair"]), found["state"]]
    if found["direction"]:
        words.append(_DIRECTIONS.get(found["direction"], found["direction"]))
    words += [done(found), f"{number(left(found))} of {found['tracks']} tracks left"]
    if rate_bytes_s is not None:
        words.append(f"{units.format_size(rate_bytes_s)}/s")
    if found["reason"]:
        words.append(f"({found['reason']})")
    return "  ".join(words)


def left(found: dict[str, Any]) -> int | None:
    """Tracks that have still to be copied, either way; None when the source's data plane was not heard."""
    if found["invalid"] is None or found["owed"] is None:
        return None
    return int(found["invalid"] + found["owed"])


def done(found: dict[str, Any]) -> str:
    """100 % is said of a Synchronized pair only: without a track left, the destination may not have confirmed it."""
    tracks = left(found)
    if tracks is None:
        return "-"
    said = units.format_done(tracks, found["tracks"])
    return "99.9%" if said == "100%" and found["state"] != DONE_STATE else said


def path(found: dict[str, Any]) -> str:
    if found["ready"] is None:
        return "-"
    return ("ready" if found["ready"] else "not ready") + ("" if found["committed"] else ", not committed")


def rate_limit(found: dict[str, Any]) -> str:
    """None of a pair whose source was not heard is not `none`."""
    return "-" if found["ready"] is None else units.format_rate(found["copy_rate_bytes_s"])


def end(side: dict[str, Any]) -> str:
    return f"{side['host']}:{side['volume']}"


def short(uuid: str | None) -> str:
    """Enough of a UUID to name it."""
    return uuid[:8] if uuid else "-"


def number(value: int | None) -> str:
    return "-" if value is None else str(value)


# -- hosts and connections --------------------------------------------------------------------------------


def host(found: dict[str, Any]) -> None:
    facts([("host", found["name"]), ("address", f"{found['address']}:{found['port']}"), ("key", found["fingerprint"])])


def peers(found: Sequence[dict[str, Any]]) -> None:
    answers = {True: "yes", False: "no", None: "-"}
    rows = [
        (peer["name"], f"{peer['address']}:{peer['port']}", answers[peer.get("reachable")], peer["fingerprint"][:16])
        for peer in found
    ]
    table(("PEER", "ADDRESS", "REACHABLE", "KEY"), rows, "no peers")


def connections(found: Sequence[dict[str, Any]]) -> None:
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
