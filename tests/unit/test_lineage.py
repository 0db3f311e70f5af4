"""Every verdict on a greeting, and that nothing but a greeting is taken for one."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdplugin import lineage
from nbdplugin.lineage import Facts, Greeting, Kinship, Verdict, Versions

GREETING = Greeting(
    pair="pair",
    size=1 << 20,
    track_size=4096,
    session=5,
    accepted=3,
    committed=True,
    invalidate="destination",
    generation="g2",
    ancestors=("g1",),
    differs=False,
)
FACTS = Facts(
    pair="pair", size=1 << 20, track_size=4096, session=4, generation="g2", ancestors=("g1",), incomplete=False
)


def judge(greeting: dict[str, Any] | None = None, facts: dict[str, Any] | None = None) -> Verdict:
    return lineage.judge(dataclasses.replace(GREETING, **greeting or {}), dataclasses.replace(FACTS, **facts or {}))


CASES = {
    "all is well": ({}, {}, Verdict.ACCEPTED),
    "the peer is behind": ({}, {"generation": "g1", "ancestors": ()}, Verdict.ACCEPTED),
    "too new a protocol": ({"protocol": 10, "oldest": 9}, {}, Verdict.VERSION),
    "too old a protocol": ({"protocol": 1, "oldest": 1}, {"spoken": Versions(2, 3)}, Verdict.VERSION),
    "a newer protocol that speaks ours": ({"protocol": 3, "oldest": 2}, {}, Verdict.ACCEPTED),
    "an older protocol that we speak": ({"protocol": 1, "oldest": 1}, {}, Verdict.ACCEPTED),
    "another pair": ({"pair": "other"}, {}, Verdict.WRONG_PAIR),
    "no pair there": ({}, {"pair": None}, Verdict.WRONG_PAIR),
    "another size": ({"size": 2 << 20}, {}, Verdict.WRONG_SHAPE),
    "another track size": ({"track_size": 8192}, {}, Verdict.WRONG_SHAPE),
    "the session before": ({"session": 4}, {}, Verdict.OLD_SESSION),
    "an older session": ({"session": 3}, {}, Verdict.OLD_SESSION),
    "a peer from before what it accepted": ({"accepted": 4}, {"session": 3}, Verdict.ROLLED_BACK),
    "a source from before a session it used": ({}, {"accepted": 4}, Verdict.PEER_AHEAD),
    "such a source, written since": ({"differs": True}, {"accepted": 4}, Verdict.BOTH_MOVED),
    "such a source, about to be resolved": ({"committed": False, "accepted": 0}, {"accepted": 4}, Verdict.ACCEPTED),
    "the peer ahead": ({}, {"generation": "g3", "ancestors": ("g2",)}, Verdict.PEER_AHEAD),
    "both moved": ({"differs": True}, {"generation": "g3", "ancestors": ("g2",)}, Verdict.BOTH_MOVED),
    "no common history": ({}, {"generation": "x2", "ancestors": ("x1",)}, Verdict.UNRELATED),
    "a common ancestor only": ({}, {"generation": "g9", "ancestors": ("g1",)}, Verdict.BOTH_MOVED),
    "incomplete, to be fetched from": (
        {"committed": False, "invalidate": "source"},
        {"incomplete": True},
        Verdict.INCOMPLETE,
    ),
    "incomplete, to be pushed to": ({"committed": False}, {"incomplete": True}, Verdict.ACCEPTED),
    "incomplete in the middle of a push": ({}, {"incomplete": True}, Verdict.ACCEPTED),
    "strangers about to be made equal": ({"committed": False}, {"generation": "x"}, Verdict.ACCEPTED),
}


@pytest.mark.parametrize("name", CASES)
def test_a_greeting_is_judged(name: str) -> None:
    greeting, facts, verdict = CASES[name]
    assert judge(greeting, facts) is verdict


def test_every_verdict_has_a_case() -> None:
    assert {verdict for _, _, verdict in CASES.values()} == set(Verdict)


def test_every_refusal_says_what_to_do() -> None:
    assert set(lineage.SENTENCES) == set(Verdict) - {Verdict.ACCEPTED}


def test_who_we_are_comes_before_what_we_have() -> None:
    wrong = {"protocol": 9, "oldest": 9, "pair": "other", "size": 512, "accepted": 9, "session": 1, "generation": "x"}
    order = [Verdict.VERSION, Verdict.WRONG_PAIR, Verdict.WRONG_SHAPE, Verdict.ROLLED_BACK, Verdict.OLD_SESSION]
    names = [name for name in wrong if name != "oldest"]
    for name, verdict in zip(names, order, strict=False):
        assert judge(wrong) is verdict
        del wrong[name]
        wrong.pop("oldest", None)
    assert judge(wrong) is Verdict.BOTH_MOVED


@pytest.mark.parametrize("case", list(itertools.product("abc", ["", "a", "ab"], "abc", ["", "a", "bc"], [False, True])))
def test_kinship_is_what_the_design_says(case: tuple[str, str, str, str, bool]) -> None:
    ours, our_line, theirs, their_line, differs = case
    if ours == theirs:
        expected = Kinship.EQUAL
    elif theirs in set(our_line):
        expected = Kinship.PEER_BEHIND
    elif ours in set(their_line) and not differs:
        expected = Kinship.PEER_AHEAD
    elif ours in set(their_line) or set(our_line) & set(their_line):
        expected = Kinship.BOTH_MOVED
    else:
        expected = Kinship.UNRELATED
    assert lineage.get_kinship(ours, set(our_line), theirs, set(their_line), differs) is expected


def to_fields() -> dict[str, Any]:
    return GREETING.to_json() | {"ancestors": list(GREETING.ancestors)}


def test_a_greeting_survives_the_wire() -> None:
    assert lineage.parse_greeting(to_fields()) == GREETING


WRONG = [
    (name, value)
    for name, right in to_fields().items()
    for value in (None, True, "1", 1.0, [1], {})
    if type(value) is not type(right) or value == [1]
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=repr)
def test_a_field_of_another_type_is_no_greeting(name: str, value: Any) -> None:
    assert lineage.parse_greeting(to_fields() | {name: value}) is None


@pytest.mark.parametrize("name", list(to_fields()))
def test_a_missing_field_is_no_greeting(name: str) -> None:
    assert lineage.parse_greeting({key: value for key, value in to_fields().items() if key != name}) is None


@pytest.mark.parametrize(
    "change", [{"more": 1}, {"session": 0}, {"session": -1}, {"session": 1 << 62}, {"ancestors": ["g"] * 65}], ids=str
)
def test_a_value_out_of_bounds_is_no_greeting(change: dict[str, Any]) -> None:
    assert lineage.parse_greeting(to_fields() | change) is None


def test_a_greeting_of_the_first_version_has_exactly_the_fields_that_it_knows() -> None:
    asked = lineage.get_first_form(GREETING, {"verdict": "malformed"})
    assert asked is not None
    fields = asked.to_json()
    known = "pair size track_size session accepted committed invalidate generation ancestors differs protocol"
    assert (set(fields), fields["protocol"]) == (set(known.split()), 1)
    heard = lineage.parse_greeting(fields | {"ancestors": list(asked.ancestors)})
    assert heard == asked
    for spoken in (Versions(1, 1), Versions(1, 2)):
        assert lineage.parse_greeting(fields | {"ancestors": []}, spoken) is not None


def test_the_first_version_takes_any_other_for_no_greeting_and_is_asked_again_only_where_that_can_help() -> None:
    assert lineage.parse_greeting(to_fields(), Versions(1, 1)) is None
    assert lineage.get_first_form(GREETING, {"verdict": "version"}) is None
    for versions in ({"oldest": 2}, {"protocol": 1}):
        assert lineage.get_first_form(dataclasses.replace(GREETING, **versions), {"verdict": "malformed"}) is None


def test_a_greeting_newer_than_ours_may_say_more_and_is_told_which_versions_there_are() -> None:
    greeting = lineage.parse_greeting(to_fields() | {"protocol": 10, "oldest": 9, "more": {}})
    assert greeting is not None
    assert lineage.judge(greeting, FACTS) is Verdict.VERSION
    sentence = lineage.explain_versions(greeting.versions, FACTS.spoken)
    assert "the source speaks versions 9 to 10 of the data protocol, the destination versions 1 to 2" in sentence


@pytest.mark.parametrize("wrong", [{"oldest": 0}, {"oldest": 3}, {"protocol": 0, "oldest": 0}, {"protocol": 1 << 31}])
def test_versions_that_cannot_be_are_no_greeting(wrong: dict[str, int]) -> None:
    assert lineage.parse_greeting(to_fields() | wrong) is None


@pytest.mark.parametrize("a", [(1, 1), (1, 2), (2, 2), (2, 4), (9, 10)])
@pytest.mark.parametrize("b", [(1, 1), (1, 2), (2, 2), (2, 4), (9, 10)])
def test_two_hosts_use_the_newest_version_that_both_speak(a: tuple[int, int], b: tuple[int, int]) -> None:
    shared = set(range(a[0], a[1] + 1)) & set(range(b[0], b[1] + 1))
    assert lineage.get_common(Versions(*a), Versions(*b)) == max(shared, default=None)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_nothing_else_is_a_greeting(fields: Any) -> None:
    assert lineage.parse_greeting(fields) is None
