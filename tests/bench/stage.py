"""stage - the subjects of the throughput group, each with files of its own, started when first asked for.

They stay up until the stage is left, so that a round is nothing but measurements; what is idle costs nothing.  A
suspended or copying volume is a new one each time: marks are made once, and a copy ends.  A suspended one is warmed up
by the same load, what its first seconds are like being another figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from bench import fio, peers, product
from bench.fio import Pattern
from bench.product import State
from live.planes import Pair

MIB, GIB = 1 << 20, 1 << 30
TRIES = 4
WARM_S = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Subject:
    """Who is measured: the product in a state, its link in clear or with TLS; or a peer, which has no state."""

    name: str
    state: State | None = None
    is_plain: bool = True

    @property
    def is_lasting(self) -> bool:
        return self.state in (None, State.UNPAIRED, State.SYNCHRONIZED)

    def __str__(self) -> str:
        return self.name if self.state is None else self.state.value + ("" if self.is_plain else ", TLS")


FILE = Subject("nbdkit file")
MIRROR = Subject("QEMU mirror")  # as it comes: aio=threads
MIRROR_URING = Subject("QEMU mirror, io_uring")
PROXY = Subject("nbdkit nbd")


def get_ours(state: State, is_plain: bool = True) -> Subject:
    return Subject("pathctl", state, is_plain)


class Stage:
    """`size` of all volumes but those that copy, which have `copy_size`."""

    def __init__(self, folder: Path, size: int, copy_size: int) -> None:
        self.folder, self.size, self.copy_size = folder, size, copy_size
        self._stack = contextlib.ExitStack()
        self._sockets: dict[Subject, Path] = {}
        self._number = 0

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, subject: Subject, pattern: Pattern, seconds: float) -> float:
        """In the pattern's unit."""
        if subject.is_lasting:
            return fio.measure(pattern, self._get_socket(subject), self.size, seconds)
        if subject.state is State.SUSPENDED:
            folder = self._ensure_volume("suspended", self.size)
            with product.run_state(folder, self.size, State.SUSPENDED) as plane:
                fio.measure(pattern, plane.socket_path, self.size, min(seconds, WARM_S))
                return fio.measure(pattern, plane.socket_path, self.size, seconds)
        return self._measure_copying(subject, pattern, seconds)

    def _get_socket(self, subject: Subject) -> Path:
        if subject not in self._sockets:
            self._sockets[subject] = self._stack.enter_context(self._run(subject))
        return self._sockets[subject]

    @contextlib.contextmanager
    def _run(self, subject: Subject) -> Iterator[Path]:
        self._number += 1
        name = str(self._number)
        if subject.state is not None:
            folder = self._ensure_volume(name, self.size)
            with product.run_state(folder, self.size, subject.state, subject.is_plain) as plane:
                yield plane.socket_path
            return
        data = product.make_file(self.folder / f"{name}.img", self.size)
        if subject == FILE:
            with peers.run_file(self.folder, name, data) as path:
                yield path
            return
        far = data if subject == PROXY else product.make_file(self.folder / f"{name}-far.img", self.size)
        with peers.run_file_tcp(self.folder, f"{name}-far", far) as port:
            if subject == PROXY:
                with peers.run_proxy(self.folder, name, port) as path:
                    yield path
            else:
                aio = "io_uring" if subject == MIRROR_URING else "threads"
                with peers.run_mirror(self.folder, name, data, port, aio) as path:
                    yield path

    def _ensure_volume(self, name: str, size: int) -> Path:
        """A folder with data on both sides: what a copy overwrites is there already, as in a copy that is repeated."""
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir()
            product.make_file(folder / "source.img", size)
            product.make_file(folder / "destination.img", size)
        return folder

    def _measure_copying(self, subject: Subject, pattern: Pattern, seconds: float) -> float:
        state, folder = subject.state, self._ensure_volume("copying", self.copy_size)
        assert state is not None

        def measure(seconds: float) -> float:
            with product.run_copy(folder, self.copy_size, state, subject.is_plain) as pair:
                return self._measure_pair(pair, pattern, seconds)

        return self._shorten(folder, measure, seconds)

    def _measure_pair(self, pair: Pair, pattern: Pattern, seconds: float) -> float:
        """Its copy runs from the load's first moment on, and has not ended at its last."""
        path, size = pair.source.socket_path, self.copy_size
        speed = fio.measure(pattern, path, size, seconds, lambda: product.release_copy(pair))
        product.check_copying(pair)
        return speed

    def measure_copying_and_after(self, pattern: Pattern, seconds: float) -> tuple[float, float]:
        """While copying to the destination, and on the very same volume when it has become synchronized."""
        folder, after = self._ensure_volume("copying", self.copy_size), 0.0

        def measure(seconds: float) -> float:
            nonlocal after
            with product.run_copy(folder, self.copy_size, State.TO_DESTINATION) as pair:
                while_copying = self._measure_pair(pair, pattern, seconds)
                pair.wait_synchronized(product.SYNC_LIMIT_S)
                _settle(folder)
                after = fio.measure(pattern, pair.source.socket_path, self.copy_size, seconds)
            return while_copying

        return self._shorten(folder, measure, seconds), after

    def _shorten(self, folder: Path, measure: Callable[[float], float], seconds: float) -> float:
        """As long as the copy lasts longer: half the time where it did not; raises CopyEnded at last."""
        _settle(folder)
        for attempt in range(TRIES):
            try:
                return measure(seconds / 2**attempt)
            except product.CopyEnded:
                if attempt == TRIES - 1:
                    raise
            finally:
                _settle(folder)
        raise AssertionError("either returned or raised")


def _settle(folder: Path) -> None:
    """What a copy has left to be written out is written: the next one is not held up for it."""
    for path in folder.glob("*.img"):
        with path.open("r+b") as file:
            os.fdatasync(file.fileno())
