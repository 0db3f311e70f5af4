"""Versions of the control traffic: what is announced, what is understood, which version is used."""

from __future__ import annotations

import pytest

from pathctl import protocol
from pathctl.errors import ErrorCode, PathctlError
from pathctl.protocol import Versions


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("1-2", (1, 2)),
        ("9-10", (9, 10)),
        (None, (1, 1)),
        ("", (1, 1)),
        ("2", (1, 1)),
        ("2-1", (1, 1)),
        ("0-3", (1, 1)),
        ("-1-2", (1, 1)),
        ("1-2 ", (1, 1)),
        ("1-2\n", (1, 1)),
        ("1-9999999999", (1, 1)),
    ],
)
def test_what_cannot_be_read_is_taken_for_the_first_version(text: str | None, found: tuple[int, int]) -> None:
    assert protocol.parse(text) == found


@pytest.mark.parametrize("theirs", [(1, 1), (1, 2), (2, 2), (2, 9), (3, 9), (9, 10)])
@pytest.mark.parametrize("ours", ["1-1", "1-2", "9-10"])
def test_two_hosts_use_the_newest_version_that_both_speak_or_none(
    monkeypatch: pytest.MonkeyPatch, ours: str, theirs: tuple[int, int]
) -> None:
    monkeypatch.setenv("PATHCTL_PROTOCOL", ours)
    oldest, newest = map(int, ours.split("-"))
    shared = set(range(oldest, newest + 1)) & set(range(theirs[0], theirs[1] + 1))
    if shared:
        assert protocol.agree("host beta", Versions(*theirs)) == max(shared)
        return
    with pytest.raises(PathctlError) as caught:
        protocol.agree("host beta", Versions(*theirs))
    assert caught.value.code == ErrorCode.REFUSED
    assert f"host beta speaks {Versions(*theirs)}" in caught.value.message
    assert f"this one {Versions(oldest, newest)}, so they cannot work together" in caught.value.message


def test_the_first_version_announces_nothing_and_knows_no_newer_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    assert protocol.headers() == {"Pathctl-Protocol": "1-3"}
    assert all(protocol.knows(verb) for verb in (*protocol.SINCE, "ping"))
    monkeypatch.setenv("PATHCTL_PROTOCOL", "1-1")
    assert protocol.headers() == {}
    assert [verb for verb in (*protocol.SINCE, "ping") if protocol.knows(verb)] == ["ping"]


def test_every_newer_verb_is_one_that_peers_may_call() -> None:
    from pathctl import api

    assert set(protocol.SINCE) <= set(api.PEER_VERBS)
