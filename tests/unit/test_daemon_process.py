"""The installed pathctld as a process: Ctrl-C while it begins and while it stops another, users, options."""

from __future__ import annotations

import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import wait_until

from pathctl import client, config, errors, rootlock

PROGRAM = Path(sys.executable).with_name("pathctld")
LIMIT_S = 30


def command(root: Path, *arguments: str) -> list[str | Path]:
    return [PROGRAM, "--root", root, *arguments]


def run(*whole: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(whole, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def interrupted(root: Path, after_s: float, *arguments: str) -> tuple[int, str]:
    """(exit code, standard error) when Ctrl-C comes so much later than the start."""
    whole = command(root, *arguments)
    with subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        select.select([], [], [], after_s)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, err


def is_answering(root: Path) -> bool:
    try:
        client.call(root, "pair.list")
    except errors.PathctlError:
        return False
    return True


def measure_start_ms(root: Path) -> int:
    """How long it is until pathctld serves; then it is interrupted twice."""
    begun = time.monotonic()
    with subprocess.Popen(command(root), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: is_answering(root), "pathctld serves")
        takes_ms = int((time.monotonic() - begun) * 1000)
        assert Path(f"/proc/{process.pid}/comm").read_text() == "pathctld\n"
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=LIMIT_S)
    assert (process.returncode, "Traceback" in err) == (0, False), err
    return takes_ms


def test_ctrl_c_at_any_moment_is_no_traceback(tmp_path: Path) -> None:
    """From the first instruction of the new process until it serves."""
    takes_ms = min(measure_start_ms(tmp_path) for _ in range(3))  # one may be held up
    codes: set[int] = set()
    for delay_ms in range(0, takes_ms + 50, max(20, takes_ms // 40)):
        code, err = interrupted(tmp_path, delay_ms / 1000)
        assert code in (0, -signal.SIGINT), err
        assert "Traceback" not in err
        codes.add(code)
    assert -signal.SIGINT in codes


def measure_end_ms(root: Path) -> int:
    begun = time.monotonic()
    assert run(*command(root, "--stop-all")).returncode == 0
    return int((time.monotonic() - begun) * 1000)


def test_ctrl_c_at_any_moment_of_stop_all_is_no_traceback(tmp_path: Path) -> None:
    takes_ms = min(measure_end_ms(tmp_path) for _ in range(3))
    for delay_ms in range(0, takes_ms + 50, max(20, takes_ms // 40)):
        code, err = interrupted(tmp_path, delay_ms / 1000, "--stop-all")
        assert code in (0, 130, -signal.SIGINT), err
        assert "Traceback" not in err


def test_ctrl_c_while_another_pathctld_is_asked_to_stop_says_what_goes_on(tmp_path: Path) -> None:
    cfg = config.at(str(tmp_path))
    cfg.make_folders()
    with rootlock.alone(cfg), socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(cfg.api_socket))
        silent.listen()
        whole = command(tmp_path, "--stop-all")
        with subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            silent.settimeout(LIMIT_S)
            asking, _address = silent.accept()
            process.send_signal(signal.SIGINT)
            _out, err = process.communicate(timeout=LIMIT_S)
            asking.close()
    assert process.returncode == 130
    assert err == "pathctld: interrupted; the running pathctld may go on with it: see `pathctl status`\n"


@pytest.mark.parametrize("option", [[], ["--stop-all"]])
def test_another_user_is_told_to_be_root(tmp_path: Path, option: list[str]) -> None:
    for folder in (tmp_path, *tmp_path.parents[:1]):
        folder.chmod(0o755)
    shown = run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command(tmp_path, *option))
    assert shown.returncode == errors.ExitCode.REFUSED, shown.stderr
    assert "so nothing was done: run it as root" in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


def test_a_wrong_option_is_one_line_and_the_version_is_told() -> None:
    for wrong in ("--nothing", "nothing", "--root"):
        shown = run(PROGRAM, wrong)
        assert (shown.returncode, shown.stdout) == (errors.ExitCode.USAGE, "")
        assert len(shown.stderr.splitlines()) == 1
        assert shown.stderr.startswith("pathctld: ")
    shown = run(PROGRAM, "--version")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout == run(PROGRAM.with_name("pathctl"), "--version").stdout.replace("pathctl", "pathctld")
