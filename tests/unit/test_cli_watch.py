"""pair wait and pair watch: until when they follow, what they say, what they survive."""

import threading
from pathlib import Path
from typing import Any

import pytest
from fakeapi import DONE, PAIR, PROGRESS, UNHEARD, Api, Json, states
from hypothesis import given
from hypothesis import strategies as st
from waiting import WAIT_S

from pathctl import cli, clicommon, client, cliwatch, errors, progress, show

SECOND: Json = PAIR | {"pair": "ffff" + PAIR["pair"][4:], "source": {"host": "alpha", "volume": "work"}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cliwatch, "WATCH_S", 0.01)
    monkeypatch.setattr(cliwatch, "POLL_S", 0.01)


def lists(*found: list[Json]) -> Any:
    """Answers of pair.list, one after the other, the last for ever."""
    left = list(found)
    return lambda: {"pairs": left.pop(0) if len(left) > 1 else left[0]}


def test_wait_asks_until_the_state_is_reached(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["pair.show"] = states("pair.show", "SyncInProg", "SyncInProg", "Synchronized")
    assert api.run("pair", "wait", "v", "--for", "synchronized", "--timeout", "60") == errors.ExitCode.OK
    assert len(api.asked) == 3
    assert "Synchronized" in capsys.readouterr().out


def test_wait_ends_at_its_time_limit_with_an_exit_code_of_its_own(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["pair.show"] = states("pair.show", "Partitioned")
    assert api.run("pair", "wait", "v", "--timeout", "0.05") == errors.ExitCode.TIMEOUT
    told = capsys.readouterr().err
    assert "is Partitioned and not Synchronized after 0.05 s" in told
    assert "pathctl why v" in told


def test_wait_goes_on_while_pathctld_is_away(tmp_path: Path) -> None:
    started = threading.Event()
    codes: list[int] = []

    def wait() -> None:
        started.set()
        codes.append(cli.run(["--root", str(tmp_path), "pair", "wait", "v", "--timeout", "30"]))

    waiter = threading.Thread(target=wait)
    waiter.start()
    started.wait(WAIT_S)
    api = Api(tmp_path)
    waiter.join(WAIT_S)
    api.close()
    assert codes == [errors.ExitCode.OK]


def test_a_piped_watch_prints_a_line_for_each_change_until_the_end(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    api.answers["pair.list"] = states("pair.list", "Creating", "SyncInProg", "SyncInProg", "Synchronized")
    assert api.run("pair", "watch", "v") == errors.ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["Creating", "SyncInProg", "Synchronized"]
    assert lines[1].endswith("99.9%  1 track left of 1000 at the start and 24 added since  20M/s  1m03s to go")


def test_a_watch_without_names_follows_all_pairs_to_the_end(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    second_done = DONE | {"pair": SECOND["pair"]}
    api.answers["pair.list"] = lists([PAIR, SECOND], [DONE, SECOND], [DONE, second_done])
    assert api.run("pair", "watch") == errors.ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["0f4c2d1e", "v", "SyncInProg"],
        ["ffff2d1e", "work", "SyncInProg"],
        ["0f4c2d1e", "v", "Synchronized"],
        ["ffff2d1e", "v", "Synchronized"],
    ]
    api.answers["pair.list"] = {"pairs": []}
    assert api.run("pair", "watch") == errors.ExitCode.OK
    assert capsys.readouterr().out == "no pairs\n"


def test_a_watch_of_one_pair_takes_no_notice_of_others(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["pair.list"] = lists([DONE, SECOND])
    assert api.run("pair", "watch", "v") == errors.ExitCode.OK
    assert "ffff" not in capsys.readouterr().out


def test_watch_ends_at_a_suspended_pair_once_the_others_are_done(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    suspended = SECOND | {"state": "Suspended"}
    api.answers["pair.list"] = lists([PAIR, suspended], [DONE, suspended])
    assert api.run("pair", "watch") == errors.ExitCode.REFUSED
    told = capsys.readouterr()
    assert told.out.splitlines()[-1].startswith("0f4c2d1e  v  Synchronized")
    assert "`pathctl pair resume work`" in told.err


def test_watch_ends_when_a_pair_that_was_named_is_deleted(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["pair.list"] = lists([PAIR], [])
    assert api.run("pair", "watch", "v") == errors.ExitCode.NOT_FOUND
    assert "v is no longer there" in capsys.readouterr().err


def test_watch_goes_on_while_pathctld_is_away_but_needs_it_at_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = ["--root", str(tmp_path), "pair", "watch"]
    assert cli.run(watch) == errors.ExitCode.UNREACHABLE
    answers = iter([{"pairs": [PAIR]}, None, None, {"pairs": [DONE]}])

    def ask(*_arguments: object, **_fields: object) -> Json:
        answer = next(answers)
        if answer is None:
            raise errors.PathctlError(errors.ErrorCode.UNREACHABLE, "away")
        return answer

    monkeypatch.setattr(client, "call", ask)
    assert cli.run(watch) == errors.ExitCode.OK
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["SyncInProg", "Synchronized"]


def test_watch_does_not_wait_for_ever_for_a_pathctld_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clicommon, "AWAY_S", 0.05)
    answers = iter([{"pairs": [PAIR]}])

    def ask(*_arguments: object, **_fields: object) -> Json:
        if (answer := next(answers, None)) is None:
            raise errors.PathctlError(errors.ErrorCode.UNREACHABLE, "away")
        return answer

    monkeypatch.setattr(client, "call", ask)
    assert cli.run(["--root", str(tmp_path), "pair", "watch"]) == errors.ExitCode.UNREACHABLE


# -- what progress may say --------------------------------------------------------------------------------

PERCENTS = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(-1, 101))
STATES = st.sampled_from(["SyncInProg", "Partitioned", "Suspended", "Refused", "Synchronized"])


@given(st.lists(st.tuples(PERCENTS, st.sampled_from(["c1", "c2"]), st.integers(0, 5), STATES)))
def test_a_percentage_never_falls_within_a_copy_nor_leaves_its_range(
    told: list[tuple[float, str, int, str]],
) -> None:
    floor = show.Floor()
    before: dict[str, float] = {}
    for percent, copy, left, state in told:
        sample = PAIR | {"state": state, "progress": PROGRESS | {"copy": copy, "percent": percent, "left_tracks": left}}
        raised = floor.raised(sample)
        shown = show.done(raised)
        if state in show.APART:
            assert shown == "-", "a track is left, and no copy is under way"
            before = {copy: before.get(copy, 0)}
            continue
        value = float(shown.rstrip("%"))
        assert 0 <= value <= 100
        assert (shown == "100%") == (state == "Synchronized")
        least = before.get(copy, 0)
        if state != "Synchronized":
            assert least <= value
            least = value
        before = {copy: least}


@pytest.mark.parametrize(
    ("state", "left", "said"),
    [
        ("SyncInProg", 0, "99.9%"),  # not confirmed yet
        ("Synchronized", 0, "100%"),
        ("Suspended", 0, "100%"),
        ("Partitioned", 0, "100%"),
        ("Partitioned", 692, "-"),
        ("Refused", 1024, "-"),
        ("Partitioned", None, "-"),
        ("Deleting", 0, "-"),
    ],
)
def test_what_is_done_and_what_is_left_agree(state: str, left: int | None, said: str) -> None:
    found = PROGRESS | {"percent": 100.0 if left == 0 else 50.9, "left_tracks": left or 0}
    assert show.done(PAIR | {"state": state, "invalid": left, "progress": found}) == said


def test_bars_cope_with_pairs_that_come_and_go_and_are_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    endless = SECOND | {"progress": PROGRESS | {"converging": False, "percent": 12.0}}
    progress.follow(iter([[PAIR], [UNHEARD], [PAIR, endless], [DONE]]))
    assert "100%" in capsys.readouterr().out
    progress.follow(iter([[PAIR, endless]]))
    assert "not converging" in capsys.readouterr().out
    progress.follow(iter([[]]))
    assert "no pairs" in capsys.readouterr().out
