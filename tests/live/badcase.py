"""badcase - one case of bad input: what is typed, how it must end, and what is wrong with how it ended."""

from __future__ import annotations

import json
import shlex
import signal
from dataclasses import dataclass

import msgspec
from live import badact, badprepare
from live.badscene import Outcome, Scene

from pathctl import errors, shapes
from pathctl.errors import ExitCode

INTERRUPT = 128 + signal.SIGINT


@dataclass(frozen=True)
class Result:
    outcome: Outcome
    json: Outcome | None  # the same with --json
    words: tuple[str, ...]
    changes: list[str]  # what is not as it was before


@dataclass(frozen=True)
class Case:
    """One command line, as for a shell; names in braces there and in `words` are what the scene is prepared with."""

    line: str
    typed: str
    code: int
    words: tuple[str, ...] = ()
    prepare: badprepare.Prepare = badprepare.as_it_is
    at: str = "alpha"
    program: str = "pathctl"
    is_undone: bool = False  # something is begun before it fails: events tell of that too
    is_silent: bool = False  # nobody is there to be told
    has_json: bool = True
    act: badact.Act = badact.type_it
    check: badact.Check = badact.unchanged

    @property
    def title(self) -> str:
        """The command as it stands in the table, where it is typed, and what is odd about it."""
        typed = self.typed if len(self.typed) < 120 else f"{self.typed[:50]}...{self.typed[-20:]}"
        return f"{self.at}$ {self.program} {typed}{self.odd}".encode("unicode_escape").decode()

    @property
    def odd(self) -> str:
        names = [getattr(part, "__name__", "") for part in (self.prepare, self.act)]
        return "".join(f" [{name.replace('_', ' ')}]" for name in names if name not in ("as_it_is", "type_it"))

    def run(self, scene: Scene) -> Result:
        """Prepare the scene, type the command, also with --json, compare, and undo the preparation."""
        with self.prepare(scene) as prepared:
            words = scene.words | prepared
            typed = [word.format(**words) for word in shlex.split(self.typed)]
            before, newest = scene.snapshot(), scene.newest_events()
            outcome = self.act(scene, scene.command(self.at, typed, self.program))
            changes = self.check(scene, before)
            as_json = None
            if self.has_json:
                as_json = self.act(scene, scene.command(self.at, [*typed, "--json"], self.program))
                changes += self.check(scene, before)
            if not self.is_undone and self.check is badact.unchanged:
                changes += scene.changing_events(newest)
        return Result(outcome, as_json, tuple(word.format(**words) for word in self.words), changes)


def faults_of(case: Case, result: Result) -> list[str]:
    """Everything in which the answers are not as promised."""
    as_json = _faults_of_json(case, result.json) if result.json is not None else []
    return _faults_of_text(case, result) + as_json + result.changes


def _faults_of_text(case: Case, result: Result) -> list[str]:
    outcome = result.outcome
    found = [f"exit code {outcome.code} instead of {int(case.code)}"] if outcome.code != case.code else []
    if case.code == ExitCode.OK:
        return found + _wrong_words(result, outcome.out, outcome.err) + _ugly(outcome)
    if outcome.out and case.code != INTERRUPT:  # what had been told before
        found.append(f"something on stdout: {outcome.out[:80]!r}")
    lines = outcome.err.splitlines()
    told = [line for line in lines if line.startswith(f"{case.program}: ")]
    rest = [line for line in lines if line not in told]
    if len(told) != (0 if case.is_silent else 1):
        found.append(f"{len(told)} sentences on stderr")
    if case.program == "pathctl" and not all(line.startswith("  ") for line in rest):
        found.append(f"more than a sentence and its list: {rest}")
    return found + _wrong_words(result, (told or [""])[0]) + _ugly(outcome)


def _wrong_words(result: Result, told: str, untold: str = "") -> list[str]:
    missing = [word for word in result.words if word not in told]
    return [f"{missing} is not said"] * bool(missing) + [f"also said: {untold}"] * bool(untold)


def _ugly(outcome: Outcome) -> list[str]:
    text = outcome.err + outcome.out
    found = ["a traceback"] if "Traceback" in text else []
    odd = {char for line in text.split("\n") for char in line if not char.isprintable()}
    return [*found, f"unprintable characters: {sorted(odd)}"] if odd else found


def _faults_of_json(case: Case, outcome: Outcome) -> list[str]:
    """The error as an object on stdout."""
    try:
        answer = json.loads(outcome.out)
        code = msgspec.convert(answer, shapes.ErrorAnswer).error.code
    except ValueError as error:
        return [f"with --json: {error}"]
    if next(iter(answer)) != "version" or answer["version"] != shapes.VERSION:
        return ["with --json: the version does not come first"]
    wanted = ExitCode.of(errors.ErrorCode(code))
    wrong = [] if outcome.code == wanted == case.code else [f"with --json: code {code} and exit code {outcome.code}"]
    return wrong + _ugly(outcome)
