"""copying - how fast a volume comes over, against nbdcopy with four connections.

What is timed
    Ours: from `commit` (or `resume`) until the status of the source says so, asked every 2 ms: *copied* is that no
    track is invalid or owed, which is what makes a pair Synchronized; *durable* is that beyond that both sides have
    synced and the peer knows itself complete.  Both processes run already.
    nbdcopy: its process from start to exit, without --flush against *copied*, with it against *durable*.  It reads
    from `nbdkit file` over a Unix socket and writes to `nbdkit file` over TCP loopback; both run already.

What lies beneath is the same for both: the data in the page cache, the target on the same disk.  A copy of everything
goes to a target full of other data that is in the page cache and written out; one with holes to a new sparse file.
Memory that this kernel takes from a machine below it, which wants back what is free after some seconds, costs ten
times the copy itself, and whoever comes first would pay it for all: `_warm_memory` has it just before each copy.
Who begins changes from round to round.  What came over is compared each time.
"""

from __future__ import annotations

import dataclasses
import filecmp
import functools
import itertools
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import peers, product
from bench.figures import Bar, Figure
from bench.options import Options
from live.planes import Pair, Plane

GROUP = "copy"
MIB = 1 << 20
SIZE = 1 << 30
WARM_BYTES = 192 * MIB  # a target with a tenth of its pieces, and what both ends hold of the data under way
PIECE = MIB
DATA_EVERY = 10  # of the pieces of the file with holes, one in so many holds data
OWED_PERCENT = 1
LIMIT_S = 300.0
POLL_S = 0.002
FULL, HOLES, SHARE, TLS = Bar(0.9), Bar(1.0), Bar(0.05, at_most=True), Bar(0.4)
COPIED, DURABLE = "copied", "durable"
NBDCOPY = "nbdcopy, 4 connections"


class NotCopied(Exception):
    """The two sides differ after a copy: no figure of it counts."""


@dataclasses.dataclass(frozen=True, slots=True)
class Times:
    """Seconds until all tracks were over, and until that was durable on both sides."""

    copied: float
    durable: float


def run(options: Options) -> Iterator[Figure]:
    folder = options.folder / "copying"
    folder.mkdir()
    try:
        full, holes = _make_data(folder / "full", 1), _make_data(folder / "holes", DATA_EVERY)
        yield from _measure_against_nbdcopy(options, full, full.name, FULL)
        yield from _measure_against_nbdcopy(options, holes, "90 % holes", HOLES)
        yield from _measure_tls(options, full)
        yield from _measure_share(options, full)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure_against_nbdcopy(options: Options, data: Path, name: str, bar: Bar) -> Iterator[Figure]:
    for invalid, way in (("destination", "to the destination"), ("source", "to the source")):
        options.say(f"copy {way}: {name}")
        ours, theirs = _take_turns(
            options.rounds,
            functools.partial(_copy, data, invalid),
            lambda: Times(_run_nbdcopy(data), _run_nbdcopy(data, "--flush")),
        )
        title = f"1 GiB {way}" + ("" if bar is FULL else f", {name}")
        for what in (COPIED, DURABLE):
            peer = NBDCOPY + (" --flush" if what == DURABLE else "")
            yield Figure(GROUP, f"{title}, {what}", "MiB/s", _rates(ours, what), peer, _rates(theirs, what), bar)


def _measure_tls(options: Options, data: Path) -> Iterator[Figure]:
    options.say("copy over TLS")
    for invalid, way in (("destination", "to the destination"), ("source", "to the source")):
        ours, plain = _take_turns(
            options.rounds, functools.partial(_copy, data, invalid, False), functools.partial(_copy, data, invalid)
        )
        rates = _rates(ours, COPIED), _rates(plain, COPIED)
        yield Figure(GROUP, f"1 GiB {way} over TLS, {COPIED}", "MiB/s", rates[0], "plaintext", rates[1], TLS)


def _measure_share(options: Options, data: Path) -> Iterator[Figure]:
    """A pair that was in step and has 1 % of its tracks, at random, to bring over, against the copy of all of them."""
    options.say("copy of 1 % of the tracks")
    seeds = itertools.count()
    ours, full = _take_turns(
        options.rounds, lambda: _copy_share(data, next(seeds)), functools.partial(_copy, data, "destination")
    )
    name = f"{OWED_PERCENT} % of the tracks of 1 GiB owed at random"
    for what in (COPIED, DURABLE):
        times = [tuple(getattr(one, what) for one in found) for found in (ours, full)]
        yield Figure(GROUP, f"{name}, {what}", "s", times[0], "copy of all tracks", times[1], SHARE)


def _take_turns(rounds: int, one: Callable[[], Times], other: Callable[[], Times]) -> tuple[list[Times], list[Times]]:
    """What each took, a time a round; whoever began a round is the second in the next."""
    found: tuple[list[Times], list[Times]] = ([], [])
    for number in range(rounds):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            found[which].append((one, other)[which]())
    return found


def _warm_memory() -> None:
    """As much as any copy takes is free, and this machine's own for the next seconds."""
    memory = bytearray(b"\xa5") * WARM_BYTES
    del memory


def _rates(found: list[Times], what: str) -> tuple[float, ...]:
    return tuple(SIZE / MIB / getattr(one, what) for one in found)


def _make_data(path: Path, every: int) -> Path:
    """Random data in one of `every` pieces, the others holes; durable, so that no write-back runs beside a copy."""
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in range(0, SIZE, PIECE * every):
            file.seek(offset)
            file.write(os.urandom(PIECE))
        file.flush()
        os.fsync(file.fileno())
    return path


def _make_target(data: Path) -> Path:
    """As the module's docstring says: full of other data, or new and sparse for data with holes."""
    path = data.with_suffix(".target")
    is_sparse = data.stat().st_blocks * 512 < SIZE
    if is_sparse:
        path.unlink(missing_ok=True)
    with path.open("r+b" if path.exists() else "wb") as file:
        file.truncate(SIZE)
        for _ in range(0 if is_sparse else SIZE // PIECE):
            file.write(b"\xa5" * PIECE)
        file.flush()
        os.fsync(file.fileno())
    return path


@contextmanager
def _lay_out(data: Path, has: str, lacks: str) -> Iterator[Path]:
    """A folder with the data and a target as `has`.img and `lacks`.img; what is in them is compared at the end."""
    folder = data.parent / "at"
    folder.mkdir()
    try:
        os.link(data, folder / f"{has}.img")
        os.link(_make_target(data), folder / f"{lacks}.img")
        yield folder
        if not filecmp.cmp(folder / f"{has}.img", folder / f"{lacks}.img", shallow=False):
            raise NotCopied(f"after a copy {has} and {lacks} differ: this is a fault of what copied")
    finally:
        shutil.rmtree(folder)


def _copy(data: Path, invalid: str, is_plain: bool = True) -> Times:
    has = "source" if invalid == "destination" else "destination"
    with _lay_out(data, has, invalid) as folder, product.run_pair(folder, SIZE, is_plain) as pair:
        pair.connect(invalid)
        pair.link()
        pair.source.ask("greet", pair=pair.uuid, timeout_s=5)
        commit = functools.partial(pair.source.ask, "commit", operation="op", pair=pair.uuid, invalid=invalid)
        return _time(pair.source, lambda: commit(force=False))


def _time(source: Plane, begin: Callable[[], object]) -> Times:
    _warm_memory()
    start = time.monotonic()
    copied = 0.0
    begin()
    while time.monotonic() - start < LIMIT_S:
        status = source.get_status()
        now = time.monotonic() - start
        if not copied and status["session"] is not None and not status["invalid"] and not status["owed"]:
            copied = now
        if copied and status["complete"]:
            return Times(copied, now)
        time.sleep(POLL_S)
    raise NotCopied(f"the copy did not end within {LIMIT_S:g} s")


def _run_nbdcopy(data: Path, *options: str) -> float:
    with (
        _lay_out(data, "source", "destination") as folder,
        peers.run_file(folder, "source", folder / "source.img") as path,
        peers.run_file_tcp(folder, "destination", folder / "destination.img") as port,
    ):
        _warm_memory()
        start = time.monotonic()
        command = ["nbdcopy", "--connections=4", *options, f"nbd+unix:///?socket={path}", f"nbd://127.0.0.1:{port}"]
        # Its output is read: without a pipe, a wait with a limit only looks every 50 ms.
        subprocess.run(command, check=True, timeout=LIMIT_S, stdout=subprocess.PIPE)
        return time.monotonic() - start


def _copy_share(data: Path, seed: int) -> Times:
    """On a copy of the data: the host's writes change it."""
    folder = data.parent / "share"
    folder.mkdir()
    try:
        for name in ("source", "destination"):
            shutil.copyfile(data, folder / f"{name}.img")
        with product.run_pair(folder, SIZE, is_plain=True) as pair:
            pair.create("destination")
            pair.wait_synchronized(LIMIT_S)
            return _time(pair.source, _make_owed(pair, seed))
    finally:
        shutil.rmtree(folder)


def _make_owed(pair: Pair, seed: int) -> Callable[[], object]:
    """Suspended, written to, flushed; gives what ends that."""
    pair.source.ask("suspend", pair=pair.uuid)
    tracks = SIZE // product.TRACK
    wanted = random.Random(seed).sample(range(tracks), tracks * OWED_PERCENT // 100)
    with pair.source.open() as handle:
        for track in wanted:
            handle.pwrite(os.urandom(product.TRACK), track * product.TRACK)
        handle.flush()
    assert pair.source.get_status()["owed"] == len(wanted)
    return lambda: pair.source.ask("resume", pair=pair.uuid)
