"""A disk that gives read errors under a source: served with the other side's data, and told loudly."""

import subprocess

import nbd
import pytest
from live import splits
from live.daemons import BIN, Daemon, enrol
from live.faultdisk import FaultDisk
from live.splits import SIZE, TRACK, wait_state
from waiting import WAIT_S, wait_until

from pathctl import config


@pytest.fixture
def hosts(tmp_path):
    alpha, beta = Daemon(tmp_path, "alpha"), Daemon(tmp_path, "beta")
    with FaultDisk(tmp_path / "disk") as disk:
        try:
            alpha.start()
            beta.start()
            enrol(alpha, beta)
            yield alpha, beta, disk
        finally:
            alpha.stop_all()
            beta.stop_all()


def read(host, volume, number):
    handle = nbd.NBD()
    handle.connect_unix(str(config.at(host.root).nbd_socket(volume)))
    data = handle.pread(TRACK, number * TRACK)
    handle.shutdown()
    return bytes(data)


def failing(host):
    return [event for event in host.call("events.list")["events"] if event["kind"] == "disk.failing"]


def test_a_read_error_is_answered_with_the_other_sides_data_and_told_loudly(hosts):
    alpha, _beta, disk = hosts
    data = bytes(range(256)) * (SIZE // 256)
    disk.path("va").write_bytes(data)
    alpha.call("volume.create", name="va", backing=str(disk.path("va")))
    alpha.call("pair.create", source="va", destination="beta:vb", invalidate="destination", create=True)
    wait_state(alpha, "Synchronized")
    disk.fail("va", "read", offset=3 * TRACK, length=TRACK)
    assert read(alpha, "va", 3) == data[3 * TRACK : 4 * TRACK]
    (event,) = wait_until(lambda: failing(alpha), "an event tells of it")
    assert (event["volume"], event["peer"], event["before"]) == ("va", "beta", "0")
    assert "the disk under volume va gave" in event["message"]
    assert "were answered with the data of beta:vb" in event["message"]
    for _ in range(5):
        read(alpha, "va", 3)
    assert splits.states(alpha) == ["Synchronized"]
    counters = alpha.volume("va")["counters"]
    assert counters["read_errors"] == counters["peer_reads"] >= 6
    why = alpha.call("pair.why", pair="va")["why"]
    assert "the disk under volume va on this host fails" in why["meaning"]
    assert "put the data on a good one before the other side is lost too" in why["next"]
    status = [BIN / "pathctl", "--root", alpha.root, "status"]
    told = subprocess.run(status, capture_output=True, text=True, timeout=WAIT_S, check=True).stdout
    assert f"! volume va: its disk failed to read {counters['read_errors']} times" in told
    assert len(failing(alpha)) == 1, "not one for each"
    disk.heal()
