"""Of two writes to one track the first fails here, and a flush comes between: the second is at the peer in doubt."""

from __future__ import annotations

import errno
import multiprocessing
from typing import Any

from nbdplugin import actions, modes, requests
from nbdplugin.decide import Kind
from nbdplugin.errors import StoreFailed
from nbdplugin.requests import HostWrite
from tests.sim.disk import CELL, A
from tests.sim.machine import Op
from tests.sim.small import Small

FIRST, SECOND = range(4, 6), range(6, 8)  # cells of track 1


class Scene:
    """A Small in which the two legs of one write wait until they are told to go on."""

    def __init__(self) -> None:
        self.world = Small("clean")
        self.world.do("FUA write")  # its extent is active from here on
        self.acknowledged: list[range] = []

    def write(self, cells: range) -> None:
        world = self.world
        world.values += 1
        write = world.model.start_write(cells, world.values, world.machine.now)
        item = HostWrite(Kind.WRITE, cells.start * CELL, len(cells) * CELL, (world.values,) * len(cells))

        def end(_: Any, error: Exception | None) -> None:
            assert error is None
            self.acknowledged.append(cells)
            world.model.ack(write, cells, world.machine.now, world._is_there)

        assert world.core is not None
        world.machine.spawn(A, f"write {cells.start}", requests.write(world.core, item), end)

    def fail(self, cells: range) -> None:
        """The write's local leg."""
        (op,) = [op for op in self.world.machine.ops if _is_of(op, cells)]
        self.world.machine.ops.remove(op)
        self.world.rules.note_local_failure()
        op.sink(None, StoreFailed("a write", errno.EIO))

    def run(self, held: range | None = None) -> None:
        """All that is possible, but for the legs of the write to `held`."""
        world, machine = self.world, self.world.machine
        laid: list[Any] = []
        if held is not None:
            for pool in (machine.ops, machine.net):
                laid += [(pool, item) for item in pool if _is_of(item, held)]
                pool[:] = [item for item in pool if not _is_of(item, held)]
        while world.advance():
            pass
        for pool, item in laid:
            pool.append(item)


def _is_of(item: Any, cells: range) -> bool:
    action = item.action if isinstance(item, Op) else item.call.action
    return isinstance(action, actions.StoreWrite | actions.PeerWrite) and action.offset == cells.start * CELL


def test_a_flush_without_the_peer_waits_while_a_write_there_is_in_doubt() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:  # Small makes pages and runs small for its process
        pool.apply(_play)


def _play() -> None:
    scene = Scene()
    world, core = scene.world, scene.world.core
    assert core is not None
    scene.write(FIRST)
    scene.write(SECOND)
    scene.fail(FIRST)
    scene.run(held=SECOND)
    assert scene.acknowledged == [FIRST]
    assert core.table.invalid.count == 1
    world.begin("flush")
    scene.run(held=SECOND)
    assert not core.table.header.doubtful
    scene.run()
    assert scene.acknowledged == [FIRST, SECOND]
    assert core.session is not None
    world.machine.spawn(A, "link", modes.lose_session(core, core.session, "lost"), world._ignore)
    scene.run()
    world.begin("flush")
    scene.run()  # rule 5
    assert [task.name for task in world.machine.tasks] == ["flush"], "the flush is to wait for the path"
