"""Power is lost at recorded instants of a real run; `scripts/power-loss` tries thousands, this a fixed share."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from live.faultdisk import SYNC, WRITE, Entry
from live.powercheck import Checker
from live.powerloss import INVALID, Figures, try_run
from live.powerrun import NAMES, SIZE, TRACK, PowerRun, Ran
from live.powerstates import Replay

from nbdplugin import layout

FAULTS = 4
PAGES_SIZE = layout.count_pages(-(-SIZE // TRACK)) * layout.PAGE_SIZE
STATES = 600  # of each run, about


@pytest.fixture(scope="module", params=INVALID)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    seed = random.randrange(1 << 20)
    print("seed", seed)
    return PowerRun(tmp_path_factory.mktemp("pl"), seed, request.param, FAULTS).run()


def test_whatever_a_power_loss_leaves_is_recovered_from(ran: Ran, tmp_path: Path) -> None:
    print("seed", ran.seed, ran.faults)
    syncs = sum(entry.kind == SYNC for entry in ran.entries)
    figures = Figures()
    try_run(ran, tmp_path, figures, share=min(1.0, STATES / 6 / syncs), torn=1, revived=2)
    print(figures)
    assert figures.states > STATES / 3
    assert figures.revived == 2


def check_all(ran: Ran, entries: list[Entry], only: str | None = None) -> None:
    replay, checker = Replay(entries, ran.made_ns, random.Random(ran.seed)), Checker(ran)
    for state in replay.walk(1.0, 7, only):
        checker.check(state)


@pytest.mark.parametrize("what", ["data", "metadata"])
def test_a_sync_that_is_left_out_is_noticed(ran: Ran, what: str) -> None:
    whole = NAMES[ran.invalid == "source"]  # the side that alone has the data at first
    file = f"{whole}.img" if what == "data" else "source.meta"
    entries = [e for e in ran.entries if (e.kind, e.name) != (SYNC, file) or e.stamp_ns < ran.made_ns]
    with pytest.raises(AssertionError, match=r"rule 2|holds write|is not there|would refuse|both copies of the header"):
        check_all(ran, entries)


def test_both_copies_of_a_page_written_before_the_first_is_synced_is_noticed(ran: Ran) -> None:
    """The syncs of the table that follow a write of the first copy are left out."""
    entries, is_first = [], False
    for entry in ran.entries:
        if entry.name == "source.meta" and entry.stamp_ns > ran.made_ns:
            if entry.kind == SYNC and is_first:
                continue
            is_first = entry.kind == WRITE and (
                entry.offset < layout.HEADER_SIZE or 0 <= entry.offset - layout.BITS_START < PAGES_SIZE
            )
        entries.append(entry)
    with pytest.raises(AssertionError, match=r"both copies|rule 2|holds write|is not there|would refuse"):
        check_all(ran, entries, "source.meta")
