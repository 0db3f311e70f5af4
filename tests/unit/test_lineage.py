"""Greetings: each verdict, and that nothing malformed is taken for a greeting."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nbdplugin import lineage
from nbdplugin.lineage import Facts, Greeting, Kinship, Verdict

GREETING = Greeting(
    pair="p",
    size=1 << 20,
    track_size=4096,
    session=7,
    accepted=6,
    committed=True,
    invalidate="destination",
    generation="g2",
    ancestors=("g1",),
    differs=True,
)
FACTS = Facts(pair="p", size=1 << 20, track_size=4096, session=6, generation="g1", ancestors=("g0",), incomplete=False)


@pytest.mark.parametrize(
    ("greeting", "facts", "verdict"),
    [
        ({}, {}, Verdict.ACCEPTED),
        ({}, {"generation": "g2"}, Verdict.ACCEPTED),
        ({}, {"incomplete": True}, Verdict.ACCEPTED),
        ({"protocol": 2}, {"pair": "q"}, Verdict.VERSION),
        ({"pair": "q"}, {}, Verdict.WRONG_PAIR),
        ({}, {"pair": None}, Verdict.WRONG_PAIR),
        ({"size": 1 << 21}, {}, Verdict.WRONG_SHAPE),
        ({"track_size": 8192}, {}, Verdict.WRONG_SHAPE),
        ({}, {"session": 7}, Verdict.OLD_SESSION),
        ({}, {"session": 5}, Verdict.ROLLED_BACK),
        ({"differs": False}, {"generation": "g3", "ancestors": ("g2",)}, Verdict.PEER_AHEAD),
        ({"differs": True}, {"generation": "g3", "ancestors": ("g2",)}, Verdict.BOTH_MOVED),
        ({}, {"generation": "x"}, Verdict.UNRELATED),
        ({"committed": False}, {"generation": "x"}, Verdict.ACCEPTED),
        ({"committed": False, "invalidate": "source"}, {"incomplete": True}, Verdict.INCOMPLETE),
        ({"committed": False, "invalidate": "destination"}, {"incomplete": True}, Verdict.ACCEPTED),
    ],
)
def test_each_verdict(greeting: dict[str, Any], facts: dict[str, Any], verdict: Verdict) -> None:
    changed = dataclasses.replace(GREETING, **greeting), dataclasses.replace(FACTS, **facts)
    assert lineage.judge(*changed) is verdict


def test_every_refusal_has_a_sentence() -> None:
    assert set(lineage.SENTENCES) == set(Verdict) - {Verdict.ACCEPTED}


def test_a_greeting_comes_through_json_as_it_was() -> None:
    fields = GREETING.to_json() | {"ancestors": list(GREETING.ancestors)}
    assert lineage.parse_greeting(fields) == GREETING


@pytest.mark.parametrize(
    "change",
    [
        {"session": 0},
        {"session": 1 << 62},
        {"session": True},
        {"session": "7"},
        {"size": 1.5},
        {"ancestors": "g1"},
        {"ancestors": [1]},
        {"ancestors": ["g"] * 65},
        {"extra": 1},
        {"pair": None},
    ],
)
def test_nothing_malformed_is_a_greeting(change: dict[str, Any]) -> None:
    fields = GREETING.to_json() | {"ancestors": list(GREETING.ancestors)} | change
    assert lineage.parse_greeting(fields) is None


@pytest.mark.parametrize("fields", [None, [], "greeting", 7, {}])
def test_nor_is_anything_else(fields: object) -> None:
    assert lineage.parse_greeting(fields) is None


def test_kinship_prefers_what_is_equal_then_what_is_older() -> None:
    assert lineage.get_kinship("a", ("b",), "a", ("a",), differs=True) is Kinship.EQUAL
    assert lineage.get_kinship("a", ("b",), "b", ("a",), differs=True) is Kinship.PEER_BEHIND
