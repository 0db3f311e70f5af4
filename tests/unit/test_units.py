"""Sizes and rates: what people write, what is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathctl import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512),
        ("0", 0),
        ("64K", 64 << 10),
        ("64k", 64 << 10),
        ("64KiB", 64 << 10),
        ("1.5G", 3 << 29),
        ("10G", 10 << 30),
        ("10GB", 10 << 30),
        ("10T", 10 << 40),
        (" 1M ", 1 << 20),
        ("1P", 1 << 50),
        ("7B", 7),
    ],
)
def test_a_size_is_read_in_binary_units(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "K", "-1", "1.", ".5K", "1,5G", "1 G", "10X", "1e3", "0x10", "none", "٣K", "1.3"])
def test_what_is_no_size_is_refused_with_a_sentence_that_names_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|whole number") as caught:
        units.parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "rate"), [("50M", 50 << 20), ("50M/s", 50 << 20), ("0", 0), ("none", None), ("None", None)]
)
def test_a_rate_is_bytes_per_second_or_none(text: str, rate: int | None) -> None:
    assert units.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1M", "50M/m"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        units.parse_rate(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1023, "1023"),
        (1024, "1K"),
        (3 << 29, "1.5G"),
        (10 << 40, "10T"),
        ((1 << 20) - 1, "1023.9K"),
    ],
)
def test_a_size_is_shown_short(size: int, text: str) -> None:
    assert units.format_size(size) == text


@given(st.integers(0, 1 << 62))
def test_a_shown_size_is_never_more_than_the_size_and_at_most_a_tenth_of_a_unit_less(size: int) -> None:
    shown = units.format_size(size)
    suffix = shown[-1] if shown[-1].isalpha() else ""
    unit = units.parse_size("1" + suffix)
    tenths = int(shown.rstrip("KMGTPE").replace(".", "") + ("" if "." in shown else "0"))
    assert 0 <= size * 10 - tenths * unit < unit


def test_a_rate_is_shown_as_what_it_does() -> None:
    assert [units.format_rate(rate) for rate in (None, 0, 50 << 20)] == ["none", "paused", "50M/s"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30), ("10m", 600), ("2h", 7200), ("1.5H", 5400), ("3d", 259200), (" 1w ", 604800)]
)
def test_a_length_of_time_has_a_unit(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "m", "-5m", "10 m", "10y", "1e3s", "\u0661m", "9" * 20 + "d"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no length of time"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-3, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (190, "3m10s"),
        (3599, "59m59s"),
        (7500, "2h05m"),
        (273600, "3d04h"),
        (float("inf"), "1157407d09h"),
    ],
)
def test_a_length_of_time_is_shown_in_two_units(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@given(st.floats(allow_nan=True, allow_infinity=True), st.booleans())
def test_a_percentage_is_100_only_if_it_is_done_and_never_out_of_range(percent: float, is_done: bool) -> None:
    shown = units.format_percent(percent, is_done)
    assert (shown == "100%") == is_done
    value = float(shown.rstrip("%"))
    assert 0 <= value <= 100
    if not is_done and 0 <= percent <= 99.9:
        assert percent - 0.11 <= value <= percent
