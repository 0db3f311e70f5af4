"""options - what every measuring module is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Options:
    """`rounds` are of figures with a bar, others may take fewer; `seconds` is one measurement's length.

    `folder` exists, is short enough for sockets, lies on a disk and is removed afterwards by whoever made it; each
    module makes folders of its own inside.  `say` tells whoever waits what is being done, a line at a time.
    """

    rounds: int
    seconds: float
    is_quick: bool
    folder: Path
    say: Callable[[str], None]
