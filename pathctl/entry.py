"""entry - where the program `pathctl` begins: signals and standard streams first, everything else after.

Nothing is imported above that takes time: until `signals.allow` has run, Ctrl-C waits.
"""

import io
import os
import sys

from pathctl import signals


def main() -> None:
    signals.allow()
    _repair_streams()
    from pathctl import cli

    signals.catch()
    sys.exit(cli.run(sys.argv[1:]))


def _repair_streams() -> None:
    """No file that is opened later gets the number of a standard stream; what cannot be encoded is shown escaped."""
    closed = [number for number in range(3) if not _is_open(number)]
    for _number in closed:
        os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if 2 in closed:
        sys.stderr = os.fdopen(2, "w")
    if 1 in closed:
        sys.stderr.write("pathctl: standard output is closed, so nothing was done: send it to /dev/null instead\n")
        sys.exit(1)
    if 0 in closed:
        sys.stdin = os.fdopen(0)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
