"""The installed program as a process: Ctrl-C, lost outputs, a terminal that is asked, other users, a short start."""

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakeapi
import pytest
from fakeapi import Api, Json
from waiting import wait_until

from pathctl import client, errors

PROGRAM = Path(sys.executable).with_name("pathctl")
LIMIT_S = 30


def run(api: Api, *arguments: str | bytes, **options: Any) -> "subprocess.CompletedProcess[str]":
    options = {"capture_output": True} | options
    command = [PROGRAM, "--root", api.root, *arguments]
    return subprocess.run(command, text=True, timeout=LIMIT_S, check=False, **options)


def bash(api: Api, line: str) -> "subprocess.CompletedProcess[str]":
    """A line of bash in which `pathctl` is the installed program."""
    whole = f'set -o pipefail; pathctl() {{ "{PROGRAM}" --root "{api.root}" "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", whole], capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_the_installed_program_runs_and_imports_nothing_slow(api: Api) -> None:
    shown = run(api, "pair", "list")
    assert "alpha:v" in shown.stdout
    slow = {"rich", "aiohttp", "cryptography", "asyncio", "psutil", "msgspec", "http.client", "ssl"}
    code = f"import sys, pathctl.cli; print(*{slow} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert found.stdout.strip() == ""


# -- Ctrl-C -----------------------------------------------------------------------------------------------


@pytest.fixture
def slow_api(api: Api) -> Iterator[Api]:
    """It answers when the test is over."""
    release = threading.Event()

    def hang() -> Json:
        release.wait(LIMIT_S)
        return {}

    api.answers |= dict.fromkeys(("status", "pair.suspend"), hang)
    yield api
    release.set()


@pytest.mark.parametrize(
    ("line", "verb", "said"),
    [
        ("status", "status", "interrupted; nothing was changed"),
        ("pair suspend v", "pair.suspend", "pathctld goes on with pair.suspend: look with `pathctl status`"),
    ],
)
def test_ctrl_c_while_pathctld_works_says_what_goes_on(slow_api: Api, line: str, verb: str, said: str) -> None:
    command = [PROGRAM, "--root", slow_api.root, *line.split()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: slow_api.asked, "the verb is asked")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("status", "interrupted; nothing was changed"),
        ("pair suspend v", "interrupted, but pathctld goes on with pair.suspend: look with `pathctl status`"),
        ("--help", "interrupted"),
    ],
)
def test_ctrl_c_at_any_moment_is_no_traceback(api: Api, line: str, told: str) -> None:
    """From the first instruction of the new process to its end, in steps of two milliseconds, or 150 of them."""
    takes_ms = min(measure_ms(lambda: run(api, *line.split())) for _ in range(3))  # one may be held up
    known = {"", *(f"pathctl: {said}\n" for said in ("interrupted", told, "interrupted; what was asked is done"))}
    codes: set[int] = set()
    for delay_ms in range(0, takes_ms + 5, max(2, takes_ms // 150)):
        command = [PROGRAM, "--root", api.root, *line.split()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            select.select([], [], [], delay_ms / 1000)
            process.send_signal(signal.SIGINT)
            _out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode in (0, 130, -signal.SIGINT), err
        assert err in known
        codes.add(process.returncode)
    assert -signal.SIGINT in codes


def measure_ms(work: Callable[[], object]) -> int:
    begun = time.monotonic()
    work()
    return int((time.monotonic() - begun) * 1000)


def test_ctrl_c_ends_a_watch(api: Api) -> None:
    api.answers["pair.list"] = {"pairs": [fakeapi.PAIR]}
    command = [PROGRAM, "--root", api.root, "pair", "watch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "SyncInProg" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err


# -- outputs that are lost --------------------------------------------------------------------------------


def test_a_closed_pipe_is_no_noise(api: Api) -> None:
    api.answers["pair.list"] = {"pairs": [fakeapi.PAIR] * 5000}
    shown = bash(api, "pathctl pair list | head -1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("PAIR")
    for line in ("status | :", "--help | :", "pair list --json | :", "events | :", "completion bash | :", "why v | :"):
        shown = bash(api, f"pathctl {line}")
        assert (shown.returncode, shown.stderr) == (0, ""), line


def test_a_watch_whose_reader_goes_has_not_ended_well(api: Api) -> None:
    api.answers["pair.list"] = fakeapi.states("pair.list", *["SyncInProg", "Partitioned"] * 100)
    for option in ("", "--json"):
        shown = bash(api, f"pathctl pair watch {option} | head -1")
        assert (shown.returncode, shown.stderr) == (141, "")


@pytest.mark.parametrize("line", ["status", "pair list --json", "--help", "completion zsh", "events", "pair show v"])
def test_an_output_that_cannot_be_written_is_one_sentence(api: Api, line: str) -> None:
    shown = bash(api, f"pathctl {line} >/dev/full")
    assert shown.returncode == errors.ExitCode.INTERNAL
    assert shown.stderr == "pathctl: the output cannot be written (No space left on device); the rest is done\n"
    shown = bash(api, f"pathctl {line} >/dev/full 2>&1")
    assert shown.returncode == errors.ExitCode.INTERNAL


def test_errors_that_cannot_be_written_leave_the_exit_code(api: Api) -> None:
    for line in ("volume show 2>/dev/full", "volume show --json 2>&- >&2", "volume show 2>&-"):
        assert bash(api, f"pathctl {line}").returncode in (errors.ExitCode.USAGE, errors.ExitCode.INTERNAL), line


def test_a_closed_output_is_told_before_anything_is_done(api: Api) -> None:
    shown = bash(api, "pathctl pair suspend v >&-")
    assert shown.returncode == errors.ExitCode.INTERNAL
    assert shown.stderr == "pathctl: standard output is closed, so nothing was done: send it to /dev/null instead\n"
    assert api.asked == []
    assert bash(api, "pathctl pair suspend v <&-").returncode == 0


def test_what_the_output_cannot_show_is_escaped(api: Api) -> None:
    error = {"code": "refused", "message": "no name: \u0430\u0431", "done": []}
    api.answers["volume.show"] = (409, {"error": error})
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG"))}
    shown = run(api, "volume", "show", "v", env=environment | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert shown.returncode == errors.ExitCode.REFUSED
    assert shown.stderr == "pathctl: no name: \\u0430\\u0431\n"
    shown = run(api, "volume", "show", b"v\xff")
    assert shown.returncode == errors.ExitCode.USAGE
    assert r"v\udcff" in shown.stderr


# -- agreeing ---------------------------------------------------------------------------------------------


# As a user's shell it is still there when the program has ended: with a session's first process its terminal goes, and
# with it what was not read yet.
SHELL = """trap : INT; "$@"; code=$?; echo ended; read -r line; exit $code"""
ENDED = b"ended\r\n"


def answer_on_terminal(api: Api, typed: bytes, *arguments: str) -> tuple[int, str]:
    """Exit code and what is shown, when `typed` is typed at the question."""
    leader, follower = pty.openpty()
    command = ["setsid", "--ctty", "sh", "-c", SHELL, "sh", PROGRAM, "--root", api.root, *arguments]  # ^C is a signal
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    try:
        while piece := os.read(leader, 4096):
            shown += piece
            if shown.endswith(b"Go on? [y/N]: "):
                os.write(leader, typed)
            if shown.endswith(ENDED):
                os.write(leader, b"\n")
    except OSError:  # EIO: the other end has closed
        pass
    os.close(leader)
    return process.wait(LIMIT_S), shown.partition(ENDED)[0].decode()


@pytest.mark.parametrize(
    ("typed", "code", "done"),
    [(b"y\n", 0, True), (b"n\n", 4, False), (b"\n", 4, False), (b"\x04", 4, False), (b"\x03", 130, False)],
)
def test_on_a_terminal_a_loss_is_told_and_asked_about(api: Api, typed: bytes, code: int, done: bool) -> None:
    api.plan = fakeapi.LOSING
    ended, shown = answer_on_terminal(api, typed, "volume", "delete", "v")
    assert ended == code
    assert fakeapi.LOSS in shown
    assert [fields["dry_run"] for _verb, fields in api.asked] == [True, False][: 1 + done]
    assert ("nothing was changed" in shown) == (not done)
    assert "Traceback" not in shown


def test_with_json_nobody_is_asked(api: Api) -> None:
    api.plan = fakeapi.LOSING
    ended, shown = answer_on_terminal(api, b"y\n", "volume", "delete", "v", "--json")
    assert ended == errors.ExitCode.REFUSED
    assert json.loads(shown.splitlines()[-1])["error"]["code"] == "refused"


# -- pathctld, absent or not ours -------------------------------------------------------------------------


def test_without_pathctld_the_error_says_how_to_start_it(tmp_path: Path) -> None:
    shown = subprocess.run(
        [PROGRAM, "--root", tmp_path, "status"], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert shown.returncode == errors.ExitCode.UNREACHABLE
    assert f"start it as root with `pathctld --root {tmp_path}`" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_another_user_is_told_so(api: Api) -> None:
    client.socket_path(api.root).parent.chmod(0o700)
    api.root.chmod(0o755)
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", PROGRAM, "--root", api.root, "status"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert shown.returncode == errors.ExitCode.REFUSED, shown.stderr
    assert "repeat the command as root" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_a_pathctld_that_ends_in_the_middle_leaves_what_it_did_unknown(tmp_path: Path) -> None:
    path = client.socket_path(tmp_path)
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        command = [PROGRAM, "--root", tmp_path, "pair", "suspend", "v"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            server.settimeout(LIMIT_S)
            server.accept()[0].close()
            _out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == errors.ExitCode.UNREACHABLE
    assert "what it did is unknown, look with `pathctl status`" in err
    assert len(err.splitlines()) == 1


def test_a_silent_pathctld_ends_at_the_time_limit(slow_api: Api) -> None:
    with pytest.raises(errors.PathctlError) as caught:
        client.call(slow_api.root, "status", limit_s=0.2)
    assert caught.value.code is errors.ErrorCode.TIMEOUT
