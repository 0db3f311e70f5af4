"""Help and man pages: every command has an example that is a right command line, and a page without a warning."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from pathctl import cli, clicommon, errors, manpages


def commands() -> list[click.Context]:
    """The context of every command and group."""

    def walk(context: click.Context) -> Iterator[click.Context]:
        yield context
        if isinstance(context.command, click.Group):
            for name, command in context.command.commands.items():
                yield from walk(click.Context(command, info_name=name, parent=context))

    return list(walk(click.Context(cli.cli, info_name="pathctl", **cli.cli.context_settings)))


def leaves() -> list[click.Context]:
    return [context for context in commands() if not isinstance(context.command, click.Group)]


def name(context: click.Context) -> str:
    return context.command_path.removeprefix("pathctl").strip() or "pathctl"


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("context", commands(), ids=name)
def test_the_help_of_every_command_has_an_example(
    context: click.Context, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*context.command_path.split()[1:], option]) == errors.ExitCode.OK
    shown = capsys.readouterr().out
    assert re.search(r"^Example:\n  .*pathctl", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("context", commands(), ids=name)
def test_every_example_is_a_right_command_line(context: click.Context) -> None:
    assert isinstance(context.command, clicommon.Command | clicommon.Group)
    for line in context.command.example.splitlines():
        assert context.command_path in line
        typed = line[line.index("pathctl") :].partition("|")[0].rstrip(") ")
        words = shlex.split(typed)[1:]
        if "--help" in words:
            continue
        found, parent = cli.cli.make_context("pathctl", words), cli.cli.context_class
        while isinstance(found.command, click.Group):
            assert isinstance(found, parent)
            word, command, rest = found.command.resolve_command(found, [*found._protected_args, *found.args])
            assert command is not None
            found = command.make_context(word, rest, parent=found)


@pytest.mark.parametrize("context", leaves(), ids=name)
def test_every_command_has_json_and_a_sentence(context: click.Context) -> None:
    assert "--json" in [option for param in context.command.params for option in param.opts]
    sentence = (context.command.help or "").partition("\n")[0]
    assert sentence.endswith(".")
    assert 20 <= len(sentence) <= 100


def test_the_help_has_the_story_every_command_by_task_and_all_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == errors.ExitCode.OK
    shown = capsys.readouterr().out
    assert len(cli.STORY.splitlines()) == 5
    assert cli.STORY in shown
    listed = [task for tasks in cli.TASKS.values() for task in tasks]
    assert sorted(listed) == sorted(name(context) for context in leaves())
    codes = shown[shown.index("Exit codes:") :]
    assert re.findall(r"^ +(\d+) ", codes, re.MULTILINE) == [str(int(code)) for code in errors.ExitCode] + ["130"]


def test_no_command_shows_the_help_and_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == errors.ExitCode.USAGE
    assert cli.STORY in capsys.readouterr().err
    assert cli.run(["pair"]) == errors.ExitCode.USAGE
    assert "create" in capsys.readouterr().err


# -- man pages --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    manpages.main(str(folder))
    return folder


def test_every_command_has_a_page_and_a_page_without_a_command_goes(pages: Path) -> None:
    (pages / "man1/pathctl-gone.1").touch()
    manpages.main(str(pages))
    wanted = {context.command_path.replace(" ", "-") + ".1" for context in commands()}
    assert {path.name for path in (pages / "man1").iterdir()} == wanted
    assert {path.name for path in (pages / "man8").iterdir()} == {"pathctld.8"}


def test_groff_has_no_warning_about_any_page(pages: Path) -> None:
    for path in sorted(pages.glob("man*/*")):
        command = ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(path)]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        assert shown.stderr == "", path.name


def read(page: Path) -> str:
    wide = os.environ | {"MANWIDTH": "400"}
    command = ["man", "-l", str(page)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=wide).stdout


def test_the_page_of_pathctld_says_how_to_run_and_to_stop_it(pages: Path) -> None:
    shown = " ".join(read(pages / "man8/pathctld.8").replace("\u2010", "-").split())
    for text in (
        "--root ROOT",
        "--stop-all",
        "SIGTERM, SIGINT",
        "kill $(cat /run/pathctl/pathctld.pid)",
        "/etc/pathctl/pathctl.toml",
        "KillMode=process",
    ):
        assert text in shown
    assert [int(code) for code in re.findall(r" (\d) ", shown[shown.index("EXIT STATUS") : shown.index("FILES")])] == [
        errors.ExitCode.OK,
        errors.ExitCode.INTERNAL,
        errors.ExitCode.USAGE,
        errors.ExitCode.REFUSED,
        errors.ExitCode.UNREACHABLE,
    ]


@pytest.mark.parametrize("context", leaves(), ids=name)
def test_a_page_says_what_the_help_says(context: click.Context, pages: Path) -> None:
    shown = read(pages / "man1" / (context.command_path.replace(" ", "-") + ".1"))
    flat = " ".join(shown.replace("\u2010\n", "").split())
    for param in context.command.params:
        assert not isinstance(param, click.Option) or param.opts[0] in flat
    assert isinstance(context.command, clicommon.Command)
    for line in context.command.example.splitlines():
        assert line in shown
    for text in cli.EXITS.values():
        assert text in flat
