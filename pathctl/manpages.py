"""manpages - the man pages, made of what --help says: `python -m pathctl.manpages FOLDER`.

man1/pathctl.1 and one page for each command and group (pathctl-pair-create.1, ...), man8/pathctld.8, in man(7)'s
macros.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from pathctl import cli, daemon, signals

JSON = """\
With --json, which may stand anywhere on the command line, a command prints one JSON object with "version": 1
first; `pair watch` and `events --follow` print one on each line. A command that fails prints {"version": 1, "error":
{"code": ..., "message": ...}}. The file schema.json beside the program's Python modules describes every answer as JSON
Schema. What is added raises nothing; what goes, or changes what it means, raises the version.

Without --yes a command that would lose data asks on a terminal, and is refused with exit code 4 elsewhere and with
--json; --dry-run tells what would be done and lost.
"""
FILES = [
    ("/etc/pathctl/pathctl.toml", "settings of pathctld; see `pathctl config show`"),
    ("/var/lib/pathctl/", "database, volumes, keys and logs"),
    ("/run/pathctl/pathctld.sock", "the socket on which pathctld is asked"),
    ("/run/pathctl/dev/VOLUME", "a link to the block device of each attached volume"),
]

DAEMON = """\
pathctld owns what pathctl is asked for on this host: it keeps the configuration, starts one process (nbdkit) for each
volume that is attached or in a pair, makes the block devices, and speaks with the pathctld of the peers.
It runs in the foreground, as root, one for each root folder, and logs to standard error, or to the journal.

It may be ended, killed, restarted and upgraded at any time: volumes, devices and paths go on without it, and the next
pathctld takes them over.  An init system must therefore end nothing but this one process (systemd: KillMode=process).
A restart is also what reads the settings anew.

To stop pathctld alone without an init system: kill $(cat /run/pathctl/pathctld.pid).  To end everything on this host,
devices and the volumes' processes too: unmount what is mounted, stop pathctld if the init system would start it again,
then pathctld --stop-all.  Configuration and data stay, and the next pathctld brings all of it up again.
"""
DAEMON_SIGNALS = [
    ("SIGTERM, SIGINT", "end pathctld only; volumes, devices and paths go on"),
    ("SIGHUP", "changes nothing: to read the settings anew, restart pathctld"),
]
DAEMON_FILES = [
    ("/run/pathctl/pathctld.pid", "the process that runs; locked by it"),
    ("/var/lib/pathctl/log/VOLUME.log", "what a volume's process has said"),
]
DAEMON_EXITS = [
    ("0", "ended as it was asked to"),
    ("1", "a file cannot be read or written, or a mistake in pathctld; standard error says which"),
    ("2", "wrong usage, or wrong settings: the line is named"),
    ("4", "refused: not root, another pathctld runs on this root, or something that --stop-all would end is in use"),
    ("5", "the pathctld that --stop-all asks does not answer"),
    ("130", "interrupted by Ctrl-C before it served, or with --stop-all before everything was ended"),
]


def pages() -> dict[str, str]:
    """File name -> content."""
    root = click.Context(cli.cli, info_name="pathctl", **cli.cli.context_settings)
    made = {f"man1/{_title(context)}.1": _page(context) for context in _walk(root)}
    return made | {"man8/pathctld.8": _daemon_page()}


def _daemon_page() -> str:
    parser = daemon.parser()
    options = [
        (", ".join(action.option_strings) + f" {action.dest.upper()}" * (action.nargs is None), action.help or "")
        for action in parser._actions
    ]
    sections = [
        ("NAME", [r"pathctld \- the daemon of pathctl"]),
        ("SYNOPSIS", [r"\fBpathctld\fR [\-\-version] [\-\-root ROOT] [\-\-stop\-all]"]),
        ("DESCRIPTION", _paragraphs(DAEMON)),
        ("OPTIONS", _items(options)),
        ("SIGNALS", _items(DAEMON_SIGNALS)),
        ("EXIT STATUS", _items(DAEMON_EXITS)),
        ("FILES", _items([*FILES, *DAEMON_FILES])),
        ("SEE ALSO", [".BR pathctl (1),", r".BR pathctl\-config\-show (1)"]),
    ]
    return _as_page("PATHCTLD", 8, sections)


def _walk(context: click.Context) -> Iterator[click.Context]:
    yield context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            yield from _walk(click.Context(command, info_name=name, parent=context))


def _title(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _page(context: click.Context) -> str:
    is_root = context.parent is None
    sections = [
        ("NAME", [f"{_text(_title(context))} \\- {_text(_short(context.command))}"]),
        ("SYNOPSIS", _synopsis(context)),
        ("DESCRIPTION", _paragraphs(cli.STORY if is_root else _help(context.command))),
        *(_tasks(context) if is_root else [("COMMANDS", _commands(context))]),
        ("OPTIONS", list(_options(context))),
        ("EXAMPLE", _example(context.command)),
        ("EXIT STATUS", list(_exits())),
        ("JSON", _paragraphs(JSON) if is_root else []),
        ("FILES", _items(FILES) if is_root else []),
        ("SEE ALSO", _see_also(context)),
    ]
    return _as_page(_text(_title(context)).upper(), 1, sections)


def _as_page(title: str, number: int, sections: Iterable[tuple[str, list[str]]]) -> str:
    head = f'.TH "{title}" {number} "" "pathctl" "pathctl"'
    body = [line for title, lines in sections if lines for line in (f'.SH "{title}"', *lines)]
    return "\n".join([head, *body, ""])


def _short(command: click.Command) -> str:
    return _help(command).partition("\n\n")[0].replace("\n", " ").rstrip(".")


def _help(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "")


def _synopsis(context: click.Context) -> list[str]:
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return [f"\\fB{_text(context.command_path)}\\fR {_text(pieces)}"]


def _paragraphs(text: str) -> list[str]:
    return [line for part in text.strip().split("\n\n") for line in (".PP", *map(_text, part.split("\n")))]


def _commands(context: click.Context) -> list[str]:
    if not isinstance(context.command, click.Group):
        return []
    found = (context.command.get_command(context, name) for name in context.command.list_commands(context))
    return [line for command in found if command for line in _item(command.name or "", _short(command))]


def _tasks(context: click.Context) -> list[tuple[str, list[str]]]:
    assert isinstance(context.command, click.Group)
    lines = []
    for task, names in cli.TASKS.items():
        lines.append(f'.SS "{_text(task)}"')
        for name in names:
            lines += _item(name, _short(cli.find(context.command, context, name)))
    return [("COMMANDS", lines)]


def _options(context: click.Context) -> Iterator[str]:
    for param in context.command.get_params(context):
        record = param.get_help_record(context) if isinstance(param, click.Option) else None
        if record is not None:
            yield from _item(*record)


def _example(command: click.Command) -> list[str]:
    example = getattr(command, "example", "")
    return [".nf", ".RS 4", *map(_text, example.split("\n")), ".RE", ".fi"] if example else []


def _exits() -> Iterable[str]:
    for code, text in cli.EXITS.items():
        yield from _item(str(int(code)), text)
    yield from _item(str(signals.INTERRUPTED), cli.INTERRUPTED)


def _see_also(context: click.Context) -> list[str]:
    """The level above and the one below."""
    found = [context.parent.command_path] if context.parent else []
    if isinstance(context.command, click.Group):
        found += [f"{context.command_path} {name}" for name in context.command.list_commands(context)]
    return [f".BR {_text(path.replace(' ', '-'))} (1)" + "," * (path != found[-1]) for path in found]


def _items(found: Iterable[tuple[str, str]]) -> list[str]:
    return [line for term, text in found for line in _item(term, text)]


def _item(term: str, text: str) -> list[str]:
    return [".TP", f"\\fB{_text(term)}\\fR", _text(text)]


def _text(text: str) -> str:
    """With what roff would take for itself escaped."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")
    return "\\&" + escaped if escaped.startswith(".") else escaped


def main(folder: str) -> None:
    """Write the pages below `folder`, as man(1) looks for them; those of commands that are no more go."""
    target = Path(folder)
    made = pages()
    for name, content in made.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text(content)
    for old in target.glob("man1/pathctl*.1"):
        if f"man1/{old.name}" not in made:
            old.unlink()


if __name__ == "__main__":
    main(sys.argv[1])
