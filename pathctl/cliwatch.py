"""cliwatch - the commands that follow something until it has happened: pair wait, pair watch.

Both go on while pathctld is away for a while, as it is when it is restarted.
"""

import time
from collections.abc import Iterator

import click

from pathctl import clicommon, errors, show, signals

POLL_S = 0.2
WATCH_S = 0.5
STATES = ("Synchronized", "SyncInProg", "Suspended", "Partitioned", "Split", "Refused", "Creating", "Deleting")

Answer = clicommon.Answer


@click.command("wait", cls=clicommon.Command, example="pathctl pair wait home --for synchronized --timeout 600")
@click.argument("name", metavar="PAIR", type=clicommon.Name("pair"))
@click.option(
    "--for", "state", type=click.Choice(STATES, case_sensitive=False), default=show.DONE_STATE, show_default=True
)
@click.option("--timeout", "timeout_s", type=clicommon.Seconds(min=0), default=60.0, show_default=True, help="Seconds.")
@clicommon.json_option
def pair_wait(name: str, state: str, timeout_s: float) -> None:
    """Wait until a pair is in a state; also through a restart of pathctld."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            answer = clicommon.call("pair.show", pair=name)
        except errors.PathctlError as error:
            if error.code is not errors.ErrorCode.UNREACHABLE or time.monotonic() >= end:
                raise
        else:
            if answer["pair"]["state"] == state:
                clicommon.tell(answer, "pair", lambda found: print(show.pair_line(found)))
                return
            if time.monotonic() >= end:
                raise _not_yet(answer["pair"], state, timeout_s)
        time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))


def _not_yet(found: Answer, state: str, timeout_s: float) -> errors.PathctlError:
    reason = f"; {found['reason']}" if found["reason"] else ""
    name = show.handle(found)
    return errors.PathctlError(
        errors.ErrorCode.TIMEOUT,
        f"pair {name} is {found['state']} and not {state} after {timeout_s:g} s, with"
        f" {show.counted(show.left(found), 'track')} left{reason}; wait longer or look with `pathctl why {name}`",
    )


@click.command("watch", cls=clicommon.Command, example="pathctl pair watch\npathctl pair watch home work")
@click.argument("names", metavar="[PAIR]...", nargs=-1, type=clicommon.Name("pair"))
@clicommon.json_option
def pair_watch(names: tuple[str, ...]) -> None:
    """Follow the copy of one pair, several, or all, until all are Synchronized.

    Ends with an error if one is Suspended once the others are done.  Goes on while pathctld is restarted.
    """
    found = samples(names)
    with clicommon.followed():
        if clicommon.is_json():
            for pairs in found:
                clicommon.print_json({"pairs": pairs})
        elif show.is_terminal():
            from pathctl import progress

            progress.follow(found)
        else:
            _print_changes(found)


def samples(names: tuple[str, ...]) -> Iterator[list[Answer]]:
    """The pairs every WATCH_S, the last time when all are Synchronized; also through a restart of pathctld."""
    pairs = {clicommon.call("pair.show", pair=name)["pair"]["pair"]: name for name in names}
    floor = show.Floor()
    for answer in asked_again("pair.list", {}, WATCH_S):
        found = [floor.raised(pair) for pair in answer["pairs"] if not names or pair["pair"] in pairs]
        yield found
        for gone in set(pairs) - {pair["pair"] for pair in found}:
            raise errors.not_found(f"pair {show.clean(pairs[gone])} is no longer there: it was deleted")
        if all(pair["state"] in (show.DONE_STATE, "Suspended") for pair in found):
            _check_copying(found)
            return


def asked_again(verb: str, fields: Answer, pause_s: float) -> Iterator[Answer]:
    """Answers to a verb for ever, with a pause between them; `fields` may be changed meanwhile.

    The first question must be answered; from then on pathctld may be away for up to AWAY_S.
    """
    heard: float | None = None
    while True:
        try:
            answer = clicommon.call(verb, **fields)
        except errors.PathctlError as error:
            is_away = error.code is errors.ErrorCode.UNREACHABLE and heard is not None
            if not is_away or time.monotonic() - (heard or 0) > clicommon.AWAY_S:
                raise
            time.sleep(WATCH_S)
        else:
            heard = time.monotonic()
            signals.say("interrupted: pathctld goes on; nothing was changed")
            yield answer
            time.sleep(pause_s)


def _check_copying(found: list[Answer]) -> None:
    for pair in found:
        if pair["state"] == "Suspended":
            raise errors.refused(
                f"pair {show.handle(pair)} is Suspended, so nothing is copied: go on with"
                f" `pathctl pair resume {show.handle(pair)}`"
            )


def _print_changes(found: Iterator[list[Answer]]) -> None:
    """One plain line for each pair that differs from the time before in more than its rate and time to go."""
    last: dict[str, tuple[object, ...]] | None = None
    for pairs in found:
        now: dict[str, tuple[object, ...]] = {
            pair["pair"]: (pair["state"], pair["reason"], show.left(pair), show.percent(pair)) for pair in pairs
        }
        for pair in pairs:
            if last is None or last.get(pair["pair"]) != now[pair["pair"]]:
                print(show.pair_line(pair), flush=True)
        if last is None and not pairs:
            print("no pairs")
        last = now
