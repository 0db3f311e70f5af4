"""units - sizes, rates and lengths of time as people write them, and back.

Binary throughout: K is 1024.  A rate is bytes per second; 0 pauses, `none` is no limit.  Pure.
"""

import re
import time
from fractions import Fraction

_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50, "E": 1 << 60}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTPE]?)(?:i?B)?", re.ASCII | re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of `10G`, `64K`, `1.5GiB`, `512`; ValueError, with a sentence, unless it is a whole number of bytes."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; write a number and K, M, G or T, as in 10G, 64K or 1.5G")
    size = Fraction(match[1]) * _FACTORS[match[2].upper()]
    if size.denominator != 1:
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def parse_rate(text: str) -> int | None:
    """Bytes per second of `50M`, `50M/s` or `0`; None for `none`."""
    if text.strip().lower() == "none":
        return None
    try:
        return parse_size(re.sub(r"/s$", "", text.strip(), flags=re.IGNORECASE))
    except ValueError:
        raise ValueError(f"{text!r} is no rate; write bytes per second as in 50M, 0 to pause, or none") from None


def format_size(size: int) -> str:
    """Short, and exact where it can be: `64K`, `1.5G`, `9.7T`.  Never rounded up to what it is not."""
    for suffix in reversed(_FACTORS):
        factor = _FACTORS[suffix]
        if abs(size) >= factor:
            tenths = abs(size) * 10 // factor
            sign = "-" if size < 0 else ""
            return f"{sign}{tenths // 10}{f'.{tenths % 10}' if tenths % 10 else ''}{suffix}"
    return "0"


def format_rate(rate_bytes_s: int | None) -> str:
    if rate_bytes_s is None:
        return "none"
    return f"{format_size(rate_bytes_s)}/s" if rate_bytes_s else "paused"


def parse_duration(text: str) -> float:
    """Seconds of `10m`, `2h`, `3d`, `1.5h`; ValueError, with a sentence, for anything else."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhdw])", text.strip(), re.ASCII | re.IGNORECASE)
    if match is None:
        raise ValueError(f"{text!r} is no length of time; write a number and s, m, h, d or w, as in 10m, 2h or 3d")
    return float(match[1]) * _SECONDS[match[2].lower()]


def format_duration(seconds: float) -> str:
    """Two units at most, rounded down: `42s`, `3m10s`, `2h05m`, `3d04h`."""
    whole = max(0, int(min(seconds, 1e11)))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def format_time(at: float) -> str:
    """Seconds since the epoch: `2026-11-22 16:40:00 UTC`."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def format_percent(percent: float, is_done: bool) -> str:
    """Rounded down to a tenth and never out of 0 to 100: 100 % is said only of what is done."""
    tenths = 1000 if is_done else int(max(0.0, min(99.9, percent)) * 10) if percent == percent else 0
    return "100%" if tenths == 1000 else f"{tenths // 10}.{tenths % 10}%"
