"""mutations - one-line faults in the pure flows, each of which the simulator must find.

A mutation replaces a text that stands exactly once in one function; a text that is gone fails loudly.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """`where`: module and function, dotted, below nbdplugin or tests.sim.  `hint`: a seed that found it once."""

    name: str
    where: str
    old: str
    new: str
    hint: int = 0


MUTATIONS = (
    Mutation(
        "a pushed track stops being owed before it is sent",
        "nbdplugin.transfer._push",
        "    yield actions.PeerWrite(",
        "    core.table.clear_owed(run)\n    yield actions.PeerWrite(",
    ),
    Mutation(
        "writes without an active extent",
        "nbdplugin.checkpoint.is_prepared",
        "    on_disk = core.table.active_on_disk",
        "    return True",
    ),
    Mutation(
        "acknowledged before it is settled",
        "nbdplugin.requests._conclude",
        "    yield from checkpoint.settle(core, span)",
        "    yield from ()",
    ),
    Mutation(
        "a settled track was not synced",
        "nbdplugin.checkpoint.settle",
        "yield from core.sync_store()",
        "yield from ()",
        67,
    ),
    Mutation(
        "the peer takes any session",
        "nbdplugin.target.Target.enter",
        "if not self.is_open or session != self.table.header.session:",
        "if False:",
        178,
    ),
    Mutation(
        "a greeting does not wait for older callbacks",
        "nbdplugin.target.Target._open",
        "while any(",
        "while False and any(",
        51,
    ),
    Mutation(
        "a session opens over unsynced data",
        "nbdplugin.target.Target._open",
        "yield from self._sync()",
        "yield from ()",
        27,
    ),
    Mutation(
        "a fetch does not hold its tracks",
        "nbdplugin.transfer.fetch",
        "core.enter_gate(*core.table.geometry.get_range(span))",
        "core.enter_gate(core.table.geometry.size, 0)",
    ),
    Mutation(
        "a run of the copy does not hold its tracks",
        "nbdplugin.transfer.copy_run",
        "core.gate.try_enter(*core.table.geometry.get_range(run))",
        "core.gate.try_enter(core.table.geometry.size, 0)",
    ),
    Mutation(
        "a fetched track is valid before it is stored",
        "nbdplugin.transfer._store",
        "    yield actions.StoreWrite(",
        "    core.table.mark_valid(run)\n    yield actions.StoreWrite(",
    ),
    Mutation(
        "recovery forgets the active extents",
        "nbdplugin.core.Core._recover",
        "if self.table.header.committed:",
        "if False:",
    ),
    Mutation(
        "the end of a session forgets what was not flushed",
        "nbdplugin.core.Core.end_session",
        "for spans in (self.unflushed, *self.flushing):",
        "for spans in ():",
    ),
    Mutation(
        "the end of a session forgets what is being flushed",
        "nbdplugin.core.Core.end_session",
        "for spans in (self.unflushed, *self.flushing):",
        "for spans in (self.unflushed,):",
        76,
    ),
    Mutation(
        "the data of invalid tracks at the peer is never in doubt",
        "nbdplugin.core.Core.write_marks",
        "self.table.header.doubtful = self.table.header.committed",
        "pass",
        106,
    ),
    Mutation(
        "a checkpoint does not flush the peer",
        "nbdplugin.checkpoint._checkpoint",
        "if session is not None and not (yield from flush_peer(core, session)):",
        "if False:",
    ),
    Mutation(
        "a checkpoint clears whatever memory has cleared",
        "nbdplugin.tracks.Table._build_page",
        "owed = (disk.owed & ~(clear.owed & ~memory.owed) | memory.owed) & ~invalid",
        "owed = memory.owed & ~invalid",
        233,
    ),
    Mutation(
        "an extent is retired under a write",
        "nbdplugin.checkpoint._build_checkpoint",
        "use.in_flight == 0 and use.idle >= most",
        "use.idle >= 0",
    ),
    Mutation(
        "a flush leaves the peer out",
        "nbdplugin.requests._flush_both",
        "if session is not None:",
        "if False:",
        137,
    ),
    Mutation(
        "a flush leaves out what only the peer has",
        "nbdplugin.requests._flush_both",
        "    core.check_peer_durable()",
        "    pass",
        106,
    ),
    Mutation(
        "a write that the peer lacks is not owed",
        "nbdplugin.requests._conclude",
        "        core.table.mark_owed(span)",
        "        pass",
    ),
    Mutation(
        "a failed local write is taken for a good one",
        "nbdplugin.requests._conclude",
        "if outcome.local is not None:",
        "if outcome.local is not None and outcome.peer is not None:",
        19,
    ),
    Mutation(
        "a lost peer is taken for a write done there",
        "nbdplugin.requests._carry_out",
        "if outcome.peer is not None:",
        "if False:",
    ),
    Mutation(
        "a failed sync is forgotten",
        "nbdplugin.core.Core.sync_store",
        "yield from self._distrust_store(error)",
        "yield from ()",
    ),
    Mutation(
        "a sync beside a failed one counts",
        "nbdplugin.core.Core.sync_store",
        "if self.distrusts != distrusts:",
        "if False:",
        109,
    ),
    Mutation(
        "a read beside a failed sync counts",
        "nbdplugin.requests.read",
        "if core.distrusts == distrusts:",
        "if True:",
        70,
    ),
    Mutation(
        "a page under way is overlooked",
        "nbdplugin.tracks.Table.is_settled",
        "(self._shadow.get(page), self._pending.get(page))",
        "(self._shadow.get(page), None)",
        30,
    ),
    Mutation(
        "the destination is not marked incomplete",
        "nbdplugin.target.Target._begin",
        "if not self.table.header.incomplete:",
        "if False:",
    ),
    Mutation(
        "a partly covered invalid track is written over",
        "nbdplugin.requests.get_invalid_edges",
        "    return ",
        "    return () and ",
    ),
    Mutation(
        "a write under the lineage of the peer",
        "nbdplugin.checkpoint.needs_generation",
        "    header, durable",
        "    return False\n    header, durable",
    ),
    Mutation(
        "a change of mode does not wait for requests in flight",
        "nbdplugin.core.Core.quiesce",
        "while self.in_flight:",
        "while False:",
    ),
    Mutation(
        "a commit pushes from a source that is not whole",
        "nbdplugin.modes._check_whole",
        "if count or core.table.header.incomplete:",
        "if False:",
    ),
    Mutation(
        "a filled plane does not hide older pages",
        "nbdplugin.tracks.Table.restore_page",
        "if page.sequence > self.header.planes[name].since:",
        "if True:",
    ),
    Mutation(
        "the loader does not mend a torn page's twin",
        "tests.sim.world.World.get_repairs",
        "return meta.repair()",
        "return []",
    ),
)


def apply(mutation: Mutation) -> None:
    """In this process, for good."""
    module_name, names = _split(mutation.where)
    module = importlib.import_module(module_name)
    owner: Any = module
    for name in names[:-1]:
        owner = getattr(owner, name)
    original = inspect.getattr_static(owner, names[-1])
    is_static = isinstance(original, staticmethod)
    source = textwrap.dedent(inspect.getsource(original.__func__ if is_static else original))
    assert source.count(mutation.old) == 1, (
        f"{mutation.old!r} stands {source.count(mutation.old)} times in {mutation.where}"
    )
    space: dict[str, Any] = {}
    exec(compile(source.replace(mutation.old, mutation.new), mutation.where, "exec"), module.__dict__, space)
    setattr(owner, names[-1], space[names[-1]])


def _split(where: str) -> tuple[str, list[str]]:
    parts = where.split(".")
    depth = 2 if parts[0] == "nbdplugin" else 3
    return ".".join(parts[:depth]), parts[depth:]
