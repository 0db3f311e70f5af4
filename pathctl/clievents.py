"""clievents - what has happened and why things are as they are: events, why."""

import datetime
import time
from typing import Any

import click

from pathctl import clicommon, cliwatch, show, units

LIMIT = 1000
LAST = 10  # that are shown before what is followed, unless it is said how many or since when
WAIT_S = 30.0  # pathctld answers an `events.list` that nothing happens for after this long


class Since(click.ParamType[float]):
    """A length of time before now, or a moment in ISO 8601; local time unless it says otherwise."""

    name = "since"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            return time.time() - units.parse_duration(text)
        except ValueError:
            pass
        try:
            return datetime.datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{text!r} is no time; write 10m, 2h, 3d or as in 2026-11-22T14:30", param, ctx)


@click.command(cls=clicommon.Command, example="pathctl events --since 2h --pair home\npathctl events --follow --json")
@click.option("--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--since", type=Since(), metavar="TIME", help="As in 10m, 2h, 3d or 2026-11-22T14:30.")
@click.option("--pair", type=clicommon.Name("pair"), metavar="PAIR", help="Of this pair only.")
@click.option(
    "--limit",
    type=click.IntRange(1, 10000),
    help="The newest N.  [default: 1000; with --follow 10, or all since --since]",
)
@clicommon.json_option
def events(follow: bool, since: float | None, pair: str | None, limit: int | None) -> None:
    """Show what has changed: states, configuration, roles; when, why, and who asked."""
    limit = limit or (LAST if follow and since is None else LIMIT)
    fields: dict[str, Any] = {"after_id": 0, "since": since, "pair": pair, "limit": limit, "wait_s": 0}
    if not follow:
        clicommon.tell(clicommon.call("events.list", **fields), "events", _print_all)
        return
    with clicommon.followed():
        _follow(fields)


def _follow(fields: dict[str, Any]) -> None:
    for answer in cliwatch.asked_again("events.list", fields, 0.0):
        found = answer["events"]
        if found and clicommon.is_json():
            clicommon.print_json(answer)
        elif found:
            show.events(found)
        if found:  # by number from now on, not by time: nothing is left out if the clock is set back
            fields |= {"after_id": found[-1]["id"], "since": None}
        fields |= {"limit": 10000, "wait_s": WAIT_S}


def _print_all(found: list[dict[str, Any]]) -> None:
    show.events(found)
    if not found:
        print("no events")


@click.command(cls=clicommon.Command, example="pathctl why home")
@click.argument("name", metavar="PAIR", type=clicommon.Name("pair"))
@clicommon.json_option
def why(name: str) -> None:
    """Say in plain words why a pair is as it is, what is safe, and what to do."""
    clicommon.tell(clicommon.call("pair.why", pair=name), "why", show.why)
