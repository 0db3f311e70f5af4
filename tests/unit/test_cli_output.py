"""What people read: tables, the status screen, events, why."""

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import fakeapi
import msgspec
import pytest
from fakeapi import DONE, HOST, PAIR, PEER, UNHEARD, VOLUME, Api, Json

from pathctl import errors, progress, schema, shapes, show

PROGRAM = Path(sys.executable).with_name("pathctl")


@pytest.fixture(autouse=True)
def _in_berlin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()


def on_terminal(api: Api, *arguments: str, columns: int = 100, **environment: str) -> str:
    """What the program shows on a terminal of 24 lines."""
    leader, follower = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm-256color"} | environment
    command = [PROGRAM, "--root", api.root, *arguments]
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 4096):
            shown += piece
    except OSError:  # EIO: the other end has closed
        pass
    os.close(leader)
    process.wait(60)
    return shown.decode().replace("\r\n", "\n")


def test_a_piped_table_is_aligned_plain_text(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["volume.list"] = {"volumes": [VOLUME, VOLUME | {"name": "longer-name", "failed": "broken"}]}
    api.run("volume", "list")
    assert capsys.readouterr().out.splitlines() == [
        "VOLUME       SIZE  TRACK  SIDE  PAIR  DEVICE  CLIENTS  INVALID  NOTE",
        "v            64M   64K    -     -     -       0        0        -",
        "longer-name  64M   64K    -     -     -       0        0        broken",
    ]


@pytest.mark.parametrize("line", ["volume list", "volume show v", "status"])
def test_what_is_not_known_of_a_volume_is_a_dash(api: Api, capsys: pytest.CaptureFixture[str], line: str) -> None:
    unknown = VOLUME | dict.fromkeys(("pid", "clients", "invalid", "incomplete", "device"))
    for pid in (None, 17):
        api.answers["volume.list"] = {"volumes": [unknown | {"pid": pid}]}
        api.answers["volume.show"] = {"volume": unknown | {"pid": pid}}
        api.answers["status"] = {"host": HOST, "problems": [], "peers": [], "volumes": [unknown], "pairs": [UNHEARD]}
        assert api.run(*line.split()) == errors.ExitCode.OK
        assert "None" not in capsys.readouterr().out


def test_what_is_piped_is_never_wrapped(api: Api) -> None:
    long = {"name": "n" * 63, "backing": "/" + "b" * 300, "failed": "f" * 300}
    api.answers["volume.list"] = {"volumes": [VOLUME | long]}
    shown = subprocess.run(
        [PROGRAM, "--root", api.root, "volume", "list"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | {"COLUMNS": "20"},
    ).stdout
    assert len(shown.splitlines()) == 2
    assert "f" * 300 in shown


def test_nothing_is_claimed_of_a_pair_whose_source_was_not_heard(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["pair.list"] = {"pairs": [UNHEARD]}
    api.answers["pair.show"] = {"pair": UNHEARD}
    api.run("pair", "list")
    assert capsys.readouterr().out.splitlines()[1].split()[-4:] == ["-", "-", "-", "-"]
    api.run("pair", "show", "v")
    told = capsys.readouterr().out
    assert "%" not in told
    assert "none" not in told
    assert api.run("pair", "wait", "v", "--timeout", "0.01") == errors.ExitCode.TIMEOUT
    assert "with - tracks left" in capsys.readouterr().err


def test_pair_show_tells_the_progress(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["pair.show"] = {"pair": PAIR}
    api.run("pair", "show", "v")
    facts = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    shown = {name.strip(): value.strip() for name, value in facts.items()}
    assert shown["since"].startswith("2025-11-22 09:26:40 +0100 (")
    assert shown["done"] == "99.9%"
    assert shown["at start"] == "1000 tracks (62.5M)"
    assert shown["left"] == "1 track (64K)"
    assert shown["added"] == "24 tracks (1.5M) by writes and lost links since"
    assert shown["rate"] == "20M/s"
    assert shown["to go"] == "1m03s"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "1m03s"),
        ({"copy_rate_bytes_s": 0}, "paused"),
        ({"progress": fakeapi.PROGRESS | {"converging": False, "eta_s": None}}, "not converging"),
        ({"progress": fakeapi.PROGRESS | {"eta_s": None}}, ""),
        ({"progress": fakeapi.PROGRESS | {"eta_s": 0.0}}, "1s"),
        ({"progress": fakeapi.PROGRESS | {"eta_s": 8.2}}, "9s"),
        ({"progress": None}, ""),
        ({"state": "Suspended"}, ""),
        ({"state": "Partitioned"}, ""),
    ],
)
def test_how_long_it_takes_is_told_only_if_it_is_known(change: Json, said: str) -> None:
    assert show.to_go(PAIR | change) == said


@pytest.mark.parametrize(
    ("steps", "said"),
    [([], "exists already"), (["attach"], "exists already"), (["ready", "attach"], "created in 2 ms")],
)
def test_create_says_whether_it_created_anything(
    api: Api, capsys: pytest.CaptureFixture[str], steps: list[str], said: str
) -> None:
    answer = {"pair": PAIR, "device": None, "steps": [{"step": step, "ms": 1.0} for step in steps]}
    api.answers["pair.create"] = answer
    api.run("pair", "create", "v", "beta:w", "--invalidate", "source")
    assert capsys.readouterr().out.splitlines()[0] == f"alpha:v -> beta:w {said}"


# -- status -----------------------------------------------------------------------------------------------

TROUBLED: Json = {
    "host": HOST,
    "problems": [],
    "peers": [PEER | {"reachable": False, "note": "does not answer for 3m"}],
    "volumes": [VOLUME | {"name": name, "device": "/dev/loop17", "side": "source"} for name in ("v", "work", "db")],
    "pairs": [
        PAIR,
        UNHEARD | {"source": {"host": "alpha", "volume": "work"}},
        DONE | {"source": {"host": "alpha", "volume": "db"}},
    ],
}


def test_status_without_trouble_says_that_all_is_well(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.run("status")
    assert capsys.readouterr().out.splitlines() == [
        "host alpha, 10.0.0.1:7630: all is well",
        "",
        "PEER  ADDRESS        REACHABLE",
        "beta  10.0.0.2:7630  yes",
        "",
        "VOLUME  SIZE  SIDE  PAIR  DEVICE  CLIENTS",
        "v       64M   -     -     -       0",
        "",
        "PAIR      STATE       SOURCE   DESTINATION  COPY TO  DONE   LEFT  RATE   TO GO  SINCE",
        "0f4c2d1e  SyncInProg  alpha:v  beta:w       source   99.9%  64K   20M/s  1m03s  11-22 09:26",
    ]


def test_status_tells_first_what_is_not_well_and_what_to_type(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["status"] = TROUBLED
    api.run("status")
    assert capsys.readouterr().out.splitlines()[:3] == [
        "host alpha, 10.0.0.1:7630: 2 to look at",
        "! pair work is Partitioned: not heard; look with `pathctl why work`",
        "! peer beta: does not answer for 3m",
    ]
    endless = PAIR | {"progress": fakeapi.PROGRESS | {"converging": False}}
    broken = VOLUME | {"failed": "its nbdkit has ended"}
    paused = PAIR | {"copy_rate_bytes_s": 0}
    api.answers["status"] = TROUBLED | {"pairs": [paused], "peers": []}
    api.run("status")
    told = "! the copy of pair v is paused, with data that is only at the destination; look with `pathctl why v`"
    assert capsys.readouterr().out.splitlines()[1] == told
    api.answers["status"] = TROUBLED | {"pairs": [endless], "volumes": [broken], "peers": []}
    api.run("status")
    assert capsys.readouterr().out.splitlines()[1:3] == [
        "! pair v is not converging; look with `pathctl why v`",
        "! volume v: its nbdkit has ended; look with `pathctl volume show v`",
    ]


SPLIT: Json = PAIR | {
    "state": "Split",
    "owed": 17,
    "progress": None,
    "direction": None,
    "session": None,
    "reason": "both were written",
    "on_path_loss": "stop",
    "sides": msgspec.to_builtins(
        shapes.Sides(
            shapes.Held("alpha", "v", 1.7e9, 17, "a" * 36, incomplete=False, in_use=True, device="/dev/x", ended=False),
            shapes.Held("beta", "w", 1.71e9, None, "b" * 36, incomplete=False, in_use=False, ended=True),
        )
    ),
}
AT_SOURCE = (
    "last written 2023-11-14 23:13:20 +0100 (.* ago); 17 of 1024 tracks (1M) are owed to the other; in use (/dev/x); "
    "generation aaaaaaaa"
)
AT_DESTINATION = (
    "last written 2024-03-09 17:00:00 +0100 (.* ago); its half of the pair was ended; not in use; generation bbbbbbbb"
)


def like(told: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\.\*", ".*"), told) is not None


def test_of_a_split_pair_both_sides_are_shown_and_what_to_type(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["pair.show"] = {"pair": SPLIT}
    api.run("pair", "show", "v")
    lines = capsys.readouterr().out.splitlines()
    found = dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)
    assert like(found["at source"], AT_SOURCE)
    assert like(found["at destination"], AT_DESTINATION)
    assert found["keep source"] == "pathctl pair resolve v --discard destination"
    assert found["keep destination"] == "pathctl pair resolve v --discard source"
    assert found["path loss"].startswith("stop: host writes wait and then fail")
    api.answers["pair.show"] = {"pair": SPLIT | {"side": "destination"}}
    api.run("pair", "show", "w")
    assert "pathctl pair resolve w --discard destination" in capsys.readouterr().out


def test_status_tells_of_a_split_pair_both_sides_below_it(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    bad = VOLUME | {"counters": {"read_errors": 3, "peer_reads": 2, "repaired_tracks": 1}}
    api.answers["status"] = {"host": HOST, "problems": [], "peers": [PEER], "volumes": [bad], "pairs": [SPLIT]}
    api.run("status")
    first, split, source, destination, disk = capsys.readouterr().out.splitlines()[:5]
    assert first.endswith(": 2 to look at")
    assert split == "! pair v is Split: both were written; look with `pathctl why v`"
    assert like(source, f"    alpha:v: {AT_SOURCE}")
    assert like(destination, f"    beta:w: {AT_DESTINATION}")
    assert disk == (
        "! volume v: its disk failed to read 3 times, 2 times the other side's data was given instead, once a track "
        "was written anew; look at the disk (dmesg, SMART) under /x/v.img"
    )


def test_what_is_not_well_with_the_host_is_told_before_all_else(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["status"] = TROUBLED | {"problems": ["the file system of /x is full"]}
    api.run("status")
    assert capsys.readouterr().out.splitlines()[:2] == [
        "host alpha, 10.0.0.1:7630: 3 to look at",
        "! the file system of /x is full",
    ]


def test_many_problems_leave_room_for_the_rest(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["status"] = TROUBLED | {"pairs": [UNHEARD] * 20}
    lines = on_terminal(api, "status").splitlines()
    assert lines[0].endswith(": 21 to look at")
    assert lines[9:11] == ["! and 13 more", ""]
    api.run("status")
    assert sum(line.startswith("! pair") for line in capsys.readouterr().out.splitlines()) == 20


def test_a_watch_on_a_terminal_draws_bars_and_gives_the_cursor_back(api: Api) -> None:
    second = PAIR | {"pair": "ffff" + PAIR["pair"][4:], "source": {"host": "alpha", "volume": "n" * 63}}
    answers = [[PAIR, second], [DONE, second | {"progress": None}], [DONE, DONE | {"pair": second["pair"]}]]
    api.answers["pair.list"] = lambda: {"pairs": answers.pop(0) if len(answers) > 1 else answers[0]}
    shown = on_terminal(api, "pair", "watch", columns=80)
    assert shown.count("\x1b[?25l") == 1
    assert "\x1b[?25h" in shown[shown.rindex("100%") :]
    assert "20M/s  1m03s to go" in shown
    assert "n" * 19 + "…" in shown
    assert "#]  100%" in shown


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_a_reason_on_a_terminal_is_cut_and_neither_the_state_nor_a_figure(api: Api, columns: int) -> None:
    reason = "beta does not answer (no route to host)" * 3
    stuck = UNHEARD | {"reason": reason, "source": {"host": "alpha", "volume": "n" * 63}, "invalid": 1, "owed": 0}
    answers = [[PAIR | {"reason": reason}, stuck], [DONE, stuck | {"state": "Suspended"}]]
    api.answers["pair.list"] = lambda: {"pairs": answers.pop(0) if len(answers) > 1 else answers[0]}
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(api, "pair", "watch", columns=columns, TERM="linux"))
    lines = [line for line in re.split(r"[\r\n]+", shown) if line and not line.startswith("pathctl:")]
    assert max(map(len, lines)) <= columns
    drawn = " ".join(lines)
    parts = " of 62.5M+1.5M" if columns >= 80 else ""
    figures = f" 99.9%  64K left{parts}  20M/s  1m03s to go"
    for word in ("Partitioned ", "Suspended ", "SyncInProg ", figures, " -  64K left"):
        assert word in drawn
    assert "beta does" in drawn


@pytest.mark.parametrize(("percent", "bar"), [(0.0, "[..........]"), (50.0, "[#####.....]"), (99.9, "[#########.]")])
def test_a_bar_can_be_read_without_colours(percent: float, bar: str) -> None:
    pair = PAIR | {"progress": fakeapi.PROGRESS | {"percent": percent}}
    assert bar in progress.draw([pair], {PAIR["pair"]: percent}, 63)[0].plain


def test_a_long_reason_is_cut_but_not_what_to_type(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [UNHEARD | {"reason": "long " * 40}, UNHEARD | {"source": {"host": "alpha", "volume": "n" * 63}}]
    api.answers["status"] = TROUBLED | {"pairs": pairs}
    lines = on_terminal(api, "status").splitlines()
    assert len(lines[1]) == 100
    assert lines[1].endswith("…; look with `pathctl why v`")
    assert f"look with `pathctl why {'n' * 63}`" in lines[2] + lines[3]
    api.run("status")
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(f"{'long ' * 40}; look with `pathctl why v`")


def test_status_of_three_pairs_is_one_screen(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["status"] = TROUBLED
    api.run("status")
    for shown in (capsys.readouterr().out, on_terminal(api, "status", NO_COLOR="1")):
        lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
        assert len(lines) <= 23  # one is for the next prompt
        assert max(map(len, lines)) <= 100


def test_status_of_a_host_without_a_name_says_how_to_begin(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["status"] = {"host": None, "problems": [], "peers": [], "volumes": [], "pairs": []}
    api.run("status")
    assert capsys.readouterr().out == ("this host has no name yet: pathctl host init --name NAME --address ADDRESS\n")


def test_colour_is_for_a_terminal_that_wants_it(api: Api) -> None:
    api.answers["status"] = TROUBLED
    assert "\x1b[31mPartitioned" in on_terminal(api, "status", NO_COLOR="")
    assert "\x1b[3" not in on_terminal(api, "status", NO_COLOR="1")


def test_the_settings_are_told_with_where_they_come_from(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    changed = fakeapi.SETTING | {"value": 9, "source": "/etc/pathctl/pathctl.toml:7"}
    api.answers["config.show"] = {"file": "/etc/pathctl/pathctl.toml", "settings": [fakeapi.SETTING, changed]}
    api.run("config", "show")
    assert capsys.readouterr().out.splitlines() == [
        "/etc/pathctl/pathctl.toml",
        "SETTING              VALUE  DEFAULT  UNIT  FROM",
        "data.link_timeout_s  5      5        s     default",
        "data.link_timeout_s  9      5        s     line 7",
    ]
    api.run("config", "show", "--reasons")
    assert capsys.readouterr().out.splitlines()[2].endswith("  how long a silent link counts as there")


def test_settings_that_stand_in_no_file_are_told_as_such(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.run("config", "show")
    assert capsys.readouterr().out.startswith("nothing is set in /etc/pathctl/pathctl.toml: the defaults hold\n")
    file = api.root / "etc/pathctl/pathctl.toml"
    api.run("config", "check")
    assert capsys.readouterr().out.startswith(f"ok: there is no {file}, so the defaults hold\n")
    file.parent.mkdir(parents=True)
    file.write_text('[log]\nlevel = "warning"\n')
    api.run("config", "check")
    assert capsys.readouterr().out.startswith(f"{file}: ok\n")


# -- events, why ------------------------------------------------------------------------------------------


def test_an_event_is_one_line_with_local_time_cause_and_who_asked(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = fakeapi.EVENT | {"actor": "pathctld", "cause": None, "kind": "path.lost", "message": "pair v: lost"}
    away = quiet | {"kind": "peer.unreachable", "message": "beta is away", "cause": "beta was asked (ping)"}
    api.answers["events.list"] = {"events": [fakeapi.EVENT, quiet, away]}
    api.run("events")
    assert capsys.readouterr().out.splitlines() == [
        "2025-11-22 09:26:40 +0100  pair.state            pair v: suspended  (pair.suspend)  by uid 0 (root)",
        "2025-11-22 09:26:40 +0100  path.lost             pair v: lost",
        "2025-11-22 09:26:40 +0100  peer.unreachable      beta is away: beta was asked (ping)",
    ]
    assert max(map(len, schema.KINDS)) == show.KIND
    api.answers["events.list"] = {"events": []}
    api.run("events")
    assert capsys.readouterr().out == "no events\n"


@pytest.mark.parametrize("text", ["yesterday", "10", "10y", "2026-13-01", "", "-5m"])
def test_a_time_that_is_none_is_a_usage_error(api: Api, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert api.run("events", "--since", text) == errors.ExitCode.USAGE
    assert "is no time" in capsys.readouterr().err
    assert api.asked == []


def test_why_is_a_few_sentences_and_what_to_type(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.run("why", "v")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("0f4c2d1e is Suspended since 2025-11-22 09:26:40 +0100 (")
    assert lines[0].endswith(" ago): the path is not ready")
    assert lines[1:] == [
        "Why:  uid 0 (root) suspended it",
        "Safe: use the source",
        "Next: nothing, until it is resumed",
        "Type: pathctl pair resume v",
    ]
    api.answers["pair.why"] = {"why": fakeapi.WHY | {"command": None, "cause": "long " * 40}}
    shown = on_terminal(api, "why", "v", columns=80)
    assert "Type:" not in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("columns", [60, 80, 100])
def test_the_status_of_many_pairs_has_a_line_for_each_also_on_a_narrow_terminal(api: Api, columns: int) -> None:
    pairs = [PAIR | {"pair": f"{number:08x}{PAIR['pair'][8:]}"} for number in range(12)]
    api.answers["status"] = api.answers["status"] | {"pairs": pairs}
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", on_terminal(api, "status", columns=columns))
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert max(map(len, lines)) <= columns
    assert sum("SyncInProg" in line and "99.9%" in line and "1m03s" in line for line in lines) == 12
    assert len(lines) < 12 + 10
