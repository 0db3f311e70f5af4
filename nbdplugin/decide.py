"""decide - what to do with a host request: DESIGN's request table, and nothing else.  Pure."""

from __future__ import annotations

import enum


class Kind(enum.Enum):
    READ = enum.auto()
    WRITE = enum.auto()  # write zeroes too
    TRIM = enum.auto()


class Path(enum.Enum):
    """Alone: no pair.  Not ready: by command, not yet committed, or no session.  Ready: a session is up.

    A pair that is to stop on the loss of its path, rather than let its copies part: halted while there is no session,
    unless that is by command; strict while there is one.
    """

    ALONE = enum.auto()
    NOT_READY = enum.auto()
    READY = enum.auto()
    HALTED = enum.auto()
    STRICT = enum.auto()


class Cover(enum.Enum):
    """What the range meets.  PART: an invalid track that it reads, or covers only in part."""

    VALID = enum.auto()
    OWED = enum.auto()
    PART = enum.auto()
    WHOLE = enum.auto()


class Step(enum.Enum):
    LOCAL = enum.auto()  # here only
    BOTH = enum.auto()  # here and at the peer, acknowledged when both have it
    OWE = enum.auto()  # here only, and the tracks become owed
    FETCH = enum.auto()  # fetch the invalid tracks, then decide again
    WAIT = enum.auto()  # wait for the path, then decide again; EIO when the time is up
    FAIL = enum.auto()  # EIO: no path will bring the data
    SKIP = enum.auto()  # leave the partly covered invalid tracks out, then decide again


_BY_PATH = {  # alone, not ready, ready, halted, strict
    (Kind.READ, Cover.VALID): (Step.LOCAL, Step.LOCAL, Step.LOCAL, Step.LOCAL, Step.LOCAL),
    (Kind.READ, Cover.OWED): (Step.LOCAL, Step.LOCAL, Step.LOCAL, Step.LOCAL, Step.LOCAL),
    (Kind.READ, Cover.PART): (Step.FAIL, Step.WAIT, Step.FETCH, Step.WAIT, Step.FETCH),
    (Kind.READ, Cover.WHOLE): (Step.FAIL, Step.WAIT, Step.FETCH, Step.WAIT, Step.FETCH),
    (Kind.WRITE, Cover.VALID): (Step.LOCAL, Step.OWE, Step.BOTH, Step.WAIT, Step.BOTH),
    (Kind.WRITE, Cover.OWED): (Step.LOCAL, Step.OWE, Step.LOCAL, Step.WAIT, Step.BOTH),
    (Kind.WRITE, Cover.PART): (Step.FAIL, Step.WAIT, Step.FETCH, Step.WAIT, Step.FETCH),
    (Kind.WRITE, Cover.WHOLE): (Step.LOCAL, Step.OWE, Step.BOTH, Step.WAIT, Step.BOTH),
    (Kind.TRIM, Cover.VALID): (Step.LOCAL, Step.OWE, Step.BOTH, Step.WAIT, Step.BOTH),
    (Kind.TRIM, Cover.OWED): (Step.LOCAL, Step.OWE, Step.LOCAL, Step.WAIT, Step.BOTH),
    (Kind.TRIM, Cover.PART): (Step.SKIP, Step.SKIP, Step.SKIP, Step.SKIP, Step.SKIP),
    (Kind.TRIM, Cover.WHOLE): (Step.LOCAL, Step.OWE, Step.BOTH, Step.WAIT, Step.BOTH),
}
TABLE = {
    (kind, cover, path): step
    for (kind, cover), steps in _BY_PATH.items()
    for path, step in zip(Path, steps, strict=True)
}


def decide(kind: Kind, cover: Cover, path: Path) -> Step:
    """The row of the table; every combination has one."""
    return TABLE[kind, cover, path]
