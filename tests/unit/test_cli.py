"""The command line against an API that answers from a table: fields sent, output, errors, exit codes."""

import json
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from pathctl import cli, client, errors, show

Json = dict[str, Any]

PAIR: Json = {
    "pair": "0f4c2d1e-1111-4222-8333-444455556666",
    "state": "SyncInProg",
    "direction": "to_source",
    "reason": None,
    "side": "source",
    "source": {"host": "alpha", "volume": "v"},
    "destination": {"host": "beta", "volume": "w"},
    "invalidated": "source",
    "ready": True,
    "committed": True,
    "size": 64 << 20,
    "track_size": 64 << 10,
    "tracks": 1024,
    "invalid": 1,
    "owed": 0,
    "waiting": 0,
    "copy_rate_bytes_s": None,
    "copied_bytes": 0,
    "fetched_tracks": 3,
    "copied_tracks": 1020,
    "counters": {},
    "session": 1,
}
VOLUME: Json = {
    "name": "v",
    "uuid": "a" * 36,
    "size": 64 << 20,
    "track_size": 64 << 10,
    "backing": "/x/v.img",
    "managed": True,
    "side": None,
    "pair": None,
    "attached": False,
    "device": None,
    "pid": None,
    "clients": 0,
    "invalid": 0,
    "incomplete": False,
    "failed": None,
}
CLAIMS = ("ready", "committed", "invalid", "owed", "waiting", "copy_rate_bytes_s", "copied_bytes", "fetched_tracks")
NOTHING = dict.fromkeys((*CLAIMS, "copied_tracks", "session", "direction"))
UNHEARD: Json = PAIR | NOTHING | {"state": "Partitioned", "reason": "not heard"}
HOST: Json = {"name": "alpha", "address": "10.0.0.1", "port": 7630, "fingerprint": "f" * 64}
CONNECTION: Json = {
    "pair": PAIR["pair"],
    "side": "source",
    "volume": "v",
    "peer": "beta",
    "peer_volume": "w",
    "invalidated": "source",
    "ready": True,
    "state": "ready",
    "port": 7700,
}


class Api:
    """Answers each verb with what the table has for it, and notes what it was asked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.asked: list[tuple[str, Json]] = []
        self.answers: dict[str, Json | tuple[int, Json] | Callable[[], Json]] = {}
        path = client.socket_path(root)
        path.parent.mkdir(parents=True)
        self.server = socketserver.ThreadingUnixStreamServer(str(path), self._handler())
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                verb = self.path.removeprefix("/v1/")
                api.asked.append((verb, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                answer = api.answers[verb]
                status, body = answer if isinstance(answer, tuple) else (200, answer() if callable(answer) else answer)
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_arguments: object) -> None:
                pass

        return Handler

    def run(self, *arguments: str) -> int:
        return cli.run(["--root", str(self.root), *arguments])


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    api = Api(tmp_path)
    yield api
    api.close()


@pytest.mark.parametrize(
    ("line", "verb", "fields", "answer"),
    [
        (
            "host init --name alpha --address 10.0.0.1",
            "host.init",
            {"name": "alpha", "address": "10.0.0.1", "port": 7630},
            {"host": HOST},
        ),
        (
            "host init --name alpha --address 10.0.0.1:99",
            "host.init",
            {"name": "alpha", "address": "10.0.0.1", "port": 99},
            {"host": HOST},
        ),
        ("peer invite", "peer.invite", {}, {"token": "T", "expires_s": 900}),
        ("peer join T", "peer.join", {"token": "T"}, {"peer": HOST}),
        ("peer list", "peer.list", {}, {"peers": [HOST | {"reachable": None}]}),
        (
            "volume create v --size 1.5G",
            "volume.create",
            {"name": "v", "size": 3 << 29, "track_size": None, "backing": None},
            {"volume": VOLUME},
        ),
        (
            "volume create v --backing /dev/x --track-size 4K",
            "volume.create",
            {"name": "v", "size": None, "track_size": 4096, "backing": "/dev/x"},
            {"volume": VOLUME},
        ),
        ("volume list", "volume.list", {}, {"volumes": [VOLUME]}),
        ("volume show v", "volume.show", {"name": "v"}, {"volume": VOLUME}),
        ("volume delete v", "volume.delete", {"name": "v"}, {"volume": VOLUME}),
        (
            "pair create v beta:w --invalidate source",
            "pair.create",
            {
                "source": "v",
                "destination": "beta:w",
                "invalidate": "source",
                "first": "source",
                "create": False,
                "size": None,
                "track_size": None,
                "attach": False,
                "force": False,
                "copy_rate_bytes_s": None,
            },
            {"pair": PAIR, "device": None, "steps": [{"step": "commit", "ms": 1.5}]},
        ),
        (
            "pair create v beta:w --invalidate destination --first destination --create --size 1G --track-size 1M \
--attach --force --copy-rate 0",
            "pair.create",
            {
                "source": "v",
                "destination": "beta:w",
                "invalidate": "destination",
                "first": "destination",
                "create": True,
                "size": 1 << 30,
                "track_size": 1 << 20,
                "attach": True,
                "force": True,
                "copy_rate_bytes_s": 0,
            },
            {"pair": PAIR, "device": "/dev/loop0", "steps": []},
        ),
        ("pair list", "pair.list", {}, {"pairs": [PAIR]}),
        ("pair show v", "pair.show", {"pair": "v"}, {"pair": PAIR}),
        ("pair suspend v", "pair.suspend", {"pair": "v"}, {"pair": PAIR}),
        ("pair resume v", "pair.resume", {"pair": "v"}, {"pair": PAIR}),
        ("pair delete v --half", "pair.delete", {"pair": "v", "half": True, "force": False}, {"pair": PAIR}),
        ("pair set v --copy-rate 50M", "pair.set", {"pair": "v", "copy_rate_bytes_s": 50 << 20}, {"pair": PAIR}),
        ("pair set v --copy-rate none", "pair.set", {"pair": "v", "copy_rate_bytes_s": None}, {"pair": PAIR}),
        ("connection list", "connection.list", {}, {"connections": [CONNECTION]}),
        ("attach v", "attach", {"volume": "v"}, {"volume": VOLUME, "device": "/dev/loop0"}),
        ("detach v", "detach", {"volume": "v"}, {"volume": VOLUME}),
        ("status", "status", {}, {"host": HOST, "peers": [HOST], "volumes": [VOLUME], "pairs": [PAIR]}),
        ("status", "status", {}, {"host": None, "peers": [], "volumes": [], "pairs": []}),
    ],
)
def test_a_command_is_one_verb_with_its_options_as_fields(
    api: Api, capsys: pytest.CaptureFixture[str], line: str, verb: str, fields: Json, answer: Json
) -> None:
    api.answers[verb] = answer
    assert api.run(*line.split()) == errors.ExitCode.OK
    assert api.asked == [(verb, fields)]
    assert capsys.readouterr().out.strip()

    assert api.run(*line.split(), "--json") == errors.ExitCode.OK
    assert json.loads(capsys.readouterr().out) == answer


def test_a_piped_table_is_aligned_plain_text(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["volume.list"] = {"volumes": [VOLUME, VOLUME | {"name": "longer-name", "failed": "broken"}]}
    api.run("volume", "list")
    assert capsys.readouterr().out.splitlines() == [
        "VOLUME       SIZE  TRACK  SIDE  PAIR  DEVICE  CLIENTS  INVALID  NOTE",
        "v            64M   64K    -     -     -       0        0        -",
        "longer-name  64M   64K    -     -     -       0        0        broken",
    ]


def test_nothing_is_claimed_of_a_pair_whose_source_was_not_heard(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "WATCH_S", 0.01)
    api.answers["pair.list"] = {"pairs": [UNHEARD]}
    api.answers["pair.show"] = lambda: {"pair": UNHEARD}
    api.run("pair", "list")
    assert capsys.readouterr().out.splitlines()[1].split()[-4:] == ["-", "-", "-", "-"]
    api.run("pair", "show", "v")
    told = capsys.readouterr().out
    assert "%" not in told
    assert "none" not in told
    assert api.run("pair", "wait", "v", "--timeout", "0.01") == errors.ExitCode.TIMEOUT
    assert "with - tracks left" in capsys.readouterr().err
    api.answers["pair.show"] = iter([{"pair": UNHEARD}, {"pair": PAIR | {"state": "Synchronized"}}]).__next__
    api.run("pair", "watch", "v")
    assert capsys.readouterr().out.splitlines()[0].split()[1:7] == ["Partitioned", "-", "-", "of", "1024", "tracks"]


def test_a_bar_copes_with_a_source_that_is_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    from pathctl import progress

    over = PAIR | {"state": "Synchronized", "invalid": 0, "direction": None}
    progress.follow(cli.with_rate([PAIR, UNHEARD, PAIR | {"invalid": 0}, over]))
    assert "100%" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("state", "invalid", "said"), [("SyncInProg", 0, "99.9%"), ("Suspended", 0, "99.9%"), ("Synchronized", 0, "100%")]
)
def test_100_percent_is_said_of_a_synchronized_pair_only(state: str, invalid: int, said: str) -> None:
    assert show.done(PAIR | {"state": state, "invalid": invalid}) == said


def test_an_error_is_one_sentence_with_what_was_done_and_an_exit_code(
    api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {
        "code": "unreachable",
        "message": "beta does not answer.",
        "done": ["first connection"],
        "failed": "second connection",
        "undone": ["first connection"],
        "pending": [],
    }
    api.answers["pair.create"] = (502, {"error": error})
    line = ["pair", "create", "v", "beta:w", "--invalidate", "source"]
    assert api.run(*line) == errors.ExitCode.UNREACHABLE
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "pathctl: beta does not answer.",
        "  done: first connection",
        "  failed: second connection",
        "  undone: first connection",
    ]
    assert api.run(*line, "--json") == errors.ExitCode.UNREACHABLE
    assert json.loads(capsys.readouterr().out) == {"error": error}


@pytest.mark.parametrize("code", list(errors.ErrorCode))
def test_each_error_code_has_its_exit_code(api: Api, code: errors.ErrorCode) -> None:
    api.answers["volume.show"] = (500, {"error": {"code": code.value, "message": "no"}})
    assert api.run("volume", "show", "v") == errors.ExitCode[code.name]


@pytest.mark.parametrize(
    "answer", [(500, {}), (500, {"error": {"code": "odd"}}), (200, ["a list"]), (404, {"error": 1})]
)
def test_an_answer_that_is_none_is_an_internal_error(
    api: Api, capsys: pytest.CaptureFixture[str], answer: tuple[int, Json]
) -> None:
    api.answers["volume.show"] = answer
    assert api.run("volume", "show", "v") == errors.ExitCode.INTERNAL
    assert "see its log" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("volume create v --size 10X", "is no size"),
        ("pair set v --copy-rate fast", "is no rate"),
        ("pair set v", "Missing option"),
        ("pair create v w --invalidate both", "is not one of"),
        ("pair wait v --for asleep", "is not one of"),
        ("host init --name a --address 10.0.0.1:x", "ADDRESS[:PORT]"),
        ("volume", ""),
        ("nonsense", "No such command"),
    ],
)
def test_a_wrong_command_line_is_a_usage_error_and_asks_nobody(
    api: Api, capsys: pytest.CaptureFixture[str], line: str, reason: str
) -> None:
    assert api.run(*line.split()) == errors.ExitCode.USAGE
    assert reason in capsys.readouterr().err
    assert api.asked == []


def test_a_usage_error_is_json_too_if_json_is_asked_for(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert api.run("volume", "show", "--json") == errors.ExitCode.USAGE
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_without_pathctld_the_error_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--root", str(tmp_path), "status"]) == errors.ExitCode.UNREACHABLE
    assert "pathctld does not run" in capsys.readouterr().err


def test_the_root_is_taken_from_the_environment(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    api.answers["pair.list"] = {"pairs": []}
    monkeypatch.setenv("PATHCTL_ROOT", str(api.root))
    assert cli.run(["pair", "list"]) == errors.ExitCode.OK
    assert capsys.readouterr().out == "no pairs\n"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", ("10.0.0.1", 1)),
        ("10.0.0.1:22", ("10.0.0.1", 22)),
        ("fd00::1", ("fd00::1", 1)),
        ("[fd00::1]", ("fd00::1", 1)),
        ("[fd00::1]:22", ("fd00::1", 22)),
    ],
)
def test_an_address_may_have_a_port(text: str, address: tuple[str, int]) -> None:
    assert cli.split_address(text, default_port=1) == address


def states(*found: str) -> Callable[[], Json]:
    """Answers of pair.show, one after the other, the last for ever."""
    left = list(found)
    return lambda: {"pair": PAIR | {"state": left.pop(0) if len(left) > 1 else left[0]}}


def test_wait_asks_until_the_state_is_reached(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "POLL_S", 0.01)
    api.answers["pair.show"] = states("SyncInProg", "SyncInProg", "Synchronized")
    assert api.run("pair", "wait", "v", "--for", "synchronized", "--timeout", "60") == errors.ExitCode.OK
    assert len(api.asked) == 3
    assert "Synchronized" in capsys.readouterr().out


def test_wait_ends_at_its_time_limit_with_an_exit_code_of_its_own(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["pair.show"] = states("Partitioned")
    assert api.run("pair", "wait", "v", "--timeout", "0.05") == errors.ExitCode.TIMEOUT
    assert "is Partitioned and not Synchronized after 0.05 s" in capsys.readouterr().err


def test_wait_goes_on_while_pathctld_is_away(tmp_path: Path) -> None:
    started = threading.Event()
    codes: list[int] = []

    def wait() -> None:
        started.set()
        codes.append(cli.run(["--root", str(tmp_path), "pair", "wait", "v", "--timeout", "30"]))

    waiter = threading.Thread(target=wait)
    waiter.start()
    started.wait(10)
    api = Api(tmp_path)
    api.answers["pair.show"] = states("Synchronized")
    waiter.join(20)
    api.close()
    assert codes == [errors.ExitCode.OK]


def test_a_piped_watch_prints_a_line_for_each_change_until_the_end(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "WATCH_S", 0.01)
    api.answers["pair.show"] = states("Creating", "SyncInProg", "SyncInProg", "Synchronized")
    assert api.run("pair", "watch", "v") == errors.ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["Creating", "SyncInProg", "Synchronized"]


def test_watch_ends_at_a_suspended_pair_and_says_so(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers["pair.show"] = states("Suspended")
    assert api.run("pair", "watch", "v") == errors.ExitCode.REFUSED
    told = capsys.readouterr()
    assert "Suspended" in told.out
    assert "pathctl pair resume" in told.err


def test_watch_goes_on_while_pathctld_is_away_but_needs_it_at_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "WATCH_S", 0.01)
    watch = ["--root", str(tmp_path), "pair", "watch", "v"]
    assert cli.run(watch) == errors.ExitCode.UNREACHABLE
    answers = iter([{"pair": PAIR}, None, None, {"pair": PAIR | {"state": "Synchronized"}}])

    def ask(*_arguments: object, **_fields: object) -> Json:
        answer = next(answers)
        if answer is None:
            raise errors.PathctlError(errors.ErrorCode.UNREACHABLE, "away")
        return answer

    monkeypatch.setattr(client, "call", ask)
    assert cli.run(watch) == errors.ExitCode.OK
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["SyncInProg", "Synchronized"]


def test_the_installed_program_runs_and_imports_nothing_slow(api: Api) -> None:
    api.answers["pair.list"] = {"pairs": [PAIR]}
    program = Path(sys.executable).with_name("pathctl")
    shown = subprocess.run(
        [program, "--root", api.root, "pair", "list"], capture_output=True, text=True, timeout=30, check=True
    )
    assert "alpha:v" in shown.stdout
    slow = {"rich", "aiohttp", "cryptography", "asyncio", "psutil", "msgspec"}
    code = f"import sys, pathctl.cli; print(*{slow} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert found.stdout.strip() == ""


def test_a_closed_pipe_is_no_traceback(api: Api) -> None:
    api.answers["pair.list"] = {"pairs": [PAIR] * 5000}
    line = f"{Path(sys.executable).with_name('pathctl')} --root {api.root} pair list | head -1"
    shown = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
    assert shown.stderr == ""
    assert shown.stdout.startswith("PAIR")


def test_a_silent_pathctld_ends_at_the_time_limit(api: Api) -> None:
    release = threading.Event()

    def hang() -> Json:
        release.wait(30)
        return {}

    api.answers["status"] = hang
    begun = time.monotonic()
    with pytest.raises(errors.PathctlError) as caught:
        client.call(api.root, "status", limit_s=0.2)
    release.set()
    assert caught.value.code is errors.ErrorCode.TIMEOUT
    assert time.monotonic() - begun < 10
