"""logs - what pathctld says on stderr: one line per event, as key=value (logfmt), bounded, without secrets.

Under systemd (stderr is the journal) a line begins with its priority, `<4>`, and has no time: the journal has its own.
Values are quoted where they must be; nothing from outside gets onto a line with a control character in it.  Lines
of one kind (one call, of one volume and pair) beyond `log.lines_per_minute` are counted, and the count is told.
Whatever looks like a key or token is left out: a last line of defence, nobody logs them.
Owns the volumes' log files too, which nbdkit and fusefile append to: `bound` keeps them small while they grow.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Hashable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from pathctl import actor, shapes
from pathctl.settings import Log

WINDOW_S = 60.0
TEXT_MOST = 2000
TRACE_MOST = 6000
KINDS_MOST = 1000
BOUND_EVERY_S = 5.0

PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
WARNINGS = {
    "process.failed",
    "process.hung",
    "device.failed",
    "path.lost",
    "path.refused",
    "path.halted",
    "disk.failing",
    "peer.unreachable",
    "peer.clock",
    "command.failed",
}
BAD_STATES = {"Partitioned", "Split", "Refused"}

_PLAIN = re.compile(r"[\w.:/@%+,~-]+", re.ASCII)
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}
_SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"  # a key file
    r"|(?<![\w-])[0-9A-Fa-f]{32,}(?![\w-])"  # a pair's key, a digest
    r"|(?<![\w-])(?=[\w-]*[A-Z])(?=[\w-]*[a-z])(?=[\w-]*[0-9])[\w-]{40,}"  # a token, its secret
    r"|(?i:(?<=token)|(?<=secret)|(?<=psk)|(?<=password))[\"']?\s*[=:]\s*[\"']?[^\s\"',;}]+",
    re.ASCII | re.DOTALL,
)
log = logging.getLogger(__name__)
_events = logging.getLogger("pathctl.event")


def set_up(found: Log, stream: TextIO | None = None) -> None:
    """Send everything that this process logs, libraries' lines and warnings included, to stderr."""
    out = stream or sys.stderr
    handler = Handler(out, found.lines_per_minute, is_journal=_is_journal(out))
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(found.level.upper())
    logging.getLogger("asyncio").setLevel(max(logging.INFO, root.level))


def _is_journal(stream: TextIO) -> bool:
    """systemd tells in JOURNAL_STREAM which file is the journal: one that was redirected is not."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def of(*, volume: str | None = None, pair: str | None = None, **more: object) -> dict[str, Any]:
    """For a log call's `extra`: what the line is about."""
    return {"fields": {"volume": volume, "pair": pair, **more}}


def write_event(event: shapes.Event) -> None:
    """The log line of an event; for db.on_event."""
    is_bad = event.kind in WARNINGS or (event.kind == "pair.state" and event.after in BAD_STATES)
    fields = {
        "event": event.kind,
        "id": event.id,
        "volume": event.volume,
        "pair": event.pair,
        "peer": event.peer,
        "actor": event.actor,
        "before": event.before,
        "after": event.after,
        "cause": event.cause,
    }
    _events.log(logging.WARNING if is_bad else logging.INFO, "%s", event.message, extra={"fields": fields})


def quote(value: object, most: int = TEXT_MOST) -> str:
    """A value of logfmt: as it is if that is plain, else in quotes, what cannot be printed escaped."""
    text = str(value)
    text = text if len(text) <= most else f"{text[:most]}... ({len(text) - most} more)"
    if _PLAIN.fullmatch(text):
        return text
    return '"' + "".join(_SHORT.get(c) or _escape(c) for c in text) + '"'


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


def redact(text: str) -> str:
    return _SECRET.sub("[secret]", text)


def make_line(fields: dict[str, object], most: int = TEXT_MOST) -> str:
    """`key=value key=value`, without those that are None."""
    return " ".join(f"{key}={quote(redact(str(value)), most)}" for key, value in fields.items() if value is not None)


# -- not too many -----------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Window:
    """One minute of one kind: since when, how many were let through, how many were not."""

    since: float
    passed: int = 0
    held: int = 0


class Limiter:
    """Lets so many of each kind through in a minute, and counts the others."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._windows: dict[Hashable, _Window] = {}

    def admit(self, kind: Hashable) -> bool:
        window = self._windows.setdefault(kind, _Window(self._clock()))
        if window.passed < self._per_minute:
            window.passed += 1
            return True
        window.held += 1
        return False

    def take_held(self) -> list[tuple[Any, int]]:
        """(kind, how many) of those whose minute is over and that held any back; their next minute begins."""
        now = self._clock()
        # What is held back is not forgotten to make room; kinds without end are let go early instead.
        crowded = len(self._windows) > KINDS_MOST
        over = {kind: window for kind, window in self._windows.items() if crowded or now - window.since >= WINDOW_S}
        for kind in over:
            del self._windows[kind]
        return [(kind, window.held) for kind, window in over.items() if window.held]


# -- the handler ------------------------------------------------------------------------------------------


class Handler(logging.Handler):
    """Writes records as lines; never raises, and never writes more than the limiter lets through."""

    def __init__(
        self, stream: TextIO, per_minute: int, *, is_journal: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__()
        self._stream, self._is_journal = stream, is_journal
        self._limiter = Limiter(per_minute, clock)

    def emit(self, record: logging.LogRecord) -> None:
        self.tell_held()
        fields = getattr(record, "fields", {})
        about = fields.get("event"), fields.get("volume"), fields.get("pair")
        if self._limiter.admit((record.levelname, record.name, str(record.msg), *about)):
            self._write(record.levelname, record.created, _fields(record, fields))

    def tell_held(self) -> None:
        """Say how many lines were held back in minutes that are over."""
        with self.lock or contextlib.nullcontext():
            self._tell_held()

    def _tell_held(self) -> None:
        for (level, name, template, event, volume, pair), count in self._limiter.take_held():
            said = f"{count} more suppressed in the last minute: {template}"
            fields = {"part": _part(name), "msg": said, "event": event, "volume": volume, "pair": pair}
            self._write(level, time.time(), fields)

    def _write(self, level: str, at: float, fields: dict[str, object]) -> None:
        level = level.lower()
        most = TRACE_MOST if "trace" in fields else TEXT_MOST
        line = make_line({"level": level, **fields}, most)
        if self._is_journal:
            line = f"<{PRIORITIES.get(level, 6)}>{line}"
        else:
            line = f"time={datetime.fromtimestamp(at, UTC).isoformat(timespec='milliseconds')[:-6]}Z {line}"
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody is left to be told
            return


def _fields(record: logging.LogRecord, fields: dict[str, object]) -> dict[str, object]:
    """What a record says, in the order in which it is read."""
    try:
        said = record.getMessage()
    except (TypeError, ValueError):  # a mistake in the call; what it has to say is still wanted
        said = f"{record.msg} {record.args!r}"
    who = actor.who.get()
    found: dict[str, object] = {"part": _part(record.name), "msg": said, **fields}
    if "event" not in fields and actor.why.get() is not None:
        found |= {"actor": who, "cause": actor.why.get()}
    if record.exc_info and record.exc_info[0] is not None:
        found["trace"] = "".join(traceback.format_exception(*record.exc_info))[-TRACE_MOST:]
    return found


def _part(name: str) -> str:
    return name.removeprefix("pathctl.")


# -- the volumes' log files -------------------------------------------------------------------------------


def bound(file: Path, most: int) -> bool:
    """Move the end of a log that has grown beyond `most` to FILE.1 and empty it; whether that was so.

    Whoever appends to it (O_APPEND) may go on meanwhile.  What is written between the copy and the emptying is
    lost; so is all of it where there is no room for FILE.1: room is worth more then.
    """
    try:
        size = file.stat().st_size
        if size <= most:
            return False
        try:
            with file.open("rb") as old, file.with_name(file.name + ".1").open("wb") as new:
                old.seek(max(0, size - most))
                new.write(old.read(2 * most))
        finally:
            os.truncate(file, 0)
    except OSError:
        return False
    return True


def bound_all(folder: Path, most: int) -> list[Path]:
    """The logs of a folder that were bounded."""
    return [file for file in (*folder.glob("*.log"), *folder.glob("*.fuse")) if bound(file, most)]


async def keep_bounded(folder: Path, most: int) -> None:
    """As long as pathctld runs: no log in the folder grows without limit, and what was held back is told."""
    while True:
        for file in await asyncio.to_thread(bound_all, folder, most):
            log.info("the log of volume %s had grown; its end is in %s.1", file.stem, file, extra=of(volume=file.stem))
        for handler in logging.getLogger().handlers:
            if isinstance(handler, Handler):
                handler.tell_held()
        await asyncio.sleep(BOUND_EVERY_S)
