"""A link that is cut, in one direction or both, or a peer that stands still: noticed, survived, and made good.

Each test is short here.  With PATHCTL_FULL=1 in the environment they take the sizes and times of real use: 200 MiB
rewritten within a cut of 30 s, a peer that stands still for a minute longer than it takes to be given up, and the
product's own limits.  They print what they measured; time itself decides nothing.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import lablib
import pytest
from hosts.load import running_fio, stop_fio
from hosts.scene import MIB, TRACK, Scene, read_device
from waiting import wait_until

IS_FULL = os.environ.get("PATHCTL_FULL") == "1"
SIZE = 1024 * MIB if IS_FULL else 64 * MIB
REWRITTEN = 200 * MIB if IS_FULL else 16 * MIB
CUT_S = 30.0 if IS_FULL else 3.0
FROZEN_S = 60.0 if IS_FULL else 2.0
TRYING_S = 11.0 if IS_FULL else 4.5  # longer than the time-out, and not when TCP sends its SYN again (1, 3, 7, 15 s)
LIMITS = {} if IS_FULL else {"link_timeout_s": 3}
LIMIT_S = 90.0  # for what should take seconds: a busy machine is no failure


@pytest.fixture
def scene(request: pytest.FixtureRequest, shared_lab: lablib.Lab, faults: Path) -> Iterator[Scene]:
    """A pair that is Synchronized, with its device attached."""
    scene = Scene(shared_lab, faults, f"loss{abs(hash(request.node.name)) % 10**6}", "source", "api")
    scene.create("destination", create=True, attach=True, size=SIZE)
    wait_for(scene, "Synchronized")
    set_limits(scene)
    yield scene
    shared_lab.heal()
    for host in (scene.alpha, scene.beta):
        lablib.send(host.nbdkit_pids(scene.name), signal.SIGCONT)
    scene.end()


def set_limits(scene: Scene) -> None:
    """Those of the link hold from the next session on."""
    if LIMITS:
        for host in (scene.alpha, scene.beta):
            ask(host, scene.name, op="limits", **LIMITS)
        scene.alpha.call("pair.suspend", pair=scene.name)
        scene.alpha.call("pair.resume", pair=scene.name)
        wait_for(scene, "Synchronized")


def ask(host: lablib.Host, volume: str, **request: Any) -> dict[str, Any]:
    """The volume's data plane, on its control socket."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(LIMIT_S)
        control.connect(str(host.run_file(f"{volume}.ctl")))
        control.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(control.makefile().readline())
    return dict(answer["ok"])


def get_status(scene: Scene) -> dict[str, Any]:
    return ask(scene.alpha, scene.name, op="status")


def get_pair(scene: Scene) -> dict[str, Any]:
    pair: dict[str, Any] = scene.alpha.call("pair.show", pair=scene.name)["pair"]
    return pair


def get_copied(scene: Scene) -> int:
    """Bytes that the copy has written, counted at the destination."""
    copied: int = ask(scene.beta, scene.name, op="status")["counters"]["copied_bytes"]
    return copied


def wait_for(scene: Scene, state: str) -> None:
    wait_until(lambda: get_pair(scene)["state"] == state, state, LIMIT_S)


def find_differing(scene: Scene) -> list[int]:
    with scene.alpha.image(scene.name).open("rb") as one, scene.beta.image(scene.name).open("rb") as other:
        return [track for track in range(SIZE // TRACK) if one.read(TRACK) != other.read(TRACK)]


def load(scene: Scene, rate: str) -> AbstractContextManager[subprocess.Popen[str]]:
    device = str(scene.alpha.run_file(f"dev/{scene.name}"))
    return running_fio(scene.alpha, device, SIZE, "--bs=16k", f"--rate=,{rate}", "--runtime=600", "--thread")


def test_after_a_cut_under_fio_only_owed_tracks_are_sent(scene: Scene) -> None:
    with load(scene, "20m") as fio:
        wait_until(lambda: get_status(scene)["counters"]["mirrored_bytes"], "fio's writes go to both", LIMIT_S)
        scene.lab.cut()
        start = time.monotonic()
        wait_until(lambda: get_status(scene)["session"] is None, "the loss is noticed", LIMIT_S)
        print(f"noticed after {time.monotonic() - start:.2f} s")
        before, rewritten = get_copied(scene), get_status(scene)["counters"]["write_bytes"] + REWRITTEN
        wait_until(lambda: get_status(scene)["counters"]["write_bytes"] >= rewritten, "rewritten meanwhile", LIMIT_S)
        wait_until(lambda: time.monotonic() - start >= CUT_S, "the cut is as long as it should be", LIMIT_S)

        with lablib.frozen(
            [fio.pid]
        ):  # nothing is written from here until the path is ready: owed tracks can be counted
            wait_until_at_rest(scene)
            owed, differing = get_pair(scene)["owed"], len(find_differing(scene))
            scene.lab.heal()
            wait_until(lambda: get_status(scene)["session"], "the path is ready again", LIMIT_S)
        print(f"cut for {time.monotonic() - start:.1f} s, {differing} tracks differed, {owed} were owed")
        wait_for(scene, "Synchronized")
        stop_fio(fio)
    print(f"{(get_copied(scene) - before) // TRACK} tracks sent")
    assert 0 < differing <= owed
    assert get_copied(scene) - before == owed * TRACK
    assert find_differing(scene) == []


def wait_until_at_rest(scene: Scene) -> None:
    """No write has ended for two seconds."""
    seen: list[tuple[float, int]] = []

    def is_at_rest() -> bool:
        written = get_status(scene)["counters"]["write_bytes"]
        if not seen or seen[-1][1] != written:
            seen.append((time.monotonic(), written))
        return time.monotonic() - seen[-1][0] > 2.0

    wait_until(is_at_rest, "no write is under way", LIMIT_S)


def test_late_writes_of_a_frozen_peer_are_refused_when_it_wakes(scene: Scene) -> None:
    refused = ask(scene.beta, scene.name, op="status")["counters"]["refused_requests"]
    with load(scene, "4m") as fio:
        wait_until(lambda: get_status(scene)["counters"]["mirrored_bytes"], "fio's writes go to both", LIMIT_S)
        with lablib.frozen(scene.beta.nbdkit_pids(scene.name)):
            wait_until(lambda: get_status(scene)["session"] is None, "the source gives the peer up", LIMIT_S)
            wait_until(lambda: get_pair(scene)["owed"], "the source goes on", LIMIT_S)
            start = time.monotonic()
            wait_until(lambda: time.monotonic() - start > FROZEN_S, "it goes on for long", LIMIT_S)
        wait_until(lambda: get_status(scene)["session"], "the path is ready again", LIMIT_S)
        wait_for(scene, "Synchronized")
        stop_fio(fio)
    wait_for(scene, "Synchronized")
    late = ask(scene.beta, scene.name, op="status")["counters"]["refused_requests"] - refused
    print(f"{late} late requests refused")
    assert late > 0
    assert find_differing(scene) == []


class Reader(threading.Thread):
    """Reads tracks that nobody writes, from nbdkit's own socket; what does not answer would be missed by the count."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(daemon=True)
        self._device = str(scene.alpha.run_file(f"dev/{scene.name}"))
        self._is_over = threading.Event()
        self.count, self.longest_s = 0, 0.0
        self.errors: list[Exception] = []

    def run(self) -> None:
        rng = random.Random(1)
        while not self._is_over.is_set():
            start = time.monotonic()
            try:
                read_device(self._device, SIZE // 2 + rng.randrange(SIZE // 2 // TRACK) * TRACK, 4096)
            except subprocess.SubprocessError as error:
                self.errors.append(error)
            self.longest_s = max(self.longest_s, time.monotonic() - start)
            self.count += 1

    def end(self) -> None:
        self._is_over.set()
        self.join(LIMIT_S)
        assert not self.is_alive()
        assert self.errors == []


def start_write(scene: Scene, offset: int) -> subprocess.Popen[str]:
    """One direct write to the device."""
    device = scene.alpha.run_file(f"dev/{scene.name}")
    return scene.alpha.popen(
        "dd", "if=/dev/urandom", f"of={device}", "bs=4k", "count=1", "conv=notrunc", "oflag=direct,seek_bytes",
        f"seek={offset}", "iflag=fullblock", stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.parametrize("sender", ["alpha", "beta", None], ids=["to-destination", "to-source", "both-ways"])
def test_a_cut_is_noticed_and_the_writes_that_waited_complete_here(scene: Scene, sender: str | None) -> None:
    reader = Reader(scene)
    scene.lab.cut(sender)
    start = time.monotonic()
    write = start_write(scene, 0)
    reader.start()
    assert write.wait(LIMIT_S) == 0
    print(f"the write that waited completed after {time.monotonic() - start:.2f} s")
    wait_until(lambda: get_status(scene)["session"] is None, "the loss is noticed", LIMIT_S)
    print(f"noticed after {time.monotonic() - start:.2f} s")
    assert get_pair(scene)["state"] == "Partitioned"
    assert get_pair(scene)["owed"] >= 1
    assert start_write(scene, 4 * TRACK).wait(LIMIT_S) == 0
    assert get_status(scene)["session"] is None
    wait_until(lambda: reader.count > 10, "reads are answered all the time", LIMIT_S)
    reader.end()
    print(f"{reader.count} reads meanwhile, the longest took {reader.longest_s:.2f} s")

    scene.lab.heal()
    scene.alpha.call("pair.resume", pair=scene.name)
    wait_for(scene, "Synchronized")
    assert find_differing(scene) == []


def test_a_suspend_within_a_cut_that_is_not_noticed_yet_holds_up_no_read(scene: Scene) -> None:
    for host in (scene.alpha, scene.beta):
        ask(host, scene.name, op="limits", link_timeout_s=10)
    for command in ("pair.suspend", "pair.resume"):  # for the next session
        scene.alpha.call(command, pair=scene.name)
    wait_for(scene, "Synchronized")
    device = str(scene.alpha.run_file(f"dev/{scene.name}"))
    scene.lab.cut()
    write = start_write(scene, 0)
    with scene.alpha.image(scene.name).open("rb") as store, ThreadPoolExecutor(1) as pool:
        wait_until(lambda: store.seek(0) == 0 and any(store.read(4096)), "the write is under way", LIMIT_S)
        start = time.monotonic()
        suspend = pool.submit(scene.alpha.call, "pair.suspend", pair=scene.name)
        wait_until(lambda: time.monotonic() - start > 1.0, "the command has come as far as it can", LIMIT_S)

        read_device(device, SIZE // 2, 4096)

        assert write.poll() is None  # it waits for the peer yet: nothing but the read's own was waited for
        suspend.result(LIMIT_S)
    print(f"suspended after {time.monotonic() - start:.2f} s")
    assert write.wait(LIMIT_S) == 0
    assert get_pair(scene)["state"] == "Suspended"
    scene.lab.heal()
    scene.alpha.call("pair.resume", pair=scene.name)
    wait_for(scene, "Synchronized")
    assert find_differing(scene) == []


def test_resume_connects_at_once_after_a_heal(scene: Scene) -> None:
    """An attempt that is under way when the network is healed would go on until the link's time-out."""
    scene.lab.cut()
    ask(scene.alpha, scene.name, op="limits", link_timeout_s=600)
    wait_until(lambda: get_status(scene)["session"] is None, "the loss is noticed", LIMIT_S)
    attempt = wait_until(lambda: find_attempt(scene), "an attempt with the new limit is under way", LIMIT_S)
    scene.lab.heal()
    scene.lab.cut_port(attempt)
    start = time.monotonic()
    scene.alpha.call("pair.resume", pair=scene.name)
    wait_until(lambda: get_status(scene)["session"], "the path is ready", LIMIT_S)
    print(f"ready {time.monotonic() - start:.2f} s after resume")
    wait_for(scene, "Synchronized")


def find_attempt(scene: Scene) -> int | None:
    """The source's port of a connection that has waited for its answer for longer than earlier limits would let it."""
    start = time.monotonic()
    ports = get_connecting(scene)
    while ports and time.monotonic() - start < TRYING_S:
        time.sleep(0.05)
        ports &= get_connecting(scene)
    return min(ports, default=None)


def get_connecting(scene: Scene) -> set[int]:
    (row,) = scene.get_rows(scene.alpha)
    shown = scene.alpha.run("ss", "-Htn", "state", "syn-sent", "dport", "=", f":{row['port']}").stdout
    return {int(line.split()[2].rpartition(":")[2]) for line in shown.splitlines()}
