"""The plugin's parameters: what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdplugin import params
from nbdplugin.errors import BadRequest

GOOD = {"role": "host", "volume": "v", "meta": "/m", "backing": "/b", "control": "/c"}


def test_the_least_and_the_defaults() -> None:
    parsed = params.parse(GOOD)
    assert (parsed.role, parsed.meta, parsed.fetch_timeout_s) == ("host", Path("/m"), 600.0)


def test_times_may_be_fractions() -> None:
    assert params.parse(GOOD | {"link_timeout_s": "0.5"}).link_timeout_s == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"role": "both"}, "neither host nor peer"),
        ({"colour": "red"}, "unknown parameter 'colour'"),
        ({"fetch_timeout_s": "soon"}, "not a number"),
        ({"fetch_timeout_s": "0"}, "not above 0"),
        ({"fetch_timeout_s": "nan"}, "not above 0"),
        ({"max_waiters": "1.5"}, "not a number"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, str], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        params.parse(GOOD | change)


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_what_is_missing_is_named(missing: str) -> None:
    with pytest.raises(BadRequest, match=f"missing parameter {missing}="):
        params.parse({key: value for key, value in GOOD.items() if key != missing})
