"""cli - the `pathctl` command.

Each command is one verb of pathctld's API with the options as its fields; what needs more than one question
(`pair wait`, `pair watch`) asks again.  Errors are one sentence on stderr and an exit code (errors.ExitCode); with
--json the answer, or the error object, stands on stdout as JSON.  Starts quickly: what is slow to import is
imported where it is used.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click

from pathctl import client, errors, show, units

POLL_S = 0.2
WATCH_S = 0.5
AWAY_S = 60.0  # how long `pair watch` lets pathctld be away: it may be restarted
STATES = ("Synchronized", "SyncInProg", "Suspended", "Partitioned", "Refused", "Creating", "Deleting")

Answer = dict[str, Any]
Command = TypeVar("Command", bound=Callable[..., Any])


class Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return units.parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Rate(click.ParamType[str]):
    """Checked here, parsed by the command: click has no way to tell a given `none` from an option not given."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            units.parse_rate(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


json_option = click.option("--json", "as_json", is_flag=True, help="Print the answer, or the error, as JSON.")
side = click.Choice(["source", "destination"])


def call(verb: str, **fields: Any) -> Answer:
    root: Path = click.get_current_context().find_root().obj
    return client.call(root, verb, **fields)


def tell(answer: Answer, as_json: bool, printer: Callable[[Any], None], key: str) -> None:
    """Print the whole answer as JSON, or its part `key` for a person."""
    if as_json:
        print(json.dumps(answer))
    else:
        printer(answer[key])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pathctl")
@click.option("--root", metavar="FOLDER", help="Where pathctld's files lie; else $PATHCTL_ROOT, else /.")
@click.pass_context
def cli(context: click.Context, root: str | None) -> None:
    """Create a path between a volume on this host and one on another, and use it at once."""
    context.obj = client.find_root(root)


@cli.command()
@json_option
def status(as_json: bool) -> None:
    """Show this host, its peers, volumes and pairs."""
    answer = call("status")
    if as_json:
        print(json.dumps(answer))
        return
    if answer["host"]:
        show.host(answer["host"])
    else:
        print("this host has no name yet: pathctl host init --name NAME --address ADDRESS")
    for printer, key in ((show.peers, "peers"), (show.volumes, "volumes"), (show.pairs, "pairs")):
        print()
        printer(answer[key])


@cli.command()
@click.argument("volume")
@json_option
def attach(volume: str, as_json: bool) -> None:
    """Make a block device of VOLUME."""
    tell(call("attach", volume=volume), as_json, print, "device")


@cli.command()
@click.argument("volume")
@json_option
def detach(volume: str, as_json: bool) -> None:
    """Remove the block device of VOLUME; refused while anybody uses it."""
    tell(call("detach", volume=volume), as_json, lambda found: print(f"{found['name']} is detached"), "volume")


# -- host, peer, connection -------------------------------------------------------------------------------


@cli.group()
def host() -> None:
    """This host."""


@host.command("init")
@click.option("--name", required=True)
@click.option("--address", required=True, metavar="ADDRESS[:PORT]", help="Where the other hosts reach this one.")
@json_option
def host_init(name: str, address: str, as_json: bool) -> None:
    """Give this host its name, address, key and certificate."""
    from pathctl import config

    ip, port = split_address(address, config.DEFAULT_PORT)
    tell(call("host.init", name=name, address=ip, port=port), as_json, show.host, "host")


def split_address(text: str, default_port: int) -> tuple[str, int]:
    """`10.0.0.1`, `10.0.0.1:7630`, `fd00::1`, `[fd00::1]:7630` -> address and port."""
    address, colon, port = text.rpartition(":")
    bracketed = address.startswith("[") and address.endswith("]")
    if not colon or (":" in address and not bracketed):
        return text.strip("[]"), default_port
    if not port.isdecimal():
        raise click.BadParameter(f"{text!r} is no ADDRESS[:PORT]", param_hint="--address")
    return address.strip("[]"), int(port)


@cli.group()
def peer() -> None:
    """The hosts this one knows."""


@peer.command("invite")
@json_option
def peer_invite(as_json: bool) -> None:
    """Make a token with which one other host can join."""
    tell(call("peer.invite"), as_json, print, "token")


@peer.command("join")
@click.argument("token")
@json_option
def peer_join(token: str, as_json: bool) -> None:
    """Get to know the host that made TOKEN, and be known to it."""
    tell(call("peer.join", token=token), as_json, lambda found: show.peers([found]), "peer")


@peer.command("list")
@json_option
def peer_list(as_json: bool) -> None:
    """List the hosts this one knows."""
    tell(call("peer.list"), as_json, show.peers, "peers")


@cli.group()
def connection() -> None:
    """This host's halves of pairs."""


@connection.command("list")
@json_option
def connection_list(as_json: bool) -> None:
    """List the rows of this host's configuration table."""
    tell(call("connection.list"), as_json, show.connections, "connections")


# -- volume -----------------------------------------------------------------------------------------------


@cli.group()
def volume() -> None:
    """Volumes on this host."""


@volume.command("create")
@click.argument("name")
@click.option("--size", type=Size(), help="As in 10G; may be left out if the backing exists.")
@click.option("--track-size", type=Size(), help="The unit of validity, 4K to 4M.  [default: 64K]")
@click.option("--backing", type=click.Path(), help="An existing file or block device; it is never deleted.")
@json_option
def volume_create(name: str, size: int | None, track_size: int | None, backing: str | None, as_json: bool) -> None:
    """Create volume NAME, by default as a sparse file."""
    path = str(Path(backing).absolute()) if backing else None
    answer = call("volume.create", name=name, size=size, track_size=track_size, backing=path)
    tell(answer, as_json, show.volume, "volume")


@volume.command("list")
@json_option
def volume_list(as_json: bool) -> None:
    """List this host's volumes."""
    tell(call("volume.list"), as_json, show.volumes, "volumes")


@volume.command("show")
@click.argument("name")
@json_option
def volume_show(name: str, as_json: bool) -> None:
    """Show all about volume NAME."""
    tell(call("volume.show", name=name), as_json, show.volume, "volume")


@volume.command("delete")
@click.argument("name")
@json_option
def volume_delete(name: str, as_json: bool) -> None:
    """Delete volume NAME, and its data unless it was given with --backing."""
    answer = call("volume.delete", name=name)
    tell(answer, as_json, lambda found: print(f"{found['name']} is deleted"), "volume")


# -- pair -------------------------------------------------------------------------------------------------


@cli.group()
def pair() -> None:
    """Pairs: a source and a destination, and the path between them.

    A PAIR is named by the volume of this host or by the beginning of its UUID.
    """


@pair.command("create")
@click.argument("source")
@click.argument("destination")
@click.option("--invalidate", type=side, required=True, help="Whose data is given up: it is copied from the other.")
@click.option("--first", type=side, default="source", show_default=True, help="Which connection is made first.")
@click.option("--create", is_flag=True, help="Create the volumes that do not exist.")
@click.option("--size", type=Size(), help="Of what is created; else that of the other volume.")
@click.option("--track-size", type=Size(), help="Of what is created; else that of the other volume, or 64K.")
@click.option("--attach", is_flag=True, help="Make a block device of the source as well.")
@click.option("--force", is_flag=True, help="Invalidate the source although it is in use.")
@click.option("--copy-rate", type=Rate(), default="none", help="Limit of the background copy, as in 50M; 0 pauses.")
@json_option
def pair_create(as_json: bool, copy_rate: str, **options: Any) -> None:
    """Create a pair of SOURCE and DESTINATION, each NAME (here) or HOST:NAME, and make its path ready."""
    answer = call("pair.create", copy_rate_bytes_s=units.parse_rate(copy_rate), **options)
    if as_json:
        print(json.dumps(answer))
        return
    took = sum(step["ms"] for step in answer["steps"])
    is_new = any(step["step"] != "attach" for step in answer["steps"])
    done = f"created in {took:.0f} ms" if is_new else "exists already"
    print(f"{show.end(answer['pair']['source'])} -> {show.end(answer['pair']['destination'])} {done}")
    print(show.pair_line(answer["pair"]))
    if answer["device"]:
        print(answer["device"])


@pair.command("list")
@json_option
def pair_list(as_json: bool) -> None:
    """List this host's pairs."""
    tell(call("pair.list"), as_json, show.pairs, "pairs")


@pair.command("show")
@click.argument("name", metavar="PAIR")
@json_option
def pair_show(name: str, as_json: bool) -> None:
    """Show all about a pair."""
    tell(call("pair.show", pair=name), as_json, show.pair, "pair")


@pair.command("suspend")
@click.argument("name", metavar="PAIR")
@json_option
def pair_suspend(name: str, as_json: bool) -> None:
    """Make the path not ready; what is written from now on is owed."""
    tell(call("pair.suspend", pair=name), as_json, show.pair, "pair")


@pair.command("resume")
@click.argument("name", metavar="PAIR")
@json_option
def pair_resume(name: str, as_json: bool) -> None:
    """Make the path ready again and copy what is owed."""
    tell(call("pair.resume", pair=name), as_json, show.pair, "pair")


@pair.command("delete")
@click.argument("name", metavar="PAIR")
@click.option("--half", is_flag=True, help="Only this host's half, when the other cannot be asked.")
@click.option("--force", is_flag=True, help="Although tracks are still invalid or owed: one side is left incomplete.")
@json_option
def pair_delete(name: str, half: bool, force: bool, as_json: bool) -> None:
    """Take the path down and forget the pair; both volumes stay."""
    answer = call("pair.delete", pair=name, half=half, force=force)
    tell(answer, as_json, lambda found: print(f"pair {found['pair']} is deleted"), "pair")


@pair.command("set")
@click.argument("name", metavar="PAIR")
@click.option("--copy-rate", type=Rate(), required=True, help="As in 50M; 0 pauses, none is no limit.")
@json_option
def pair_set(name: str, copy_rate: str, as_json: bool) -> None:
    """Change the background copy's rate while it runs."""
    tell(call("pair.set", pair=name, copy_rate_bytes_s=units.parse_rate(copy_rate)), as_json, show.pair, "pair")


@pair.command("wait")
@click.argument("name", metavar="PAIR")
@click.option(
    "--for", "state", type=click.Choice(STATES, case_sensitive=False), default=show.DONE_STATE, show_default=True
)
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds.")
@json_option
def pair_wait(name: str, state: str, timeout_s: float, as_json: bool) -> None:
    """Wait until the pair is in a state; also through a restart of pathctld."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            answer = call("pair.show", pair=name)
        except errors.PathctlError as error:
            if error.code is not errors.ErrorCode.UNREACHABLE or time.monotonic() >= end:
                raise
        else:
            if answer["pair"]["state"] == state:
                tell(answer, as_json, lambda found: print(show.pair_line(found)), "pair")
                return
            if time.monotonic() >= end:
                raise _not_yet(answer["pair"], state, timeout_s)
        time.sleep(min(POLL_S, max(0.0, end - time.monotonic())))


def _not_yet(found: Answer, state: str, timeout_s: float) -> errors.PathctlError:
    reason = f" ({found['reason']})" if found["reason"] else ""
    return errors.PathctlError(
        errors.ErrorCode.TIMEOUT,
        f"pair {show.short(found['pair'])} is {found['state']}{reason} and not {state} after {timeout_s:g} s, with"
        f" {show.number(show.left(found))} tracks left: wait longer or look with `pathctl pair show`",
    )


@pair.command("watch")
@click.argument("name", metavar="PAIR")
@json_option
def pair_watch(name: str, as_json: bool) -> None:
    """Follow the copy until the pair is Synchronized, or suspended; also through a restart of pathctld."""
    if as_json:
        for answer in samples(name):
            print(json.dumps(answer), flush=True)
    elif show.is_terminal():
        from pathctl import progress

        progress.follow(with_rate(answer["pair"] for answer in samples(name)))
    else:
        print_changes(with_rate(answer["pair"] for answer in samples(name)))


def samples(name: str) -> Iterator[Answer]:
    """The pair every WATCH_S, the last time when it is Synchronized; also through a restart of pathctld."""
    heard: float | None = None
    while True:
        try:
            answer = call("pair.show", pair=name)
        except errors.PathctlError as error:
            is_away = error.code is errors.ErrorCode.UNREACHABLE and heard is not None
            if not is_away or time.monotonic() - (heard or 0) > AWAY_S:
                raise
        else:
            heard = time.monotonic()
            yield answer
            _check_copying(answer["pair"])
            if answer["pair"]["state"] == show.DONE_STATE:
                return
        time.sleep(WATCH_S)


def _check_copying(found: Answer) -> None:
    if found["state"] == "Suspended":
        raise errors.refused(
            f"pair {show.short(found['pair'])} is Suspended, so nothing is copied: go on with `pathctl pair resume`"
        )


def with_rate(pairs: Iterable[Answer]) -> Iterator[tuple[Answer, int | None]]:
    """Each sample with the background copy's bytes per second since the one before; None where that is unknown."""
    before: tuple[float, int] | None = None
    for found in pairs:
        if found["copied_bytes"] is None:
            before = None
            yield found, None
            continue
        now = (time.monotonic(), found["copied_bytes"])
        # Counters begin anew with the volume's process: a smaller one says nothing.
        known = before is not None and now[0] > before[0] and now[1] >= before[1]
        yield found, int((now[1] - before[1]) / (now[0] - before[0])) if before is not None and known else None
        before = now


def print_changes(found: Iterable[tuple[Answer, int | None]]) -> None:
    """One plain line for each sample that differs from the one before in more than its rate."""
    last = ""
    for sample, rate_bytes_s in found:
        line = show.pair_line(sample)
        if line != last:
            print(show.pair_line(sample, rate_bytes_s), flush=True)
        last = line


# -- the way out ------------------------------------------------------------------------------------------


def run(arguments: list[str]) -> int:
    """Carry out one command line; returns the exit code.  What stdout does not take passes as OSError (see start)."""
    as_json = "--json" in arguments
    try:
        cli.main(arguments, prog_name="pathctl", standalone_mode=False)
    except errors.PathctlError as error:
        return fail(error, as_json)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return errors.ExitCode.USAGE
    except click.ClickException as error:
        return fail(errors.usage(error.format_message()), as_json)
    except (KeyboardInterrupt, click.Abort):
        return 130  # as a shell says it: ended by SIGINT; start tells it
    except SystemExit:
        return errors.ExitCode.OK  # click's way out when the reader of our output has gone
    return errors.ExitCode.OK


def fail(error: errors.PathctlError, as_json: bool) -> int:
    """Tell the error: the sentence, and what was done, undone and is pending where a sequence broke off."""
    print(f"pathctl: {error.message}", file=sys.stderr)
    lists = {"done": error.done, "failed": [error.failed] if error.failed else [], "undone": error.undone}
    for word, steps in (lists | {"pending": error.pending}).items():
        if steps:
            print(f"  {word}: {', '.join(steps)}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": error.as_json()}))
    return errors.ExitCode.of(error.code)
