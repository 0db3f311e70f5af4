"""errors - why a step failed; one class for each different reaction of the caller."""

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class PathError(Exception):
    """Base of every error of the data plane.  The text is one sentence for an admin."""


class StoreFailed(PathError):
    """The local file or device gave an error.  What it holds in that range is unknown."""

    def __init__(self, what: str, errno: int) -> None:
        super().__init__(f"{what} failed on the local store (errno {errno})")
        self.errno = errno


class PeerLost(PathError):
    """A connection of the session is unusable.  End the session; what was in flight is unknown."""


class PeerRefused(PathError):
    """The peer answered with an error.  The connection works; repeating at once is not useful."""


class SessionOver(PathError):
    """The request belongs to a session that has ended.  Answer ESHUTDOWN; touch nothing."""


class PathNotReady(PathError):
    """The data is at the peer and the path did not become ready in time.  Answer EIO."""


class VolumeFailed(PathError):
    """An earlier failure made the volume unsafe to use this way.  Answer EIO until an operator decides."""


class Refused(PathError):
    """A command does not fit the present state.  Nothing was changed."""


class BadRequest(PathError):
    """A command, parameter or file is malformed.  Nothing was changed."""


class TableDamaged(PathError):
    """The metadata file cannot be trusted.  Do not serve the volume."""


def strip(error: E) -> E:
    """The error without what led to it, for keeping: frames hold the sockets of sessions that are over."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
