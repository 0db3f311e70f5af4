"""signals - Ctrl-C, at any moment of a command: one sentence and exit code 130, never a traceback.

The program is started with SIGINT blocked (scripts/setup writes `env --block-signal=INT` into its first line), so
that Python itself cannot be hit while it begins.  `allow` lets SIGINT end the program as it ends any other; `catch`,
once all is imported, says in one sentence what goes on without it.  What pathctld was asked to do is not ended by
either: it runs there.

pathctld begins in the same way (entryd), and ends by `allow` until its loop has handlers of its own.
"""

import os
import select
import signal

INTERRUPTED = 130  # as a shell says it: 128 + SIGINT

_sentence = "interrupted"
_woken: int | None = None  # becomes readable when a signal has come


def allow() -> None:
    """SIGINT ends the process at once and silently, also one that came before."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def say(sentence: str) -> None:
    """What to tell from now on, if Ctrl-C is pressed."""
    global _sentence
    _sentence = sentence


def catch() -> None:
    global _woken
    _woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGINT, _end)


def wait_readable(number: int, limit_s: float | None = None) -> None:
    """Wait for something to read, or the limit, before a call that would block.

    A signal that comes just before a system call does not interrupt it, and Python would see to it only afterwards:
    Ctrl-C would seem to do nothing.
    """
    select.select([number] if _woken is None else [number, _woken], [], [], limit_s)


def hold() -> None:
    """What comes from now on comes too late: the process is ending."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _end(_number: int, _frame: object) -> None:
    end("pathctl", _sentence)


def end(program: str, sentence: str) -> None:
    """Past every `finally`: there is nothing to put in order but a cursor that a progress bar has hidden."""
    shown = b"\x1b[?25h" if os.isatty(1) else b""
    try:
        os.write(2, shown + b"\n" * os.isatty(2) + f"{program}: {sentence}\n".encode())
    finally:
        os._exit(INTERRUPTED)
