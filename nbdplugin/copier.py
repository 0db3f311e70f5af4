"""copier - the background copy: several workers over one cursor, bounded by a rate that can change while it runs.

The rate counts the bytes of the runs that hold data; holes cost nothing.  Rate None: no limit; 0: paused.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
import time
from collections.abc import Callable

from nbdplugin import modes, scatter, transfer
from nbdplugin.core import Core
from nbdplugin.engine import Engine, start_thread
from nbdplugin.errors import PathError
from nbdplugin.geometry import Span

WORKERS = 4
_TURN_S = 0.2
_IDLE_S = 5.0
_BUSY_S = 0.01
_FAILED_S = 1.0
_ERROR_STANDS_S = 5.0  # while the rest gets over, what does not is tried again and again
_RUN_FIRST = 128 << 10
_RUN_LEAST = 4 << 10
_SLOW_S = 0.5  # a run that takes longer is too long for its link: host requests come behind it
_QUICK_S = 0.1
_CAREFUL_MOST = 64
_STEP_ASIDE_S = 0.02  # after a fetch another one is likely: a host that reads on waits for the peer as much as we do
_ASIDE_BYTES = 128 << 10
_RUNS_A_SECOND = 20  # of a copy with a limit: a run of a mebibyte, at a few of them a second, would come in lumps

log = logging.getLogger(__name__)


class Bucket:
    """Tokens are bytes.  A turn reserves a run's worth, which may overdraw; then everybody waits until it is paid."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._change = threading.Condition()
        self._tokens = 0.0
        self._last = clock()
        self.rate_bytes_s: int | None = None
        self._longest = _RUN_FIRST

    @property
    def run_bytes(self) -> int:
        """How much one turn may move."""
        rate = self.rate_bytes_s
        return max(1, min(self._longest, rate // _RUNS_A_SECOND)) if rate else self._longest

    def note_time(self, moved: int, took_s: float) -> None:
        """A run of so many bytes took so long: the next ones are shorter on a slow link, longer again on a fast one."""
        if moved and took_s > _SLOW_S:
            self._longest = max(self._longest // 2, _RUN_LEAST)
        elif moved and took_s < _QUICK_S:
            self._longest = min(self._longest * 2, transfer.RUN_BYTES)

    def set_rate(self, rate_bytes_s: int | None) -> None:
        with self._change:
            self._refill()
            self.rate_bytes_s = rate_bytes_s
            self._tokens = min(self._tokens, 0.0) if rate_bytes_s else 0.0
            self._change.notify_all()

    def settle(self, reserved: int, moved: int) -> None:
        """A run has ended: what it did not move is given back."""
        with self._change:
            self._refill()
            self._tokens += reserved - moved
            self._change.notify_all()

    def wait_turn(self, limit_s: float, reserve: int) -> bool:
        """Whether a run of `reserve` bytes may start now, and then it is charged; waits at most limit_s."""
        with self._change:
            self._refill()
            if self.rate_bytes_s == 0:
                self._change.wait(limit_s)
                return False
            if self.rate_bytes_s and self._tokens < 0:
                self._change.wait(min(limit_s, -self._tokens / self.rate_bytes_s))
                self._refill()
            if self._tokens < 0 or self.rate_bytes_s == 0:
                return False
            self._tokens -= reserve
            return True

    def _refill(self) -> None:
        now = self._clock()
        if self.rate_bytes_s:
            burst = max(self.rate_bytes_s / 10, 1.0)
            self._tokens = min(burst, self._tokens + (now - self._last) * self.rate_bytes_s)
        elif self.rate_bytes_s is None:
            self._tokens = 0.0
        self._last = now


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
    """What a worker does in one turn; several runs only of a push."""

    runs: tuple[Span, ...]
    is_pull: bool

    @property
    def span(self) -> Span:
        """From the first of them to the last."""
        return Span(self.runs[0].first, self.runs[-1].end - self.runs[0].first)


class Copier:
    """`_cursor` is shared by the workers under the engine's lock."""

    def __init__(self, core: Core, engine: Engine) -> None:
        self._core = core
        self._engine = engine
        self._cursor = 0
        self._careful: list[Span] = []
        self._is_finishing = False
        self._wake = threading.Condition()
        self._pokes = 0
        self.bucket = Bucket()
        self.error: str | None = None
        self._failed_at = 0.0
        self._fetched = 0
        self._fetched_at = -_STEP_ASIDE_S

    def start(self) -> None:
        for number in range(WORKERS):
            start_thread(f"copy-{number}", functools.partial(self._work, number == 0))

    def poke(self) -> None:
        """The path is ready: there may be work."""
        with self._wake:
            self._pokes += 1
            self._wake.notify_all()

    def _work(self, is_first: bool) -> None:
        buffer = memoryview(bytearray(transfer.RUN_BYTES))  # memory that is new for each run costs as much as the run
        while True:
            seen = self._pokes
            try:
                pause_s = self._step(is_first, buffer)
                if not self._has_left() or time.monotonic() - self._failed_at > _ERROR_STANDS_S:
                    self.error = None
            except PathError as error:
                self._failed_at = time.monotonic()
                if self.error != str(error):
                    log.warning("the copy stopped for a moment: %s", error)
                self.error, pause_s = str(error), _FAILED_S
            if pause_s:
                with self._wake:
                    self._wake.wait_for(lambda known=seen: self._pokes != known, pause_s)  # type: ignore[misc]

    def _step(self, is_first: bool, buffer: memoryview) -> float:
        """One run, or the closing message; returns how long to rest."""
        if self._core.session is None:
            return _IDLE_S
        if not self._has_left():
            return self._finish()
        run_bytes = self.bucket.run_bytes
        if self._is_host_fetching():
            if not is_first:
                return _STEP_ASIDE_S
            run_bytes = min(run_bytes, _ASIDE_BYTES)
        if not self.bucket.wait_turn(_TURN_S, run_bytes):
            return 0.0
        moved, found = 0, None
        try:
            with self._engine.lock:
                found = self._choose(run_bytes)
            if found is None:
                return _BUSY_S if self._core.failed is None else _IDLE_S
            start = time.monotonic()
            if len(found.runs) > 1:
                done, moved = found.span.count, self._engine.run(scatter.push(self._core, found.runs, buffer))
            else:
                flow = transfer.copy_run(self._core, found.span, found.is_pull, run_bytes, buffer)
                done, moved = self._engine.run(flow)
            self.bucket.note_time(moved, time.monotonic() - start)
        except PathError:
            self._note_failed(found)
            raise
        finally:
            self.bucket.settle(run_bytes, moved)
        self._note_done(found.span, done)
        return 0.0 if done else _BUSY_S

    def _is_host_fetching(self) -> bool:
        """Whether host requests wait for the peer now, or did a moment ago: then one worker goes on, in small steps."""
        now, fetched = time.monotonic(), self._core.counts.fetched_tracks
        if self._core.fetching or fetched != self._fetched:
            self._fetched, self._fetched_at = fetched, now
        return now - self._fetched_at < _STEP_ASIDE_S

    def _has_left(self) -> bool:
        return bool(self._core.table.invalid.count or self._core.table.owed.count)

    def _choose(self, run_bytes: int) -> Chosen | None:
        """A hole as long as it is known to be, else what one turn may move: one run, or several that are owed."""
        found = transfer.find_next(self._core, self._cursor)
        if found is None:
            self._cursor = 0
            return None
        run, is_pull = found
        count, is_hole = transfer.find_even(self._core, run.first, is_pull) or (run.count, False)
        is_careful = any(span.first <= run.first < span.end for span in self._careful)
        if is_careful:
            count = 1
        elif not is_hole:
            count = min(count, max(1, run_bytes // self._core.table.geometry.track_size))
        runs: tuple[Span, ...] = (Span(run.first, min(run.count, count)),)
        if not (is_pull or is_hole or is_careful):
            runs = scatter.find_more(self._core, runs[0], run_bytes)
        self._cursor = runs[-1].end
        return Chosen(runs, is_pull)

    def _note_failed(self, found: Chosen | None) -> None:
        """A run with something in it that cannot be read is tried again track by track, so that the rest gets over."""
        if found is not None and found.span.count > 1:
            with self._engine.lock:
                self._careful = [*self._careful[1 - _CAREFUL_MOST :], found.span]
                self._cursor = min(self._cursor, found.span.first)

    def _note_done(self, run: Span, done: int) -> None:
        """The cursor goes back to what is left of the run."""
        if done < run.count:
            with self._engine.lock:
                self._cursor = min(self._cursor, run.first + done)

    def _finish(self) -> float:
        with self._engine.lock:
            if self._core.is_complete or self._is_finishing or self._core.session is None:
                return _IDLE_S
            self._is_finishing = True
        try:
            self._engine.run(modes.finish(self._core))
        finally:
            self._is_finishing = False
        return _BUSY_S
