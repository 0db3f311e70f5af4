"""The progress of a copy: a small data plane that does anything in any order, and the tracker that looks at it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathctl import copyprogress, shapes
from pathctl.copyprogress import Reading, Tracker

TRACK = 64 << 10


class Plane:
    """What the data plane counts, and the clock."""

    def __init__(self, tracks: int = 1000, left: int = 0) -> None:
        self.tracks, self.left, self.is_up = tracks, left, False
        self.at, self.pid, self.limit = 1000.0, 1, None
        self.marked = self.moved = self.bytes = 0

    def mark(self, count: int) -> None:
        count = min(count, self.tracks - self.left)
        self.left, self.marked = self.left + count, self.marked + count

    def move(self, count: int, *, holes: bool = False) -> None:
        count = min(count, self.left)
        self.left, self.moved = self.left - count, self.moved + count
        self.bytes += 0 if holes else count * TRACK

    def overwrite(self, count: int) -> None:
        self.left -= min(count, self.left)

    def restart(self) -> None:
        self.pid, self.marked, self.moved, self.bytes, self.is_up = self.pid + 1, 0, 0, 0, False

    def read(self, *, counts_marks: bool = True) -> Reading:
        return Reading(
            at=self.at,
            wall=self.at + 1e9,
            pid=self.pid,
            left=self.left,
            tracks=self.tracks,
            track_size=TRACK,
            is_up=self.is_up,
            limit_bytes_s=self.limit,
            marked_tracks=self.marked if counts_marks else None,
            moved_tracks=self.moved,
            moved_bytes=self.bytes,
        )


def make_tracker(numbers: Iterator[int] | None = None) -> Tracker:
    """`numbers`: of an earlier one, whose copies have names already."""
    numbers = numbers or itertools.count(1)
    return Tracker(lambda: f"copy{next(numbers)}")


def check(found: shapes.Progress, plane: Plane, before: shapes.Progress | None) -> None:
    assert found.done_tracks + found.left_tracks == found.start_tracks + found.added_tracks
    assert found.left_tracks == plane.left
    assert min(found.start_tracks, found.added_tracks, found.done_tracks) >= 0
    assert 0 <= found.percent <= 100
    assert (found.percent == 100) == (found.left_tracks == 0)
    assert found.rate_bytes_s is None or found.rate_bytes_s >= 0
    assert found.eta_s is None or (math.isfinite(found.eta_s) and found.eta_s >= 0)
    assert found.eta_s is None or found.converging is not False
    if before is not None and before.copy == found.copy:
        assert found.percent >= before.percent
        assert found.start_tracks == before.start_tracks
        assert found.done_tracks >= before.done_tracks
        assert found.added_tracks >= before.added_tracks
        assert before.left_tracks, "a copy that has ended does not go on"


@given(st.integers(0, 1 << 32), st.booleans())
def test_whatever_happens_progress_does_not_lie(seed: int, counts_marks: bool) -> None:
    rng = random.Random(seed)
    numbers = itertools.count(1)
    plane, tracker, before = Plane(rng.choice((1, 7, 1000))), make_tracker(numbers), None
    for _ in range(80):
        plane.at += rng.choice((0.0, 0.1, 1.0, 1.0, 40.0))
        for _ in range(rng.randrange(3)):
            match rng.randrange(8):
                case 0:
                    plane.mark(rng.choice((1, 5, plane.tracks)))
                case 1 | 2 if plane.is_up:
                    plane.move(rng.choice((1, 5, 300)), holes=rng.random() < 0.3)
                case 3:
                    plane.overwrite(1)
                case 4:
                    plane.restart()
                case 5 | 6:
                    plane.is_up = not plane.is_up
                case 7:
                    plane.limit = rng.choice((None, 0, 1 << 20, 1_100_000))
        if rng.random() < 0.1:  # pathctld restarts, and perhaps what it has kept is an old look's
            kept = tracker.dump()
            tracker = make_tracker(numbers)
            assert tracker.load(kept, plane.at)
        found = tracker.read("p", plane.read(counts_marks=counts_marks))
        if found is not None:
            again = before if before is not None and before.copy == found.copy and before.left_tracks else None
            check(found, plane, again)
            before = found
        else:
            assert not (plane.left and plane.is_up)


def copy(plane: Plane, tracker: Tracker, rate_tracks_s: float, *, step_s: float = 1.0, added_s: float = 0.0):
    """Progress at each look until nothing is left, with the time that it then still took."""
    found, moved, added = [], 0.0, 0.0
    begun = plane.at
    while plane.left and plane.at < begun + 10_000:
        found.append((plane.at, tracker.read("p", plane.read())))
        plane.at += step_s
        moved, added = moved + rate_tracks_s * step_s, added + added_s * step_s
        plane.mark(int(added))
        plane.move(int(moved))
        moved, added = moved - int(moved), added - int(added)
    found.append((plane.at, tracker.read("p", plane.read())))
    return [(plane.at - at, progress) for at, progress in found]


@pytest.mark.parametrize("added_s", [0.0, 2.5])
@pytest.mark.parametrize("step_s", [0.1, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("rate", [8.0, 33.3, 7.7])
def test_time_to_go_is_near_the_truth_from_a_tenth_on(rate: float, step_s: float, added_s: float) -> None:
    plane = Plane(4000, left=1000)
    plane.is_up = True
    found = copy(plane, make_tracker(), rate, step_s=step_s, added_s=added_s)
    assert found[-1][1].percent == 100
    for truth, progress in found:
        if progress.percent >= 10 and truth > 3 * step_s:
            assert progress.eta_s == pytest.approx(truth, rel=0.2, abs=2 * step_s)
            assert progress.converging is True
            assert progress.rate_bytes_s == pytest.approx(rate * TRACK, rel=0.2)


def test_a_copy_that_began_between_two_looks_is_told_from_its_beginning() -> None:
    plane, tracker = Plane(), make_tracker()
    assert tracker.read("p", plane.read()) is None
    plane.mark(1000)
    assert tracker.read("p", plane.read()) is None, "the path is not there yet"
    plane.is_up, plane.at = True, plane.at + 1
    plane.move(300)
    found = tracker.read("p", plane.read())
    assert (found.start_tracks, found.done_tracks, found.left_tracks, found.percent) == (1000, 300, 700, 30.0)


def test_a_copy_that_ended_between_two_looks_is_told_all_the_same() -> None:
    plane, tracker = Plane(), make_tracker()
    tracker.read("p", plane.read())
    plane.mark(5)
    plane.is_up, plane.at = True, plane.at + 1
    plane.move(5)
    found = tracker.read("p", plane.read())
    assert (found.copy, found.start_tracks, found.done_tracks, found.percent) == ("copy1", 5, 5, 100.0)
    assert tracker.read("p", plane.read()).copy == "copy1"


def test_what_is_marked_after_the_end_is_another_copy() -> None:
    plane, tracker = Plane(left=10), make_tracker()
    plane.is_up = True
    assert tracker.read("p", plane.read()).copy == "copy1"
    plane.move(10)
    plane.at += 1
    assert tracker.read("p", plane.read()).percent == 100
    plane.is_up = False
    plane.mark(3)
    plane.at += 1
    assert tracker.read("p", plane.read()) is None, "the old one says that nothing is left, which is not so"
    plane.is_up = True
    plane.at += 1
    found = tracker.read("p", plane.read())
    assert (found.copy, found.start_tracks, found.percent) == ("copy2", 3, 0.0)


def test_a_lost_path_does_not_end_the_copy_and_what_it_costs_is_added() -> None:
    plane, tracker = Plane(left=100), make_tracker()
    plane.is_up = True
    tracker.read("p", plane.read())
    plane.move(60)
    plane.at += 1
    tracker.read("p", plane.read())
    plane.is_up = False
    plane.mark(20)
    plane.at += 1
    found = tracker.read("p", plane.read())
    assert (found.copy, found.done_tracks, found.added_tracks, found.left_tracks) == ("copy1", 60, 20, 60)
    assert (found.percent, found.rate_bytes_s, found.eta_s) == (60.0, None, None)


def test_a_copy_that_has_come_to_nothing_while_the_path_was_away_is_followed_by_a_new_one() -> None:
    plane, tracker = Plane(left=100), make_tracker()
    plane.is_up = True
    tracker.read("p", plane.read())
    plane.move(60)
    plane.at += 1
    assert tracker.read("p", plane.read()).percent == 60
    plane.is_up = False
    plane.mark(60)
    plane.at += 1
    assert tracker.read("p", plane.read()).copy == "copy1", "nothing is copied now"
    plane.is_up = True
    plane.at += 1
    found = tracker.read("p", plane.read())
    assert (found.copy, found.start_tracks, found.done_tracks, found.percent) == ("copy2", 100, 0, 0.0)


def test_what_a_resolve_marks_is_another_copy() -> None:
    plane, tracker = Plane(left=900), make_tracker()
    plane.is_up = True
    tracker.read("p", plane.read())
    plane.move(600)
    tracker.read("p", plane.read())
    plane.is_up = False
    plane.mark(700)
    tracker.forget("p")
    tracker.read("p", plane.read())
    plane.is_up, plane.at = True, plane.at + 1
    found = tracker.read("p", plane.read())
    assert found is not None
    assert (found.start_tracks, found.added_tracks, found.done_tracks, found.percent) == (1000, 0, 0, 0.0)


def test_both_the_plane_and_pathctld_may_start_anew_within_a_copy() -> None:
    plane, tracker = Plane(left=1000), make_tracker()
    plane.is_up = True
    tracker.read("p", plane.read())
    plane.move(400)
    plane.at += 1
    before = tracker.read("p", plane.read())
    kept = tracker.dump()
    plane.restart()
    plane.left += 50  # owed again: what was not yet durable
    plane.is_up, plane.at = True, plane.at + 1
    plane.move(100)
    tracker = make_tracker()
    assert tracker.load(kept, plane.at)
    found = tracker.read("p", plane.read())
    assert (found.copy, found.start_tracks, found.done_tracks, found.added_tracks) == (before.copy, 1000, 500, 50)
    assert found.percent > before.percent


def test_a_copy_that_brings_nothing_for_long_is_not_converging() -> None:
    plane, tracker = Plane(left=500), make_tracker()
    plane.is_up = True
    for second in range(40):
        found = tracker.read("p", plane.read())
        plane.mark(10)
        plane.move(10)
        plane.at += 1
        assert found.converging is not True
        if second >= 25:
            assert (found.converging, found.eta_s, found.rate_bytes_s) == (False, None, 10 * TRACK)
    for _ in range(40):
        plane.move(5)
        plane.at += 1
        found = tracker.read("p", plane.read())
    assert (found.converging, found.eta_s) == (True, pytest.approx(60, rel=0.05))


def test_a_paused_copy_has_no_time_to_go_and_no_opinion() -> None:
    plane, tracker = Plane(left=500), make_tracker()
    plane.is_up = True
    copy_of = tracker.read("p", plane.read())
    plane.limit = 0
    for _ in range(60):
        plane.at += 1
        found = tracker.read("p", plane.read())
    assert (found.rate_bytes_s, found.eta_s, found.converging, found.copy) == (0, None, None, copy_of.copy)


def test_after_another_limit_the_old_speed_is_forgotten() -> None:
    plane, tracker = Plane(10_000, left=10_000), make_tracker()
    plane.is_up, plane.limit = True, 100 * TRACK
    for _ in range(20):
        plane.move(100)
        plane.at += 1
        tracker.read("p", plane.read())
    plane.limit = 10 * TRACK
    for _ in range(4):
        plane.move(10)
        plane.at += 1
        found = tracker.read("p", plane.read())
    assert found.rate_bytes_s == pytest.approx(10 * TRACK, rel=0.05)
    assert found.eta_s == pytest.approx(plane.left / 10, rel=0.05)


def test_large_tracks_at_a_low_limit_are_given_the_time_they_need() -> None:
    plane, tracker = Plane(100, left=50), make_tracker()
    plane.is_up, plane.limit = True, TRACK // 40  # one track in forty seconds
    for second in range(400):
        if second % 40 == 39:
            plane.move(1)
        plane.at += 1
        found = tracker.read("p", plane.read())
        assert found.converging is not False
    assert found.eta_s == pytest.approx(plane.left * 40, rel=0.2)


def test_a_look_that_comes_late_changes_nothing() -> None:
    plane, tracker = Plane(left=100), make_tracker()
    plane.is_up = True
    old = plane.read()
    plane.move(50)
    plane.at += 1
    new = tracker.read("p", plane.read())
    assert tracker.read("p", old) == new
    assert tracker.read("p", msgspec.structs.replace(old, at=plane.at + 0.1)) == new, "by its counters"


def test_holes_bring_the_end_nearer_and_are_no_bytes() -> None:
    counters = {"copied_bytes": 10, "zeroed_bytes": 4, "fetched_bytes": 3, "copied_tracks": 2, "fetched_tracks": 1}
    fields = msgspec.to_builtins(Plane().read())
    for name in ("marked_tracks", "moved_tracks", "moved_bytes"):
        del fields[name]
    found = copyprogress.reading_of(counters, **fields)
    assert (found.moved_bytes, found.moved_tracks, found.marked_tracks) == (9, 3, None)


def damage(kept: bytes, path: tuple[str, ...], value: object) -> bytes:
    whole = msgspec.json.decode(kept)
    at = whole
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return msgspec.json.encode(whole)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("p", "done"), -1),
        (("p", "done"), 7),
        (("p", "percent"), 150),
        (("p", "percent"), 100.0),
        (("p", "last", "at"), 1e12),
        (("p", "window"), [[1e12, 1, 1]]),
        (("p", "window"), [[1.0, 1, 1]] * 1000),
        (("p", "last"), None),
        (("p", "start"), "many"),
    ],
)
def test_what_was_kept_and_cannot_be_so_is_not_believed(path: tuple[str, ...], value: object) -> None:
    plane, tracker = Plane(left=100), make_tracker()
    plane.is_up = True
    tracker.read("p", plane.read())
    kept = tracker.dump()
    assert make_tracker().load(kept, plane.at)
    fresh = make_tracker()
    assert not fresh.load(damage(kept, path, value), plane.at)
    assert fresh.get("p") is None


@pytest.mark.parametrize("kept", [b"", b"\0" * 50, b"[]", b'{"p":'])
def test_what_was_cut_off_is_not_believed(kept: bytes) -> None:
    assert not make_tracker().load(kept, 1.0)


@given(st.lists(st.floats(0, 5), max_size=400))
def test_what_is_kept_of_a_window_is_bounded(steps: list[float]) -> None:
    plane, tracker = Plane(10_000, left=10_000), make_tracker()
    plane.is_up = True
    for step in steps:
        plane.at += step
        plane.move(1)
        tracker.read("p", plane.read())
    assert len(tracker.dump()) < 8000


def test_pairs_that_are_no_more_are_forgotten() -> None:
    plane, tracker = Plane(left=1), make_tracker()
    plane.is_up = True
    for pair in ("p", "q"):
        tracker.read(pair, plane.read())
    tracker.forget_others({"q"})
    assert tracker.get("p") is None
    assert tracker.get("q") is not None


def test_one_track_of_ten_million_is_not_nothing() -> None:
    plane, tracker = Plane(10_000_000, left=10_000_000), make_tracker()
    plane.is_up = True
    tracker.read("p", plane.read())
    plane.move(9_999_999)
    plane.at += 1
    assert tracker.read("p", plane.read()).percent == 99.9


def test_a_paused_copy_says_no_time_although_reads_fetch_some_of_it() -> None:
    plane, tracker = Plane(left=1000), make_tracker()
    plane.is_up, plane.limit = True, 0
    for _ in range(30):
        plane.move(3)
        plane.at += 1
        found = tracker.read("p", plane.read())
    assert (found.eta_s, found.rate_bytes_s) == (None, 0)
