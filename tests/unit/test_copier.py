"""The copy's rate: bytes are paid for afterwards, the clock is the test's."""

from __future__ import annotations

from nbdplugin import transfer
from nbdplugin.copier import Bucket


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_without_a_limit_every_turn_comes_at_once() -> None:
    bucket = Bucket(Clock())
    for _ in range(3):
        assert bucket.wait_turn(0, 1 << 30)
        bucket.settle(1 << 30, 1 << 30)


def test_a_run_is_paid_off_before_the_next_one_starts() -> None:
    clock = Clock()
    bucket = Bucket(clock)
    bucket.set_rate(1000)
    assert bucket.wait_turn(0, 2000)
    assert not bucket.wait_turn(0, 2000)  # nor does another worker's
    clock.now += 1.9
    bucket.settle(2000, 2000)
    assert not bucket.wait_turn(0, 2000)
    clock.now += 0.2
    assert bucket.wait_turn(0, 2000)


def test_what_a_run_did_not_move_is_given_back() -> None:
    bucket = Bucket(Clock())
    bucket.set_rate(1000)
    assert bucket.wait_turn(0, 2000)
    bucket.settle(2000, 0)
    assert bucket.wait_turn(0, 2000)


def test_idle_time_saves_up_a_tenth_of_a_second_at_most() -> None:
    clock = Clock()
    bucket = Bucket(clock)
    bucket.set_rate(1000)
    clock.now += 3600
    assert bucket.wait_turn(0, 150)
    assert not bucket.wait_turn(0, 150)


def test_zero_pauses_and_a_new_rate_takes_effect_at_once() -> None:
    clock = Clock()
    bucket = Bucket(clock)
    bucket.set_rate(0)
    clock.now += 10
    assert not bucket.wait_turn(0, 1)
    bucket.set_rate(1000)
    assert bucket.wait_turn(0, 10_000)
    assert not bucket.wait_turn(0, 1)
    bucket.set_rate(None)
    assert bucket.wait_turn(0, 1)


def test_a_limited_copy_comes_in_small_runs() -> None:
    bucket = Bucket(Clock())
    for _ in range(10):
        bucket.note_time(1, 0.01)
    assert bucket.run_bytes == transfer.RUN_BYTES
    bucket.set_rate(2_000_000)
    assert bucket.run_bytes == 100_000
    bucket.set_rate(1 << 40)
    for _ in range(10):
        bucket.note_time(1, 0.01)
    assert bucket.run_bytes == transfer.RUN_BYTES
    bucket.set_rate(1)
    assert bucket.run_bytes == 1


def test_runs_become_short_on_a_slow_link_and_long_on_a_fast_one() -> None:
    bucket = Bucket(Clock())
    for _ in range(10):
        bucket.note_time(1, 0.01)
    assert bucket.run_bytes == transfer.RUN_BYTES
    bucket.note_time(0, 9.0)  # a hole tells nothing of the link
    assert bucket.run_bytes == transfer.RUN_BYTES
    for _ in range(3):
        bucket.note_time(1, 9.0)
    assert bucket.run_bytes == transfer.RUN_BYTES // 8
    for _ in range(30):
        bucket.note_time(1, 9.0)
    assert bucket.run_bytes > 0
