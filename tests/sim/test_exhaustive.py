"""A fixed share of the exhaustive run; all of it is `python -m tests.sim.exhaustive`.

It runs in a process of its own: a small world makes pages, headers and extents small for its whole process.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SAY

from tests.sim import exhaustive
from tests.sim.exhaustive import Edge, Move

REPO = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.sim.exhaustive", *arguments]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.timeout(300)
def test_no_short_sequence_breaks_a_rule(record_property: Callable[[str, object], None]) -> None:
    done = run("--share", "1/120")
    record_property(SAY, done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 violations" in done.stdout


def test_a_path_is_replayed_from_its_text() -> None:
    edge = Edge(True, False, True, (Move(0, "write A"), Move(6, "crash source", "only table")))
    path = exhaustive.Path("source invalid", (edge, Edge(False, True, False, (Move(0, "flush"),))))
    assert exhaustive.parse_path(str(path)) == path
    lines = run("--replay", str(path)).stdout.splitlines()
    assert any("! A is killed" in line for line in lines)
    assert run("--replay", str(path)).stdout.splitlines() == lines


def test_a_path_that_names_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="names what is not there"):
        exhaustive.parse_path("clean | newest here: 0 write C")
