"""What a data plane tells of itself: latencies, limits that are changed while it runs, and lines of its log."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import nbd
import pytest
from live.conftest import MIB, MakePair
from live.planes import ControlError, Pair, Plane
from waiting import WAIT_S, wait_until

from nbdplugin.peer import URGENT_MOST

TRACK = 65536


def get_latency(plane: Plane, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = plane.get_status()["latency"]["kinds"][kind]
    return found


def log_lines(plane: Plane) -> list[str]:
    return (plane.folder / f"{plane.name}.log").read_text().splitlines()


def cut_off(pair: Pair) -> None:
    """The source is all invalid and its path does not become ready."""
    pair.create("source", rate=0)
    pair.wait_up()
    pair.destination.kill()
    wait_until(lambda: pair.source.get_status()["link"] != "up", "the path is lost")


def test_every_request_is_in_the_histogram_of_its_kind(make_plane: Callable[..., Plane]) -> None:
    plane = make_plane("v", "host").start()
    before = plane.get_status()["latency"]
    with plane.open() as handle:
        for number in range(7):
            handle.pread(4096, number * 4096)
        for number in range(5):
            handle.pwrite(b"x" * 4096, number * 4096)
        handle.zero(4096, 0)
        handle.trim(4096, 0)
        handle.flush()
    after = plane.get_status()["latency"]
    assert all(low < high for low, high in pairwise(after["bounds_s"]))
    grown = {
        kind: sum(found["counts"]) - sum(before["kinds"][kind]["counts"]) for kind, found in after["kinds"].items()
    }
    assert grown["read"] >= 7  # the handshake of a client may read too
    assert (grown["write"], grown["zero"], grown["fetch"]) == (5, 2, 0)
    assert grown["flush"] >= 1
    for found in after["kinds"].values():
        assert len(found["counts"]) == len(after["bounds_s"]) + 1
        assert found["errors"] == 0
    assert after["kinds"]["write"]["sum_s"] > 0


def test_a_fetch_is_counted_at_the_source_and_a_mirrored_write_at_the_destination(make_pair: MakePair) -> None:
    pair = make_pair(destination_data=b"d" * MIB)
    pair.create("source", rate=0)
    pair.wait_up()
    pushed = sum(get_latency(pair.destination, "write")["counts"])
    with pair.source.open() as handle:
        handle.pread(4096, 0)
        handle.pwrite(b"x" * TRACK, 2 * TRACK)
    assert sum(get_latency(pair.source, "fetch")["counts"]) == 1
    assert 1 <= sum(get_latency(pair.destination, "read")["counts"]) <= 3  # what was wanted may have come first
    assert sum(get_latency(pair.destination, "write")["counts"]) == pushed + 1


def test_a_storm_of_errors_is_counted_and_each_is_one_short_line(make_pair: MakePair) -> None:
    pair = make_pair(fetch_timeout_s=0.001, log_lines_per_minute=5)
    cut_off(pair)
    before = len(log_lines(pair.source))
    with pair.source.open() as handle:
        for _ in range(200):
            with pytest.raises(nbd.Error):
                handle.pread(4096, 0)
    assert get_latency(pair.source, "read")["errors"] == 200
    lines = [line for line in log_lines(pair.source)[before:] if line]  # nbdkit adds an empty one to each
    assert len(lines) < 200 + 20, lines[:20]
    assert "Traceback" not in "".join(lines)
    assert max(map(len, lines)) < 400
    told = [line for line in lines if "PathNotReady" in line]
    assert len(told) == 200
    assert "did not become ready in time" in told[0]


def test_the_limit_of_a_fetch_can_be_changed_while_the_process_runs(make_pair: MakePair) -> None:
    pair = make_pair(fetch_timeout_s=100_000)
    cut_off(pair)
    answer = pair.source.ask("limits", fetch_timeout_s=0.05, link_timeout_s=3)
    assert (answer["limits"]["fetch_timeout_s"], answer["limits"]["link_timeout_s"]) == (0.05, 3)
    with pair.source.open() as handle, pytest.raises(nbd.Error):
        handle.pread(4096, 0)
    assert pair.source.get_status()["limits"]["fetch_timeout_s"] == 0.05


@pytest.mark.parametrize("role", ["host", "peer"])
@pytest.mark.parametrize(
    ("name", "value"), [("fetch_timeout_s", 0), ("fetch_timeout_s", "5"), ("fetch_timeout_s", True), ("nonsense", 5)]
)
def test_a_limit_that_does_not_fit_is_refused_and_nothing_changes(
    make_plane: Callable[..., Plane], role: str, name: str, value: object
) -> None:
    plane = make_plane("v", role).start()
    before = plane.get_status()["limits"]
    with pytest.raises(ControlError, match=name):
        plane.ask("limits", link_timeout_s=7, **{name: value})
    assert plane.get_status()["limits"] == before
    assert plane.ask("limits", link_timeout_s=7)["limits"]["link_timeout_s"] == 7


def test_the_lines_of_the_log_are_keys_and_values_with_volume_and_pair(make_pair: MakePair) -> None:
    pair = make_pair()
    cut_off(pair)
    ours = [line for line in log_lines(pair.source) if "part=nbdplugin" in line]
    assert ours
    for line in ours:
        assert re.match(r"time=\S+Z level=(info|warning) part=nbdplugin\.\w+ msg=", line), line
        assert f"volume=source pair={pair.uuid}" in line
    assert any('msg="path of volume source is ready, session' in line for line in ours)


def test_a_level_below_the_set_one_is_not_logged(make_pair: MakePair) -> None:
    pair = make_pair(log_level="error")
    cut_off(pair)
    assert [line for line in log_lines(pair.source) if "part=nbdplugin" in line] == []


def test_a_destination_tells_since_when_it_has_not_heard_of_its_source_and_counts_no_session_then(
    make_pair: MakePair,
) -> None:
    pair = make_pair()
    assert pair.destination.get_status()["heard_s"] is None
    pair.create("destination")
    pair.wait_synchronized()
    pair.destination.ask("limits", link_timeout_s=4)
    found = pair.destination.get_status()
    assert (found["session"], found["link"]) == (pair.source.get_status()["session"], "up")
    assert found["heard_s"] < 6
    assert pair.source.process is not None
    pair.source.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: pair.destination.get_status()["session"] is None, "it is not taken for connected any more")
    found = pair.destination.get_status()
    assert (found["link"], found["heard_s"] >= 6) == ("none", True)
    pair.source.process.send_signal(signal.SIGCONT)
    wait_until(lambda: pair.destination.get_status()["link"] == "up", "the source is heard again")


def test_why_a_session_ended_is_told_and_not_what_followed_from_it(make_pair: MakePair) -> None:
    pair = make_pair(link_timeout_s=1, source_data=b"s" * MIB)
    pair.create("destination")
    pair.wait_synchronized()
    before = len(log_lines(pair.source))
    assert pair.destination.process is not None
    pair.destination.process.send_signal(signal.SIGSTOP)
    writers = [threading.Thread(target=write, args=(pair.source, number)) for number in range(2 * URGENT_MOST)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(WAIT_S)
    pair.destination.process.send_signal(signal.SIGCONT)
    pair.wait_up()
    ended = [line for line in log_lines(pair.source)[before:] if "of volume source ended" in line]
    assert ended
    for line in ended:
        assert "did not answer within 1 s" in line


def write(plane: Plane, number: int) -> None:
    with plane.open() as handle:
        handle.pwrite(b"w" * 4096, number * TRACK)
