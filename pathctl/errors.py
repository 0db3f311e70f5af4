"""errors - what can go wrong, as callers decide on it, and as users see it.

A `PathctlError` is one sentence for a person plus the fields a program needs: what was done, what failed, what was
undone and what is still pending.  It is mapped once to HTTP (api) and once to an exit code (cli).
"""

import enum
import errno
from collections.abc import Iterable, Sequence
from pathlib import Path

NAME_MOST = 80  # characters of a wrong name that are said again


class ErrorCode(enum.StrEnum):
    """The kinds of failure a caller may decide on; the value is what stands in the API's `code`."""

    INTERNAL = "internal"
    USAGE = "usage"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"


class ExitCode(enum.IntEnum):
    """The exit codes of the command line."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    NOT_FOUND = 3
    REFUSED = 4
    UNREACHABLE = 5
    TIMEOUT = 6

    @classmethod
    def of(cls, code: ErrorCode) -> "ExitCode":
        return cls[code.name]


class PathctlError(Exception):
    """Something failed, and it is known that it did.  Undo what was done before it, or tell the user."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        done: Sequence[str] = (),
        failed: str | None = None,
        undone: Sequence[str] = (),
        pending: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.done = list(done)
        self.failed = failed
        self.undone = list(undone)
        self.pending = list(pending)

    def as_json(self) -> dict[str, object]:
        """The `error` object of the API."""
        return {
            "code": self.code.value,
            "message": self.message,
            "done": self.done,
            "failed": self.failed,
            "undone": self.undone,
            "pending": self.pending,
        }


class NoAnswer(PathctlError):
    """Somebody was asked and did not answer: when `sent`, it may have been carried out.  Ask again before deciding."""

    def __init__(self, code: ErrorCode, message: str, *, sent: bool) -> None:
        super().__init__(code, message)
        self.sent = sent


def usage(message: str) -> PathctlError:
    return PathctlError(ErrorCode.USAGE, message)


def not_found(message: str) -> PathctlError:
    return PathctlError(ErrorCode.NOT_FOUND, message)


def refused(message: str) -> PathctlError:
    return PathctlError(ErrorCode.REFUSED, message)


def internal(message: str) -> PathctlError:
    return PathctlError(ErrorCode.INTERNAL, message)


def quote(name: str) -> str:
    """A name that somebody typed, fit to stand in a sentence whatever it holds."""
    is_plain = len(name) <= NAME_MOST and name.isascii() and name.isprintable() and " " not in name and name
    return name if is_plain else repr(name if len(name) <= NAME_MOST else name[:NAME_MOST] + "...")


def see(name: str, known: Iterable[str], command: str) -> str:
    """What to do about a name that is not known: the one that was meant, if it is near, or the list."""
    import difflib  # here: it is rarely needed, and the command line starts without it

    near = difflib.get_close_matches(name[:NAME_MOST], list(known), 1)
    return f"did you mean {near[0]}; see `{command}`" if near else f"see `{command}`"


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def not_written(path: Path, error: OSError) -> PathctlError:
    """A file of ours could not be made or written."""
    if is_full(error):
        return internal(f"the file system of {path.parent} is full: make room there, then repeat the command")
    return internal(f"{path} cannot be written: {error.strerror}; see to its file system, then repeat the command")
