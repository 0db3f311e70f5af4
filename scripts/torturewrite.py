"""torturewrite - the writers of the torture: a program of its own, so that nothing but the machine slows them down.

    torturewrite.py device  DEVICE FOLDER FIRST COUNT TOTAL SIZE SEED
    torturewrite.py socket  SOCKET FOLDER FIRST COUNT TOTAL SIZE SEED
    torturewrite.py control FILE FOLDER

Writers FIRST to FIRST + COUNT - 1 of TOTAL, one thread each, until the standard input ends.  Each has one request
under way, logs it to FOLDER/writer-N.log, checks what it reads against what it has been acknowledged before (its
own log of earlier rounds included) and keeps what was wrong in FOLDER.  What failed is begun anew on a fresh
connection.  The control writer does the same to a plain file: what it feels is the machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import random
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torturedata
from torturedata import FAILED, MIB, OK, WRONG, Record

PAUSE_S = 0.03  # between the requests of one writer, on average
RETRY_S = 0.2
CONTROL_S = 0.02
_BLKZEROOUT = 0x127F  # linux/fs.h: (start, length)


class Failed(Exception):
    """The request was not acknowledged: what it was to write may be there or not.  Open anew."""


class Target(Protocol):
    """One way to the volume, open."""

    def read(self, offset: int, length: int) -> memoryview | bytes: ...
    def write(self, offset: int, data: bytearray, is_fua: bool) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


class Device:
    """The block device, past the page cache.  FUA is the block layer's own affair and not asked for."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, MIB)  # aligned, as O_DIRECT wants it

    def read(self, offset: int, length: int) -> memoryview:
        view = memoryview(self._buffer)[:length]
        if os.preadv(self._fd, [view], offset) != length:
            raise Failed("a short read")
        return view

    def write(self, offset: int, data: bytearray, is_fua: bool) -> None:
        view = memoryview(self._buffer)[: len(data)]
        view[:] = data
        if os.pwritev(self._fd, [view], offset) != len(data):
            raise Failed("a short write")

    def zero(self, offset: int, length: int) -> None:
        fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset, length))

    def flush(self) -> None:
        os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class Socket:
    """nbdkit's Unix socket, through libnbd."""

    def __init__(self, path: str) -> None:
        import nbd

        self._nbd = nbd
        self._handle = nbd.NBD()
        with self._failing():
            self._handle.connect_unix(path)

    @contextlib.contextmanager
    def _failing(self):  # type: ignore[no-untyped-def]
        try:
            yield
        except self._nbd.Error as error:
            raise Failed(str(error)) from None

    def read(self, offset: int, length: int) -> bytes:
        with self._failing():
            return bytes(self._handle.pread(length, offset))

    def write(self, offset: int, data: bytearray, is_fua: bool) -> None:
        with self._failing():
            self._handle.pwrite(data, offset, self._nbd.CMD_FLAG_FUA if is_fua else 0)

    def zero(self, offset: int, length: int) -> None:
        with self._failing():
            self._handle.zero(length, offset)

    def flush(self) -> None:
        with self._failing():
            self._handle.flush()

    def close(self) -> None:
        del self._handle


class Writer:
    """One thread's work."""

    def __init__(self, area: torturedata.Area, folder: Path, seed: str, open_target: Callable[[], Target]) -> None:
        self._area = area
        self._folder = folder
        self._open = open_target
        path = folder / f"writer-{area.writer}.log"
        records = torturedata.read_log(path)
        self._model = torturedata.replay(area.writer, records)
        self._sequence = max((record.sequence for record in records), default=0)
        self._rng = random.Random(f"{seed}-{area.writer}-{self._sequence}")
        self._log = path.open("a", buffering=1)
        self._target: Target | None = None

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(self._rng.expovariate(1 / PAUSE_S)):
            try:
                if self._target is None:
                    self._target = self._open()
            except (OSError, Failed):
                stop.wait(RETRY_S)
                continue
            self._step(self._target)
        if self._target is not None:
            self._target.close()
        self._log.close()

    def _step(self, target: Target) -> None:
        self._sequence += 1
        offset, length = self._area.choose(self._rng)
        kind = self._rng.choices("wrzf", (50, 44, 4, 2))[0]
        data = torturedata.make(self._area.writer, self._sequence, offset, length) if kind == "w" else bytearray()
        outcome, problem = OK, ""
        start = time.monotonic()
        try:
            found = self._carry_out(target, kind, offset, length, data)
        except (OSError, Failed) as error:
            found, outcome, problem = None, FAILED, str(error)
        end = time.monotonic()
        if found is not None and (fault := self._model.find_fault(offset, found)) is not None:
            outcome = WRONG
            self._keep(found, fault)
        record = Record(self._area.writer, self._sequence, kind, offset, length, start, end, outcome)
        self._model.note(record)
        self._log.write(record.to_line())
        if outcome == FAILED:
            print(f"writer {self._area.writer}: {torturedata.KINDS[kind]} {self._sequence}: {problem}", flush=True)
            self._target = None
            target.close()

    def _carry_out(
        self, target: Target, kind: str, offset: int, length: int, data: bytearray
    ) -> memoryview | bytes | None:
        if kind == "r":
            return target.read(offset, length)
        if kind == "w":
            target.write(offset, data, self._rng.random() < 0.05)
        elif kind == "z":
            target.zero(offset, length)
        else:
            target.flush()
        return None

    def _keep(self, data: memoryview | bytes, fault: str) -> None:
        name = f"wrong-{self._area.writer}-{self._sequence}"
        (self._folder / name).write_bytes(data)
        with (self._folder / "wrong.log").open("a") as file:
            file.write(f"{time.monotonic():.3f} {name}: {fault}\n")


def control(path: Path, folder: Path, stop: threading.Event) -> None:
    """A plain file, written in a steady beat: a request begins when it was due, so a late wake-up counts too."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    beat = 0
    with mmap.mmap(-1, torturedata.CELL) as buffer, (folder / "control.log").open("a", buffering=1) as log:
        due = time.monotonic()
        while not stop.wait(max(0.0, due - time.monotonic())):
            os.pwritev(fd, [buffer], beat % 256 * torturedata.CELL)
            if beat % 50 == 0:
                os.fdatasync(fd)
            end = time.monotonic()
            log.write(Record(-1, beat, "c", 0, torturedata.CELL, due, end, OK).to_line())
            beat, due = beat + 1, max(due + CONTROL_S, end)
    os.close(fd)


def main() -> int:
    kind, path, folder, *numbers = sys.argv[1:]
    stop = threading.Event()
    if kind == "control":
        threads = [threading.Thread(target=control, args=(Path(path), Path(folder), stop))]
    else:
        first, count, total, size = map(int, numbers[:4])
        is_device = kind == "device"
        writers = [
            Writer(
                torturedata.Area(number, total, size),
                Path(folder),
                numbers[4],
                (lambda: Device(path)) if is_device else (lambda: Socket(path)),
            )
            for number in range(first, first + count)
        ]
        threads = [threading.Thread(target=writer.run, args=(stop,)) for writer in writers]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
