"""faults - places where a test can stop a sequence.

Does nothing unless $PATHCTL_FAULTS names a folder.  There, the file `fail-POINT` makes the point fail, and the file
`pause-POINT` makes it create `reached-POINT` and wait until the pause file is gone, at most a minute.
"""

import asyncio
import os
from pathlib import Path

from pathctl import errors

PAUSE_LIMIT_S = 60.0
LOOK_S = 0.01


async def point(name: str) -> None:
    """Let a test interfere here."""
    folder = os.environ.get("PATHCTL_FAULTS")
    if not folder:
        return
    await _pause(Path(folder), name)
    if (Path(folder) / f"fail-{name}").exists():
        raise errors.internal(f"the test asked for a failure at {name}; remove its file and repeat the command")


async def _pause(folder: Path, name: str) -> None:
    pause = folder / f"pause-{name}"
    if not pause.exists():
        return
    (folder / f"reached-{name}").touch()
    deadline = asyncio.get_running_loop().time() + PAUSE_LIMIT_S
    while pause.exists() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - a file
        await asyncio.sleep(LOOK_S)
