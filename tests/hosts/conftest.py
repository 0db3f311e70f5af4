"""The lab of the tests: two hosts that live as long as the session, and leave nothing behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lablib
import pytest


@pytest.fixture(scope="session")
def faults() -> Iterator[Path]:
    """The folder in which tests say where a sequence shall pause or fail; pathctld looks there (pathctl/faults.py)."""
    folder = Path(tempfile.mkdtemp(prefix="pathctl-faults-"))
    os.environ["PATHCTL_FAULTS"] = str(folder)
    yield folder
    del os.environ["PATHCTL_FAULTS"]
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def shared_lab(faults: Path) -> Iterator[lablib.Lab]:
    lab = lablib.Lab(f"s{os.getpid()}")
    lab.up()
    yield lab
    lab.down()
    assert lab.litter() == []
