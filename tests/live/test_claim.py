"""Writes all over a large suspended volume, with real processes: nothing is lost by kill -9, nothing sent in vain."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import nbd
import pytest
from live.conftest import MakePair
from live.planes import Pair, Plane
from waiting import WAIT_S, wait_until

GIB = 1 << 30
SIZE = 8 * GIB  # 512 extents, of which 256 may be active
TRACK, BLOCK, PER_PAGE = 65536, 4096, 16128
PAGES = SIZE // TRACK // PER_PAGE  # and a short one, whose extents may all be active already
DEPTH = 16
COPY_LIMIT_S = 180.0


class Writer:
    """A client with DEPTH writes under way to blocks at random, until the connection ends or it is told to stop.

    `sent` has for each block the last that was sent there, `acked` the last that was answered.
    """

    def __init__(self, plane: Plane, seed: int) -> None:
        self.sent: dict[int, bytes] = {}
        self.acked: dict[int, bytes] = {}
        self._rng = random.Random(seed)
        self._is_over = threading.Event()
        self._handle = nbd.NBD()
        self._handle.connect_unix(str(plane.socket_path))
        self._under_way: dict[int, tuple[int, bytes, nbd.Buffer]] = {}
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._is_over.is_set():
                while len(self._under_way) < DEPTH:
                    self._send()
                self._handle.poll(100)
                self._take_answers()
            while self._under_way:
                self._handle.poll(100)
                self._take_answers()
        except nbd.Error:  # the server was killed
            pass

    def _send(self) -> None:
        busy = {block for block, _, _ in self._under_way.values()}
        block = self._rng.randrange(SIZE // BLOCK)
        if block in busy:
            return
        data = block.to_bytes(8, "little") * (BLOCK // 16) + self._rng.randbytes(BLOCK // 2)
        buffer = nbd.Buffer.from_bytearray(bytearray(data))
        self.sent[block] = data
        self._under_way[self._handle.aio_pwrite(buffer, block * BLOCK)] = block, data, buffer

    def _take_answers(self) -> None:
        for cookie in list(self._under_way):
            if self._handle.aio_command_completed(cookie):
                block, data, _ = self._under_way.pop(cookie)
                self.acked[block] = data

    def stop(self) -> None:
        self._is_over.set()
        self.join()
        self._handle.shutdown()

    def join(self) -> None:
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def get_tracks(self) -> set[int]:
        """Of all that was sent."""
        return {block * BLOCK // TRACK for block in self.sent}


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """Synchronized, and suspended then."""
    found = make_pair(size=SIZE)
    found.create("destination")
    found.wait_synchronized()
    found.source.ask("suspend", pair=found.uuid)
    return found


def write_until_claimed(pair: Pair, seed: int) -> Writer:
    """Until every whole page is claimed and a thousand more writes are answered; the writer goes on."""
    writer = Writer(pair.source, seed)
    wait_until(lambda: pair.source.get_status()["claimed_pages"] >= PAGES, "the whole pages are claimed")
    count = len(writer.acked)
    wait_until(lambda: len(writer.acked) > count + 1000, "a thousand more writes are answered")
    return writer


def read_data(path: Path) -> dict[int, bytes]:
    """What is no hole and not zero, by track."""
    found = {}
    with path.open("rb") as file:
        offset = 0
        while True:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return found
            offset = offset // TRACK * TRACK
            data = os.pread(file.fileno(), TRACK, offset)
            if any(data):
                found[offset // TRACK] = data
            offset += TRACK


def resume(pair: Pair) -> int:
    """Until it is synchronized; the number of tracks that were sent."""
    before = pair.source.get_status()["counters"]["copied_tracks"]
    pair.source.ask("resume", pair=pair.uuid)
    pair.wait_synchronized(COPY_LIMIT_S)
    assert read_data(pair.source.backing) == read_data(pair.destination.backing)
    return int(pair.source.get_status()["counters"]["copied_tracks"]) - before


@pytest.mark.timeout(400)
def test_after_a_kill_every_answered_write_is_there_and_whatever_may_differ_is_sent(pair: Pair) -> None:
    writer = write_until_claimed(pair, seed=1)
    status = pair.source.get_status()
    pair.source.kill()
    writer.join()
    pair.source.start()
    with pair.source.open() as handle:
        for block, data in writer.acked.items():
            found = bytes(handle.pread(BLOCK, block * BLOCK))
            assert found in (data, writer.sent[block]), f"block {block} is not what was acknowledged"
    owed = pair.source.get_status()["owed"]
    written = {block * BLOCK // TRACK for block in writer.acked}
    assert len(written) < owed <= status["claimed_pages"] * PER_PAGE
    pair.link()
    assert resume(pair) == owed


@pytest.mark.timeout(400)
def test_a_resume_sends_what_was_written_and_no_track_more(pair: Pair) -> None:
    writer = write_until_claimed(pair, seed=2)
    writer.stop()
    assert resume(pair) == len(writer.get_tracks())
    assert pair.source.get_status()["claimed_pages"] == 0


@pytest.mark.timeout(400)
def test_a_peer_that_restarts_meanwhile_is_sent_no_more(pair: Pair) -> None:
    writer = write_until_claimed(pair, seed=3)
    writer.stop()
    active = pair.source.get_status()["active_extents"] * (16 << 20) // TRACK
    pair.destination.kill()
    pair.destination.start()
    assert len(writer.get_tracks()) <= resume(pair) <= len(writer.get_tracks()) + active


@pytest.mark.timeout(400)
def test_a_restart_after_a_drain_sends_no_more_than_extents_that_were_active(pair: Pair) -> None:
    writer = write_until_claimed(pair, seed=4)
    writer.stop()
    pair.source.ask("drain")
    active = pair.source.get_status()["active_extents"] * (16 << 20) // TRACK
    pair.source.kill()
    pair.source.start()
    pair.link()
    assert len(writer.get_tracks()) <= resume(pair) <= len(writer.get_tracks()) + active


@pytest.mark.timeout(400)
def test_once_writes_have_become_few_a_kill_costs_no_more_than_active_extents(pair: Pair) -> None:
    writer = write_until_claimed(pair, seed=5)
    writer.stop()
    wait_until(lambda: pair.source.get_status()["claimed_pages"] == 0, "the claims have ended")
    wait_until(lambda: pair.source.get_status()["active_extents"] == 0, "extents at rest are retired")
    pair.source.kill()
    pair.source.start()
    assert pair.source.get_status()["owed"] == len(writer.get_tracks())
