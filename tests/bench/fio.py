"""fio - one pattern of load by fio's nbd engine on a Unix socket, for a fixed time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

KIB, MIB = 1 << 10, 1 << 20
SPARE_S = 60.0
LATE_S = 2.0  # the last requests may take their time: a copy has them wait


class FioError(Exception):
    """fio did not do what was asked, so that there is no figure; says what it wrote."""


@dataclasses.dataclass(frozen=True, slots=True)
class Pattern:
    """What is asked of a volume: `clients` connections, each with `depth` requests under way."""

    mode: str  # as fio's rw: randread, randwrite, randrw, read, write
    block: int
    depth: int
    clients: int = 1
    reads: int | None = None  # per cent, of randrw

    @property
    def name(self) -> str:
        what = {
            "randread": "random read",
            "randwrite": "random write",
            "randrw": f"{self.reads}/{100 - (self.reads or 0)} mix",
            "read": "sequential read",
            "write": "sequential write",
        }[self.mode]
        clients = "" if self.clients == 1 else f" x {self.clients} clients"
        return f"{what} {self.block // KIB}K d{self.depth}{clients}"

    @property
    def unit(self) -> str:
        return "MB/s" if self.block >= 128 * KIB else "IOPS"


def build_command(pattern: Pattern, socket: Path, size: int, seconds: float) -> list[str]:
    """`size`: how much of the volume, from its beginning, the load goes over."""
    share = size // pattern.clients if pattern.mode in ("read", "write") else 0
    command = ["fio", "--name=load", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={socket}", f"--rw={pattern.mode}"]
    command += [f"--bs={pattern.block}", f"--iodepth={pattern.depth}", f"--numjobs={pattern.clients}"]
    command += [f"--size={share or size}", f"--offset_increment={share}", "--norandommap", "--randrepeat=0"]
    command += ["--time_based", f"--runtime={seconds * 1000:.0f}ms", "--group_reporting", "--output-format=json"]
    return command + ([] if pattern.reads is None else [f"--rwmixread={pattern.reads}"])


def parse(output: str) -> dict[str, Any]:
    """The only job of fio's JSON, which comes after a line in words."""
    begin = output.find("{")
    if begin < 0:
        raise FioError(f"fio printed no JSON: {output.strip()!r}")
    jobs: list[dict[str, Any]] = json.loads(output[begin:])["jobs"]
    if len(jobs) != 1 or jobs[0]["error"]:
        raise FioError(f"fio ended with error {[job['error'] for job in jobs]}: {output[:begin].strip()!r}")
    return jobs[0]


def read_speed(job: dict[str, Any], unit: str) -> float:
    """What all clients together reached, reads and writes added up."""
    key, scale = ("bw_bytes", 1e-6) if unit == "MB/s" else ("iops", 1.0)
    speed = scale * sum(float(job[side][key]) for side in ("read", "write"))
    if speed <= 0:
        raise FioError("fio moved nothing: either the server did not answer or the time was too short")
    return speed


def check_time(job: dict[str, Any], seconds: float) -> None:
    """Raises FioError where the load did not last as long as it should have."""
    took_s = max(job[side]["runtime"] for side in ("read", "write")) / 1000
    if not 0.9 * seconds <= took_s <= 1.5 * seconds + LATE_S:
        raise FioError(f"fio's load lasted {took_s:g} s instead of {seconds:g} s")


def measure(
    pattern: Pattern, socket: Path, size: int, seconds: float, begun: Callable[[], None] = lambda: None
) -> float:
    """In the pattern's unit; raises FioError.  `begun` is called when fio has been started, and may wait for more."""
    command = build_command(pattern, socket, size, seconds)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=socket.parent
    ) as load:
        try:
            begun()
            output, complaint = load.communicate(timeout=seconds + SPARE_S)
        finally:
            load.kill()
    if load.returncode:
        raise FioError(f"fio exited with {load.returncode}: {complaint.strip() or output.strip()}")
    job = parse(output)
    check_time(job, seconds)
    return read_speed(job, pattern.unit)
