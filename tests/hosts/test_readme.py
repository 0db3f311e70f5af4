"""The README's tour, typed line by line, prints what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import lablib
import pytest
from hosts import tour

from pathctl import cli

HEADING = "A first tour"
FOLDER = Path("/tmp/tour")


@pytest.fixture
def shell() -> Iterator[tour.Shell]:
    assert not FOLDER.exists(), f"{FOLDER} is somebody else's: the tour makes it"
    name = f"r{os.getpid()}"
    shell = tour.Shell(lablib.REPO, {"PATHCTL_LAB": name, "TZ": "UTC", "COLUMNS": "100"})
    yield shell
    shell.close()
    subprocess.run(["umount", FOLDER], capture_output=True, check=False, timeout=60)
    shutil.rmtree(FOLDER, ignore_errors=True)
    lab = lablib.Lab(name)
    lab.down()
    assert lab.litter() == []


@pytest.mark.timeout(300)
def test_the_tour_prints_what_the_readme_says(shell: tour.Shell) -> None:
    lines = tour.read(lablib.REPO / "README.md", HEADING)
    assert len(lines) > 10
    for line in lines:
        code, printed = shell.type(line.command)
        said = f"README.md:{line.number}: $ {line.command}\n" + "\n".join(printed)
        wants_failure = any(text.startswith("pathctl: ") for text in line.output)
        assert (code != 0) == wants_failure, f"exit code {code}\n{said}"
        assert tour.fits(line.output, printed), f"printed:\n{said}\n\nwritten:\n" + "\n".join(line.output)


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("1156d1aa  Synchronized  100%", "ffff1234 Synchronized   100%"),
        ("created in 843 ms", "created in 1204 ms"),
        ("/dev/loop1", "/dev/loop27"),
        ("12.5%  512 of 4096 tracks left  20M/s", "73.1%  7 of 4096 tracks left  19.8M/s"),
        ("2026-11-22 15:04:05 since 3 s", "2027-01-02 23:59:59 since 12 s"),
    ],
)
def test_what_differs_by_its_nature_may_differ(written: str, printed: str) -> None:
    assert tour.fits([written], [printed])


@pytest.mark.parametrize(
    ("written", "printed"),
    [
        ("Synchronized", "SyncInProg"),
        ("512 of 4096 tracks left", "512 of 4097 tracks left"),
        ("alpha:home -> beta:home", "alpha:home -> beta:other"),
        ("size  256M", "size  512M"),
        ("one line", "one line\nand another"),
    ],
)
def test_any_other_difference_is_found(written: str, printed: str) -> None:
    assert not tour.fits([written], printed.splitlines())


def test_dots_stand_for_any_lines_or_the_rest_of_one() -> None:
    assert tour.fits(["first", "and ..."], ["first", "and so on"])
    assert tour.fits(["first", "...", "last"], ["first", "a", "b", "last"])
    assert not tour.fits(["first", "..."], ["other", "a"])


def test_the_readmes_commands_are_those_of_the_help_in_its_order_and_words() -> None:
    text = (lablib.REPO / "README.md").read_text()
    commands = text[text.index("\n## Commands\n") : text.index("\n## Settings")]
    context = click.Context(cli.cli, info_name="pathctl")
    wanted = []
    for task, names in cli.TASKS.items():
        wanted.append(task)
        wanted += [f"{name}: {cli.find(cli.cli, context, name).get_short_help_str(200)}" for name in names]
    rows = re.findall(r"^\*(.+)\*$|^\| `([a-z ]+?)(?: [\[A-Z][^`]*)?` \| (.+) \|$", commands, re.MULTILINE)
    assert [task or f"{name}: {said}" for task, name, said in rows] == wanted
