"""manypairs - what many pairs cost: time per create and of `status`, memory, a processor at rest; and many at work.

Memory of a pair is that of its two nbdkit processes, one on each host, and told twice.  PSS shares out the pages that
several processes map (interpreter, libraries): all pairs together take what it says.  RSS counts them in each process:
it is the figure of `ps` and `top`, and what a pair alone would take.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
from bench import scene
from bench.figures import Bar, Figure
from bench.options import Options
from live.daemons import Daemon

SIZE = 64 << 20
COUNTS = (1, 10, 100, 300)
QUICK_COUNTS = (1, 10)
AT_BAR = 100  # the bars are about this many
STATUS_TIMES, QUICK_STATUS_TIMES = 15, 5
IDLE_S, QUICK_IDLE_S = 20.0, 5.0
MIB = 1 << 20
BARS = {
    "create": Bar(0.5, at_most=True),
    "status": Bar(0.5, at_most=True),
    "memory": Bar(30, at_most=True),
}


def run(options: Options) -> Iterator[Figure]:
    folder = options.folder / "many"
    folder.mkdir()
    with scene.two_hosts(folder) as (alpha, beta):
        done = 0
        for count in QUICK_COUNTS if options.is_quick else COUNTS:
            options.say(f"creating pairs {done + 1} to {count}")
            times = [scene.create_pair(alpha, beta, f"v{number}", SIZE) for number in range(done, count)]
            scene.wait_synchronized(alpha, count)
            which = f"pairs {done + 1} to {count}"
            yield Figure("scale", f"time per create, {which}", "s", tuple(times), bar=_bar("create", count))
            yield Figure("scale", f"slowest create, {which}", "s", (max(times),), bar=_bar("create", count))
            done = count
            options.say(f"{count} pairs at rest")
            yield from _status(alpha, beta, count, QUICK_STATUS_TIMES if options.is_quick else STATUS_TIMES)
            yield from _memory(alpha, beta, count)
            yield from _idle(alpha, beta, count, QUICK_IDLE_S if options.is_quick else IDLE_S)


def _status(alpha: Daemon, beta: Daemon, count: int, times: int) -> Iterator[Figure]:
    for daemon in (alpha, beta):
        command = [scene.run_command(daemon, "status") for _ in range(times)]
        call = [scene.time_call(daemon, "status") for _ in range(times)]
        yield _figure(f"`pathctl status` on {daemon.name}", count, "s", command, "status")
        yield _figure(f"status by its API on {daemon.name}", count, "s", call)


def _memory(alpha: Daemon, beta: Daemon, count: int) -> Iterator[Figure]:
    for daemon, side in ((alpha, "source"), (beta, "destination")):
        planes = [process.memory_full_info() for process in scene.planes_of(daemon)]
        yield _figure(f"PSS of a pair's nbdkit, {side}", count, "MiB", [found.pss / MIB for found in planes])
        yield _figure(f"RSS of a pair's nbdkit, {side}", count, "MiB", [found.rss / MIB for found in planes], "memory")
        assert daemon.process is not None
        own = psutil.Process(daemon.process.pid).memory_full_info()
        yield _figure(f"RSS of pathctld on {daemon.name}", count, "MiB", [own.rss / MIB])


def _idle(alpha: Daemon, beta: Daemon, count: int, seconds: float) -> Iterator[Figure]:
    """Of one processor, in percent, of all processes of each kind together."""
    groups: dict[str, list[psutil.Process]] = {}
    for daemon, side in ((alpha, "source"), (beta, "destination")):
        assert daemon.process is not None
        groups[f"processor at rest, pathctld on {daemon.name}"] = [psutil.Process(daemon.process.pid)]
        groups[f"processor at rest, nbdkits of the {side}s"] = scene.planes_of(daemon)
    before, started = {name: _spent(found) for name, found in groups.items()}, time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - started
    for name, found in groups.items():
        yield _figure(name, count, "%", [100 * (_spent(found) - before[name]) / elapsed])


def _figure(what: str, count: int, unit: str, values: list[float], bar: str = "") -> Figure:
    return Figure("scale", f"{what}, {_pairs(count)}", unit, tuple(values), bar=_bar(bar, count))


def _spent(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _bar(name: str, count: int) -> Bar | None:
    return BARS[name] if name and count == AT_BAR else None


def _pairs(count: int) -> str:
    return f"{count} pair{'s' if count > 1 else ''}"
