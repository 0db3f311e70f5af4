"""throughput - requests or bytes a second of every pattern in every state, against what it is compared with.

A pattern's subjects are measured one after the other, round by round, so that what changes on the machine changes for
all of them.  What has a bar gets all rounds and the full time; the rest is there to be looked up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import fio, peers, product
from bench.figures import Bar, Figure
from bench.fio import KIB, MIB, Pattern
from bench.options import Options
from bench.product import State
from bench.stage import FILE, GIB, MIRROR, MIRROR_URING, PROXY, Stage, Subject, get_ours

GROUP = "throughput"
OTHER_ROUNDS = 2
OTHER_SECONDS = 1.0
FIRST_SECONDS, QUICK_FIRST_SECONDS = 10.0, 2.0
FIRST_SIZE = 100 * GIB

READ_1, READ = Pattern("randread", 4 * KIB, 1), Pattern("randread", 4 * KIB, 16)
WRITE_1, WRITE = Pattern("randwrite", 4 * KIB, 1), Pattern("randwrite", 4 * KIB, 16)
READ_X4, WRITE_X4 = dataclasses.replace(READ, clients=4), dataclasses.replace(WRITE, clients=4)
READ_1_X4, WRITE_1_X4 = dataclasses.replace(READ_1, clients=4), dataclasses.replace(WRITE_1, clients=4)
SEQUENTIAL_READ, SEQUENTIAL_WRITE = Pattern("read", 256 * KIB, 16), Pattern("write", 256 * KIB, 16)
MIX = Pattern("randrw", 4 * KIB, 16, reads=70)
PATTERNS = (
    *(READ_1, READ, READ_1_X4, READ_X4, WRITE_1, WRITE, WRITE_1_X4, WRITE_X4),
    *(SEQUENTIAL_READ, SEQUENTIAL_WRITE, MIX),
)
COPYING_PATTERNS = (READ, WRITE, SEQUENTIAL_READ, SEQUENTIAL_WRITE, MIX)

SYNCHRONIZED, SUSPENDED = get_ours(State.SYNCHRONIZED), get_ours(State.SUSPENDED)
SYNCHRONIZED_TLS = get_ours(State.SYNCHRONIZED, is_plain=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One figure: `ours` over `theirs` in `pattern`."""

    pattern: Pattern
    ours: Subject
    theirs: Subject
    at_least: float | None = None

    @property
    def subjects(self) -> tuple[Subject, Subject]:
        return self.ours, self.theirs

    def build_figure(self, values: dict[Subject, list[float]]) -> Figure:
        return Figure(
            group=GROUP,
            name=f"{self.pattern.name}, {self.ours}",
            unit=self.pattern.unit,
            ours=tuple(values[self.ours]),
            peer=str(self.theirs),
            theirs=tuple(values[self.theirs]),
            bar=None if self.at_least is None else Bar(self.at_least),
        )


# Against QEMU's mirror as it comes, and as fast as it gets: the same bar for both.
BARS = (
    Comparison(READ, SYNCHRONIZED, FILE, 0.95),
    Comparison(READ, SYNCHRONIZED, MIRROR, 2.0),
    Comparison(READ, SYNCHRONIZED, MIRROR_URING, 2.0),
    Comparison(READ_X4, SYNCHRONIZED, FILE, 0.90),
    Comparison(WRITE_1, SYNCHRONIZED, MIRROR, 1.0),
    Comparison(WRITE_1, SYNCHRONIZED, MIRROR_URING, 1.0),
    Comparison(WRITE, SYNCHRONIZED, MIRROR, 1.3),
    Comparison(WRITE, SYNCHRONIZED, MIRROR_URING, 1.3),
    Comparison(WRITE, SUSPENDED, FILE, 0.7),
    Comparison(WRITE, SYNCHRONIZED_TLS, SYNCHRONIZED, 0.5),
    Comparison(WRITE_X4, SYNCHRONIZED, MIRROR, 1.2),
    Comparison(WRITE_X4, SYNCHRONIZED, MIRROR_URING, 1.2),
    Comparison(SEQUENTIAL_WRITE, SYNCHRONIZED, MIRROR, 2.0),
    Comparison(SEQUENTIAL_WRITE, SYNCHRONIZED, MIRROR_URING, 2.0),
    Comparison(SEQUENTIAL_WRITE, SYNCHRONIZED_TLS, SYNCHRONIZED, 0.4),
)


def build_lasting() -> list[Comparison]:
    """Every pattern in every state that lasts against what there is to compare it with, but what BARS has."""
    states = [(get_ours(State.UNPAIRED), FILE), (SUSPENDED, FILE), (SYNCHRONIZED, MIRROR_URING)]
    states += [(SYNCHRONIZED, PROXY), (SYNCHRONIZED_TLS, SYNCHRONIZED)]
    known = {(one.pattern, one.subjects) for one in BARS}
    return [Comparison(one, *pair) for one in PATTERNS for pair in states if (one, pair) not in known]


def build_copying() -> list[Comparison]:
    """While a copy runs in either direction, against the state after it; with TLS against a link in clear."""
    copying = [get_ours(state) for state in (State.TO_DESTINATION, State.TO_SOURCE)]
    found = [Comparison(pattern, ours, SYNCHRONIZED) for pattern in COPYING_PATTERNS for ours in copying]
    tls = [(dataclasses.replace(ours, is_plain=False), ours) for ours in copying]
    found += [Comparison(pattern, *pair) for pattern in (WRITE, SEQUENTIAL_WRITE) for pair in tls]
    return [one for one in found if (one.pattern, one.ours) != (WRITE, copying[0])]  # that one has a bar: see below


def run(options: Options) -> Iterator[Figure]:
    folder = options.folder / GROUP
    folder.mkdir()
    copy_size = GIB // 2 if options.is_quick else 3 * GIB
    try:
        with Stage(folder, (128 if options.is_quick else 256) * MIB, copy_size) as stage:
            yield from _compare(stage, BARS, options, options.rounds, options.seconds)
            yield _compare_copying(stage, options)
            if not options.is_quick:
                seconds = min(options.seconds, OTHER_SECONDS)
                yield from _compare(stage, build_lasting(), options, min(options.rounds, OTHER_ROUNDS), seconds)
                yield from _compare(stage, build_copying(), options, 1, seconds)
        shutil.rmtree(folder)
        folder.mkdir()
        yield _compare_first(folder, options)
    finally:
        shutil.rmtree(folder)


def _compare(
    stage: Stage, comparisons: Sequence[Comparison], options: Options, rounds: int, seconds: float
) -> Iterator[Figure]:
    if not peers.has_io_uring():
        options.say(f"{GROUP}: there is no io_uring to be had here: nothing is compared with {MIRROR_URING}")
        comparisons = [one for one in comparisons if one.theirs != MIRROR_URING]
    for pattern in dict.fromkeys(one.pattern for one in comparisons):
        wanted = [one for one in comparisons if one.pattern == pattern]
        options.say(f"{GROUP}: {pattern.name}")
        subjects = list(dict.fromkeys(subject for one in wanted for subject in one.subjects))
        values: dict[Subject, list[float]] = {subject: [] for subject in subjects}
        for turn in range(rounds):
            for subject in subjects if turn % 2 == 0 else reversed(subjects):
                values[subject].append(stage.measure(subject, pattern, seconds))
        yield from (one.build_figure(values) for one in wanted)


def _compare_copying(stage: Stage, options: Options) -> Figure:
    options.say(f"{GROUP}: {WRITE.name} while copying, and after")
    seconds = min(options.seconds / 2, 1.5)
    found = [stage.measure_copying_and_after(WRITE, seconds) for _ in range(options.rounds)]
    ours, theirs = zip(*found, strict=True)
    name = f"{WRITE.name}, {State.TO_DESTINATION.value}"
    return Figure(GROUP, name, WRITE.unit, ours, "the same volume, synchronized", theirs, Bar(0.5))


def _compare_first(folder: Path, options: Options) -> Figure:
    """Each round has a volume that nobody ever wrote to: one of holes, on which everything is yet to be recorded."""
    seconds = min(QUICK_FIRST_SECONDS if options.is_quick else FIRST_SECONDS, FIRST_SECONDS * options.seconds)
    rounds = 1 if options.is_quick else options.rounds
    options.say(f"{GROUP}: the first {seconds:g} s over {FIRST_SIZE // GIB} GiB of holes")
    ours, theirs = [], []
    with contextlib.ExitStack() as stack:
        for turn in range(rounds):
            data = stack.enter_context(_make_hollow(folder / f"ours-{turn}", "source.img"))
            with product.run_state(data.parent, FIRST_SIZE, State.SUSPENDED) as plane:
                ours.append(fio.measure(WRITE, plane.socket_path, FIRST_SIZE, seconds))
            data = stack.enter_context(_make_hollow(folder / f"file-{turn}", "file.img"))
            with peers.run_file(data.parent, "file", data) as path:
                theirs.append(fio.measure(WRITE, path, FIRST_SIZE, seconds))
            stack.pop_all().close()
    name = f"{WRITE.name}, suspended, first {seconds:g} s over {FIRST_SIZE // GIB} GiB of holes"
    return Figure(GROUP, name, WRITE.unit, tuple(ours), str(FILE), tuple(theirs), Bar(0.3))


@contextlib.contextmanager
def _make_hollow(folder: Path, name: str) -> Iterator[Path]:
    folder.mkdir()
    try:
        yield product.make_file(folder / name, FIRST_SIZE, is_filled=False)
    finally:
        shutil.rmtree(folder)
