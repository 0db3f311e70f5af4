"""What becomes of host writes when the path is lost, and of two sides that do not agree: real nbdkit processes."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import nbd
import pytest
from live.conftest import MIB, MakePair
from live.planes import ControlError, Pair
from live.slowproxy import SlowProxy
from waiting import WAIT_S, wait_until

OURS, THEIRS = b"o" * 4096, b"t" * 4096


def write(pair: Pair, offset: int, data: bytes) -> None:
    with pair.source.open() as client:
        client.pwrite(data, offset)


def try_write(pair: Pair, offset: int, data: bytes) -> str | None:
    try:
        write(pair, offset, data)
    except nbd.Error as error:
        return error.errno
    return None


def make_stopping(make_pair: MakePair, **params: object) -> Pair:
    pair = make_pair(source_data=b"s" * MIB, **params)
    pair.create("destination")
    pair.wait_synchronized()
    pair.source.ask("policy", pair=pair.uuid, on_path_loss="stop")
    pair.source.ask("policy", pair=pair.uuid, on_path_loss="stop")
    return pair


def test_a_pair_that_is_to_stop_acknowledges_nothing_that_the_peer_lacks(make_pair: MakePair) -> None:
    pair = make_stopping(make_pair)
    pair.destination.kill()
    found: list[str | None] = []
    writer = threading.Thread(target=lambda: found.append(try_write(pair, 0, OURS)))
    writer.start()
    wait_until(lambda: pair.source.get_status()["waiting"] == 1, "the write waits for the path")
    with pair.source.open() as client:
        assert client.pread(4096, 65536) == b"s" * 4096
        client.flush()
    assert not found
    pair.destination.start()
    writer.join(WAIT_S)
    assert found == [None]
    assert pair.destination.read_store()[:4096] == OURS
    pair.wait_synchronized()
    assert pair.source.read_store() == pair.destination.read_store()


def test_a_write_that_waited_long_enough_fails_and_is_not_forgotten(make_pair: MakePair) -> None:
    pair = make_stopping(make_pair, fetch_timeout_s=1)
    pair.destination.kill()
    assert try_write(pair, 0, OURS) == "EIO"
    pair.destination.start()
    pair.wait_synchronized()
    assert pair.source.read_store() == pair.destination.read_store()
    assert pair.source.get_status()["on_path_loss"] == "stop"


@pytest.mark.parametrize("way", ["suspend", "policy"])
def test_writes_that_wait_go_on_here_when_the_operator_says_so(make_pair: MakePair, way: str) -> None:
    pair = make_stopping(make_pair)
    pair.destination.kill()
    wait_until(lambda: pair.source.get_status()["session"] is None, "the loss is noticed")
    found: list[str | None] = []
    writer = threading.Thread(target=lambda: found.append(try_write(pair, 0, OURS)))
    writer.start()
    wait_until(lambda: pair.source.get_status()["waiting"] == 1, "the write waits for the path")
    pair.source.ask(way, pair=pair.uuid, on_path_loss="continue")
    writer.join(WAIT_S)
    assert found == [None]
    assert pair.source.get_status()["owed"] >= 1


def test_the_policy_outlives_the_process(make_pair: MakePair) -> None:
    pair = make_stopping(make_pair)
    pair.source.kill()
    pair.source.start()
    assert pair.source.get_status()["on_path_loss"] == "stop"


def part(pair: Pair) -> None:
    """The source is put back to an older state of itself, as a machine from its snapshot, and written to."""
    write(pair, 0, b"old" + bytes(4093))
    pair.wait_synchronized()
    pair.source.ask("suspend", pair=pair.uuid)
    pair.source.kill()
    copies = [(path, path.with_suffix(path.suffix + ".old")) for path in (pair.source.meta, pair.source.backing)]
    for path, copy in copies:
        shutil.copyfile(path, copy)
    pair.source.start()
    pair.link()
    write(pair, 0, THEIRS)
    pair.source.ask("resume", pair=pair.uuid)
    pair.wait_synchronized()
    pair.source.kill()
    for path, copy in copies:
        shutil.copyfile(copy, path)
    pair.source.start()
    pair.link()
    write(pair, 65536, OURS)
    pair.source.ask("resume", pair=pair.uuid)
    wait_until(lambda: pair.source.get_status()["verdict"] is not None, "the greeting is refused")


def resolve(pair: Pair, discard: str, operation: str = "op-resolve") -> None:
    pair.source.ask("resolve", operation=operation, pair=pair.uuid, discard=discard)


def test_two_sides_that_were_written_apart_exchange_nothing(make_pair: MakePair) -> None:
    pair = make_pair(source_data=b"s" * MIB)
    pair.create("destination")
    part(pair)
    before = [plane.read_store() for plane in (pair.source, pair.destination)]
    status = pair.source.get_status()
    assert status["verdict"] in ("both_moved", "rolled_back", "unrelated"), status["link_error"]
    assert status["session"] is None
    assert abs(status["last_write"] - time.time()) < 3600
    assert before == [plane.read_store() for plane in (pair.source, pair.destination)]
    assert before[0][:4096] != THEIRS == before[1][:4096]
    assert before[1][65536 : 65536 + 4096] != OURS


@pytest.mark.parametrize("discard", ["source", "destination"])
def test_the_operator_says_whose_data_gives_way(make_pair: MakePair, discard: str) -> None:
    pair = make_pair(source_data=b"s" * MIB)
    pair.create("destination")
    part(pair)
    kept = (pair.destination if discard == "source" else pair.source).read_store()
    resolve(pair, discard)
    resolve(pair, discard)
    pair.wait_synchronized()
    assert pair.source.read_store() == kept == pair.destination.read_store()
    assert pair.source.get_status()["verdict"] is None
    with pytest.raises(ControlError, match="agree"):
        resolve(pair, discard, "op-again")


def test_a_source_in_use_is_not_discarded(make_pair: MakePair) -> None:
    pair = make_pair(source_data=b"s" * MIB)
    pair.create("destination")
    part(pair)
    with pair.source.open(), pytest.raises(ControlError, match="in use"):
        resolve(pair, "source")
    assert pair.source.get_status()["invalid"] == 0
    resolve(pair, "source")
    pair.wait_synchronized()


def test_a_slow_link_is_not_a_lost_one(make_pair: MakePair) -> None:
    """The whole copy takes many times link_timeout_s and its runs come behind one another; bytes move all the time."""
    pair = make_pair(size=4 * MIB, source_data=os.urandom(4 * MIB), link_timeout_s=5)
    with SlowProxy(pair.destination.port, 200_000) as proxy:
        pair.create("destination", port=proxy.port)
        pair.wait_up()
        write(pair, 0, OURS)
        pair.wait_synchronized()
    assert pair.source.get_status()["counters"]["sessions"] == 1
    assert pair.source.read_store() == pair.destination.read_store()


def test_a_link_on_which_nothing_moves_is_a_lost_one(make_pair: MakePair) -> None:
    pair = make_pair(size=4 * MIB, source_data=os.urandom(4 * MIB), link_timeout_s=3)
    with SlowProxy(pair.destination.port, 50_000_000) as proxy:
        pair.create("destination", port=proxy.port)
        pair.wait_synchronized()
        proxy.rate_bytes_s = 0
        write(pair, 0, OURS)
        assert pair.source.get_status()["owed"] > 0
        wait_until(lambda: "within 3 s" in (pair.source.get_status()["link_error"] or ""), "why is told")
        proxy.rate_bytes_s = 50_000_000
        pair.wait_synchronized()
    assert pair.source.read_store() == pair.destination.read_store()


def test_what_a_frozen_peer_finds_when_it_wakes_comes_too_late(make_pair: MakePair) -> None:
    """The writes that lay in its sockets are refused: its source has long gone on."""
    pair = make_pair(source_data=b"s" * MIB, link_timeout_s=3)
    pair.create("destination")
    pair.wait_synchronized()
    pair.destination.ask("limits", link_timeout_s=3)
    process = pair.destination.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    threads = [threading.Thread(target=write, args=(pair, 65536 * n, OURS)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    for n in range(4):
        write(pair, 65536 * n, THEIRS)
    time.sleep(4)  # with the time until it was given up longer than what the destination takes for life: 3 s + 2 s
    process.send_signal(signal.SIGCONT)
    pair.wait_synchronized()
    assert pair.destination.get_status()["counters"]["refused_requests"] > 0
    assert pair.source.read_store() == pair.destination.read_store()
    assert pair.destination.read_store()[:4096] == THEIRS
