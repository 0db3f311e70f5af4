"""Shell completion: what Tab offers, driven as the shells drive it."""

import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fakeapi
import pytest
from fakeapi import PAIR, Api, Json

from pathctl import completion

BIN = Path(sys.executable).parent
LIMIT_S = 30


@pytest.fixture(autouse=True)
def _known(api: Api) -> None:
    volumes = [fakeapi.VOLUME | {"name": name} for name in ("home", "hold", "work")]
    pair = PAIR | {"source": {"host": "alpha", "volume": "home"}, "destination": {"host": "beta", "volume": "far"}}
    api.answers["status"] = {"host": fakeapi.HOST, "peers": [fakeapi.PEER], "volumes": volumes, "pairs": [pair]}


def environment(api: Api) -> dict[str, str]:
    return os.environ | {"PATHCTL_ROOT": str(api.root), "PATH": f"{BIN}:{os.environ['PATH']}"}


def offered(api: Api, shell: str, line: str) -> list[str]:
    """What the program answers to the script of zsh or fish, for a line whose last word is to be completed."""
    words = line.split(" ")
    index = str(len(words) - 1) if shell == "zsh" else words[-1]
    told = {"COMP_WORDS": line, "COMP_CWORD": index, "_PATHCTL_COMPLETE": f"{shell}_complete"}
    shown = subprocess.run(
        [BIN / "pathctl"], env=environment(api) | told, capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert shown.stderr == ""
    lines = [item for item in shown.stdout.splitlines() if item]
    return lines[1::3] if shell == "zsh" else [item.partition(",")[2].partition("\t")[0] for item in lines]


CASES = [
    ("pathctl pa", ["pair"]),
    ("pathctl pair su", ["suspend"]),
    ("pathctl pair suspend ", [PAIR["pair"][:8], "home"]),
    ("pathctl why h", ["home"]),
    ("pathctl pair watch home 0f", [PAIR["pair"][:8]]),
    ("pathctl volume show ho", ["hold", "home"]),
    ("pathctl attach w", ["work"]),
    ("pathctl peer set ", ["beta"]),
    ("pathctl pair create h", ["hold", "home"]),
    ("pathctl pair create home b", ["beta:"]),
    ("pathctl pair create home beta:f", ["beta:far"]),
    ("pathctl pair create home x --invalidate s", ["source"]),
    ("pathctl pair create --inv", ["--invalidate"]),
    ("pathctl events --pair ho", ["home"]),
    ("pathctl completion ", ["bash", "zsh", "fish"]),
    ("pathctl volume show nothing", []),
]


def again(ask: Callable[[], list[str]], wanted: list[str]) -> list[str]:
    """Somebody who is offered nothing presses Tab again: after a second names are given up."""
    for _ in range(3):
        found = ask()
        if found or not wanted:
            break
    return found


def tab(api: Api, line: str) -> list[str]:
    """What bash itself has in COMPREPLY after Tab at the end of `line`, with the script sourced."""
    script = f"""
        source <(pathctl completion bash) || exit 1
        [[ $(complete -p pathctl) == *-F\\ _pathctl_completion\\ pathctl ]] || exit 1
        compopt() {{ :; }}
        COMP_LINE='{line}' COMP_POINT={len(line)}
        _pathctl_completion pathctl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    shown = subprocess.run(
        ["bash", "-c", script], env=environment(api), capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert shown.stderr == ""
    return [word for word in shown.stdout.splitlines() if word]


@pytest.mark.parametrize(("line", "wanted"), CASES, ids=[line for line, _wanted in CASES])
def test_bash_offers_commands_options_and_names(api: Api, line: str, wanted: list[str]) -> None:
    # bash takes what stands behind the colon for a word of its own, and replaces only that.
    assert again(lambda: tab(api, line), wanted) == [
        word.removeprefix("beta:") if ":" in line else word for word in wanted
    ]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.parametrize(("line", "wanted"), CASES, ids=[line for line, _wanted in CASES])
def test_zsh_and_fish_are_offered_the_same(api: Api, shell: str, line: str, wanted: list[str]) -> None:
    assert [word.replace("\\:", ":") for word in again(lambda: offered(api, shell, line), wanted)] == wanted


def test_tab_in_a_real_bash_completes_the_line(api: Api) -> None:
    """readline itself, on a terminal: a colon in the word, and the blank after a whole one."""
    leader, follower = pty.openpty()
    plain = environment(api) | {"PS1": "> ", "TERM": "dumb", "INPUTRC": "/dev/null"}
    command = ["setsid", "--ctty", "bash", "--norc", "--noprofile", "-i"]
    shell = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=plain)
    os.close(follower)
    shown = b""

    def read_until(wanted: bytes) -> None:
        nonlocal shown
        end = time.monotonic() + LIMIT_S
        while wanted not in shown:
            assert time.monotonic() < end, shown
            shown += os.read(leader, 4096)
        shown = b""

    read_until(b"> ")
    os.write(leader, b"source <(pathctl completion bash); echo so''urced\n")
    read_until(b"sourced\r\n> ")
    os.write(leader, b"pathctl pair create home be\t")
    read_until(b"beta:")
    os.write(leader, b"f\t")
    read_until(b"far ")
    os.write(leader, b"\x15exit\n")
    assert shell.wait(LIMIT_S) == 0
    os.close(leader)


@pytest.fixture
def silent(api: Api) -> Iterator[Api]:
    release = threading.Event()

    def hang() -> Json:
        release.wait(LIMIT_S)
        return {}

    api.answers["status"] = hang
    yield api
    release.set()


def test_without_an_answer_there_are_no_names_and_no_word(
    silent: Api, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert offered(silent, "zsh", "pathctl why ") == []
    absent = tmp_path_factory.mktemp("absent")
    silent.root = absent
    assert offered(silent, "fish", "pathctl why ") == []


@pytest.mark.parametrize("answer", [{}, {"volumes": 3, "pairs": [], "peers": []}, {"volumes": [{}]}])
def test_an_answer_of_another_version_gives_no_names(api: Api, answer: Json) -> None:
    api.answers["status"] = answer
    assert completion.names(str(api.root), "end", "") == []


def test_another_root_is_asked_if_the_line_says_so(api: Api, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = api.root
    api.root = tmp_path_factory.mktemp("other")
    assert offered(api, "zsh", f"pathctl --root {root} attach w") == ["work"]
    api.root = root
