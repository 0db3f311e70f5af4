"""The request table against DESIGN section 4, written out a second time and the other way round."""

from __future__ import annotations

import itertools

import pytest

from nbdplugin.decide import TABLE, Cover, Kind, Path, Step, decide

CHANGES = (Kind.WRITE, Kind.TRIM)


def get_expected(kind: Kind, cover: Cover, path: Path) -> Step:
    invalid = cover in (Cover.PART, Cover.WHOLE)
    if kind is Kind.TRIM and cover is Cover.PART:
        return Step.SKIP
    if (kind is Kind.READ and invalid) or cover is Cover.PART:
        return {Path.ALONE: Step.FAIL, Path.NOT_READY: Step.WAIT, Path.READY: Step.FETCH}[path]
    if kind is Kind.READ or path is Path.ALONE:
        return Step.LOCAL
    if path is Path.NOT_READY:
        return Step.OWE
    return Step.LOCAL if cover is Cover.OWED else Step.BOTH


@pytest.mark.parametrize(("kind", "cover", "path"), list(itertools.product(Kind, Cover, Path)))
def test_every_combination_is_decided_as_designed(kind: Kind, cover: Cover, path: Path) -> None:
    assert decide(kind, cover, path) is get_expected(kind, cover, path)


def test_the_table_has_every_combination_and_no_other() -> None:
    assert set(TABLE) == set(itertools.product(Kind, Cover, Path))


def test_nothing_invalid_is_ever_read_from_here() -> None:
    for cover, path in itertools.product((Cover.PART, Cover.WHOLE), Path):
        assert decide(Kind.READ, cover, path) not in (Step.LOCAL, Step.BOTH, Step.OWE)


def test_no_change_is_kept_from_a_peer_without_being_owed() -> None:
    for kind, cover in itertools.product(CHANGES, Cover):
        assert decide(kind, cover, Path.NOT_READY) is not Step.LOCAL
        if cover is not Cover.OWED:
            assert decide(kind, cover, Path.READY) is not Step.LOCAL
