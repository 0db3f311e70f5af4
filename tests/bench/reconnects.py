"""reconnects - what nbdkit holds after 1,000 reconnects of a client and of the peer: memory, threads, descriptors.

A client connects, writes, reads and disconnects.  The peer's session is ended and taken up again: by command (suspend
and resume), and every tenth time by a cut of all its connections, through a proxy between the two (slowproxy).
Compared are both processes after a warm-up of each kind and after all of them; see `Held` for when is counted.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator

import psutil
from bench import product
from bench.figures import Bar, Figure
from bench.options import Options
from live.planes import Pair, Plane
from live.slowproxy import SlowProxy
from waiting import wait_until

GROUP = "reconnects"
MIB = 1 << 20
SIZE = 64 * MIB
WARM_UP, WARM_UP_QUICK = 100, 50
TIMES, TIMES_QUICK = 1000, 100
CUT_EVERY = 10
PIECE = 4096
FAST_BYTES_S = 1 << 40
RSS_MOST_MIB = 4.0  # what an allocator may keep; 35 KiB a reconnect, as FACTS has it, would be 34 MiB
NONE = Bar(0, at_most=True)
AT_REST = 50  # looks of 10 ms


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """Of one process, with one client connected or none, the session up."""

    rss_mib: float
    threads: int
    descriptors: int


def run(options: Options) -> Iterator[Figure]:
    folder = options.folder / "reconnects"
    folder.mkdir()
    times, warm_up = (TIMES_QUICK, WARM_UP_QUICK) if options.is_quick else (TIMES, WARM_UP)
    try:
        with (
            product.run_pair(folder, SIZE, is_plain=False) as pair,
            SlowProxy(pair.destination.port, FAST_BYTES_S) as proxy,
        ):
            pair.create("destination", port=proxy.port)
            pair.wait_synchronized()
            for what, reconnect in (("a client", reconnect_client), ("the peer", reconnect_peer)):
                options.say(f"{times} reconnects of {what}")
                for number in range(warm_up):
                    reconnect(pair, proxy, number)
                before = measure(pair)
                for number in range(times):
                    reconnect(pair, proxy, number)
                yield from _build_figures(f"{times} reconnects of {what}", before, measure(pair))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _build_figures(name: str, before: dict[str, Held], after: dict[str, Held]) -> Iterator[Figure]:
    for process, held in after.items():
        start = before[process]
        rss = Figure(GROUP, f"{name}: memory, {process}", "MiB more", (held.rss_mib - start.rss_mib,))
        yield dataclasses.replace(rss, bar=Bar(RSS_MOST_MIB, at_most=True))
        threads = held.threads - start.threads
        yield Figure(GROUP, f"{name}: threads, {process}", "more", (float(threads),), bar=NONE)
        descriptors = held.descriptors - start.descriptors
        yield Figure(GROUP, f"{name}: descriptors, {process}", "more", (float(descriptors),), bar=NONE)


def reconnect_client(pair: Pair, proxy: SlowProxy, number: int) -> None:
    data = number.to_bytes(4, "big") * (PIECE // 4)
    offset = number * PIECE % SIZE
    with pair.source.open() as handle:
        handle.pwrite(data, offset)
        assert bytes(handle.pread(PIECE, offset)) == data


def reconnect_peer(pair: Pair, proxy: SlowProxy, number: int) -> None:
    """Returns when the path is ready again and a host's write has gone over it."""
    session = pair.source.get_status()["session"]
    if number % CUT_EVERY == CUT_EVERY - 1:
        proxy.cut()
    else:
        pair.source.ask("suspend", pair=pair.uuid)
        pair.source.ask("resume", pair=pair.uuid)
    wait_until(lambda: (pair.source.get_status()["session"] or session) != session, "a new session is up")
    reconnect_client(pair, proxy, number)


def measure(pair: Pair) -> dict[str, Held]:
    """Of both processes, once what belongs to the last connection has gone: threads and descriptors at rest."""
    pair.wait_synchronized()
    wait_until(lambda: pair.source.get_status()["clients"] == 0, "no client is connected any more")
    return {plane.name: _settle(plane) for plane in (pair.source, pair.destination)}


def _settle(plane: Plane) -> Held:
    """A row of looks that agree in threads and descriptors."""
    seen: list[Held] = []

    def is_at_rest() -> bool:
        seen.append(_look(plane))
        return len(seen) > AT_REST and len({(one.threads, one.descriptors) for one in seen[-AT_REST:]}) == 1

    wait_until(is_at_rest, f"threads and descriptors of the {plane.name} are at rest")
    return seen[-1]


def _look(plane: Plane) -> Held:
    assert plane.process is not None
    process = psutil.Process(plane.process.pid)
    with process.oneshot():
        return Held(process.memory_info().rss / MIB, process.num_threads(), process.num_fds())
