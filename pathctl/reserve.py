"""reserve - a file that only takes up room, so that what was begun can be ended on a full file system."""

import contextlib
import os
from pathlib import Path

SIZE = 1 << 20
LEAST_ROOM = 64 << 10


class Reserve:
    """While the file is there, SIZE bytes can be had at once by giving it up."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ensure(self) -> bool:
        """Whether the room is there, taken now if need be."""
        if self.path.exists():
            return True
        new = self.path.with_name(self.path.name + ".new")
        try:
            handle = os.open(new, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(handle, 0, SIZE)
            finally:
                os.close(handle)
            new.replace(self.path)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            return False
        return True

    def release(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()

    @staticmethod
    def has_room(folder: Path) -> bool:
        """Whether a few blocks more can be written there."""
        found = os.statvfs(folder)
        return found.f_bavail * found.f_frsize >= LEAST_ROOM
