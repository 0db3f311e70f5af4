"""Two minutes of the torture with a fixed seed; scripts/torture itself takes any seed and any time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import lablib
import pytest
from conftest import SAY

MINUTES, SEED = 2, 20261122


@pytest.mark.timeout(600)
def test_two_minutes_of_torture_cost_no_byte(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    # Another worker's tests run beside this one: what takes long here is told and not judged.
    command = [lablib.REPO / "scripts/torture", "--minutes", str(MINUTES), "--seed", str(SEED), "--tell-times"]
    command += ["--folder", tmp_path]
    lab = lablib.Lab(f"tt{os.getpid()}")
    try:
        run = subprocess.run(
            command,
            env=os.environ | {"PATHCTL_LAB": lab.name},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=500,
            check=False,
        )
        litter = lab.litter()
    finally:
        lab.down()
    record_property(SAY, run.stdout)
    assert run.returncode == 0, run.stdout
    assert "everything as promised" in run.stdout
    assert litter == []
