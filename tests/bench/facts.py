"""facts - what a figure depends on beside the product: the machine, and the versions of everything that took part."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import psutil

REPO = Path(__file__).parents[2]
LIMIT_S = 30.0
VERSIONS = {
    "nbdkit": ("nbdkit", "--version"),
    "libnbd": ("nbdcopy", "--version"),
    "qemu": ("qemu-storage-daemon", "--version"),
    "fio": ("fio", "--version"),
}


def find_version(text: str) -> str:
    """The first number with dots; else the text itself."""
    found = re.search(r"\d+(\.\d+)+", text)
    return found.group() if found else text.strip()


def find_model(cpuinfo: str) -> str:
    """Of /proc/cpuinfo."""
    found = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=LIMIT_S)
    except FileNotFoundError:
        return f"no {command[0]} here"
    return (done.stdout or done.stderr).rstrip()


def collect() -> dict[str, object]:
    versions = {name: find_version(_run(*command)) for name, command in VERSIONS.items()}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _run("git", "rev-parse", "HEAD"),
        "changed": [line[3:] for line in _run("git", "status", "--porcelain", "--untracked-files=no").splitlines()],
        "cpu": find_model(Path("/proc/cpuinfo").read_text()),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "kernel": platform.release(),
        "versions": {**versions, "python": platform.python_version()},
        "load_before": os.getloadavg(),
    }


def add_end(found: dict[str, object], took_s: float) -> dict[str, object]:
    return {**found, "load_after": os.getloadavg(), "took_s": round(took_s)}
