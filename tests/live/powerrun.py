"""powerrun - a real run of a pair on recorded disks: writers, faults, commands; all from one seed.

Two real nbdkit processes whose files lie on one FaultDisk.  The volume is long and empty but for its `spots`, so
that it has several pages and extents and yet little to look at.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbd
from live.faultdisk import Entry, FaultDisk
from live.planes import Pair, Plane
from live.powerhistory import SECTOR, History, Wrote, find_number, make_data
from waiting import WAIT_S, wait_until

MIB = 1 << 20
TRACK = 4096
SIZE = 130 * MIB + SECTOR  # three pages of bits, nine extents; the last track is short
SPOT = 64 << 10
SPOTS = (
    *(0, 15 * MIB + 512 * 1024, 16 * MIB, 40 * MIB, 63 * MIB - SPOT, 63 * MIB, 64 * MIB, 90 * MIB, 129 * MIB),
    SIZE - SPOT,
)
SECTORS = SPOT // SECTOR
WRITERS = 3
STRIPE = 11  # sectors of one writer before the next one's, where writers share a spot: not a multiple of a track's
NAMES = ("source", "destination")


@dataclasses.dataclass(slots=True)
class Ran:
    """What a run leaves: the record, the history, and when the pair was one (monotonic ns)."""

    invalid: str
    seed: int
    entries: list[Entry]
    history: History
    made_ns: int = 0
    commit_begun_ns: int = 0
    committed_ns: int = 0
    parted_ns: int = 0
    pair: str = ""
    old_generation: str = ""  # of the destination, before it was one
    faults: list[str] = dataclasses.field(default_factory=list)


class Cable:
    """TCP from the source to the destination that can be cut: `port` is where the source connects to."""

    def __init__(self, port: int) -> None:
        self._far = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._ends: list[socket.socket] = []
        self._is_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._far))
            except OSError:
                if self._listener.fileno() < 0:
                    return
                continue
            with self._lock:
                self._ends += [near, far]
                if self._is_cut:
                    self._shut()
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(1 << 18):
                other.sendall(data)
            other.shutdown(socket.SHUT_RDWR)

    def _shut(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            self._shut()

    def mend(self) -> None:
        with self._lock:
            self._is_cut = False

    def close(self) -> None:
        self.cut()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Writer:
    """One client of the source; a connection that is lost is made anew, and what was under way is unknown."""

    def __init__(self, number: int, seed: int, path: Path, history: History) -> None:
        self._rng = random.Random(seed)
        self._path, self._history = path, history
        self._runs = list(_get_runs(number))
        self._handle: nbd.NBD | None = None
        self.done = 0
        self.error: BaseException | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._end.set()

    def stop(self) -> None:
        self.end()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "a writer does not end"
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        try:
            while not self._end.is_set():
                try:
                    if self._handle is None:
                        self._handle = nbd.NBD()
                        self._handle.connect_unix(str(self._path))
                    self._step(self._handle)
                except nbd.Error:
                    self._handle = None
                self.done += 1
        except BaseException as error:  # noqa: BLE001 - told by stop()
            self.error = error

    def _step(self, handle: nbd.NBD) -> None:
        rng = self._rng
        first, most = rng.choice(self._runs)
        skip = rng.randrange(most) if rng.random() < 0.7 else 0
        first, most = first + skip, most - skip
        count = most if rng.random() < 0.3 else rng.randint(1, most)
        choice = rng.choices("wztfr", (60, 8, 8, 12, 12))[0]
        if choice == "f":
            begun = time.monotonic_ns()
            handle.flush()
            self._history.note_flush(begun, time.monotonic_ns())
        elif choice == "r":
            self._check(handle.pread(count * SECTOR, first * SECTOR), first, count)
        else:
            self._write(handle, choice, first, count)

    def _write(self, handle: nbd.NBD, choice: str, first: int, count: int) -> None:
        number = next(self._history.numbers) if choice == "w" else 0
        flags = nbd.CMD_FLAG_FUA if self._rng.random() < 0.15 else 0
        wrote = Wrote(number, time.monotonic_ns(), None, bool(flags), choice == "t")
        self._history.begin(first, count, wrote)
        if choice == "w":
            handle.pwrite(make_data(number, first, count), first * SECTOR, flags)
        elif choice == "z":
            handle.zero(count * SECTOR, first * SECTOR, flags)
        else:
            handle.trim(count * SECTOR, first * SECTOR, flags)
        wrote.acked_ns = time.monotonic_ns()

    def _check(self, data: bytearray, first: int, count: int) -> None:
        now = time.monotonic_ns()
        for at in range(count):
            number = find_number(data[at * SECTOR : (at + 1) * SECTOR], first + at)
            allowed = self._history.get_allowed(first + at, now, is_killed=True)
            assert number in allowed, f"sector {first + at} reads as write {number}, not one of {sorted(allowed)}"


def _get_runs(writer: int) -> Iterator[tuple[int, int]]:
    """(first, count) of the runs of sectors that are one writer's."""
    for index, spot in enumerate(SPOTS):
        first = spot // SECTOR
        if index % (WRITERS + 1) < WRITERS:
            if index % (WRITERS + 1) == writer:
                yield first, SECTORS
        else:
            yield from (
                (first + at, min(STRIPE, SECTORS - at)) for at in range(writer * STRIPE, SECTORS, WRITERS * STRIPE)
            )


class PowerRun:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path, seed: int, invalid: str, faults: int) -> None:
        self.folder, self.seed, self.invalid, self._faults = folder, seed, invalid, faults
        self._rng = random.Random(seed)
        self.history = History()
        self.ran = Ran(invalid, seed, [], self.history)

    def run(self) -> Ran:
        disk_folder = self.folder / "disk"
        with contextlib.ExitStack() as stack:
            self.disk = disk = stack.enter_context(FaultDisk(disk_folder, self.folder / "record"))
            params = {"checkpoint_s": 0.03, "link_timeout_s": 1.0}
            self.source = Plane(self.folder, "source", "host", SIZE, TRACK, disk_folder, **params)
            stack.callback(self.source.close)
            self.destination = Plane(self.folder, "destination", "peer", SIZE, TRACK, disk_folder, **params)
            stack.callback(self.destination.close)
            self._fill()
            self.pair = Pair(self.source, self.destination)
            self.ran.pair = self.pair.uuid
            self.source.start()
            self.destination.start()
            self.cable = Cable(self.destination.port)
            stack.callback(self.cable.close)
            self.ran.made_ns = time.monotonic_ns()
            self._live(stack)
            self.ran.entries = disk.read_entries()
        self.history.settle()
        return self.ran

    def _fill(self) -> None:
        """Both sides begin with data of their own; the history with that of the side that counts."""
        for plane in (self.source, self.destination):
            number = next(self.history.numbers)
            with plane.backing.open("r+b", buffering=0) as file:
                for spot in SPOTS:
                    file.seek(spot)
                    file.write(make_data(number, spot // SECTOR, SECTORS))
            if plane.name != self.invalid:
                for spot in SPOTS:
                    self.history.begin(spot // SECTOR, SECTORS, Wrote(number, 0, 0, True))

    def _live(self, stack: contextlib.ExitStack) -> None:
        self.ran.old_generation = self.destination.get_status()["generation"]
        self.pair.connect(self.invalid)
        self._link()
        self.source.ask("set", copy_rate_bytes_s=MIB)
        self.source.ask("greet", pair=self.pair.uuid, timeout_s=WAIT_S)
        self.ran.commit_begun_ns = time.monotonic_ns()
        self.source.ask("commit", operation="op", pair=self.pair.uuid, invalid=self.invalid, force=False)
        self.ran.committed_ns = time.monotonic_ns()
        writers = [Writer(n, self.seed * 10 + n, self.source.socket_path, self.history) for n in range(WRITERS)]
        for writer in writers:
            writer.start()
            stack.callback(writer.end)
        self._let_write(writers)
        for _ in range(self._faults):
            self._harm(writers)
            if self._rng.random() < 0.8:
                wait_until(lambda: self.source.get_status()["session"] is not None, "the path is ready again")
                self._let_write(writers)
            if self._rng.random() < 0.3:
                self._wait_checkpoints(10)  # extents at rest are retired
            self._let_write(writers)
        self.source.ask("set", copy_rate_bytes_s=None)
        for writer in writers:
            writer.stop()
        self.pair.wait_synchronized()
        with self.source.open() as handle:
            begun = time.monotonic_ns()
            handle.flush()
            self.history.note_flush(begun, time.monotonic_ns())
        self.ran.parted_ns = time.monotonic_ns()
        self.source.ask("stop", operation="end", pair=self.pair.uuid)
        self.destination.ask("disconnect", operation="end", pair=self.pair.uuid)
        self.source.ask("disconnect", operation="end", pair=self.pair.uuid)

    def _wait_checkpoints(self, count: int) -> None:
        goal = self.source.get_status()["counters"]["checkpoints"] + count
        wait_until(lambda: self.source.get_status()["counters"]["checkpoints"] >= goal, "checkpoints")

    def _link(self) -> None:
        self.pair.link(self.cable.port)

    def _let_write(self, writers: list[Writer]) -> None:
        """The writers are not held up: each has done some more."""
        goals = [writer.done + self._rng.randint(10, 60) for writer in writers]
        wait_until(
            lambda: any(w.error for w in writers) or all(w.done >= g for w, g in zip(writers, goals, strict=True)),
            "the writers go on",
        )

    def _some_writes(self, writers: list[Writer]) -> None:
        """Any of the writers has done some: where the path is away, one may wait for it."""
        goal = sum(writer.done for writer in writers) + self._rng.randint(3, 30)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: sum(writer.done for writer in writers) >= goal, "some are written", 0.5)

    def _harm(self, writers: list[Writer]) -> None:
        kinds = ("kill_source", "kill_destination", "cut", "freeze", "suspend", "rate", "sync", "policy")
        what = self._rng.choices(kinds, (3, 3, 4, 1, 3, 3, 3, 2))[0]
        self.ran.faults.append(what)
        uuid = self.pair.uuid
        if what == "kill_source":
            self.source.kill()
            self.source.start()
            self._link()
            self.source.ask("set", copy_rate_bytes_s=self._rng.choice([MIB, None]))
        elif what == "kill_destination":
            self.destination.kill()
            self._some_writes(writers)
            self.destination.start()
        elif what == "cut":
            self.cable.cut()
            self._some_writes(writers)
            self.cable.mend()
        elif what == "freeze":
            assert self.destination.process is not None
            self.destination.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: self.source.get_status()["session"] is None, "the frozen peer is given up")
            self._some_writes(writers)
            self.destination.process.send_signal(signal.SIGCONT)
        elif what == "suspend":
            self.source.ask("suspend", operation="s", pair=uuid)
            self._some_writes(writers)
            self.source.ask("resume", operation="r", pair=uuid)
        elif what == "policy":
            self.source.ask("policy", pair=uuid, on_path_loss=self._rng.choice(["stop", "continue"]))
        elif what == "sync":
            self.disk.fail("destination.img", "sync", count=1)
            self._some_writes(writers)
            self.disk.heal()
            self._link()  # at once, instead of after the pause that follows an error
        else:
            self.source.ask("set", copy_rate_bytes_s=self._rng.choice([256 << 10, 4 * MIB, None]))
