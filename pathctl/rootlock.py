"""rootlock - one at a time may change what lies below a root: a pathctld, or a restore in its place."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from pathctl import config, errors


class Taken(errors.PathctlError):
    """A pathctld runs with this root.  Ask that one, or give up."""


@contextlib.contextmanager
def alone(cfg: config.Config) -> Iterator[None]:
    """Hold the lock of this root."""
    with _lock(cfg.pid_file) as file:
        file.truncate(0)
        try:
            os.write(file.fileno(), f"{os.getpid()}\n".encode())
        except OSError as error:
            raise errors.not_written(cfg.pid_file, error) from error
        yield
        file.truncate(0)


def is_taken(cfg: config.Config) -> bool:
    """Whether a pathctld runs with this root, without getting in the way of one that starts."""
    try:
        with cfg.pid_file.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _lock(path: Path) -> IO[str]:
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        message = f"a pathctld is running already with this root ({path}); stop it first"
        raise Taken(errors.ErrorCode.REFUSED, message) from None
    return file
