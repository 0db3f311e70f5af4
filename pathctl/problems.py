"""problems - what is not well with this host as a whole, one sentence each, for the first lines of `pathctl status`.

What is not well with one pair, volume or peer stands in its own answer.
"""

import os
from pathlib import Path

from pathctl import lanefile, reserve, units
from pathctl.node import Node

LOW = 16 << 20  # bytes left in the state folder's file system; below, it is told


def find(node: Node) -> list[str]:
    return [*_of_state_folder(node.cfg.state, node.db.reserve), *_of_listening(node), *_of_lane()]


def free_bytes(folder: Path) -> int:
    """What pathctld may still write there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _of_state_folder(folder: Path, kept: reserve.Reserve) -> list[str]:
    free = free_bytes(folder)
    if free < reserve.LEAST_ROOM or (free < reserve.SIZE and not kept.path.exists()):
        return [f"the file system of {folder} is full, so nothing new can be begun or recorded; make room there"]
    if free < LOW:
        return [f"the file system of {folder} has only {units.format_size(free)} left; make room there"]
    return []


def _of_listening(node: Node) -> list[str]:
    host = node.db.host()
    if host is None or node.listen_error is None:
        return []
    where = f"{host.address}:{host.port}"
    return [f"{where} cannot be listened on ({node.listen_error}), so no peer reaches this host; pathctld tries on"]


def _of_lane() -> list[str]:
    problem = lanefile.get_problem()
    return [problem] if problem else []
