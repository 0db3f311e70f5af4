"""exhaustive - every sequence of up to four operations on a small volume: `python -m tests.sim.exhaustive`.

The operations are small.NAMES, the volume is small.Small's, the starts are small.STARTS.  A sequence is a walk from
one *rest*, where nothing more is possible, to the next, along *edges*.  From a rest that is reached by `n` operations:

* each operation alone, to the next rest; a fault in each of its forms (see small.Small.get_variants);
* n <= 2: each operation that is no fault, and after each of its steps each fault in each of its forms;
* n <= 1: and after each of its steps each other operation, so that the two are under way together;
* n = 0, with --deep: and after each step of two operations that are under way together each fault, and after each
  step of what a fault left under way each operation.

Orders of events (see small.Steps): as PASSES says; of three operations together one.  Rests that canon cannot tell
apart are one: what follows is run once, from the one that the fewest operations lead to.  An operation that neither
does nor changes anything at that point (a second disconnect, a fetch with nothing invalid, a push with nothing to
copy, ...) ends its edge.  After each step the rules are checked; from every new rest all heals, and both sides must
become equal, Synchronized, and hold what model.Model allows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import pickle
import re
import sys
import time
from collections.abc import Callable, Container
from typing import NamedTuple

from nbdplugin.errors import PathError
from tests.sim import canon
from tests.sim.model import Violation
from tests.sim.small import FAULTS, NAMES, STARTS, Small

LENGTH = 4
OVERLAPS = 2  # from rests that fewer operations lead to, two begin together
ORDERS = ((True, False, False), (False, True, False), (True, True, False), (False, False, False))
LAZY = (True, False, True)
PASSES = ((ORDERS, (LAZY,)), (ORDERS[:2], (LAZY,)), (ORDERS[:1],), (ORDERS[:1],))  # by n
PLAIN = tuple(name for name in NAMES if name not in FAULTS)
CAUGHT = (Violation, PathError, AssertionError)
_WORDS = {True: ("newest", "link"), False: ("oldest", "here")}
_EDGE = re.compile(r"(newest|oldest) (link|here)( lazy|): (.*)")
_MOVE = re.compile(r"(?:(\d+) )?([A-Za-z ]+?)(?: \(([a-z ]+)\))?")


class Move(NamedTuple):
    """An operation that begins when the one before it in its edge has made `cut` steps."""

    cut: int
    name: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.cut} {self.name}" + (f" ({self.variant})" if self.variant else "")


class Edge(NamedTuple):
    """From one rest to the next."""

    is_newest_first: bool
    is_link_first: bool
    is_lazy: bool
    moves: tuple[Move, ...]

    def __str__(self) -> str:
        lazy = " lazy" if self.is_lazy else ""
        return f"{_WORDS[self[0]][0]} {_WORDS[self[1]][1]}{lazy}: {', '.join(map(str, self.moves))}"


class Path(NamedTuple):
    """How a rest is reached; its text is what --replay takes."""

    start: str
    edges: tuple[Edge, ...] = ()

    @property
    def length(self) -> int:
        return sum(len(edge.moves) for edge in self.edges)

    def __str__(self) -> str:
        return " | ".join((self.start, *map(str, self.edges)))


def parse_path(text: str) -> Path:
    """The opposite of str; raises ValueError."""
    start, *rest = text.split(" | ")
    edges = []
    for part in rest:
        found = _EDGE.fullmatch(part)
        moves = [_MOVE.fullmatch(move) for move in found[4].split(", ")] if found else []
        if found is None or not all(moves):
            raise ValueError(f"{part!r} is no edge: see Path")
        made = tuple(Move(int(m[1] or 0), m[2], m[3] or "") for m in moves if m)
        edges.append(Edge(found[1] == "newest", found[2] == "link", bool(found[3]), made))
    if start not in STARTS or not {move.name for edge in edges for move in edge.moves} <= set(NAMES):
        raise ValueError(f"{text!r} names what is not there: starts are {STARTS}, operations {NAMES}")
    return Path(start, tuple(edges))


class Counts:
    """`strikes` are the crash points: runs with a fault in them.  `idle` runs ended with what would do nothing."""

    def __init__(self) -> None:
        self.runs = self.strikes = self.steps = self.idle = self.healed = 0

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class Outcome(NamedTuple):
    """What the edges of one rest gave."""

    fresh: list[tuple[bytes, Path]]
    violations: list[tuple[Path, str]]
    counts: Counts


def follow(world: Small, edge: Edge) -> int:
    """Steps of the last move until rest, or -1 if a move would do nothing."""
    steps = world.steps
    steps.is_newest_first, steps.is_link_first = edge.is_newest_first, edge.is_link_first
    steps.p_immediate = 0.0 if edge.is_lazy else 1.0
    steps.had_choice = False
    for move in edge.moves:
        for _ in range(move.cut):
            world.advance()
        world.variants = world.get_variants(move.name)
        if not world.begin(move.name, move.variant):
            return -1
    return world.run_idle()


class Rest:
    """`snapshot` is of the last rest before in which nobody waited; `edges` lead on from there."""

    def __init__(self, path: Path) -> None:
        world = Small(path.start)
        self.edges: tuple[Edge, ...] = path.edges
        self.snapshot = pickle.dumps(world, -1)
        for number, edge in enumerate(path.edges):
            follow(world, edge)
            if not world.machine.tasks and not world.machine.late:
                self.snapshot, self.edges = pickle.dumps(world, -1), path.edges[number + 1 :]

    def wake(self) -> Small:
        world: Small = pickle.loads(self.snapshot)
        for edge in self.edges:
            follow(world, edge)
        return world


class Explorer:
    """All edges of one rest.  `seen` and `final` have the fingerprints of the rests that are known already."""

    def __init__(
        self,
        path: Path,
        seen: Container[bytes],
        final: set[bytes],
        is_deep: bool = False,
        is_hunting: bool = False,
    ) -> None:
        self.path = path
        self.rest = Rest(path)
        self.seen = seen
        self.final = final
        self.is_deep = is_deep and path.length == 0 and LENGTH > 2
        self.is_hunting = is_hunting
        self.orders: tuple[tuple[bool, bool, bool], ...] = ()
        self.fresh: dict[bytes, Path] = {}
        self.violations: list[tuple[Path, str]] = []
        self.counts = Counts()

    def explore(self) -> Outcome:
        if not self.is_hunting or not self.path.edges:
            self._heal(self.path, self.rest.wake())
        for orders in PASSES[self.path.length]:
            self.orders = orders[:1] if self.is_hunting else orders
            for name in NAMES:
                length = self._run((Move(0, name),))
                if name in PLAIN and self.path.length <= LENGTH - 2:
                    self._explore_pairs(name, length)
        return Outcome(list(self.fresh.items()), self.violations, self.counts)

    def _explore_pairs(self, first: str, length: int) -> None:
        for cut in range(length):
            for second in NAMES if self.path.length < OVERLAPS else FAULTS:
                moves = Move(0, first), Move(cut, second)
                more = self._run(moves)
                if self.is_deep:
                    self._explore_triples(moves, more)

    def _explore_triples(self, moves: tuple[Move, ...], length: int) -> None:
        for cut in range(length):
            for name in NAMES if moves[-1].name in FAULTS else FAULTS:
                self._run((*moves, Move(cut, name)))

    def _run(self, moves: tuple[Move, ...]) -> int:
        """Each form of the last move, under each order of events that differs; the most steps after that move."""
        most = -1
        for order in self.orders if len(moves) < 3 else self.orders[:1]:
            edge = Edge(*order, moves)
            world, length = self._follow(edge)
            had_choice = world.steps.had_choice
            for variant in world.variants[1:]:
                form = edge._replace(moves=(*moves[:-1], moves[-1]._replace(variant=variant)))
                world, steps = self._follow(form)
                had_choice |= world.steps.had_choice
                length = max(length, steps)
            most = max(most, length)
            if length < 0 or not had_choice:
                break
        return most

    def _follow(self, edge: Edge) -> tuple[Small, int]:
        path = Path(self.path.start, (*self.path.edges, edge))
        world = self.rest.wake()
        before, length = world.machine.now, -1
        self.counts.runs += 1
        self.counts.strikes += edge.moves[-1].name in FAULTS
        try:
            length = follow(world, edge)
            self.counts.idle += length < 0
            if length >= 0:
                self._note(path, world)
        except CAUGHT as error:
            self._take_violation(path, error)
        self.counts.steps += world.machine.now - before
        return world, length

    def _note(self, path: Path, world: Small) -> None:
        digest = canon.get_digest(world)
        if digest in self.seen or digest in self.fresh or digest in self.final:
            return
        if path.length < LENGTH:
            self.fresh[digest] = path
        else:
            self.final.add(digest)
        if path.length == LENGTH or self.is_hunting:  # else healed when its own edges are explored
            self._heal(path, world)

    def _heal(self, path: Path, world: Small) -> None:
        self.counts.healed += 1
        try:
            world.heal()
        except CAUGHT as error:
            self._take_violation(path, error, "when all heals: ")

    def _take_violation(self, path: Path, error: Exception, when: str = "") -> None:
        text = f"{when}{error}" if isinstance(error, Violation) else f"{when}{type(error).__name__}: {error}"
        self.violations.append((path, text))
        if self.is_hunting:
            raise Found(path, text)


class Found(Exception):
    """The first violation, for who needs no more."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(f"{text} [{path}]")
        self.path, self.text = path, text


def hunt(runs_most: int) -> Found | None:
    """The first violation that so many runs meet, in this process: sequences of two first, then three, then four."""
    seen: set[bytes] = set()
    runs, levels = 0, [[Path(start) for start in STARTS], *([] for _ in range(LENGTH))]
    try:
        for path in levels[0]:
            _prepare(path)
        for level in levels[:LENGTH]:
            for path in level:
                if runs >= runs_most:
                    return None
                explorer = Explorer(path, seen, seen, is_hunting=True)
                for digest, fresh in explorer.explore().fresh:
                    seen.add(digest)
                    levels[fresh.length].append(fresh)
                runs += explorer.counts.runs
    except Found as found:
        return found
    return None


def _prepare(path: Path) -> None:
    """Raises Found if the start itself cannot be made, which is a violation as well."""
    try:
        Small(path.start)
    except CAUGHT as error:
        raise Found(path, f"{type(error).__name__}: {error}") from None


def try_path(path: Path) -> str:
    """The violation that the path ends in, "" without one."""
    try:
        world = Small(path.start)
        for edge in path.edges:
            follow(world, edge)
        world.heal()
    except CAUGHT as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Search:
    """All rests, level by level: those that n operations lead to, before those that need more."""

    def __init__(
        self, share: tuple[int, int] = (0, 1), is_deep: bool = False, starts: tuple[str, ...] = STARTS
    ) -> None:
        self.share = share
        self.starts = starts
        self.is_deep = is_deep
        self.seen: set[bytes] = set()
        self.final: set[bytes] = set()
        self.levels: list[dict[bytes, Path]] = [{} for _ in range(LENGTH)]
        self.counts = Counts()
        self.violations: list[tuple[Path, str]] = []
        self.rests = 0
        for start in starts:
            self.levels[0][canon.get_digest(Small(start))] = Path(start)

    def run(self, workers: int, say: Callable[[str], None]) -> None:
        global _SEARCH
        begin = time.monotonic()
        for number, level in enumerate(self.levels):
            fresh = [digest for digest in level if digest not in self.seen and self._is_mine(digest, number)]
            paths = [level[digest] for digest in fresh]
            self.seen.update(level)
            self.rests += len(paths)
            _SEARCH = self
            with multiprocessing.get_context("fork").Pool(workers) as pool:
                for outcome in pool.imap_unordered(_explore, paths):
                    self._take(outcome)
            elapsed = time.monotonic() - begin
            say(f"{number} operations: {len(paths)} rests; {self.counts.runs} runs so far, {elapsed:.0f} s")

    def _is_mine(self, digest: bytes, number: int) -> bool:
        return number == 0 or int.from_bytes(digest[:4], "little") % self.share[1] == self.share[0]

    def _take(self, outcome: Outcome) -> None:
        self.counts.add(outcome.counts)
        self.violations += outcome.violations
        for digest, path in outcome.fresh:
            if digest not in self.seen:
                self.levels[path.length].setdefault(digest, path)

    def __str__(self) -> str:
        counts, sequences = self.counts, len(self.starts) * sum(len(NAMES) ** length for length in range(1, LENGTH + 1))
        part = "all" if self.share[1] == 1 else f"share {self.share[0]}/{self.share[1]} of"
        return (
            f"{part} {sequences} sequences of up to {LENGTH}: {self.rests} different rests, {counts.runs} runs, "
            f"{counts.strikes} crash points, {counts.steps} steps, {counts.healed} healed, {counts.idle} without "
            f"effect, {len(self.violations)} violations"
        )


_SEARCH: Search | None = None


def _explore(path: Path) -> Outcome:
    assert _SEARCH is not None
    return Explorer(path, _SEARCH.seen, _SEARCH.final, _SEARCH.is_deep).explore()


def replay(path: Path) -> list[str]:
    """Every event of one path, and of what heals it."""
    trace: list[str] = []
    world = Small(path.start, trace)
    try:
        for edge in path.edges:
            trace.append(f"--- {edge}")
            follow(world, edge)
        trace.append("--- all heals")
        world.heal()
    except CAUGHT as error:
        trace.append(f"{type(error).__name__}: {error}")
    return trace


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim.exhaustive", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", default="0/1", metavar="N/M", help="only each M-th rest, beginning with N")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--deep", action="store_true", help="also three operations under way together")
    parser.add_argument("--start", action="append", choices=STARTS, help="only from this state; may be given again")
    parser.add_argument("--replay", metavar="PATH", help="print every event of one path, as a violation names it")
    options = parser.parse_args()
    if options.replay is not None:
        print("\n".join(replay(parse_path(options.replay))))
        return 0
    begin = time.monotonic()
    number, _, of = options.share.partition("/")
    search = Search((int(number), int(of)), options.deep, tuple(options.start or STARTS))
    search.run(options.workers, lambda text: print(text, flush=True))
    for path, text in search.violations[:50]:
        print(f"{text}\n    --replay '{path}'")
    print(f"{search}, {time.monotonic() - begin:.0f} s")
    return 1 if search.violations else 0


if __name__ == "__main__":
    sys.exit(main())
