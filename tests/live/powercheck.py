"""powercheck - DESIGN's rules, asked of what both disks hold after a crash.

Opens the metadata files with the real MetaFile, recovers with the real Core, lets the real lineage judge whether the
two may go on together, and looks at every sector that was ever written.  Faults are AssertionErrors.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.powerhistory import FOREVER, SECTOR, find_number
from live.powerrun import NAMES, SECTORS, SPOT, SPOTS, TRACK, Ran
from live.powerstates import State

from nbdplugin import lineage
from nbdplugin.core import Core
from nbdplugin.errors import TableDamaged
from nbdplugin.lineage import Verdict
from nbdplugin.metafile import MetaFile
from nbdplugin.modes import begin_session
from nbdplugin.target import Target
from nbdplugin.tracks import Table


@contextlib.contextmanager
def open_table(image: bytearray) -> Iterator[MetaFile]:
    """The real MetaFile on these bytes, in memory; pages of zeroes are holes, as after a fallocate."""
    fd = os.memfd_create("meta")
    try:
        os.ftruncate(fd, len(image))
        for at in range(0, len(image), 4096):
            page = image[at : at + 4096]
            if any(page):
                os.pwrite(fd, page, at)
        file = MetaFile(Path(f"/proc/self/fd/{fd}"))
        try:
            yield file
        finally:
            os.close(file._fd)
    finally:
        os.close(fd)


class Checker:
    """Checks the states of one run; counts what was checked."""

    def __init__(self, ran: Ran) -> None:
        self.ran = ran
        self.states = 0
        self.differing = 0
        self._begun_ns: dict[tuple[int, int | None], int] = {}  # by sector and write
        for sector, writes in ran.history.sectors.items():
            for wrote in reversed(writes):
                self._begun_ns[sector, wrote.number] = wrote.begun_ns
        self.whole = 0  # states with a destination that calls itself complete

    def check(self, state: State) -> None:
        """Raises AssertionError naming the state."""
        self.states += 1
        try:
            with open_table(state.images["source.meta"]) as here, open_table(state.images["destination.meta"]) as there:
                self._check_tables(state, here.table, there.table)
        except TableDamaged as error:
            raise AssertionError(f"{state.what}: {error}") from None
        except AssertionError as error:
            raise AssertionError(f"{state.what}: {error}") from None

    def _check_tables(self, state: State, here: Table, there: Table) -> None:
        core = Core(here, lambda: str(uuid.uuid4()))  # recovers: what is active becomes owed
        both = here.invalid.read_bits(0, here.geometry.tracks) & here.owed.read_bits(0, here.geometry.tracks)
        assert not both, "rule 3: a track is both invalid and owed"
        is_committed = here.header.committed and here.header.pair == there.header.pair is not None
        source, destination = (state.images[f"{name}.img"] for name in NAMES)
        if is_committed:
            self._check_equal(here, source, destination)
            self._check_verdict(core, there)
        assert here.header.committed or not self.ran.committed_ns < state.instant_ns <= self.ran.parted_ns, (
            "the commit was answered and is not there"
        )
        if state.instant_ns > self.ran.committed_ns:
            if here.header.pair is None:
                assert not here.invalid.count, "tracks are invalid after the end"
            self._check_history(state, here, source, destination)
            if not there.header.incomplete and there.header.generation != self.ran.old_generation:
                self._check_whole(state, destination)

    def _check_equal(self, here: Table, source: bytearray, destination: bytearray) -> None:
        """Rule 2."""
        for index, spot in enumerate(SPOTS):
            low = index * SPOT
            if source[low : low + SPOT] == destination[low : low + SPOT]:
                continue
            for track in range(spot // TRACK, -(-(spot + SPOT) // TRACK)):
                first = max(low, low + track * TRACK - spot)
                last = min(low + SPOT, low + (track + 1) * TRACK - spot)
                if source[first:last] != destination[first:last]:
                    self.differing += 1
                    assert here.invalid.get(track) or here.owed.get(track), f"rule 2: track {track} differs"

    def _check_verdict(self, core: Core, there: Table) -> None:
        """The two go on together: nothing but power was lost."""
        flow = begin_session(core)
        next(flow)  # the header becomes durable
        with pytest.raises(StopIteration) as ended:
            next(flow)
        greeting = ended.value.value
        verdict = lineage.judge(greeting, Target(there, lambda: str(uuid.uuid4()))._get_facts())
        assert verdict is Verdict.ACCEPTED, f"the destination would refuse its source: {verdict}"

    def _check_whole(self, state: State, destination: bytearray) -> None:
        """A destination that calls itself complete may be promoted: nothing in it is of before the pair, or half."""
        for index, spot in enumerate(SPOTS):
            for at in range(SECTORS):
                low, sector = index * SPOT + at * SECTOR, spot // SECTOR + at
                number = find_number(destination[low : low + SECTOR], sector)
                begun_ns = self._begun_ns.get((sector, number), FOREVER)
                assert begun_ns < state.instant_ns, f"sector {sector} of a complete destination holds write {number}"
        self.whole += 1

    def _check_history(self, state: State, here: Table, source: bytearray, destination: bytearray) -> None:
        """Rules 4, 5 and 6: what the host reads after recovery is what it was promised."""
        is_killed = "source" not in state.lost
        allowed = self.ran.history.get_allowed
        for index, spot in enumerate(SPOTS):
            for at in range(SECTORS):
                sector = spot // SECTOR + at
                is_there = here.invalid.get(sector * SECTOR // TRACK)
                image = destination if is_there else source
                low = index * SPOT + at * SECTOR
                number = find_number(image[low : low + SECTOR], sector)
                may = allowed(sector, state.instant_ns, is_killed and not (is_there and "destination" in state.lost))
                assert number in may, (
                    f"sector {sector} ({'at the peer' if is_there else 'here'}) holds write {number}, "
                    f"not one of {sorted(may)}"
                )
