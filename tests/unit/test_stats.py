"""Histograms of latencies."""

from nbdplugin.stats import BOUNDS_S, KINDS, Histogram, Stats


def test_a_time_is_counted_below_the_first_bound_that_it_does_not_exceed():
    found = Histogram()
    for bound in BOUNDS_S:
        found.note(bound)
        found.note(bound * 1.0001)
    assert found.counts == [1] + [2] * (len(BOUNDS_S) - 1) + [1]
    assert abs(found.sum_s - sum(BOUNDS_S) * 2.0001) < 1e-6


def test_the_bounds_reach_from_a_read_of_the_page_cache_to_beyond_the_fetch_timeout():
    assert BOUNDS_S[0] <= 20e-6
    assert BOUNDS_S[-1] > 30
    assert list(BOUNDS_S) == sorted(set(BOUNDS_S))


def test_all_kinds_are_described():
    found = Stats()
    found.flush.note(0.004)
    found.flush.errors += 1
    told = found.describe()
    assert set(told["kinds"]) == set(KINDS)
    assert told["kinds"]["flush"]["errors"] == 1
    assert told["kinds"]["flush"]["sum_s"] == 0.004
    assert told["kinds"]["flush"]["counts"][told["bounds_s"].index(0.005)] == 1
