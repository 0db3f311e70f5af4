"""logs - what the data plane says on stderr: one line a record as key=value, so many of each kind a minute.

The same form as pathctld's (pathctl/logs.py; a test holds them equal).  nbdkit itself writes a line for each failed
callback, with a traceback: `set_up` takes the traceback away, pathctld bounds the file.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

WINDOW_S = 60.0
TEXT_MOST = 2000
TRACE_MOST = 6000
TRACE_FRAMES = 50
KINDS_MOST = 100

log = logging.getLogger(__name__)
_PLAIN = re.compile(r"[\w.:/@%+,~-]+", re.ASCII)
_SHORT = {'"': '\\"', "\\": "\\\\", "\n": "\\n"}


def set_up(volume: str, get_pair: Callable[[], str | None], level: str, per_minute: int) -> None:
    """Everything that is logged goes to stderr.  Tracebacks are for our mistakes: they are logged where they are
    caught, and what nbdkit prints of a callback's error has none."""
    root = logging.getLogger()
    root.handlers[:] = [Handler(sys.stderr, volume, get_pair, per_minute)]
    root.setLevel(level.upper())
    sys.tracebacklimit = 0
    threading.excepthook = _tell_lost


def _tell_lost(failed: threading.ExceptHookArgs) -> None:
    """A thread has ended by an error that it did not expect."""
    if failed.exc_value is not None:
        found = (failed.exc_type, failed.exc_value, failed.exc_traceback)
        log.error("thread %s failed", failed.thread.name if failed.thread else "?", exc_info=found)


def quote(value: object, most: int = TEXT_MOST) -> str:
    """A value of logfmt: as it is if that is plain, else in quotes, what cannot be printed escaped."""
    text = str(value)
    text = text if len(text) <= most else f"{text[:most]}... ({len(text) - most} more)"
    return text if _PLAIN.fullmatch(text) else '"' + "".join(_SHORT.get(c) or _escape(c) for c in text) + '"'


def _escape(character: str) -> str:
    if character.isprintable():
        return character
    return f"\\u{ord(character):04x}" if ord(character) < 0x10000 else f"\\U{ord(character):08x}"


class Handler(logging.Handler):
    """Counts the records of each kind (each call) and writes so many a minute; the count of the others is told with
    the next record after that minute, of whatever kind, or by a timer."""

    def __init__(
        self,
        stream: TextIO,
        volume: str,
        get_pair: Callable[[], str | None],
        per_minute: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._stream, self._volume, self._get_pair = stream, volume, get_pair
        self._per_minute, self._clock = per_minute, clock
        self._kinds: dict[tuple[str, str, str], list[float]] = {}  # since when, passed, held
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:  # logging holds the handler's lock
        self._tell_held()
        kind = (record.levelname, record.name, str(record.msg))
        window = self._kinds.setdefault(kind, [self._clock(), 0, 0])
        if window[1] < self._per_minute:
            window[1] += 1
            self._write(record.levelname, record.name, _say(record), _trace(record))
            return
        window[2] += 1
        if self._timer is None:
            self._timer = threading.Timer(WINDOW_S, self._on_timer)
            self._timer.daemon = True
            self._timer.start()

    def _on_timer(self) -> None:
        self.acquire()
        try:
            self._timer = None
            self._tell_held()
        finally:
            self.release()

    def _tell_held(self) -> None:
        now, crowded = self._clock(), len(self._kinds) > KINDS_MOST
        over = {kind: window for kind, window in self._kinds.items() if crowded or now - window[0] >= WINDOW_S}
        for kind, (_, _, held) in over.items():
            del self._kinds[kind]
            if held:
                level, name, template = kind
                self._write(level, name, f"{held:.0f} more suppressed in the last minute: {template}", None)

    def _write(self, level: str, name: str, said: str, trace: str | None) -> None:
        fields = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": level.lower(),
            "part": name,
            "msg": said,
            "volume": self._volume,
            "pair": self._get_pair(),
            "trace": trace,
        }
        most = TEXT_MOST if trace is None else TRACE_MOST
        line = " ".join(f"{key}={quote(value, most)}" for key, value in fields.items() if value is not None)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody is left to be told
            return


def _say(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # a mistake in the call; what it has to say is still wanted
        return f"{record.msg} {record.args!r}"


def _trace(record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[0] is None:
        return None
    kind, error, frames = record.exc_info
    return "".join(traceback.format_exception(kind, error, frames, limit=TRACE_FRAMES))[-TRACE_MOST:]
