"""cli - the `pathctl` command: its root, its help, and the one way out.

Each command is one verb of pathctld's API with the options as its fields; the commands stand in clihost, clivolume,
clipair, cliwatch and clievents.  Errors are one sentence on stderr and an exit code (errors.ExitCode); with --json the
answer, or the error object, stands on stdout as JSON.  Starts quickly: what is slow to import is imported where it is
used.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator

import click

from pathctl import clicommon, clievents, clihost, clipair, clivolume, errors, show, showstatus, signals

STORY = """\
A path joins a volume on this host, the source, with one on another host, the destination.
It is made while both run, and the source is a block device that can be used at once, even
before its data has come over: what is read is fetched first, the rest follows by itself.
Begin: run pathctld on both hosts, `pathctl host init` on both, `peer invite` on one, `peer join`
on the other. Then: pathctl pair create home beta:home --invalidate source --create --attach
"""

TASKS = {
    "Begin": ["host init", "peer invite", "peer join"],
    "Make a path and use it": ["pair create", "attach", "detach", "pair watch", "pair wait"],
    "Look": ["status", "why", "events", "pair list", "pair show", "volume list", "volume show", "metrics"],
    "Stop, go on, take down": ["pair suspend", "pair resume", "pair set", "pair resolve", "pair delete"],
    "Volumes": ["volume create", "volume delete", "volume accept"],
    "Hosts": ["host show", "host set", "peer list", "peer set", "connection list"],
    "Keep in order": ["config show", "config check", "backup", "restore", "completion"],
}

EXITS = {
    errors.ExitCode.OK: "done",
    errors.ExitCode.INTERNAL: "internal error",
    errors.ExitCode.USAGE: "wrong usage",
    errors.ExitCode.NOT_FOUND: "there is no such volume, pair or peer",
    errors.ExitCode.REFUSED: "refused; nothing was changed, or it says what was",
    errors.ExitCode.UNREACHABLE: "the peer or pathctld does not answer",
    errors.ExitCode.TIMEOUT: "not finished in time",
}
INTERRUPTED = "interrupted with Ctrl-C; pathctld goes on with what it was asked"
CUT_OFF = 141  # as a shell says it: ended by SIGPIPE


class Root(clicommon.Group):
    """`pathctl --help`: the story, the commands by task, the exit codes."""

    def format_help_text(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write(STORY)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        for task, names in TASKS.items():
            with formatter.section(task):
                formatter.write_dl([(name, find(self, context, name).get_short_help_str(85)) for name in names])

    def format_epilog(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(context, formatter)
        with formatter.section("Exit codes"):
            rows = [(str(int(code)), text) for code, text in EXITS.items()]
            formatter.write_dl([*rows, (str(signals.INTERRUPTED), INTERRUPTED)])


def find(group: click.Group, context: click.Context, name: str) -> click.Command:
    """The command that is called `pair create`, ..."""
    found: click.Command = group
    for word in name.split():
        assert isinstance(found, click.Group), name
        command = found.get_command(context, word)
        assert command is not None, name
        found = command
    return found


@click.group(
    cls=Root,
    example="pathctl status\npathctl pair create --help",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="pathctl", help="Show the version and exit.")
@click.option("--root", metavar="FOLDER", help="Where pathctld's files lie; else $PATHCTL_ROOT, else /.")
def cli(root: str | None) -> None:
    """Create a path between a volume on this host and one on another, and use it at once."""


@cli.command(example="pathctl status")
@clicommon.json_option
def status() -> None:
    """Show all on one screen: what is not well first, then peers, volumes and pairs."""
    answer = clicommon.call("status")
    if clicommon.is_json():
        clicommon.print_json(answer)
    else:
        showstatus.status(answer)


@cli.command(example="source <(pathctl completion bash)\npathctl completion fish")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@clicommon.json_option
def completion(shell: str) -> None:
    """Print a script that makes bash, zsh or fish complete commands and names."""
    from pathctl import completion as scripts

    clicommon.tell({"text": scripts.script(cli, shell)}, "text", lambda text: print(text, end=""))


for _command in (clihost.host, clihost.peer, clihost.connection, clihost.config, clihost.backup, clihost.restore):
    cli.add_command(_command)
for _command in (clihost.metrics, clivolume.volume, clivolume.attach, clivolume.detach):
    cli.add_command(_command)
for _command in (clipair.pair, clievents.events, clievents.why):
    cli.add_command(_command)


# -- the way out ------------------------------------------------------------------------------------------


def run(arguments: list[str]) -> int:
    """Carry out one command line; returns the exit code."""
    words, is_json = _without_json(arguments)
    try:
        _check_text(arguments)
        if "_PATHCTL_COMPLETE" in os.environ:
            from pathctl import completion

            completion.register()
        cli.main(words, prog_name="pathctl", standalone_mode=False)
        sys.stdout.flush()  # here, where what it fails with can be told
    except errors.PathctlError as error:
        return _fail(error, is_json)
    except click.exceptions.NoArgsIsHelpError as error:
        return _fail_with_help(error, is_json)
    except click.ClickException as error:
        return _fail(errors.usage(_with_hint(error)), is_json)
    except clicommon.CutOff:
        _drop_output()
        return CUT_OFF
    except BrokenPipeError:
        _drop_output()
    except SystemExit:
        if "_PATHCTL_COMPLETE" in os.environ:
            raise
        _drop_output()  # click's way out when the reader of our output has gone: it wants no more, and the rest is done
    except OSError as error:  # what else goes wrong is told as PathctlError
        _drop_output()
        return _fail(errors.internal(f"the output cannot be written ({error.strerror}); the rest is done"), False)
    except Exception as error:  # noqa: BLE001 - the root: a traceback is nothing for a user
        return _fail(errors.internal(_mistake(error)), is_json)
    return errors.ExitCode.OK


def _without_json(arguments: list[str]) -> tuple[list[str], bool]:
    """--json may stand anywhere before `--`; it is moved to where click looks for it: behind the command's name."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    words = [word for word in arguments[:end] if word != "--json"]
    is_json = len(words) < end
    return words + ["--json"] * is_json + arguments[end:], is_json


def _check_text(arguments: Iterable[str]) -> None:
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise errors.usage(f"{argument!a} is not UTF-8, so nothing was done: write names in UTF-8") from None


def _with_hint(error: click.ClickException) -> str:
    message = re.sub(r"\. Choose from:\s+", ": it is one of ", error.format_message().rstrip("."))
    message = re.sub(r"\s*\n\s*", " ", message)
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return message
    joint = " Look" if message.endswith("?") else "; look"
    return f"{message}{joint} with `{context.command_path} --help`"


def _mistake(error: Exception) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}" if frame else "?"
    return (
        f"pathctl made a mistake ({type(error).__name__}: {error} at {place}); what pathctld did is done. If pathctld"
        " is of another version than pathctl, start it anew; else please report this"
    )


def _fail_with_help(error: click.exceptions.NoArgsIsHelpError, is_json: bool) -> int:
    if is_json:
        return _fail(errors.usage(f"a command is missing; look with `{error.ctx.command_path} --help`"), is_json)
    with _loose_stderr():
        error.show()
    return errors.ExitCode.USAGE


def _fail(error: errors.PathctlError, is_json: bool) -> int:
    """Tell the error: the sentence, and what was done, undone and is pending where a sequence broke off."""
    with _loose_stderr():
        print(f"pathctl: {show.clean(error.message)}", file=sys.stderr)
        lists = {"done": error.done, "failed": [error.failed] if error.failed else [], "undone": error.undone}
        for word, steps in (lists | {"pending": error.pending}).items():
            if steps:
                print(f"  {word}: {', '.join(map(show.clean, steps))}", file=sys.stderr)
    try:
        if is_json:
            clicommon.print_json({"error": error.as_json()})
        sys.stdout.flush()
    except OSError:
        _drop_output()
    return errors.ExitCode.of(error.code)


@contextlib.contextmanager
def _loose_stderr() -> Iterator[None]:
    """Where stderr cannot be written, the exit code has to do."""
    with contextlib.suppress(OSError):
        yield


def _drop_output() -> None:
    """What is still in stdout's buffer goes nowhere, or Python would try and complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
