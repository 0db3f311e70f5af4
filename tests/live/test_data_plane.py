"""A pair's two processes without pathctld: what the link, a bad disk and commands do to each other."""

import os
import signal
import time

import nbd
import pytest
from live.faultdisk import FaultDisk
from live.planes import ControlError, Pair, Plane
from waiting import wait_until

from nbdplugin import peer
from nbdplugin.errors import PeerLost

SIZE = 4 << 20
TRACK = 65536


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it closes with its last reference
def test_where_a_connection_went_is_known_after_a_reset(make_pair):
    pair = make_pair()
    pair.connect("destination")
    there = pair.destination
    address = peer.Address("127.0.0.1", there.port, there.psk_file, pair.uuid)
    connection = peer.Connection(address, "meta", 10, peer.META_SIZE, lambda: False)
    there.kill()
    there.listener.close()

    def is_reset():
        with pytest.raises(PeerLost):
            connection.ask({"op": "alive"})
        return True

    wait_until(is_reset, "the connection is known to be gone")
    assert connection.peer_host == "127.0.0.1"


def test_zeroes_that_cannot_be_read_here_are_read_from_the_peer(tmp_path, make_plane):
    with FaultDisk(tmp_path / "disk") as disk:
        source = Plane(tmp_path, "source", "host", SIZE, disk=disk.folder)
        try:
            pair = Pair(source, make_plane("destination", "peer", SIZE))
            source.start()
            pair.destination.start()
            pair.create("destination")
            pair.wait_synchronized()
            disk.fail(source.backing.name, "read", offset=3 * TRACK, length=TRACK)
            with source.open() as handle:
                assert bytes(handle.pread(TRACK, 3 * TRACK)) == bytes(TRACK)
            disk.heal()
        finally:
            source.close()


def test_a_resolve_of_a_pair_whose_path_is_ready_changes_nothing(make_pair):
    pair = make_pair(source_data=b"s" * TRACK)
    pair.create("destination")
    pair.wait_synchronized()
    before = pair.source.get_status()
    with pytest.raises(ControlError, match="agree"):
        pair.source.ask("resolve", operation="other", pair=pair.uuid, discard="source")
    after = pair.source.get_status()
    assert (after["session"], after["invalid"]) == (before["session"], 0)
    with pair.source.open() as handle:
        try:
            handle.pwrite(b"n" * TRACK, 0)
        except nbd.Error as error:
            pytest.fail(f"the path was lost: {error}")
    after = pair.source.get_status()
    assert (after["session"], after["invalid"], after["owed"]) == (before["session"], 0, 0)


def test_sessions_that_are_over_hold_no_sockets(make_pair):
    pair = make_pair()
    pair.create("destination")
    pair.wait_synchronized()
    folder = f"/proc/{pair.source.process.pid}/fd"
    seen = []
    for _ in range(12):
        with pair.source.open() as handle:
            data = nbd.Buffer.from_bytearray(bytearray(4096))
            for number in range(32):
                handle.aio_pwrite(data, number * TRACK)
            while handle.aio_in_flight():
                handle.poll(1000)
        seen.append(len(os.listdir(folder)))
        pair.source.ask("suspend", pair=pair.uuid)
        pair.source.ask("resume", pair=pair.uuid)
        pair.wait_up()
    of_a_session = 2 * (1 + peer.URGENT_MOST + peer.COPY_MOST)
    assert max(seen) < 15 + 2 * of_a_session, f"descriptors after each session: {seen}"


def test_a_copy_error_stands_while_the_peer_cannot_read_and_is_logged_once(tmp_path, make_plane):
    with FaultDisk(tmp_path / "disk") as disk:
        there = Plane(tmp_path, "destination", "peer", SIZE, disk=disk.folder)
        there.backing.write_bytes(b"d" * SIZE)
        disk.fail(there.backing.name, "read", offset=3 * TRACK, length=TRACK)
        try:
            pair = Pair(make_plane("source", "host", SIZE), there)
            pair.source.start()
            there.start()
            pair.create("source")
            wait_until(lambda: pair.source.get_status()["invalid"] == 1, "all but one track came over")
            wait_until(lambda: pair.source.get_status()["copy_error"], "the error shows")
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert pair.source.get_status()["copy_error"], "it shows as long as the track is missing"
            log = (tmp_path / "source.log").read_text()
            assert log.count("the copy stopped for a moment") <= 2, log
            disk.heal()
            pair.wait_synchronized()
            wait_until(lambda: pair.source.get_status()["copy_error"] is None, "the error is over")
        finally:
            there.close()


def is_completed(handle, cookie):
    handle.poll(100)
    return handle.aio_command_completed(cookie)


def test_a_flush_waits_for_the_path_while_only_the_peer_has_what_it_covers(tmp_path, make_plane):
    """An I/O error would make ext4 read-only, for something that is well on the other side."""
    with FaultDisk(tmp_path / "disk") as disk:
        limits = {"link_timeout_s": 4, "checkpoint_s": 1000}
        source = Plane(tmp_path, "source", "host", SIZE, disk=disk.folder, **limits)
        try:
            pair = Pair(source, make_plane("destination", "peer", SIZE))
            source.start()
            there = pair.destination.start()
            pair.create("destination")
            pair.wait_synchronized()
            source.ask("set", copy_rate_bytes_s=0)
            disk.fail(source.backing.name, "write", offset=0, length=TRACK)
            with source.open() as handle:
                handle.pwrite(b"p" * TRACK, 0)
                assert source.get_status()["doubtful"]
                there.process.send_signal(signal.SIGSTOP)
                wait_until(lambda: source.get_status()["session"] is None, "the silence is noticed")
                disk.heal()
                cookie = handle.aio_flush()
                wait_until(lambda: source.get_status()["waiting"] == 1, "the flush waits")
                there.process.send_signal(signal.SIGCONT)
                wait_until(lambda: is_completed(handle, cookie), "the flush is done")
                assert not source.get_status()["doubtful"]
                assert bytes(handle.pread(TRACK, 0)) == b"p" * TRACK
        finally:
            source.close()
