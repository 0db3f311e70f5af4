"""badact - how the command lines of bad input are typed, and what must be so afterwards."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any

import psutil
from live import badscene
from live.badscene import Outcome, Scene
from waiting import WAIT_S, wait_until

Act = Callable[[Scene, Sequence[str]], Outcome]
Check = Callable[[Scene, dict[str, Any]], list[str]]


def type_it(scene: Scene, command: Sequence[str]) -> Outcome:
    return badscene.run(command)


def as_nobody(scene: Scene, command: Sequence[str]) -> Outcome:
    """As another user; may read everything, so that it does not matter where Python and the project lie."""
    caps = "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"
    found = badscene.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *caps, *command])
    return Outcome(tuple(command), found.code, found.out, found.err)


# -- outputs that take nothing ------------------------------------------------------------------------------


def to_a_reader_that_has_gone(scene: Scene, command: Sequence[str]) -> Outcome:
    """As `| head -0`: the reading end is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        return badscene.run(command, stdout=writer)
    finally:
        os.close(writer)


def to_a_full_device(scene: Scene, command: Sequence[str]) -> Outcome:
    with open("/dev/full", "wb") as full:
        return badscene.run(command, stdout=full)


def without_stdout(scene: Scene, command: Sequence[str]) -> Outcome:
    found = badscene.run(["sh", "-c", 'exec "$@" >&-', "sh", *command])
    return Outcome(tuple(command), found.code, found.out, found.err)


def without_any_stream(scene: Scene, command: Sequence[str]) -> Outcome:
    found = badscene.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command])
    return Outcome(tuple(command), found.code, found.out, found.err)


# -- Ctrl-C -------------------------------------------------------------------------------------------------


def interrupted_at(host: str, point: str) -> Act:
    """Ctrl-C while pathctld is at one of its steps; the step is let go on after the command has ended."""

    def act(scene: Scene, command: Sequence[str]) -> Outcome:
        daemon = scene.hosts[host]
        pause = daemon.fault("pause", point)
        try:
            typed = start(command)
            daemon.wait_reached(point)
            found = interrupt(typed, command)
        finally:
            pause.unlink()
            (daemon.faults / f"reached-{point}").unlink(missing_ok=True)
        return found

    act.__name__ = f"Ctrl-C at {point} of {host}"
    return act


def interrupted_after(delay_s: float) -> Act:
    def act(scene: Scene, command: Sequence[str]) -> Outcome:
        typed = start(command)
        with contextlib.suppress(subprocess.TimeoutExpired):
            typed.wait(delay_s)
        return interrupt(typed, command)

    act.__name__ = f"Ctrl-C after {delay_s * 1000:.0f} ms"
    return act


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """In a group of its own, as a shell does it."""
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    )


def interrupt(typed: subprocess.Popen[bytes], command: Sequence[str]) -> Outcome:
    """The exit code is as a shell shows it: one that was ended by SIGINT has 130."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(typed.pid, signal.SIGINT)
    out, err = typed.communicate(timeout=WAIT_S)
    code = 128 + signal.SIGINT if typed.returncode == -signal.SIGINT else typed.returncode
    return Outcome(tuple(command), code, out.decode(), err.decode())


def interrupted_while_it_waits(scene: Scene, command: Sequence[str]) -> Outcome:
    """Ctrl-C once the command has been seen to ask pathctld."""
    typed = start(command)
    wait_until(lambda: is_asking(typed), "the command asks pathctld")
    return interrupt(typed, command)


def is_asking(typed: subprocess.Popen[bytes]) -> bool:
    assert typed.poll() is None, typed.communicate()
    return bool(psutil.Process(typed.pid).net_connections("unix"))


# -- two at the same time -----------------------------------------------------------------------------------


def while_other(host: str, point: str, at: str, typed: str) -> Act:
    """Typed while another command, typed at `host` before, is at `point` of host `at`; that one ends afterwards."""

    def act(scene: Scene, command: Sequence[str]) -> Outcome:
        daemon = scene.hosts[at]
        pause = daemon.fault("pause", point)
        ended: list[Outcome] = []
        other = threading.Thread(target=lambda: ended.append(badscene.run(scene.command(host, shlex.split(typed)))))
        other.start()
        try:
            daemon.wait_reached(point)
            found = badscene.run(command)
        finally:
            pause.unlink()
            other.join(WAIT_S)
            (daemon.faults / f"reached-{point}").unlink(missing_ok=True)
        assert ended[0].code == 0, f"the other command is not disturbed: {ended[0].err}"
        return found

    act.__name__ = f"while `{typed}` of {host} is at {point}"
    return act


# -- what must be so afterwards -----------------------------------------------------------------------------


def unchanged(scene: Scene, before: dict[str, Any]) -> list[str]:
    return scene.changes(before)


def all_or_nothing(repeat: str, *take_back: str) -> Check:
    """What was begun ends by itself, as before or finished; repeated, the command works or says that it is done
    already; then it is taken back."""

    def check(scene: Scene, before: dict[str, Any]) -> list[str]:
        wait_until(lambda: has_ended(scene), "nothing is left open at either host")
        wrong = []
        for line in filter(None, (repeat, *take_back)):
            at, _, words = line.rpartition(": ")
            command = scene.command(at.removeprefix("at ") or "alpha", shlex.split(words))
            found = wait_until(lambda command=command: _unless_busy(command), f"`{line}` finds nothing busy")
            is_good = found.code == 0 or (line == repeat and "already" in found.err)
            wrong += [] if is_good else [f"{line} ended with {found.code}: {found.err}"]
        wait_until(lambda: has_ended(scene), "nothing is left open at either host")
        return wrong + scene.changes(before)

    return check


def _unless_busy(command: Sequence[str]) -> Outcome | None:
    """What the command says, unless pathctld is still at what was begun and tells so."""
    found = badscene.run(command)
    return None if "is busy with" in found.err else found


def ends_without_pair(scene: Scene, before: dict[str, Any]) -> list[str]:
    """The new pair goes by itself, from both hosts; its volumes stay."""
    wait_until(lambda: has_ended(scene), "nothing is left open at either host")
    after = scene.snapshot()
    left = [row for host in ("alpha", "beta") for row in after[f"{host} connections"] if "new" in str(row[2])]
    same = [before[f"{host} files of volumes"] == after[f"{host} files of volumes"] for host in ("alpha", "beta")]
    return [f"left of the pair: {left}"] * bool(left) + ["the volumes are others"] * (not all(same))


def has_ended(scene: Scene) -> bool:
    running = (scene.alpha, scene.beta)
    return all(not badscene.rows(host.root)[table] for host in running for table in ("journal", "steps"))
