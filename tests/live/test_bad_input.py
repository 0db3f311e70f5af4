"""Bad input: one clear sentence, the right exit code, nothing changed - each line of the list, at real daemons."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from live import badact, badcase, badscene
from live.badcase import Case
from live.badinput import CASES, LINES, NEW_GONE, NEW_PAIR
from live.badscene import Scene


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    made = Scene(tmp_path_factory.mktemp("bad"))
    try:
        yield made.set_up()
    finally:
        made.tear_down()


def test_each_line_of_the_list_has_a_case_and_each_case_a_line() -> None:
    assert {case.line for case in CASES} == set(LINES)


def test_no_case_stands_in_the_table_twice() -> None:
    assert len({(case.line, case.title) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.line}: {case.title}" for case in CASES])
def test_it_is_told_in_one_sentence_with_its_exit_code_and_nothing_is_changed(scene: Scene, case: Case) -> None:
    assert badcase.faults_of(case, case.run(scene)) == []


# Commands that may be interrupted at any moment, and what takes them back if they had been carried out.
ANY_MOMENT = (
    ("status", ()),
    ("volume list --json", ()),
    ("events", ()),
    ("pair watch", ()),
    ("metrics", ()),
    ("volume create anew --size 4M", ("volume delete anew --yes",)),
    ("pair suspend apaired", ("pair resume apaired", "pair wait apaired")),
    ("attach afree", ("detach afree",)),
    (NEW_PAIR, NEW_GONE),
)
MOMENTS_S = tuple(ms / 1000 for ms in range(0, 160, 20))


@pytest.mark.parametrize(("typed", "take_back"), ANY_MOMENT, ids=[typed for typed, _ in ANY_MOMENT])
def test_ctrl_c_comes_at_any_moment(scene: Scene, typed: str, take_back: tuple[str, ...]) -> None:
    before = scene.snapshot()
    for moment_s in MOMENTS_S:
        found = badact.interrupted_after(moment_s)(scene, scene.command("alpha", typed.split()))
        assert found.code in (0, badcase.INTERRUPT), found
        assert "Traceback" not in found.err + found.out
        assert found.err.count("\n") <= 1
        assert badact.all_or_nothing(typed if take_back else "", *take_back)(scene, before) == []


def test_two_creates_that_nobody_holds_up_make_one_pair_or_none(scene: Scene) -> None:
    before = scene.snapshot()
    commands = {
        "alpha": "pair create afree beta:bfree --invalidate destination --yes --first {}",
        "beta": "pair create bfree alpha:afree --invalidate destination --yes --first {}",
    }
    for orders in itertools.product(("source", "destination"), repeat=2):
        typed = [
            badact.start(scene.command(host, commands[host].format(order).split()))
            for host, order in zip(("alpha", "beta"), orders, strict=True)
        ]
        told = [process.communicate(timeout=60)[1].decode() for process in typed]
        codes = [process.returncode for process in typed]
        assert sorted(codes) in ([0, 4], [4, 4]), told
        assert all("Traceback" not in text for text in told)
        won = "pair delete afree --force --yes" if 0 in codes else ""
        assert badact.all_or_nothing("", *filter(None, (won,)))(scene, before) == []


def test_nothing_of_the_cases_is_left_behind(scene: Scene) -> None:
    found = badscene.run(["sh", "-c", "mount; losetup --list --output BACK-FILE --noheadings"]).out.splitlines()
    ours = [line for line in found if str(scene.folder) in line]
    assert [line for line in ours if "att.fuse" not in line] == []
