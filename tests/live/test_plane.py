"""The data plane with real nbdkit processes, real TLS on loopback and real clients; no root needed."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import nbd
import psutil
import pytest
from live.conftest import MIB, MakePair
from live.planes import ControlError, Pair, Plane
from waiting import WAIT_S, wait_until

TRACK = 65536


def get_rss_kib(plane: Plane) -> int:
    assert plane.process is not None
    with open(f"/proc/{plane.process.pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def test_sixteen_readers_of_one_invalid_track_cause_one_fetch(make_pair: MakePair) -> None:
    data = os.urandom(MIB)
    pair = make_pair(destination_data=data, source_data=b"")
    pair.create("source", rate=0)
    pair.wait_up()
    handles = []
    for _ in range(16):
        handle = nbd.NBD()
        handle.connect_unix(str(pair.source.socket_path))
        handles.append(handle)
    barrier = threading.Barrier(16)

    def read(number: int) -> bytearray:
        barrier.wait(WAIT_S)
        result: bytearray = handles[number].pread(4096, 3 * TRACK + number * 4096)
        return result

    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(read, range(16)))

    assert b"".join(parts) == data[3 * TRACK : 4 * TRACK]
    wait_until(
        lambda: pair.source.get_status()["invalid"] == 16 * MIB // TRACK - 1, "the rest of the track is here too"
    )
    assert pair.source.get_status()["counters"]["fetched_tracks"] == 1
    assert pair.destination.get_status()["counters"]["read_bytes"] == TRACK


def test_a_hundred_requests_for_invalid_tracks_do_not_hold_up_a_read_of_a_valid_one(make_pair: MakePair) -> None:
    pair = make_pair(destination_data=os.urandom(16 * MIB))
    pair.create("source", rate=0)
    pair.wait_up()
    with pair.source.open() as handle:
        valid = handle.pread(4096, 0)
        pair.destination.kill()
        wait_until(lambda: pair.source.get_status()["session"] is None, "the loss was noticed")
        cookies = [handle.aio_pread(nbd.Buffer(4096), (1 + n) * TRACK) for n in range(100)]
        wait_until(lambda: pair.source.get_status()["waiting"] == 100, "100 requests wait")

        again = handle.pread(4096, 0)  # on the same connection

        assert again == valid
        assert pair.source.get_status()["waiting"] == 100
        pair.destination.start()
        deadline = time.monotonic() + WAIT_S
        for cookie in cookies:
            while not handle.aio_command_completed(cookie):
                assert time.monotonic() < deadline
                handle.poll(1000)


def test_a_read_of_an_invalid_track_fails_when_the_path_does_not_come_back(make_pair: MakePair) -> None:
    pair = make_pair(destination_data=os.urandom(MIB), fetch_timeout_s=0.5)
    pair.create("source", rate=0)
    pair.wait_up()
    pair.destination.kill()
    with pair.source.open() as handle, pytest.raises(nbd.Error, match="Input/output"):
        handle.pread(4096, 0)


@pytest.mark.parametrize("invalid", ["source", "destination"])
def test_random_requests_during_the_copy_give_what_a_bytearray_gives(make_pair: MakePair, invalid: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    size = 8 * MIB
    model = bytearray(rng.randbytes(size))
    pair = make_pair(size=size, **{"destination_data" if invalid == "source" else "source_data": bytes(model)})
    pair.create(invalid, rate=MIB)
    with pair.source.open() as handle:
        for number in range(400):
            offset = rng.randrange(0, size, 512)
            length = min(rng.choice([512, 4096, 3 * 512, TRACK, 3 * TRACK, 5 * TRACK + 512]), size - offset)
            choice = rng.choice("rrwwzft")
            if choice == "r":
                assert handle.pread(length, offset) == model[offset : offset + length], (number, offset, length)
            elif choice == "w":
                model[offset : offset + length] = data = rng.randbytes(length)
                handle.pwrite(data, offset, nbd.CMD_FLAG_FUA if rng.random() < 0.1 else 0)
            elif choice == "z":
                model[offset : offset + length] = bytes(length)
                handle.zero(length, offset)
            elif choice == "t":
                handle.trim(length, offset)
                model[offset : offset + length] = handle.pread(length, offset)
            else:
                handle.flush()
        pair.source.ask("set", copy_rate_bytes_s=None)
        pair.wait_synchronized()
        assert handle.pread(size, 0) == model
    assert pair.source.read_store() == pair.destination.read_store() == model


@pytest.mark.parametrize("victim", ["source", "destination"])
@pytest.mark.parametrize("invalid", ["source", "destination"])
def test_a_killed_process_loses_no_acknowledged_write_and_the_copy_goes_on(
    make_pair: MakePair, invalid: str, victim: str
) -> None:
    size, extent = 64 * MIB, 16 * MIB // TRACK
    model = bytearray(os.urandom(size))
    pair = make_pair(size=size, **{"destination_data" if invalid == "source" else "source_data": bytes(model)})
    pair.create(invalid, rate=16 * MIB)
    pair.wait_up()
    with pair.source.open() as handle:
        for track in range(0, extent, 7):
            model[track * TRACK : track * TRACK + 4096] = data = os.urandom(4096)
            handle.pwrite(data, track * TRACK)
    left = "invalid" if invalid == "source" else "owed"
    wait_until(lambda: pair.source.get_status()[left] < size // TRACK // 2, "half is copied")
    pair.source.ask("set", copy_rate_bytes_s=0)
    checkpoints = pair.source.get_status()["counters"]["checkpoints"]
    wait_until(lambda: pair.source.get_status()["counters"]["checkpoints"] >= checkpoints + 2, "a checkpoint")
    before = pair.source.get_status()[left]
    plane = getattr(pair, victim)
    plane.kill()
    plane.start()
    pair.source.ask("set", copy_rate_bytes_s=0)
    pair.link()
    pair.wait_up()

    assert pair.source.get_status()[left] <= before + extent  # the one active extent again, nothing else
    with pair.source.open() as handle:
        assert handle.pread(2 * MIB, 0) == model[: 2 * MIB]
    pair.source.ask("set", copy_rate_bytes_s=None)
    pair.wait_synchronized()
    assert pair.source.read_store() == pair.destination.read_store() == model


def test_writes_while_the_path_is_down_are_owed_and_brought_over_later(make_pair: MakePair) -> None:
    pair = make_pair(source_data=os.urandom(MIB))
    pair.create("destination")
    pair.wait_synchronized()
    pair.source.ask("suspend", operation="s", pair=pair.uuid)
    with pair.source.open() as handle:
        handle.pwrite(b"x" * 4096, 5 * TRACK)
        handle.pwrite(b"y" * 4096, 9 * TRACK)
    assert pair.source.get_status()["owed"] == 2
    pair.source.kill()
    pair.source.start()
    pair.link()
    assert pair.source.get_status()["owed"] >= 2

    pair.source.ask("resume", operation="r", pair=pair.uuid)
    pair.wait_synchronized()

    assert pair.source.read_store() == pair.destination.read_store()
    assert pair.destination.get_status()["generation"] == pair.source.get_status()["generation"]


def test_a_frozen_peer_costs_the_link_timeout_and_no_error(make_pair: MakePair) -> None:
    pair = make_pair(source_data=os.urandom(MIB), link_timeout_s=2)
    pair.create("destination")
    pair.wait_synchronized()
    assert pair.destination.process is not None
    pair.destination.process.send_signal(signal.SIGSTOP)
    with pair.source.open() as handle:
        handle.pwrite(b"z" * 4096, 0)
        handle.flush()
        assert handle.pread(4096, 0) == b"z" * 4096
    assert pair.source.get_status()["owed"] >= 1
    pair.destination.process.send_signal(signal.SIGCONT)
    pair.wait_synchronized()
    assert pair.source.read_store() == pair.destination.read_store()


def test_an_error_reply_of_the_peer_is_shown_and_not_taken_for_a_lost_link(make_pair: MakePair) -> None:
    pair = make_pair(source_data=os.urandom(16 * MIB))
    assert pair.destination.process is not None
    process = psutil.Process(pair.destination.process.pid)
    limits = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (4 * MIB, limits[1]))  # from here on the peer's store is full
    pair.create("destination")
    wait_until(lambda: pair.source.get_status()["link"] == "refused", "the peer says no")
    assert "the peer answered" in pair.source.get_status()["link_error"]
    assert 192 <= pair.source.get_status()["owed"] <= 256  # what lies in the 4 MiB that it took may have been confirmed
    with pair.source.open() as handle:
        handle.pwrite(b"x" * 4096, 8 * MIB)  # the host does not notice
    process.rlimit(psutil.RLIMIT_FSIZE, limits)
    pair.wait_synchronized()
    assert pair.source.read_store() == pair.destination.read_store()


def test_tracks_that_are_owed_here_and_there_come_over(make_pair: MakePair) -> None:
    size = 64 * MIB
    pair = make_pair(size=size, source_data=os.urandom(size))
    pair.create("destination")
    pair.wait_synchronized()
    before = pair.source.get_status()["counters"]["copied_tracks"]
    pair.source.ask("suspend", operation="s", pair=pair.uuid)
    owed = random.Random(5).sample(range(size // TRACK), 200)
    with pair.source.open() as handle:
        for track in owed:
            handle.pwrite(bytes(TRACK) if track % 8 == 0 else os.urandom(TRACK), track * TRACK)
    pair.source.ask("resume", operation="r", pair=pair.uuid)
    pair.wait_synchronized()
    assert pair.source.get_status()["counters"]["copied_tracks"] == before + len(owed)
    assert pair.source.read_store() == pair.destination.read_store()


def test_the_copy_rate_can_be_changed_while_the_copy_runs(make_pair: MakePair) -> None:
    pair = make_pair(size=64 * MIB, destination_data=os.urandom(64 * MIB))
    pair.create("source", rate=0)
    pair.wait_up()
    assert pair.source.get_status()["invalid"] == 1024
    pair.source.ask("set", copy_rate_bytes_s=4 * MIB)
    wait_until(lambda: pair.source.get_status()["invalid"] < 1024, "the copy moves")
    assert pair.source.get_status()["invalid"] > 512
    pair.source.ask("set", copy_rate_bytes_s=0)
    assert wait_until_still(pair) > 0, "it stands still, and is not at its end"
    pair.source.ask("set", copy_rate_bytes_s=None)
    pair.wait_synchronized()


def wait_until_still(pair: Pair) -> int:
    """How many tracks are invalid, once that has been the same for a second: runs in flight end."""
    seen: list[tuple[float, int]] = []

    def is_still() -> bool:
        invalid = pair.source.get_status()["invalid"]
        if not seen or seen[-1][1] != invalid:
            seen.append((time.monotonic(), invalid))
        return time.monotonic() - seen[-1][0] > 1.0

    wait_until(is_still, "no track comes any more")
    return seen[-1][1]


def test_a_paused_copy_with_nothing_left_is_synchronized_all_the_same(make_pair: MakePair) -> None:
    pair = make_pair(source_data=os.urandom(MIB))
    pair.create("destination")
    pair.wait_synchronized()
    pair.source.ask("set", copy_rate_bytes_s=0)
    pair.source.ask("suspend", operation="s", pair=pair.uuid)
    pair.source.ask("resume", operation="r", pair=pair.uuid)
    pair.wait_synchronized()


def test_an_incomplete_volume_cannot_be_pushed_from_and_is_whole_again_once_it_has_pulled(
    make_pair: MakePair, make_plane: Callable[..., Plane]
) -> None:
    data = os.urandom(16 * MIB)
    first = make_pair(source_data=data)
    first.create("destination", rate=0)
    first.wait_up()
    for plane in (first.source, first.destination):
        plane.ask("disconnect", operation="d", pair=first.uuid)
        plane.kill()
    incomplete = make_plane("destination", "host").start()
    whole = make_plane("source", "peer").start()
    assert incomplete.get_status()["incomplete"]
    second = Pair(incomplete, whole)

    with pytest.raises(ControlError, match="incomplete"):
        second.connect("destination")

    second.create("source")
    second.wait_synchronized()
    assert not incomplete.get_status()["incomplete"]
    assert incomplete.read_store() == data


def test_holes_stay_holes_on_the_other_side(make_pair: MakePair) -> None:
    pair = make_pair(size=1024 * MIB, source_data=os.urandom(MIB))
    pair.create("destination")
    pair.wait_synchronized()
    assert pair.destination.backing.stat().st_blocks * 512 < 4 * MIB


def test_the_destination_refuses_a_session_that_is_over_and_a_pair_it_does_not_know(make_pair: MakePair) -> None:
    pair = make_pair(source_data=os.urandom(MIB))
    pair.create("destination")
    pair.wait_synchronized()
    status = pair.source.get_status()

    def connect(export: str) -> nbd.NBD:
        handle = nbd.NBD()
        handle.set_tls(nbd.TLS_REQUIRE)
        handle.set_tls_psk_file(str(pair.source.psk_file))
        handle.set_tls_username(pair.uuid)
        handle.set_export_name(export)
        handle.connect_tcp("127.0.0.1", str(pair.destination.port))
        return handle

    stale = connect(f"data/{pair.uuid}/{status['session'] - 1}/host")
    with pytest.raises(nbd.Error, match=r"shut down|ESHUTDOWN|endpoint"):
        stale.pwrite(b"!" * 512, 0)
    with pytest.raises(nbd.Error):
        connect("data/00000000-0000-0000-0000-000000000000/1/host")
    assert pair.source.read_store() == pair.destination.read_store()


def test_nothing_is_served_to_the_network_without_the_key(make_pair: MakePair) -> None:
    pair = make_pair()
    handle = nbd.NBD()
    with pytest.raises(nbd.Error):
        handle.connect_tcp("127.0.0.1", str(pair.destination.port))


def test_a_failed_greeting_leaves_the_source_uncommitted(make_pair: MakePair) -> None:
    pair = make_pair()
    pair.source.ask("connect", operation="op", pair=pair.uuid, side="source", invalid="destination", peer="beta")
    pair.link()
    with pytest.raises(ControlError, match="does not belong to this pair"):
        pair.source.ask("greet", pair=pair.uuid, timeout_s=5)
    with pytest.raises(ControlError, match="not greeted"):
        pair.source.ask("commit", operation="op", pair=pair.uuid, invalid="destination", force=False)
    assert not pair.source.get_status()["committed"]


def test_marking_the_source_invalid_is_refused_while_a_client_is_connected(make_pair: MakePair) -> None:
    pair = make_pair(destination_data=os.urandom(MIB))
    with pair.source.open() as handle:
        handle.pread(512, 0)
        with pytest.raises(ControlError, match="1 client"):
            pair.create("source")
        assert handle.pread(512, 0) == bytes(512)
    assert pair.source.get_status()["invalid"] == 0


def test_a_second_process_cannot_serve_the_same_volume(make_plane: Callable[..., Plane]) -> None:
    first = make_plane("volume", "host").start()
    second = Plane(first.folder, "volume", "peer", first.size)
    second.control = first.folder / "second.ctl"
    try:
        with pytest.raises(AssertionError, match="another process"):
            second.start()
    finally:
        second.close()
    assert first.get_status()["pid"] == first.process.pid  # type: ignore[union-attr]


def test_an_idle_process_needs_at_most_30_mib_and_connections_leak_nothing(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane("volume", "host").start()
    assert get_rss_kib(plane) < 30 * 1024
    rss = []
    for _ in range(8):
        for _ in range(50):
            with plane.open() as handle:
                handle.pread(512, 0)
        wait_until(lambda: plane.get_status()["clients"] == 0, "the clients are gone")
        rss.append(get_rss_kib(plane))
        if len(rss) > 2 and rss[-1] - rss[-3] < 1024:  # 100 connections; a leak is 35 KiB each, of every 100
            break
    else:
        pytest.fail(f"it grows on and on: {rss} KiB")
    assert rss[-1] < 32 * 1024


def test_a_pair_at_rest_needs_at_most_30_mib_on_the_host_side(make_pair: MakePair) -> None:
    pair = make_pair(source_data=os.urandom(MIB))
    pair.create("destination")
    pair.wait_synchronized()
    for plane in (pair.source, pair.destination):
        wait_until(lambda plane=plane: get_rss_kib(plane) < 30 * 1024, f"the {plane.name} has given back the rest")  # type: ignore[misc]


def test_the_copy_of_ten_tebibytes_can_be_created_at_once(make_pair: MakePair) -> None:
    pair = make_pair(size=10 << 40)
    pair.create("source", rate=0)
    pair.wait_up()
    assert pair.source.get_status()["invalid"] == (10 << 40) // TRACK
    assert pair.source.meta.stat().st_size < (10 << 40) // 100_000
    with pair.source.open() as handle:
        assert handle.pread(4096, 5 << 40) == bytes(4096)


def test_a_connection_of_an_ended_pair_is_refused_although_the_session_number_is_the_same(make_pair: MakePair) -> None:
    pair = make_pair(source_data=os.urandom(MIB))
    pair.create("destination")
    pair.wait_synchronized()
    old = pair.uuid

    def connect(uuid: str, session: int) -> nbd.NBD:
        handle = nbd.NBD()
        handle.set_tls(nbd.TLS_REQUIRE)
        handle.set_tls_psk_file(str(pair.source.psk_file))
        handle.set_tls_username(old)
        handle.set_export_name(f"data/{uuid}/{session}/host")
        handle.connect_tcp("127.0.0.1", str(pair.destination.port))
        return handle

    late = connect(old, pair.source.get_status()["session"])
    late.pread(512, 0)
    for plane in (pair.source, pair.destination):
        plane.ask("disconnect", operation="d", pair=old)
    second = Pair(pair.source, pair.destination)
    second.create("destination")
    second.wait_synchronized()
    assert pair.source.get_status()["session"] == 2  # as in the first pair
    with pytest.raises(nbd.Error, match=r"shut down|ESHUTDOWN|endpoint"):
        late.pwrite(b"!" * 512, 0)
    assert pair.source.read_store() == pair.destination.read_store()
