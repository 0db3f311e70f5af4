"""ondemand - how long a host waits that reads 4 KiB of a track which only the peer has.

Ours: through libnbd to the product's Unix socket, one read at a time, of 4 KiB anywhere in a track that is still
invalid, which the count of fetches must show, else the read does not count (while the copy runs it may have been
first).  Against: a bare libnbd read of one whole track (64 KiB), from the same peer: over TCP loopback from the very
process that ours fetches from, on the export of the session under way.  For the record also from `nbdkit file`.

Idle: the background copy is paused (rate 0), and before each read, whoever's, nothing happens for PAUSE_S: what the
read before it has left to do is done then, ours storing the rest of its track.  Reads that follow one another at once
are figures of their own.  Under copy: its rate has no limit; as the host's reads come one after the other it steps
aside for them, and what it still brings meanwhile is a figure of its own.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nbd
from bench import peers, product
from bench.figures import Bar, Figure
from bench.options import Options
from live.planes import Pair

GROUP = "on demand"
MIB = 1 << 20
SIZE = 1 << 30
TRACK = product.TRACK
READ = 4096
IDLE_READS, IDLE_READS_QUICK = 2000, 500
TURN = 100  # reads of one kind at once, then of the next
PAUSE_S = 0.001
WARM_UP = 100
LEFT_LEAST = 1000  # invalid tracks: with fewer the copy is as good as over
COUNTED_LEAST = 100
IDLE, BUSY = Bar(1.5, at_most=True), Bar(5, at_most=True)


class TooFewReads(Exception):
    """The copy was over before enough reads met an invalid track."""


def run(options: Options) -> Iterator[Figure]:
    folder = options.folder / "ondemand"
    folder.mkdir()
    found: list[dict[str, float]] = []
    try:
        for number in range(options.rounds):
            options.say(f"reads of invalid tracks, round {number + 1}")
            product.make_file(folder / "destination.img", SIZE)
            product.make_file(folder / "source.img", SIZE)
            found.append(_measure(folder, IDLE_READS_QUICK if options.is_quick else IDLE_READS, number))
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    def values(name: str) -> tuple[float, ...]:
        return tuple(one[name] for one in found)

    peer, bare = "bare read of a track from the peer, idle", values("bare p50")
    yield Figure(GROUP, "read of an invalid track, idle, p50", "us", values("idle p50"), f"{peer}, p50", bare, IDLE)
    yield Figure(GROUP, "the same", "us", values("idle p50"), "bare read of a track, nbdkit file", values("file p50"))
    yield Figure(GROUP, "the same", "us", values("idle p50"), "4 KiB of a valid track", values("valid p50"))
    name, other = "reads of invalid tracks at once one after the other, p50", "bare reads of tracks likewise, p50"
    yield Figure(GROUP, name, "us", values("quick p50"), other, values("quick bare p50"))
    slow, bare_slow, copying = values("idle p99"), values("bare p99"), values("busy p99")
    yield Figure(GROUP, "read of an invalid track, idle, p99", "us", slow, f"{peer}, p99", bare_slow)
    name = "read of an invalid track under copy"
    yield Figure(GROUP, f"{name}, p99", "us", copying, f"{peer}, p99", bare_slow, BUSY)
    yield Figure(GROUP, f"{name}, p99", "us", copying, f"{peer}, p50", bare)
    yield Figure(GROUP, f"{name}, p50", "us", values("busy p50"), f"{peer}, p50", bare)
    yield Figure(GROUP, "copy while the host reads invalid tracks", "MiB/s", values("copy rate"))


def _measure(folder: Path, reads: int, seed: int) -> dict[str, float]:
    tracks = list(range(SIZE // TRACK))
    random.Random(seed).shuffle(tracks)
    with product.run_pair(folder, SIZE, is_plain=True) as pair, ExitStack() as stack:
        pair.create("source", rate=0)
        pair.wait_up()
        ours = stack.enter_context(pair.source.open())
        session = pair.source.get_status()["session"]
        bare = stack.enter_context(_connect(pair.destination.port, f"data/{pair.uuid}/{session}/host"))
        port = stack.enter_context(peers.run_file_tcp(folder, "file", folder / "destination.img"))
        file = stack.enter_context(_connect(port, ""))
        _time_reads(bare, tracks[:WARM_UP], TRACK)
        _time_reads(file, tracks[:WARM_UP], TRACK)
        found = _read_idle(pair, (ours, bare, file), tracks[:reads])
        found |= _read_at_once(pair, ours, bare, tracks[reads : 2 * reads])
        return found | _read_busy(pair, ours, tracks[2 * reads :])


@contextmanager
def _connect(port: int, export: str) -> Iterator[nbd.NBD]:
    handle = nbd.NBD()
    handle.set_export_name(export)
    handle.connect_tcp("127.0.0.1", str(port))
    try:
        yield handle
    finally:
        handle.shutdown()


def _read_idle(pair: Pair, handles: tuple[nbd.NBD, nbd.NBD, nbd.NBD], tracks: list[int]) -> dict[str, float]:
    ours, bare, file = handles
    times: dict[str, list[float]] = {"idle": [], "bare": [], "file": [], "valid": []}
    before = _count_fetches(pair.source.get_status())
    for track in tracks:
        offset = _choose_offset(track)
        kinds = (("bare", bare, track * TRACK, TRACK), ("file", file, track * TRACK, TRACK))
        for kind, handle, start, length in (*kinds, ("idle", ours, offset, READ), ("valid", ours, offset, READ)):
            time.sleep(PAUSE_S)
            times[kind].append(_time_read(handle, start, length))
    assert _count_fetches(pair.source.get_status()) - before == len(tracks), "each read but the last kind's was a fetch"
    return {f"{kind} p{part}": _rank(found, part) for kind, found in times.items() for part in (50, 99)}


def _read_at_once(pair: Pair, ours: nbd.NBD, bare: nbd.NBD, tracks: list[int]) -> dict[str, float]:
    quick: list[float] = []
    quick_bare: list[float] = []
    before = _count_fetches(pair.source.get_status())
    for start in range(0, len(tracks), TURN):
        turn = tracks[start : start + TURN]
        quick_bare += _time_reads(bare, turn, TRACK)
        quick += [_time_read(ours, _choose_offset(track), READ) for track in turn]
    assert _count_fetches(pair.source.get_status()) - before == len(tracks), "each read was a fetch"
    return {"quick p50": _rank(quick, 50), "quick bare p50": _rank(quick_bare, 50)}


def _read_busy(pair: Pair, ours: nbd.NBD, tracks: list[int]) -> dict[str, float]:
    """Until the copy is nearly over; the counter is asked after each read, outside of its time."""
    times: list[float] = []
    pair.source.ask("set", copy_rate_bytes_s=None)
    status = pair.source.get_status()
    before, start = status["counters"], time.monotonic()
    for track in tracks:
        fetches = _count_fetches(status)
        took = _time_read(ours, _choose_offset(track), READ)
        status = pair.source.get_status()
        if _count_fetches(status) > fetches:
            times.append(took)
        if status["invalid"] < LEFT_LEAST:
            break
    took_s = time.monotonic() - start
    if len(times) < COUNTED_LEAST:
        raise TooFewReads(f"{len(times)} reads met an invalid track before the copy had ended")
    copied = (status["counters"]["copied_tracks"] - before["copied_tracks"]) * TRACK / MIB
    return {"busy p50": _rank(times, 50), "busy p99": _rank(times, 99), "copy rate": copied / took_s}


def _count_fetches(status: dict[str, Any]) -> int:
    """How often the peer was asked for what a host's request waited for: counted before that is answered."""
    return sum(status["latency"]["kinds"]["fetch"]["counts"])


def _choose_offset(track: int) -> int:
    """Of 4 KiB somewhere in the track, the same each time."""
    return track * TRACK + random.Random(track).randrange(TRACK // READ) * READ


def _time_reads(handle: nbd.NBD, tracks: Sequence[int], length: int) -> list[float]:
    return [_time_read(handle, track * TRACK, length) for track in tracks]


def _time_read(handle: nbd.NBD, offset: int, length: int) -> float:
    """Microseconds."""
    start = time.perf_counter()
    handle.pread(length, offset)
    return (time.perf_counter() - start) * 1e6


def _rank(values: list[float], percent: int) -> float:
    return sorted(values)[len(values) * percent // 100]
