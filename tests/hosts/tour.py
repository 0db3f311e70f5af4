"""tour - the README's commands and what they print, typed into one shell and compared.

In an indented block a line that begins with `$ ` is typed; the lines below it are what it prints, where `...` stands
for any lines, or for the rest of one.  What differs from run to run by its nature (identifiers, times, rates, how far
a copy has come, device numbers, the width of columns) may differ; every other word and number must be as printed.
"""

from __future__ import annotations

import dataclasses
import os
import re
import select
import signal
import subprocess
import time
import uuid
from pathlib import Path

COMMAND_LIMIT_S = 90.0

# What may differ, as it is written in the README -> what it may be instead.  Tried in this order at each place.
VOLATILE = [
    (r"\d{4}-\d\d-\d\d", r"\d{4}-\d\d-\d\d"),
    (r"\d\d:\d\d:\d\d(?:\.\d+)?", r"\d\d:\d\d:\d\d(?:\.\d+)?"),
    (r"[+-]\d\d:?\d\d\b", r"[+-]\d\d:?\d\d"),
    (r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    (r"\b(?=[0-9a-f]*\d)[0-9a-f]{8}\b", r"[0-9a-f]{8}"),
    (r"\b[0-9a-f]{16,}\b", r"[0-9a-f]{16,}"),
    (r"/dev/loop\d+", r"/dev/loop\d+"),
    (r"\bpid \d+|\b\d+(?=, \d+ clients?)", r"(?:pid )?\d+"),
    (r"\b\d+(?:\.\d+)?[KMGT]?/s", r"\d+(?:\.\d+)?[KMGT]?/s"),
    (r"\b\d+(?:\.\d+)? ?(?:ms|min|s|h)\b(?: \d+ ?(?:min|s)\b)?", r"\d+(?:\.\d+)? ?(?:ms|min|s|h)(?: \d+ ?(?:min|s))?"),
    (r"\b\d+(?:\.\d+)?%", r"\d+(?:\.\d+)?%"),
    (r"\b\d+ of (?=\d+ tracks)|\b\d+ (?=tracks left of)", r"\d+ (?:of )?"),
    (r"\b\d+\.\d+[KMGT]\b|\b\d+(?:\.\d+)?[KMGT]? left\b", r"\d+(?:\.\d+)?[KMGT]?(?: left)?"),
    (r"\(\d+(?:\.\d+)?[KMGT]?\)", r"\(\d+(?:\.\d+)?[KMGT]?\)"),
    (r"\s+", r"\s+"),
    (r"[-─━]{2,}", r"[-─━]{2,}"),
]
_PIECES = re.compile("|".join(f"(?P<v{number}>{written})" for number, (written, _) in enumerate(VOLATILE)))


@dataclasses.dataclass
class Line:
    """One command of the README and what stands below it."""

    number: int  # of the README's line
    command: str
    output: list[str]


def read(readme: Path, heading: str) -> list[Line]:
    """The commands of one section, in their order."""
    lines: list[Line] = []
    is_inside, block = False, False
    for number, text in enumerate(readme.read_text().splitlines(), 1):
        if text.startswith("#"):
            level = len(text) - len(text.lstrip("#"))
            is_inside = text.strip("# ") == heading or (is_inside and level > 2)
        if not is_inside:
            continue
        if text.startswith("    $ "):
            lines.append(Line(number, text[6:], []))
            block = True
        elif text.startswith("    ") and block:
            lines[-1].output.append(text[4:].rstrip())
        elif text.strip():
            block = False
    return lines


def pattern(text: str) -> str:
    """The regular expression of what may be printed where the README prints `text`."""
    out, at = "", 0
    for piece in _PIECES.finditer(text):
        assert piece.lastgroup is not None
        out += re.escape(text[at : piece.start()]) + VOLATILE[int(piece.lastgroup[1:])][1]
        at = piece.end()
    return out + re.escape(text[at:])


def fits(written: list[str], printed: list[str]) -> bool:
    """Empty lines do not count."""
    whole = ""
    for line in filter(str.strip, written):
        text = line.strip()
        if text == "...":
            whole += r"(?:.*\n)*?"
        elif text.endswith("..."):
            whole += rf"\s*{pattern(text[:-3])}.*\n"
        else:
            whole += rf"\s*{pattern(text)}\s*\n"
    return re.fullmatch(whole, "".join(f"{line}\n" for line in printed if line.strip())) is not None


class Shell:
    """One bash that lives through the tour; commands are typed into it one after the other."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def type(self, command: str) -> tuple[int, list[str]]:
        """-> exit code and lines printed; fails after COMMAND_LIMIT_S."""
        assert self._bash.stdin is not None
        mark = f"end-{uuid.uuid4()}"
        self._bash.stdin.write(f"{command}\necho {mark} $?\n".encode())
        self._bash.stdin.flush()
        text, end = "", time.monotonic() + COMMAND_LIMIT_S
        while not (found := re.search(rf"{mark} (\d+)\n", text)):
            text += self._read(end - time.monotonic(), command, text)
        return int(found[1]), text[: found.start()].splitlines()

    def _read(self, limit_s: float, command: str, before: str) -> str:
        assert self._bash.stdout is not None
        ready, _, _ = select.select([self._bash.stdout], [], [], max(limit_s, 0))
        assert ready, f"not finished within {COMMAND_LIMIT_S:g} s: {command}\n{before}"
        data = os.read(self._bash.stdout.fileno(), 1 << 16)
        assert data, f"the shell ended at: {command}\n{before}"
        return data.decode()

    def close(self) -> None:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._bash.stdout.close()
        try:
            self._bash.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._bash.pid, signal.SIGKILL)
            self._bash.wait(10)
