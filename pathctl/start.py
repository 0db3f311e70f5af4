"""start - the program `pathctl`: the way into the command line and out of it, whenever Ctrl-C comes.

The command line takes a tenth of a second to import, and Python a while to end; at both times a KeyboardInterrupt
would be a traceback.  SIGINT then ends the process with a sentence.  What cannot be written to stdout is told as one,
unless its reader has gone: that one wants nothing more.
"""

import os
import signal
import sys
from types import FrameType

FAILED = 1
INTERRUPTED = 130  # as a shell says it: ended by SIGINT
SENTENCE = "pathctl: interrupted; what pathctld has begun it also ends: look with `pathctl status`\n"


def main() -> None:
    signal.signal(signal.SIGINT, _leave)
    from pathctl import cli

    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = cli.run(sys.argv[1:])
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        code = 0
        _drop_stdout()
    except OSError as error:
        code = FAILED
        _drop_stdout()
        _say(f"pathctl: the answer could not be written: {error.strerror or error}; make room, then repeat\n")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the command has ended, with this code
    if code == INTERRUPTED:
        _say(SENTENCE)
    sys.exit(code)


def _leave(number: int, frame: FrameType | None) -> None:
    _say(SENTENCE)
    os._exit(INTERRUPTED)


def _say(sentence: str) -> None:
    """Past Python's buffers, which may be in use at this moment."""
    try:
        os.write(2, sentence.encode())
    except OSError:
        return  # nobody listens: the exit code says it


def _drop_stdout() -> None:
    """What Python's end would try to write again goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    if nowhere != 1:
        os.close(nowhere)


if __name__ == "__main__":
    main()
