"""The benchmark runs, with every peer it compares with; what it finds in so short a time means nothing."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

REPO = Path(__file__).parents[2]


@pytest.fixture
def work() -> Iterator[Path]:
    """On a disk, and short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="pb-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.mark.timeout(300)
def test_the_benchmark_runs_with_every_peer_and_leaves_nothing_behind(tmp_path: Path, work: Path) -> None:
    command = ["scripts/bench", "--quick", "--group=throughput", "--rounds=1", "--seconds=0.1"]

    done = subprocess.run(
        [*command, f"--work={work}", f"--out={tmp_path}"], cwd=REPO, capture_output=True, text=True, timeout=280
    )

    assert done.returncode == 0, done.stderr
    document = json.loads(next(tmp_path.glob("*.json")).read_text())
    peers = {figure["peer"] for figure in document["figures"]}
    assert {"nbdkit file", "QEMU mirror"} <= peers
    assert all(len(figure["ours"]) == 1 and figure["value"] > 0 for figure in document["figures"])
    assert document["failed"] == {}
    assert document["facts"]["versions"]["qemu"][0].isdigit()
    assert "bars met" in done.stdout
    assert next(tmp_path.glob("*.png")).stat().st_size > 10_000
    left = [one.pid for one in psutil.process_iter(["cmdline"]) if str(work) in " ".join(one.info["cmdline"] or [])]
    assert left == []
    assert list(work.iterdir()) == []
