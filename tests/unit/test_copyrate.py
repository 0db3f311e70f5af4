"""The host's copy rate, shared out."""

from hypothesis import given
from hypothesis import strategies as st

from pathctl import copyrate

RATES = st.none() | st.integers(0, 200) | st.integers(0, 1 << 60)
LIMITS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), RATES, max_size=12)
TOTALS = st.integers(0, 300) | st.integers(0, 1 << 60)


def total_of(shares) -> int:
    return sum(share for share in shares.values())


def test_without_a_limit_for_the_host_each_has_its_own():
    assert copyrate.shares(None, {"a": None, "b": 5, "c": 0}) == {"a": None, "b": 5, "c": 0}


def test_those_without_a_limit_have_even_parts():
    assert copyrate.shares(100, {"a": None, "b": None}) == {"a": 50, "b": 50}
    assert copyrate.shares(100, {"a": None}) == {"a": 100}


def test_who_wants_less_leaves_it_to_the_others():
    assert copyrate.shares(100, {"a": None, "b": 10, "c": 1000}) == {"a": 45, "b": 10, "c": 45}


def test_paused_stays_paused_and_takes_nothing():
    assert copyrate.shares(100, {"a": 0, "b": None}) == {"a": 0, "b": 100}


def test_a_host_that_is_paused_pauses_all():
    assert copyrate.shares(0, {"a": None, "b": 10}) == {"a": 0, "b": 0}


@given(TOTALS, LIMITS)
def test_no_share_is_above_its_limit_nor_all_of_them_above_the_total(total, limits):
    found = copyrate.shares(total, limits)
    assert found.keys() == limits.keys()
    assert total_of(found) <= total
    for pair, limit in limits.items():
        assert found[pair] is not None
        assert found[pair] >= 0
        assert limit is None or found[pair] <= limit


@given(TOTALS, LIMITS)
def test_nothing_is_left_while_somebody_wants_more(total, limits):
    found = copyrate.shares(total, limits)
    wants_more = [pair for pair, limit in limits.items() if limit is None or found[pair] < limit]
    assert not wants_more or total_of(found) == total


@given(TOTALS, LIMITS)
def test_who_has_less_than_another_wanted_no_more_or_was_short_of_one_byte(total, limits):
    found = copyrate.shares(total, limits)
    most = max(found.values(), default=0)
    for pair, share in found.items():
        assert share >= most - 1 or share == limits[pair]


@given(TOTALS, LIMITS, st.randoms())
def test_the_order_of_the_pairs_does_not_matter(total, limits, random):
    names = list(limits)
    random.shuffle(names)
    assert copyrate.shares(total, {name: limits[name] for name in names}) == copyrate.shares(total, limits)


@given(TOTALS, LIMITS, RATES)
def test_one_more_pair_takes_from_nobody_who_has_less_than_it(total, limits, limit):
    before = copyrate.shares(total, limits)
    after = copyrate.shares(total, limits | {"new": limit})
    for pair in limits:
        assert after[pair] <= before[pair]
        assert after[pair] >= min(before[pair], after["new"]) - 1
