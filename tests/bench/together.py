"""together - several volumes under load at once: what they reach together, against one alone.

Each volume is the source of a synchronized pair of its own and has a client of its own; all run on one machine, fio
too, so that the sum is bounded by the processors that one volume does not use.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path

import nbd
from bench import fio, scene
from bench.figures import Figure
from bench.options import Options

COUNTS = (1, 4, 16)
QUICK_COUNTS = (1, 4)
ONE = COUNTS[0]
SIZE = 64 << 20
BLOCK = 1 << 20
PATTERNS = (fio.Pattern("randread", 4 << 10, 16), fio.Pattern("randwrite", 4 << 10, 16))


def run(options: Options) -> Iterator[Figure]:
    folder = options.folder / "together"
    folder.mkdir()
    counts = QUICK_COUNTS if options.is_quick else COUNTS
    with scene.two_hosts(folder) as (alpha, beta):
        options.say(f"creating {counts[-1]} pairs and filling them")
        for number in range(counts[-1]):
            scene.create_pair(alpha, beta, f"v{number}", SIZE)
            _fill(scene.socket_path(alpha, f"v{number}"))
        scene.wait_synchronized(alpha, counts[-1])
        sockets = [scene.socket_path(alpha, f"v{number}") for number in range(counts[-1])]
        for pattern in PATTERNS:
            yield from _measure(options, pattern, sockets, counts)


def _fill(path: Path) -> None:
    handle = nbd.NBD()
    handle.connect_unix(str(path))
    for offset in range(0, SIZE, BLOCK):
        handle.pwrite(b"\x5a" * BLOCK, offset)
    handle.flush()
    handle.shutdown()


def _measure(options: Options, pattern: fio.Pattern, sockets: list[Path], counts: tuple[int, ...]) -> Iterator[Figure]:
    sums: dict[int, list[float]] = {count: [] for count in counts}
    with concurrent.futures.ThreadPoolExecutor(counts[-1]) as pool:
        for number in range(options.rounds):
            options.say(f"{pattern.name}, volumes at once, round {number + 1} of {options.rounds}")
            for count in counts:
                runs = [pool.submit(fio.measure, pattern, path, SIZE, options.seconds) for path in sockets[:count]]
                sums[count].append(sum(each.result() for each in runs))
    alone = tuple(sums[ONE])
    yield Figure("scale", f"{pattern.name}, 1 volume", pattern.unit, alone)
    for count in counts[1:]:
        what = f"{pattern.name}, {count} volumes at once, sum"
        yield Figure("scale", what, pattern.unit, tuple(sums[count]), "1 volume", alone)
