"""Claims of whole pages: they begin when extents do not suffice, and cost nobody a longer copy but after a crash."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest

from nbdplugin import actions, checkpoint, modes, requests
from nbdplugin.core import Core
from nbdplugin.decide import Kind
from nbdplugin.requests import HostWrite
from tests.sim.disk import CELL, PER_TRACK, A
from tests.sim.machine import Op
from tests.sim.small import COUNT, PAIR, Small

Play = Callable[[], None]


class Scene:
    """A Small, Synchronized and then without its link; two of its three extents may be active.

    An extent is a page of two tracks, the last of one; the first track of each is written.
    """

    def __init__(self, start: str = "clean") -> None:
        self.world = Small(start)
        self.world.do("disconnect")
        self.call(self.lose())

    @property
    def core(self) -> Core:
        core = self.world.core
        assert core is not None
        return core

    def lose(self) -> actions.Flow[None]:
        if self.core.session is not None:
            yield from modes.lose_session(self.core, self.core.session, "the link is cut")

    def call(self, flow: Any) -> None:
        ends: list[Exception | None] = []
        self.world.machine.spawn(A, "flow", flow, lambda _, error: ends.append(error))
        self.world.run_idle()
        assert ends == [None]

    def write(self, track: int, count: int = 1) -> None:
        world = self.world
        world.values += 1
        cells = range(track * PER_TRACK, min((track + count) * PER_TRACK, COUNT))
        write = world.model.start_write(cells, world.values, world.machine.now)
        item = HostWrite(Kind.WRITE, cells.start * CELL, len(cells) * CELL, (world.values,) * len(cells))
        self.call(requests.write(self.core, item))
        world.model.ack(write, cells, world.machine.now, world._is_there)

    def hold(self, track: int) -> Op:
        """A write whose bytes are on their way to the store until `let_go`."""
        world = self.world
        item = HostWrite(Kind.WRITE, track * PER_TRACK * CELL, CELL, (0,))
        world.model.forget(range(track * PER_TRACK, track * PER_TRACK + 1))
        world.machine.spawn(A, "held", requests.write(self.core, item), world._ignore)
        while not (found := [op for op in world.machine.ops if isinstance(op.action, actions.StoreWrite)]):
            assert world.advance()
        world.machine.ops.remove(found[0])
        return found[0]

    def let_go(self, op: Op) -> None:
        self.world.machine.ops.append(op)
        self.world.run_idle()

    def begin(self, flow: Any) -> None:
        """As far as it comes while a write is held."""
        self.world.machine.spawn(A, "flow", flow, self.world._ignore)
        while self.world.advance():
            pass

    def thrash(self) -> None:
        """Tracks 0, 2 and 4 are owed: extents 0 and 1 are active, for 2 room is made; then 0 again finds none."""
        for track in (0, 2, 4, 0, 2, 4):
            self.write(track)

    def tick(self, times: int) -> None:
        for _ in range(times):
            self.call(checkpoint.keep(self.core))

    def reconnect(self) -> None:
        self.world.do("reconnect")
        assert self.core.session is not None

    def get_owed(self) -> list[int]:
        """The tracks that are owed in memory."""
        return [track for track in range(self.core.table.geometry.tracks) if self.core.table.owed.get(track)]

    def get_disk_owed(self) -> list[int]:
        """What recovery would find, but for active extents."""
        owed = self.world.machine.metas[A].view.raw_owed
        return [track for track in range(self.core.table.geometry.tracks) if owed >> track & 1]


def play(scene: Play) -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:  # Small makes pages and runs small for its process
        pool.apply(scene)


def _nothing_claimed_while_extents_suffice() -> None:
    scene = Scene()
    for track in (0, 2, 0, 2, 1, 3) * 3:
        scene.write(track)
    assert scene.core.counts.claimed_pages == 0
    assert not scene.core.table.owed_pages_on_disk


def _claimed_and_exact_in_memory() -> None:
    scene = Scene()
    scene.thrash()
    claimed = scene.core.table.owed_pages_on_disk
    assert claimed
    assert scene.get_owed() == [0, 2, 4]
    assert {track for page in claimed for track in range(2 * page, min(2 * page + 2, 5))} <= set(scene.get_disk_owed())
    writes = scene.core.counts.table_writes
    for page in claimed:
        scene.write(2 * page)
    assert scene.core.counts.table_writes == writes, "a write in claimed pages needs the table no more"


def _nothing_more_is_sent_after_the_peer_restarted() -> None:
    scene = Scene()
    scene.thrash()
    scene.world.do("crash destination")  # its epoch is another: what the disk still owes, it may lack
    active = {track for extent in scene.core.table.active_on_disk for track in (2 * extent, 2 * extent + 1)}
    assert set(scene.get_disk_owed()) - active - {0, 2, 4}, "more is owed on disk than was written"
    scene.reconnect()
    assert set(scene.get_owed()) <= active | {0, 2, 4}
    scene.world.heal()


def _nothing_more_is_sent_after_a_drain() -> None:
    scene = Scene()
    scene.thrash()
    assert scene.get_disk_owed() != [0, 2, 4]
    scene.tick(3)  # extents at rest are retired: they would be owed as well
    scene.thrash()
    scene.call(modes.drain(scene.core))
    assert not scene.core.table.owed_pages_on_disk
    assert scene.get_disk_owed() == [0, 2, 4]


def _a_crash_owes_the_claimed_pages_and_no_invalid_track() -> None:
    scene = Scene("source invalid")
    scene.reconnect()
    scene.world.do("fetch")  # track 0
    scene.world.do("disconnect")
    scene.call(scene.lose())
    for track in (2, 4, 0, 2, 4, 0):  # all of a track, so that it needs no data of the peer
        scene.write(track)
    claimed = sorted(scene.core.table.owed_pages_on_disk)
    assert claimed
    scene.world.do("crash source")
    table = scene.core.table
    assert table.invalid.get(1)
    assert table.invalid.get(3)
    assert scene.get_owed() == [0, 2, 4]
    scene.world.heal()


def _it_ends_when_writes_have_become_few() -> None:
    scene = Scene()
    scene.thrash()
    scene.tick(checkpoint.CALM_CHECKPOINTS + 2)
    assert not scene.core.table.owed_pages_on_disk
    assert scene.get_disk_owed() == [0, 2, 4]
    scene.world.do("crash source")
    assert scene.get_owed() == [0, 2, 4]
    scene.world.heal()


def _it_ends_when_nothing_is_in_flight() -> None:
    scene = Scene()
    scene.thrash()
    assert scene.core.table.owed_pages_on_disk == {1}
    held = scene.hold(3)
    while not scene.core.is_quiesced:
        scene.begin(checkpoint.keep(scene.core))
    assert scene.core.table.owed_pages_on_disk == {1}, "the write in flight relies on it"
    scene.let_go(held)
    assert not scene.core.is_quiesced
    assert not scene.core.table.owed_pages_on_disk
    assert scene.get_disk_owed() == [0, 2, 3, 4]


def _no_extent_in_claimed_pages_becomes_active() -> None:
    scene = Scene()
    scene.thrash()
    scene.call(checkpoint.checkpoint(scene.core))
    assert scene.core.table.owed_pages_on_disk == {1}
    assert not scene.core.extents
    held = scene.hold(3)
    scene.world.model.forget(range(3 * PER_TRACK))
    scene.begin(requests.write(scene.core, HostWrite(Kind.TRIM, 0, 3 * PER_TRACK * CELL, None)))
    assert scene.core.table.active_on_disk == {0}, "extent 1 is claimed, and a write in flight there was not counted"
    scene.let_go(held)


def _no_more_pages_are_claimed_than_extents_may_be_active() -> None:
    scene = Scene()
    scene.core.max_active = 1
    scene.thrash()
    scene.thrash()
    assert len(scene.core.table.owed_pages_on_disk) == 1
    assert len(scene.core.table.active_on_disk) == 1
    assert scene.get_owed() == [0, 2, 4]


def _suspended_and_resumed() -> None:
    scene = Scene()
    scene.reconnect()
    scene.call(modes.suspend(scene.core, PAIR))
    scene.thrash()
    assert scene.core.table.owed_pages_on_disk
    scene.call(modes.resume(scene.core, PAIR))
    scene.reconnect()
    assert not scene.core.table.owed_pages_on_disk
    assert scene.get_owed() == [0, 2, 4]
    assert set(scene.get_disk_owed()) <= {0, 2, 4}
    scene.world.heal()


@pytest.mark.parametrize(
    "scene",
    [
        _nothing_claimed_while_extents_suffice,
        _claimed_and_exact_in_memory,
        _nothing_more_is_sent_after_the_peer_restarted,
        _nothing_more_is_sent_after_a_drain,
        _a_crash_owes_the_claimed_pages_and_no_invalid_track,
        _it_ends_when_writes_have_become_few,
        _it_ends_when_nothing_is_in_flight,
        _no_extent_in_claimed_pages_becomes_active,
        _no_more_pages_are_claimed_than_extents_may_be_active,
        _suspended_and_resumed,
    ],
    ids=lambda scene: scene.__name__.strip("_").replace("_", " "),
)
def test_claims(scene: Play) -> None:
    play(scene)
