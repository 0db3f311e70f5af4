"""showstatus - the one screen of `pathctl status`: what is not well first, then peers, volumes and pairs."""

from typing import Any

from pathctl import apart, show, units

Found = dict[str, Any]

MOST = 8  # problems that are told, so that the rest stays on the screen
COLUMNS = 100
_WELL = ("Synchronized", "SyncInProg")
_MORE = "    "  # begins a line that says more of the problem before it


def status(answer: Found) -> None:
    host = answer["host"]
    if host is None:
        print("this host has no name yet: pathctl host init --name NAME --address ADDRESS")
    problems = _problems(answer)
    if host is not None:
        count = sum(not problem.startswith(_MORE) for problem in problems)
        said = f"{count} to look at" if problems else "all is well"
        print(f"host {host['name']}, {show.place(host)}: {said}")
    most = MOST if show.is_terminal() else len(problems)
    for problem in problems[:most]:
        print(show.clean(problem if problem.startswith(_MORE) else f"! {problem}"))
    if len(problems) > most:
        print(f"! and {len(problems) - most} more")
    for printer, key in ((_peers, "peers"), (_volumes, "volumes"), (_pairs, "pairs")):
        if answer[key] or host is not None:  # without a name, the first line says what comes next
            print()
            printer(answer[key])


def _problems(answer: Found) -> list[str]:
    """One sentence for each thing that a person should look at, with what to type."""
    found = list(answer.get("problems", []))
    for pair in answer["pairs"]:
        name = show.handle(pair)
        if pair["state"] not in _WELL:
            found.append(_fitted(f"pair {name} is {pair['state']}", pair["reason"], f"look with `pathctl why {name}`"))
            sides = pair.get("sides") or {}
            found += [f"{_MORE}{apart.end(held)}: {apart.holds(held, pair, show.moment)}" for held in sides.values()]
        elif show.to_go(pair) == "not converging":
            found.append(f"pair {name} is not converging; look with `pathctl why {name}`")
        elif show.to_go(pair) == "paused" and show.left(pair):
            what = (
                "with data that is only at the destination" if pair["invalid"] else "and its destination is out of date"
            )
            found.append(f"the copy of pair {name} is paused, {what}; look with `pathctl why {name}`")
    found += [
        _fitted(
            f"volume {volume['name']}", show.volume_note(volume), f"look with `pathctl volume show {volume['name']}`"
        )
        for volume in answer["volumes"]
        if volume["failed"] or (volume["incomplete"] and not volume["pair"])  # paired, it becomes complete
    ]
    found += [apart.disk(volume) for volume in answer["volumes"] if volume.get("counters", {}).get("read_errors")]
    found += [
        f"peer {peer['name']}: {peer.get('note') or 'not reachable'}"
        for peer in answer["peers"]
        if peer["reachable"] is False or peer.get("note")
    ]
    return found


def _fitted(what: str, reason: str | None, then: str) -> str:
    """One line; on a terminal only the beginning of a long reason, since what to type tells all of it."""
    if reason and not show.is_terminal():
        return f"{what}: {reason}; {then}"
    room = COLUMNS - len(f"! {what}: ; {then}")
    if not reason or room < len("..."):
        return f"{what}; {then}"
    return f"{what}: {reason if len(reason) <= room else reason[: room - 1] + '…'}; {then}"


def _peers(found: list[Found]) -> None:
    answers = {True: "yes", False: "no", None: "-"}
    rows = [(peer["name"], show.place(peer), answers[peer["reachable"]]) for peer in found]
    show.table(("PEER", "ADDRESS", "REACHABLE"), rows, "no peers: pathctl peer invite")


def _volumes(found: list[Found]) -> None:
    rows = [
        (
            volume["name"],
            units.format_size(volume["size"]),
            volume["side"] or "-",
            show.short(volume["pair"]),
            volume["device"] or "-",
            show.number(volume["clients"]),
        )
        for volume in found
    ]
    headings = ("VOLUME", "SIZE", "SIDE", "PAIR", "DEVICE", "CLIENTS")
    show.table(headings, rows, "no volumes: pathctl volume create", ("CLIENTS", "PAIR", "SIDE"))


def _pairs(found: list[Found]) -> None:
    headings = ("PAIR", "STATE", "SOURCE", "DESTINATION", "COPY TO", "DONE", "LEFT", "RATE", "TO GO", "SINCE")
    rows = [_pair_row(pair) for pair in found]
    show.table(headings, rows, "no pairs: pathctl pair create", ("SINCE", "COPY TO", "RATE", "PAIR", "DESTINATION"))


def _pair_row(pair: Found) -> show.Row:
    left = show.left(pair)
    return (
        show.short(pair["pair"]),
        pair["state"],
        show.end(pair["source"]),
        show.end(pair["destination"]),
        (pair["direction"] or "-").removeprefix("to_"),
        show.done(pair),
        "-" if left is None else units.format_size(left * pair["track_size"]),
        show.rate(pair) or "-",
        show.to_go(pair) or "-",
        show.short_moment(pair.get("since")),
    )
