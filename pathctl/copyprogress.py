"""copyprogress - how far a pair's background copy is.  Pure: readings of the source's data plane in, Progress out.

A copy begins when there is something left and the path is there to bring it over; it ends when nothing is left.  A
loss of the path, a suspend or a restart in between does not end it: its percent then stands still until what was lost
is made good.  Only when it has come to nothing, because as much is left as it began with or more, does a new copy
begin when the path is there again.  Counters of the data plane begin anew with its
process; pathctld itself may restart and goes on with what it had kept (`dump`, `load`).

    left(now) = left(before) + marked - done        marked: became invalid or owed; done: brought over, or overwritten
"""

import uuid
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from pathctl import shapes

WINDOW_S = 30.0  # what is looked back on
LONGEST_WINDOW_S = 600.0
TRACKS_SEEN = 6  # of a slow copy of large tracks, the window is so long that it would see as many
POINTS = 75  # about as many readings are kept of a window
RATE_PART = 0.5  # of the window: what rate and time to go are made of
STUCK_PART = 2 / 3  # of the window: so long without getting less is "not converging"
SHORTEST_S = 1.0  # of a window that says anything
LIMIT_CHANGE = 0.1  # a limit that changes by more than this part makes what was before useless
MOST_PERCENT = 99.9  # while anything is left
STATES_MOST = 10_000
AT_ONCE_S = 5.0  # looks further apart than this are not under way together


class Reading(msgspec.Struct, frozen=True):
    """What one look at the source's data plane found.  Counters are those of process `pid`."""

    at: float  # monotonic clock of this machine, s
    wall: float  # seconds since the epoch
    pid: int | None
    left: int  # invalid and owed tracks
    tracks: int
    track_size: int
    is_up: bool  # the path is there
    limit_bytes_s: int | None  # 0: paused
    marked_tracks: int | None  # None: a data plane that does not count them
    moved_tracks: int
    moved_bytes: int  # that went over the link


class Point(msgspec.Struct, frozen=True, array_like=True):
    at: float
    left: int
    bytes: int  # moved since the copy began


class State(msgspec.Struct):
    """One pair's copy, and the last reading.  start + added = done + left, always."""

    last: Reading
    copy: str | None = None  # None: there has been none yet
    started_at: float = 0.0
    start: int = 0
    added: int = 0
    done: int = 0
    bytes: int = 0
    percent: float = 0.0
    is_over: bool = True
    window: list[Point] = []


def new_name() -> str:
    return uuid.uuid4().hex[:12]


class Tracker:
    """The copies of all pairs of one host whose source is there."""

    def __init__(self, name: Callable[[], str] = new_name) -> None:
        self._name = name
        self._states: dict[str, State] = {}
        self._is_fresh = False  # there is a copy that was not dumped since it ended

    def read(self, pair: str, reading: Reading) -> shapes.Progress | None:
        """Take a reading in; -> where the copy is now, None when there is nothing to tell of one."""
        state = self._states.get(pair)
        if state is None:
            state = self._states[pair] = State(reading)
        elif not _is_older(reading, state.last):
            _advance(state, reading, self._name)
        if state.is_over and state.last.left and state.last.is_up:
            _begin(state, self._name(), 0, 0)
        self._is_fresh |= not state.is_over
        _conclude(state)
        _keep_point(state)
        return _progress(state)

    def get(self, pair: str) -> shapes.Progress | None:
        """As of the last reading."""
        state = self._states.get(pair)
        return None if state is None else _progress(state)

    @property
    def is_changing(self) -> bool:
        """Whether a copy is under way, or has ended since the last `dump`."""
        return self._is_fresh or any(not state.is_over for state in self._states.values())

    def forget(self, pair: str) -> None:
        """What is left from here on is another copy."""
        self._states.pop(pair, None)

    def forget_others(self, pairs: set[str]) -> None:
        for pair in self._states.keys() - pairs:
            del self._states[pair]

    def dump(self) -> bytes:
        self._is_fresh = False
        return msgspec.json.encode(self._states)

    def load(self, raw: bytes, now: float) -> bool:
        """Go on with what an earlier pathctld knew; False, and anew, when it is damaged or from another boot."""
        try:
            found = msgspec.json.decode(raw, type=dict[str, State])
        except msgspec.DecodeError:
            return False
        if len(found) > STATES_MOST or not all(_is_sound(state, now) for state in found.values()):
            return False
        self._states = found
        return True


def reading_of(counters: Mapping[str, int], **fields: float | bool | None) -> Reading:
    """A Reading with its counters taken from the data plane's."""
    moved_bytes = counters.get("copied_bytes", 0) - counters.get("zeroed_bytes", 0) + counters.get("fetched_bytes", 0)
    moved_tracks = counters.get("copied_tracks", 0) + counters.get("fetched_tracks", 0)
    values = {"marked_tracks": counters.get("marked_tracks"), "moved_tracks": moved_tracks, "moved_bytes": moved_bytes}
    return msgspec.convert({**fields, **values}, Reading)


def _is_sound(state: State, now: float) -> bool:
    numbers = (state.start, state.added, state.done, state.last.left)
    left = 0 if state.is_over else state.last.left
    return (
        min(numbers) >= 0
        and (state.start + state.added > 0 or state.is_over)
        and state.start + state.added == state.done + left
        and 0 <= state.percent <= (100 if state.is_over else MOST_PERCENT)
        and state.last.at <= now
        and all(point.at <= now for point in state.window)
        and len(state.window) <= 2 * POINTS
    )


def _begin(state: State, copy: str, done: int, moved_bytes: int) -> None:
    """With all that is left now, and what is done already."""
    state.copy, state.started_at, state.is_over = copy, state.last.wall, False
    state.start, state.added, state.done = state.last.left + done, 0, done
    state.bytes, state.percent, state.window = moved_bytes, 0.0, []


def _advance(state: State, now: Reading, name: Callable[[], str]) -> None:
    """What has happened between two readings."""
    before, state.last = state.last, now
    change = _difference(before, now)
    if state.is_over:
        # Marks that were made while the path is away are what the next copy begins with.
        if change.done and (now.is_up or change.moved_tracks):
            _begin(state, name(), change.done, change.moved_bytes)
        return
    state.added += change.marked
    state.done += change.done
    state.bytes += change.moved_bytes
    is_back = now.is_up and (now.pid, True) != (before.pid, before.is_up)
    if is_back and state.done and state.last.left >= state.start:
        _begin(state, name(), 0, 0)
    if (now.pid, now.is_up) != (before.pid, before.is_up) or _is_other_limit(before.limit_bytes_s, now.limit_bytes_s):
        state.window = []


def _is_older(one: Reading, other: Reading) -> bool:
    """Two looks at once may come in the other order than they were made."""
    if one.at < other.at:
        return True
    fewer = one.moved_tracks < other.moved_tracks or (one.marked_tracks or 0) < (other.marked_tracks or 0)
    return one.pid == other.pid and fewer and one.at - other.at < AT_ONCE_S


class _Change(NamedTuple):
    marked: int
    done: int
    moved_tracks: int
    moved_bytes: int


def _difference(before: Reading, now: Reading) -> _Change:
    """Exact while the process is the same; else what the new one has done since its start, and the least that fits."""
    is_same = (
        before.pid == now.pid and now.moved_tracks >= before.moved_tracks and now.moved_bytes >= before.moved_bytes
    )
    moved_tracks = now.moved_tracks - (before.moved_tracks if is_same else 0)
    moved_bytes = now.moved_bytes - (before.moved_bytes if is_same else 0)
    grown = now.left - before.left
    if is_same and now.marked_tracks is not None and before.marked_tracks is not None:
        marked = max(0, grown, now.marked_tracks - before.marked_tracks)
        return _Change(marked, marked - grown, moved_tracks, moved_bytes)
    done = max(0, -grown, moved_tracks)
    return _Change(grown + done, done, moved_tracks, moved_bytes)


def _is_other_limit(before: int | None, now: int | None) -> bool:
    if before is None or now is None:
        return before is not now
    return abs(now - before) > LIMIT_CHANGE * before


def _conclude(state: State) -> None:
    """Percent, which never falls within a copy, and the copy's end."""
    if not state.is_over:
        found = 100.0 * state.done / (state.start + state.added)
        state.is_over = state.last.left == 0
        state.percent = 100.0 if state.is_over else max(state.percent, min(found, MOST_PERCENT))


def _window_s(now: Reading) -> float:
    """Long enough for some tracks at the limit that is set."""
    slowest_s = TRACKS_SEEN * now.track_size / now.limit_bytes_s if now.limit_bytes_s else 0.0
    return min(max(WINDOW_S, slowest_s), LONGEST_WINDOW_S)


def _keep_point(state: State) -> None:
    """The window: from when the first track came, or the wait for it would count as slowness."""
    now = state.last
    if state.is_over or not now.is_up:
        state.window = []
        return
    point = Point(now.at, now.left, state.bytes)
    kept = state.window
    if kept and now.at - kept[0].at < SHORTEST_S and kept[0].left == now.left and kept[0].bytes == state.bytes:
        state.window = [point]
        return
    window_s = _window_s(now)
    if len(kept) >= 2 and kept[-1].at - kept[-2].at < window_s / POINTS:
        kept = kept[:-1]  # the newest is always there, however near
    state.window = [item for item in kept if now.at - item.at <= window_s] + [point]


def _progress(state: State) -> shapes.Progress | None:
    left = state.last.left
    if not state.copy or (state.is_over and left):
        return None
    is_paused = state.last.limit_bytes_s == 0
    converging = None if state.is_over or is_paused or not state.last.is_up else _is_converging(state)
    return shapes.Progress(
        copy=state.copy,
        started_at=state.started_at,
        start_tracks=state.start,
        added_tracks=state.added,
        done_tracks=state.done,
        left_tracks=left,
        percent=round(state.percent, 3),
        rate_bytes_s=None if state.is_over or not state.last.is_up else 0 if is_paused else _rate(state),
        eta_s=0.0 if state.is_over else None if is_paused or converging is False else _eta(state),
        converging=converging,
    )


def _recent(state: State) -> list[Point]:
    points = [point for point in state.window if state.last.at - point.at <= RATE_PART * _window_s(state.last)]
    return points if len(points) > 1 and points[-1].at - points[0].at >= SHORTEST_S else []


def _rate(state: State) -> int | None:
    points = _recent(state)
    return max(0, round(_slope([(point.at, point.bytes) for point in points]))) if points else None


def _eta(state: State) -> float | None:
    """From the net decrease of what is left: host writes and fetches are in it."""
    points = _recent(state)
    decrease = -_slope([(point.at, point.left) for point in points]) if points else 0.0
    return None if decrease <= 0 else round(state.last.left / decrease, 1)


def _slope(points: list[tuple[float, int]]) -> float:
    """Least squares: less is thrown off by single tracks than the difference of two ends."""
    count = len(points)
    middle = sum(x for x, _ in points) / count
    mean = sum(y for _, y in points) / count
    spread = sum((x - middle) ** 2 for x, _ in points)
    return sum((x - middle) * (y - mean) for x, y in points) / spread if spread else 0.0


def _is_converging(state: State) -> bool | None:
    """False when most of a window has brought nothing; true as soon as there is less than at its beginning."""
    if len(state.window) < 2:
        return None
    first, last = state.window[0], state.window[-1]
    if last.left < first.left:
        return True
    return False if last.at - first.at >= STUCK_PART * _window_s(state.last) else None
