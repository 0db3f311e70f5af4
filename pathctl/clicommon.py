"""clicommon - what the commands of the command line share: asking pathctld, telling the answer, agreeing to a loss.

Every command is a `Command` and so has an example, and takes --json (`json_option`), which run() has moved to where
click finds it.  A command that may lose data goes through `careful`.
"""

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from pathctl import errors, show, signals, units

VERSION = 1  # of the JSON: shapes.VERSION, which takes too long to import; a test holds them together

SLOW = 64 << 10  # bytes per second: a rate below is hardly meant
AWAY_S = 60.0  # how long what follows something lets pathctld be away: it may be restarted
_LOOKS = {"status", "host.show", "peer.list", "volume.list", "volume.show", "pair.list", "pair.show", "pair.why"}
_LOOKS |= {"connection.list", "config.show", "events.list"}
_JSON = "pathctl.json"  # in the context's meta

Answer = dict[str, Any]


# -- commands and their help ------------------------------------------------------------------------------


class _WithExample:
    """What --help ends with, and what the man page shows."""

    example: str = ""

    def format_epilog(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                formatter.write(
                    "".join(f"{'':{formatter.current_indent}}{line}\n" for line in self.example.split("\n"))
                )


class Command(_WithExample, click.Command):
    """A command; `example` is one command line or several, each of which can be typed."""

    def __init__(self, *arguments: Any, example: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.example = example


class Group(_WithExample, click.Group):
    """Takes --json too, although alone it does nothing: an error without a command is JSON then as well."""

    command_class = Command
    group_class = type  # the same

    def __init__(self, *arguments: Any, example: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.example = example
        said = "Print the answer, or the error, as JSON; may stand anywhere."
        self.params.append(click.Option(["--json"], is_flag=True, expose_value=False, help=said))


class Size(click.ParamType[int]):
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return units.parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Seconds(click.FloatRange):
    """A length of time that ends: neither `inf` nor `nan`, which no bound turns away."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{str(value)!r} is no length of time; write seconds, as in 60", param, ctx)
        return found


class Rate(click.ParamType[str]):
    """Checked here, parsed by the command: click has no way to tell a given `none` from an option not given.

    One that is slower than anybody means is carried out all the same, and said to be.
    """

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            rate = units.parse_rate(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if rate and rate < SLOW:
            print(f"note: {value} is {rate} bytes per second; 10M is 10 MiB per second", file=sys.stderr)
        return str(value)


class Name(click.ParamType[str]):
    """The name of a volume, pair, peer, or HOST:NAME; what the shell completes it with comes from pathctld."""

    def __init__(self, kind: str) -> None:
        self.name = kind

    def convert(self, value: Any, _param: click.Parameter | None, _ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[Any]:
        from pathctl import completion

        return completion.names(ctx.find_root().params.get("root"), self.name, incomplete)


def _note_json(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    context.meta[_JSON] = value


json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_note_json, help="Print the answer, or the error, as JSON."
)


def is_json() -> bool:
    return bool(click.get_current_context().meta.get(_JSON))


def split_address(text: str, default_port: int) -> tuple[str, int]:
    """`10.0.0.1`, `10.0.0.1:7630`, `fd00::1`, `[fd00::1]:7630` -> address and port."""
    address, colon, port = text.rpartition(":")
    bracketed = address.startswith("[") and address.endswith("]")
    if not colon or (":" in address and not bracketed):
        return text.strip("[]"), default_port
    if not port.isdecimal() or not port.isascii() or len(port) > 5:
        raise click.BadParameter(f"{text!r} is no ADDRESS[:PORT]", param_hint="--address")
    return address.strip("[]"), int(port)


# -- asking and telling -----------------------------------------------------------------------------------


def root() -> Path:
    from pathctl import client

    return client.find_root(click.get_current_context().find_root().params.get("root"))


def call(verb: str, **fields: Any) -> Answer:
    """pathctld's answer to one verb; raises PathctlError."""
    from pathctl import client

    changes = verb not in _LOOKS and not fields.get("dry_run")
    nothing = "interrupted; nothing was changed"
    signals.say(f"interrupted, but pathctld goes on with {verb}: look with `pathctl status`" if changes else nothing)
    answer = client.call(root(), verb, **fields)
    signals.say("interrupted; what was asked is done" if changes else nothing)
    return answer


def tell(answer: Answer, key: str, printer: Callable[[Any], None]) -> None:
    """Print the whole answer as JSON, or its part `key` for a person."""
    if is_json():
        print_json(answer)
    else:
        printer(answer[key])


def print_json(answer: Answer) -> None:
    print(json.dumps({"version": VERSION} | answer), flush=True)


class CutOff(Exception):
    """The reader of our output has gone while something was followed to its end: it is not known whether it ended."""


@contextlib.contextmanager
def followed() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise CutOff from None


# -- agreeing to a loss -----------------------------------------------------------------------------------


def careful(function: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that can lose data; it calls `carry_out`."""
    yes = click.option("--yes", is_flag=True, help="Do it without asking, although data is lost or overwritten.")
    dry_run = click.option("--dry-run", is_flag=True, help="Say what would be done and lost, and change nothing.")
    return yes(dry_run(function))


def carry_out(do: Callable[[bool], Answer], yes: bool, dry_run: bool) -> Answer | None:
    """`do(False)` once nothing is lost by it or the user agrees to what is; None when there was only the plan to tell.

    `do(True)` must change nothing and answer with the plan.
    """
    if dry_run:
        tell(do(True), "plan", show.plan)
        return None
    if not yes:
        _agree(do(True)["plan"]["loses"])
    return do(False)


def _agree(loses: list[str]) -> None:
    if not loses:
        return
    what = "; ".join(loses)
    if is_json() or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise errors.refused(
            f"this would lose data: {what}; nothing was changed: look with --dry-run, then repeat with --yes"
        )
    for sentence in loses:
        print(show.clean(sentence), file=sys.stderr)
    print("Go on? [y/N]: ", end="", file=sys.stderr, flush=True)
    signals.wait_readable(sys.stdin.fileno())
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise errors.refused("not agreed to: nothing was changed")
