"""Paths made, changed, ended, and processes killed, under a running fio that verifies what it wrote."""

from __future__ import annotations

import mmap
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import lablib
import psutil
import pytest
from hosts.load import running_fio, stop_fio
from hosts.scene import MIB, TRACK, Scene
from waiting import WAIT_S, wait_until

SIZE = 64 * MIB
EXTENT_TRACKS = 16 * MIB // TRACK


@pytest.fixture
def scene(request: pytest.FixtureRequest, shared_lab: lablib.Lab, faults: Path) -> Iterator[Scene]:
    scene = Scene(shared_lab, faults, f"load{abs(hash(request.node.name)) % 10**6}", "source", "api")
    yield scene
    for host in (scene.alpha, scene.beta):
        host.start()
    scene.end()


def load(scene: Scene, device: str, size: int) -> AbstractContextManager[subprocess.Popen[str]]:
    return running_fio(scene.alpha, device, size, "--bs=4k", "--rate_iops=400", "--runtime=600")


def count_checkpoints(scene: Scene) -> int:
    return int(scene.get_plane(scene.alpha)["counters"]["checkpoints"])


def assert_stores_equal(scene: Scene) -> None:
    scene.wait_synchronized()
    assert scene.alpha.image(scene.name).read_bytes() == scene.beta.image(scene.name).read_bytes()


def get_pair(scene: Scene) -> dict[str, object]:
    pair: dict[str, object] = scene.alpha.call("pair.show", pair=scene.name)["pair"]
    return pair


def test_a_pair_is_created_suspended_resumed_and_deleted_under_fio(scene: Scene) -> None:
    alpha = scene.alpha
    alpha.call("volume.create", name=scene.name, size=SIZE)
    device = alpha.call("attach", volume=scene.name)["device"]
    with load(scene, device, SIZE) as fio:
        for _ in range(2):
            scene.create("destination", create=True)
            scene.wait_synchronized()
            alpha.call("pair.suspend", pair=scene.name)
            wait_until(lambda: get_pair(scene)["owed"], "writes are owed")
            assert get_pair(scene)["state"] == "Suspended"
            alpha.call("pair.resume", pair=scene.name)
            scene.wait_synchronized()
            alpha.call("pair.delete", pair=scene.name)
            assert [scene.get_rows(host) for host in (alpha, scene.beta)] == [[], []]
        scene.create("destination")
        scene.wait_synchronized()
        stop_fio(fio)
    assert_stores_equal(scene)


def kill(scene: Scene, victim: str) -> None:
    """SIGKILL; whoever is supervised comes back by itself, a pathctld is started again as an init system would."""
    side, _, what = victim.partition(" ")
    host = scene.alpha if side == "source" else scene.beta
    pid = scene.get_volume(host)["pid"]
    if what == "nbdkit":
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: scene.get_volume(host)["pid"] not in (pid, None), "nbdkit runs again")
    else:
        host.kill()
        host.start()
        wait_until(lambda: scene.get_volume(host)["pid"] is not None, "nbdkit is known again")
        assert scene.get_volume(host)["pid"] == pid  # adopted, not replaced


@pytest.mark.parametrize("victim", ["source nbdkit", "destination nbdkit", "source pathctld", "destination pathctld"])
@pytest.mark.parametrize("invalidate", ["source", "destination"])
def test_a_kill_during_the_copy_costs_no_error_and_the_copy_goes_on(scene: Scene, invalidate: str, victim: str) -> None:
    (scene.alpha if invalidate == "destination" else scene.beta).call("volume.create", name=scene.name, size=SIZE)
    full = scene.alpha if invalidate == "destination" else scene.beta
    full.image(scene.name).write_bytes(os.urandom(SIZE))
    device = scene.create(invalidate, create=True, attach=True, copy_rate_bytes_s=16 * MIB)["device"]
    left = "invalid" if invalidate == "source" else "owed"
    with load(scene, device, 4 * MIB) as fio:
        wait_until(lambda: get_pair(scene)[left] < SIZE // TRACK // 2, "half is copied")  # type: ignore[operator]
        scene.alpha.call("pair.set", pair=scene.name, copy_rate_bytes_s=0)
        done = count_checkpoints(scene)
        wait_until(lambda: count_checkpoints(scene) >= done + 2, "two checkpoints: the bound below is exact")
        before = get_pair(scene)[left]
        kill(scene, victim)
        wait_until(lambda: get_pair(scene)["session"], "the path is ready again")
        after = get_pair(scene)[left]
        assert after <= before + EXTENT_TRACKS  # type: ignore[operator]  # fio's extent at most, nothing else again
        scene.alpha.call("pair.set", pair=scene.name, copy_rate_bytes_s=None)
        scene.wait_synchronized()
        stop_fio(fio)
    assert_stores_equal(scene)


def test_a_cut_network_costs_no_error_and_what_was_written_meanwhile_follows(scene: Scene) -> None:
    device = scene.create("destination", create=True, attach=True, size=SIZE)["device"]
    scene.wait_synchronized()
    with load(scene, device, SIZE) as fio:
        scene.lab.cut()
        try:
            wait_until(lambda: get_pair(scene)["state"] == "Partitioned", "the loss is noticed")
            wait_until(lambda: get_pair(scene)["owed"], "writes are owed")
        finally:
            scene.lab.heal()
        scene.wait_synchronized()
        stop_fio(fio)
    assert_stores_equal(scene)


def read_direct(device: str, offset: int) -> int:
    """4 KiB past the page cache; how many bytes came."""
    descriptor = os.open(device, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, 4096) as buffer:
            return os.preadv(descriptor, [buffer], offset)
    finally:
        os.close(descriptor)


def test_reads_of_valid_tracks_go_on_while_a_hundred_requests_wait_for_a_peer_that_is_cut_off(scene: Scene) -> None:
    scene.beta.call("volume.create", name=scene.name, size=SIZE)
    scene.beta.image(scene.name).write_bytes(os.urandom(SIZE))
    device = scene.create("source", create=True, attach=True, copy_rate_bytes_s=0)["device"]
    read_direct(device, 0)  # this track is valid now
    scene.lab.cut()
    try:
        with ThreadPoolExecutor(100) as pool:
            waiting = [pool.submit(read_direct, device, MIB + number * TRACK) for number in range(100)]
            wait_until(lambda: get_pair(scene)["waiting"] == 100, "100 requests wait")

            assert read_direct(device, 0) == 4096

            assert get_pair(scene)["waiting"] == 100
            assert not any(future.done() for future in waiting)
            scene.lab.heal()
            assert [future.result(WAIT_S) for future in waiting] == [4096] * 100
    finally:
        scene.lab.heal()


def test_a_volume_at_rest_gives_back_the_memory_of_its_busy_time(scene: Scene) -> None:
    scene.alpha.call("volume.create", name=scene.name, size=4 * SIZE)
    device = scene.alpha.call("attach", volume=scene.name)["device"]
    process = psutil.Process(scene.get_volume(scene.alpha)["pid"])
    command = ["fio", "--name=load", f"--filename={device}", "--rw=randwrite", "--bs=1m", "--ioengine=libaio"]
    scene.alpha.run(*command, "--direct=1", "--iodepth=64", f"--size={4 * SIZE}", "--loops=4")
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert peak is not None
    assert int(peak[1]) << 10 > 60 * MIB  # a megabyte for each of its threads that was used
    wait_until(lambda: process.memory_info().rss < 30 * MIB, "30 MiB")
