"""torturefaults - what the torture does to the lab: each fault begins, lasts for a while, and is undone again.

Two demons draw from the same table, so that faults overlap; what two faults must not have at once (a process, the
network) they lock, or take another fault.  Everything is undone when a demon ends, also by an error.
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import lablib
import torturejudge
from torturejudge import Fault

from pathctl import errors

LINK, CRASH = "link", "crash"
IMAGE = "volume.img"
BACK_S = 60.0  # until a killed process must be there again
KILL_REST_S = 12.0  # a process that dies again sooner is started after a pause, on purpose: supervise.LIVED_WELL_S
DEVICE, SOCKET = frozenset({"device"}), frozenset({"socket"})
BOTH = DEVICE | SOCKET

Status = Callable[[str], dict[str, Any] | None]  # of the volume's data plane on that host, if it answers


class TortureError(Exception):
    """Something is not as promised, or cannot be found out."""


class Kind(NamedTuple):
    """`takes`: what no other fault may touch at the same time."""

    name: str
    weight: int
    phases: frozenset[str]
    takes: tuple[str, ...]
    run: Callable[[Demon, Fault], None]


class Table:
    """What the demons share: the lab, the record of faults, the locks, the call to stop."""

    def __init__(self, lab: lablib.Lab, volume: str, phase: str, status: Status, disks: Mapping[str, Any]) -> None:
        self.lab, self.volume, self.phase = lab, volume, phase
        self.alpha, self.beta = lab.host("alpha"), lab.host("beta")
        self.status, self.disks = status, disks
        self.faults: list[Fault] = []
        self.stop = threading.Event()
        self.problem: str | None = None
        self.killed_at = float("-inf")
        self.locks = {name: threading.Lock() for kind in KINDS for name in kind.takes}

    @contextlib.contextmanager
    def taking(self, names: tuple[str, ...]) -> Iterator[bool]:
        """Whether all of them were free; they are taken, then, for as long as the context lasts."""
        with contextlib.ExitStack() as stack:
            for name in sorted(names):
                if not self.locks[name].acquire(blocking=False):
                    stack.close()
                    yield False
                    return
                stack.callback(self.locks[name].release)
            yield True


class Demon(threading.Thread):
    """Does one fault after the other, until it is told to stop."""

    def __init__(self, table: Table, seed: str, rest_s: tuple[float, float]) -> None:
        super().__init__(name=f"demon-{seed}", daemon=True)
        self.table = table
        self.rng = random.Random(seed)
        self._rest_s = rest_s
        self._kinds = [kind for kind in KINDS if table.phase in kind.phases]

    def run(self) -> None:
        try:
            while not self.table.stop.wait(self.rng.uniform(*self._rest_s)):
                (kind,) = self.rng.choices(self._kinds, [kind.weight for kind in self._kinds])
                with self.table.taking(kind.takes) as is_mine:
                    if is_mine:
                        self._do(kind)
        except Exception as error:  # noqa: BLE001 - the root of a thread: told by the main one, which ends the run
            self.table.problem = self.table.problem or f"{type(error).__name__}: {error}"
            self.table.stop.set()

    def _do(self, kind: Kind) -> None:
        fault = Fault(kind.name, time.monotonic())
        self.table.faults.append(fault)
        try:
            kind.run(self, fault)
        finally:
            fault.end = time.monotonic()

    # -- how long

    def hold(self, least_s: float, most_s: float) -> None:
        self.table.stop.wait(self.rng.uniform(least_s, most_s))

    def hold_some(self) -> None:
        """Shorter than the link's time-out, or longer."""
        self.hold(0.3, 5.0) if self.rng.random() < 0.6 else self.hold(11.0, 20.0)

    # -- the network

    def cut(self, fault: Fault, sender: str | None = None) -> None:
        fault.onsets.append(time.monotonic())
        try:
            self.table.lab.cut(sender)
            self.hold_some()
        finally:
            self.table.lab.heal()

    def flap(self, fault: Fault) -> None:
        try:
            for _ in range(self.rng.randint(3, 8)):
                fault.onsets.append(time.monotonic())
                self.table.lab.cut()
                self.hold(0.1, 2.5)
                self.table.lab.heal()
                self.hold(0.1, 2.0)
        finally:
            self.table.lab.heal()

    def reset(self, fault: Fault) -> None:
        fault.onsets.append(time.monotonic())
        try:
            self.table.lab.reset()
            self.hold(0.1, 4.0)
        finally:
            self.table.lab.heal()

    def slow(self, fault: Fault) -> None:
        fault.is_lasting = True
        try:
            self.table.lab.slow_down(self.rng.choice(("8mbit", "30mbit", "100mbit")))
            self.hold(3.0, 9.0)
        finally:
            self.table.lab.heal()

    # -- processes

    def kill_nbdkit(self, fault: Fault, *hosts: lablib.Host) -> None:
        """It is started again by its pathctld; the caller has locked that one, too."""
        table = self.table
        status = table.status("alpha")
        fault.crash_extents = status["active_extents"] if status is not None else torturejudge.ACTIVE_MOST
        if table.alpha in hosts:
            self._space_kills()
            fault.fails = SOCKET
        pids = {host: host.nbdkit_pids(table.volume) for host in hosts}
        fault.start = time.monotonic()
        fault.onsets.append(fault.start)
        lablib.end([pid for found in pids.values() for pid in found])
        for host, old in pids.items():
            self._wait_for(lambda host=host, old=old: self._is_back(host, old), f"{host.name}: nbdkit is back")  # type: ignore[misc]
        self.hold(0.0, 5.0)

    def _space_kills(self) -> None:
        self.table.stop.wait(max(0.0, self.table.killed_at + KILL_REST_S - time.monotonic()))
        self.table.killed_at = time.monotonic()

    def _is_back(self, host: lablib.Host, old: list[int]) -> bool:
        status = self.table.status(host.name)
        return status is not None and status["pid"] not in old

    def freeze_nbdkit(self, fault: Fault, host: lablib.Host) -> None:
        if host is self.table.alpha:
            fault.freezes = BOTH
        fault.onsets.append(time.monotonic())
        with lablib.frozen(host.nbdkit_pids(self.table.volume)):
            self.hold_some()

    def kill_daemon(self, _fault: Fault, host: lablib.Host) -> None:
        try:
            host.kill()
            self.hold(0.1, 5.0)
        finally:
            host.start()

    def freeze_daemon(self, _fault: Fault, host: lablib.Host) -> None:
        with lablib.frozen(host.pids()):
            self.hold(0.5, 12.0)

    def freeze_device(self, fault: Fault) -> None:
        fault.freezes = DEVICE
        with lablib.frozen(self.table.alpha.device_pids(self.table.volume)):
            self.hold(0.5, 8.0)

    def kill_device(self, fault: Fault) -> None:
        """The process behind the block device: its requests fail, and an operator attaches it anew."""
        fault.fails = fault.freezes = DEVICE
        lablib.end(self.table.alpha.device_pids(self.table.volume))
        self.hold(0.1, 3.0)
        self._wait_for(self._attaches, "the device is attached again")

    def _attaches(self) -> bool:
        try:
            self.table.alpha.call("attach", volume=self.table.volume)
        except errors.PathctlError:  # a writer is just trying the dead one
            return False
        return True

    # -- disks

    def fail_destination(self, fault: Fault, op: str) -> None:
        """The peer answers with an error, which ends the session: what it lacks is owed."""
        fault.onsets.append(time.monotonic())
        if op == "sync":  # what was not flushed may be lost: as after a crash
            status = self.table.status("alpha")
            fault.crash_extents = status["active_extents"] if status is not None else torturejudge.ACTIVE_MOST
        self._fail_disk("beta", op, self.rng.choice((errno.EIO, errno.ENOSPC)) if op == "write" else errno.EIO)

    def fail_source(self, fault: Fault, op: str) -> None:
        """Read from the peer instead, or the track is invalid from there on; where the peer lacks it, EIO."""
        fault.fails = fault.freezes = BOTH
        fault.is_until_whole = True
        self._fail_disk("alpha", op, errno.EIO)

    def _fail_disk(self, host: str, op: str, number: int) -> None:
        disk = self.table.disks[host]
        try:
            disk.fail(IMAGE, op, errno=number, count=self.rng.choice((1, 1, 3, 10)))
            self.hold(0.5, 4.0)
        finally:
            disk.heal()

    # -- commands

    def suspend(self, _fault: Fault) -> None:
        self.table.alpha.call("pair.suspend", pair=self.table.volume)
        try:
            self.hold(0.2, 6.0)
        finally:
            self.table.alpha.call("pair.resume", pair=self.table.volume)

    def resume(self, _fault: Fault) -> None:
        self.table.alpha.call("pair.resume", pair=self.table.volume)

    # -- helpers

    @staticmethod
    def _wait_for(condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + BACK_S
        while not condition():
            if time.monotonic() > end:
                raise TortureError(f"not within {BACK_S:g} s: {what}")
            time.sleep(0.05)


_ANY = frozenset({LINK, CRASH})
_HARD = frozenset({CRASH})
_SOURCE = ("source nbdkit", "source pathctld", "device")
_TARGET = ("destination nbdkit", "destination pathctld")
KINDS = (
    Kind("cut", 3, _ANY, ("net",), lambda d, f: d.cut(f)),
    Kind("cut to destination", 2, _ANY, ("net",), lambda d, f: d.cut(f, "alpha")),
    Kind("cut to source", 2, _ANY, ("net",), lambda d, f: d.cut(f, "beta")),
    Kind("flapping", 2, _ANY, ("net",), lambda d, f: d.flap(f)),
    Kind("reset", 2, _ANY, ("net",), lambda d, f: d.reset(f)),
    Kind("slow", 2, _ANY, ("net",), lambda d, f: d.slow(f)),
    Kind("freeze destination nbdkit", 2, _ANY, ("destination nbdkit",), lambda d, f: d.freeze_nbdkit(f, d.table.beta)),
    Kind("freeze source nbdkit", 1, _ANY, ("source nbdkit", "device"), lambda d, f: d.freeze_nbdkit(f, d.table.alpha)),
    Kind("freeze device process", 1, _ANY, ("device",), lambda d, f: d.freeze_device(f)),
    Kind("freeze source pathctld", 1, _ANY, ("source pathctld",), lambda d, f: d.freeze_daemon(f, d.table.alpha)),
    Kind("freeze destination pathctld", 1, _ANY, _TARGET[1:], lambda d, f: d.freeze_daemon(f, d.table.beta)),
    Kind("kill source pathctld", 1, _ANY, ("source pathctld",), lambda d, f: d.kill_daemon(f, d.table.alpha)),
    Kind("kill destination pathctld", 1, _ANY, _TARGET[1:], lambda d, f: d.kill_daemon(f, d.table.beta)),
    Kind("suspend, resume", 2, _ANY, ("source nbdkit", "source pathctld"), lambda d, f: d.suspend(f)),
    Kind("resume", 1, _ANY, ("source nbdkit", "source pathctld"), lambda d, f: d.resume(f)),
    Kind("kill source nbdkit", 5, _HARD, _SOURCE, lambda d, f: d.kill_nbdkit(f, d.table.alpha)),
    Kind("kill destination nbdkit", 5, _HARD, _TARGET, lambda d, f: d.kill_nbdkit(f, d.table.beta)),
    Kind("kill both nbdkits", 3, _HARD, _SOURCE + _TARGET, lambda d, f: d.kill_nbdkit(f, d.table.alpha, d.table.beta)),
    Kind("disk error, destination write", 2, _HARD, ("disk",), lambda d, f: d.fail_destination(f, "write")),
    Kind("disk error, destination sync", 1, _HARD, ("disk",), lambda d, f: d.fail_destination(f, "sync")),
    Kind("disk error, source read", 2, _HARD, ("disk",), lambda d, f: d.fail_source(f, "read")),
    Kind("disk error, source write", 2, _HARD, ("disk",), lambda d, f: d.fail_source(f, "write")),
    Kind("kill device process", 3, _HARD, _SOURCE, lambda d, f: d.kill_device(f)),
)


def read_status(path: Path, limit_s: float) -> dict[str, Any] | None:
    """What a data plane says on its control socket; None if it does not within the limit."""
    try:
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(limit_s)
            control.connect(str(path))
            control.sendall(b'{"op": "status"}\n')
            answer: dict[str, Any] = json.loads(control.makefile().readline())["ok"]
            return answer
    except (OSError, ValueError, KeyError):
        return None
