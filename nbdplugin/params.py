"""params - the plugin's key=value parameters, checked before the process forks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nbdplugin.errors import BadRequest


@dataclasses.dataclass(frozen=True, slots=True)
class Params:
    """`role`: host or peer.  Times in seconds: see DESIGN section 4.

    fetch_timeout_s: how long a request that cannot do without the path waits for it; long, as an EIO makes ext4
    read-only.  link_timeout_s: how long nothing may move on a connection with a request under way.
    flush_timeout_s: the same for a flush, during which nothing does.
    """

    role: str
    volume: str
    meta: Path
    backing: Path
    control: Path
    fetch_timeout_s: float = 600.0
    link_timeout_s: float = 10.0
    flush_timeout_s: float = 30.0
    command_timeout_s: float = 30.0
    checkpoint_s: float = 1.0
    log_level: str = "info"
    log_lines_per_minute: int = 60  # of one kind
    uuid: str | None = None  # the volume's, if the metadata file is to be refused where it is another's
    max_waiters: int = 256  # at least what the device may have in flight, below nbdkit's -t: see pathctl/nbdkitcmd

    def get_limits(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in LIMITS}

    def change(self, request: dict[str, object]) -> Params:
        """With the limits of a control request `limits`, while it runs; raises BadRequest naming what does not fit."""
        fields = {name: value for name, value in request.items() if name != "op"}
        for name, value in fields.items():
            if name not in LIMITS:
                raise BadRequest(f"{name!r} is no limit that can be changed; known are {', '.join(LIMITS)}")
            if isinstance(value, bool) or not isinstance(value, float | int) or not 0 < value < 1e6:
                raise BadRequest(f"{name}={value!r} is not a number above 0 and below a million")
        return dataclasses.replace(self, **fields)  # type: ignore[arg-type]


LOG_LEVELS = ("debug", "info", "warning", "error")
LIMITS = (
    "fetch_timeout_s",
    "link_timeout_s",
    "flush_timeout_s",
    "command_timeout_s",
)  # what can be changed while it runs
_KINDS = {
    "role": str,
    "volume": str,
    "meta": Path,
    "backing": Path,
    "control": Path,
    "fetch_timeout_s": float,
    "link_timeout_s": float,
    "flush_timeout_s": float,
    "command_timeout_s": float,
    "checkpoint_s": float,
    "log_level": str,
    "uuid": str,
    "log_lines_per_minute": int,
    "max_waiters": int,
}


def parse(pairs: dict[str, str]) -> Params:
    """Raises BadRequest naming the parameter that does not fit."""
    values: dict[str, object] = {}
    for key, text in pairs.items():
        if key not in _KINDS:
            raise BadRequest(f"unknown parameter {key!r}; known are {', '.join(_KINDS)}")
        try:
            value = _KINDS[key](text)
        except ValueError:
            raise BadRequest(f"parameter {key}={text!r} is not a number") from None
        if isinstance(value, float | int) and not 0 < value < 1e6:
            raise BadRequest(f"parameter {key}={text} is not above 0 and below a million")
        values[key] = value
    missing = [key for key in ("role", "volume", "meta", "backing", "control") if key not in values]
    if missing:
        raise BadRequest(f"missing parameter {missing[0]}=...")
    if values["role"] not in ("host", "peer"):
        raise BadRequest(f"role={values['role']} is neither host nor peer")
    if values.get("log_level", "info") not in LOG_LEVELS:
        raise BadRequest(f"log_level={values['log_level']} is none of {', '.join(LOG_LEVELS)}")
    return Params(**values)  # type: ignore[arg-type]
