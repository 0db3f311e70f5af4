"""mutations - one-line faults in the pure flows, each of which the simulator or the exhaustive run must find.

A mutation replaces a text that stands exactly once in one function; a text that is gone fails loudly.

Left out, because a second line of defence holds the promise alone:

* `_build_checkpoint` clears owed bits without a session, `note_accepted` does not restore them or forgets the active
  extents: at the end of a session all that was not flushed in it is owed again;
* `_carry_out` does not note a mirrored write as unflushed: its extent is active until the peer was flushed, and a new
  epoch owes what is active;
* `_push` counts although its session has ended: the owed bit is on disk until a checkpoint has flushed the peer;
* `judge` accepts the last session once more: a source makes its number durable before it sends it, so this is the
  same greeting, sent again;
* `end_session` leaves the connections open: an answer of a session that is over is not counted;
* `finish` does not look again for what is owed: while a session is up nothing becomes owed that was not;
* `_build_settled` does not look whether the turn is another: whoever waits for it holds the gate of what it wrote, so
  a track of the batch that a failure made invalid meanwhile cannot become valid again before it is written;
* `_complete` does not sync: the checkpoint before the message has flushed the peer in the same session;
* `_enter` does not look again behind the gate: `_write_in_gate` does; nor skips a trim's edges: they may be zeroes;
* `_mark_side` does not sync: all is owed, and a checkpoint syncs before it clears; a repeated `resolve` copies anew;
* `expire` does nothing: the next session refuses the callbacks of the one before.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from typing import Any, NamedTuple


class Mutation(NamedTuple):
    """`where`: module and function, dotted, below nbdplugin or tests.sim.

    `hint`: a seed, or the path of a sequence, that found it once.  `faults`: what has to be frequent to find it.
    `aim`: a fault and the state that it is to meet.  `lazy`: how the names of those threads begin that freeze often.
    """

    name: str
    where: str
    old: str
    new: str
    hint: int | str | None = None
    faults: tuple[str, ...] = ()
    aim: tuple[str, str] | None = None
    lazy: str = ""
    steps: int = 2_000


MUTATIONS = (
    Mutation(
        "a pushed track stops being owed before it is sent",
        "nbdplugin.transfer._push",
        "    yield actions.PeerWrite(",
        "    core.table.clear_owed(run)\n    yield actions.PeerWrite(",
        hint=0,
    ),
    Mutation(
        "writes without an active extent",
        "nbdplugin.checkpoint.is_prepared",
        "    on_disk = core.table.active_on_disk",
        "    return True",
        hint=0,
    ),
    Mutation(
        "acknowledged before it is settled",
        "nbdplugin.requests._conclude",
        "    yield from checkpoint.settle(core, span)",
        "    yield from ()",
        hint=2,
    ),
    Mutation(
        "a settled track was not synced",
        "nbdplugin.checkpoint.settle",
        "yield from core.sync_store()",
        "yield from ()",
        hint="source invalid | newest here: 0 flush, 1 write A",
    ),
    Mutation(
        "the peer takes any session",
        "nbdplugin.target.Target.enter",
        "if not self.is_open or session != self.table.header.session:",
        "if False:",
        hint="clean | newest here: 0 write A, 6 disconnect (late) | newest here: 0 write A",
    ),
    Mutation(
        "a greeting does not wait for older callbacks",
        "nbdplugin.target.Target._open",
        "while any(",
        "while False and any(",
        hint=83,
    ),
    Mutation(
        "a session opens over unsynced data",
        "nbdplugin.target.Target._open",
        "yield from self._sync()",
        "yield from ()",
        hint=39,
        faults=("write A", "flap"),
        lazy="checkpoint",
        steps=1_000,
    ),
    Mutation(
        "a fetch does not hold its tracks",
        "nbdplugin.transfer.fetch",
        "core.enter_gate(*core.table.geometry.get_range(span))",
        "core.enter_gate(core.table.geometry.size, 0)",
        hint=2,
    ),
    Mutation(
        "a run of the copy does not hold its tracks",
        "nbdplugin.transfer.copy_run",
        "core.gate.try_enter(*core.table.geometry.get_range(run))",
        "core.gate.try_enter(core.table.geometry.size, 0)",
        hint=1,
    ),
    Mutation(
        "a fetched track is valid before it is stored",
        "nbdplugin.transfer._store",
        "    yield actions.StoreWrite(",
        "    core.table.mark_valid(run)\n    yield actions.StoreWrite(",
        hint=2,
    ),
    Mutation(
        "a fetch counts although its session has ended",
        "nbdplugin.transfer._store",
        "if core.session != session:",
        "if False:",
        hint=184,
        faults=("cut",),
        aim=("sync A", "synchronized"),
        steps=1_000,
    ),
    Mutation(
        "recovery forgets the active extents",
        "nbdplugin.core.Core._recover",
        "if self.table.header.committed:",
        "if False:",
        hint=27,
    ),
    Mutation(
        "the end of a session forgets what was not flushed",
        "nbdplugin.core.Core.end_session",
        "for spans in (self.unflushed, *self.flushing):",
        "for spans in ():",
        hint=9,
    ),
    Mutation(
        "the end of a session forgets what is being flushed",
        "nbdplugin.core.Core.end_session",
        "for spans in (self.unflushed, *self.flushing):",
        "for spans in (self.unflushed,):",
        hint=34,
    ),
    Mutation(
        "the data of invalid tracks at the peer is never in doubt",
        "nbdplugin.core.Core.write_marks",
        "self.table.header.doubtful = self.table.header.committed",
        "pass",
        hint=38,
        faults=("write A", "cut"),
        steps=1_000,
    ),
    Mutation(
        "a checkpoint does not flush the peer",
        "nbdplugin.checkpoint._checkpoint",
        "if session is not None and not (yield from flush_peer(core, session)):",
        "if False:",
        hint=0,
    ),
    Mutation(
        "a checkpoint clears whatever memory has cleared",
        "nbdplugin.tracks.Table._build_page",
        "owed = (disk.owed & ~(clear.owed & ~memory.owed) | memory.owed) & ~invalid",
        "owed = memory.owed & ~invalid",
        hint=0,
    ),
    Mutation(
        "an extent is retired under a write",
        "nbdplugin.checkpoint._build_checkpoint",
        "use.in_flight == 0 and use.idle >= most",
        "use.idle >= 0",
        hint=0,
    ),
    Mutation(
        "a flush leaves the peer out",
        "nbdplugin.requests._flush_both",
        "if session is not None:",
        "if False:",
        hint=0,
    ),
    Mutation(
        "a flush leaves out what only the peer has",
        "nbdplugin.requests._flush_both",
        "    core.check_peer_durable()",
        "    pass",
        hint=38,
        faults=("write A", "cut"),
        steps=1_000,
    ),
    Mutation(
        "a write that the peer lacks is not owed",
        "nbdplugin.requests._conclude",
        "        core.table.mark_owed(span)",
        "        pass",
        hint=1,
    ),
    Mutation(
        "a failed local write is taken for a good one",
        "nbdplugin.requests._conclude",
        "if outcome.local is not None:",
        "if outcome.local is not None and outcome.peer is not None:",
        faults=("write A",),
    ),
    Mutation(
        "a lost peer is taken for a write done there",
        "nbdplugin.requests._carry_out",
        "if outcome.peer is not None:",
        "if False:",
        hint=8,
    ),
    Mutation(
        "a failed sync is forgotten",
        "nbdplugin.core.Core.sync_store",
        "yield from self._distrust_store(error)",
        "yield from ()",
        hint=0,
        faults=("sync A",),
        steps=1_000,
    ),
    Mutation(
        "a sync beside a failed one counts",
        "nbdplugin.core.Core.sync_store",
        "if self.distrusts != distrusts:",
        "if False:",
        hint=29,
        faults=("sync A", "kill A"),
        steps=1_000,
    ),
    Mutation(
        "a read beside a failed sync counts",
        "nbdplugin.requests.read",
        "if core.distrusts == distrusts:",
        "if True:",
        hint=92,
        faults=("sync A",),
        steps=1_000,
    ),
    Mutation(
        "a page under way is overlooked",
        "nbdplugin.tracks.Table.is_settled",
        "(self._shadow.get(page), self._pending.get(page))",
        "(self._shadow.get(page), None)",
        hint=20,
        faults=("sync A", "cut"),
        lazy="flush",
        steps=1_000,
    ),
    Mutation(
        "the destination is not marked incomplete",
        "nbdplugin.target.Target._begin",
        "if not self.table.header.incomplete:",
        "if False:",
        hint=0,
    ),
    Mutation(
        "a partly covered invalid track is written over",
        "nbdplugin.requests.get_invalid_edges",
        "    return ",
        "    return () and ",
        hint=2,
    ),
    Mutation(
        "a write under the lineage of the peer",
        "nbdplugin.checkpoint.needs_generation",
        "    header, durable",
        "    return False\n    header, durable",
        hint=2,
    ),
    Mutation(
        "a change of mode does not wait for requests in flight",
        "nbdplugin.core.Core.quiesce",
        "while self.in_flight:",
        "while False:",
        hint=0,
        aim=("cut", "synchronized"),
        steps=1_500,
    ),
    Mutation(
        "a commit pushes from a source that is not whole",
        "nbdplugin.modes._check_whole",
        "if count or core.table.header.incomplete:",
        "if False:",
        hint=12,
    ),
    Mutation(
        "a filled plane does not hide older pages",
        "nbdplugin.tracks.Table.restore_page",
        "if page.sequence > self.header.planes[name].since:",
        "if True:",
        hint=0,
    ),
    Mutation(
        "the loader does not mend a torn page's twin",
        "tests.sim.world.World.get_repairs",
        "return meta.repair()",
        "return []",
        hint=0,
        aim=("power A", "greeting"),
        steps=1_000,
    ),
    Mutation(
        "owed is cleared on disk when the peer answers, not at the checkpoint",
        "nbdplugin.transfer._push",
        "    core.table.clear_owed(run)",
        "    core.table.clear_owed(run)\n"
        "    noted = core.table.note_clearer()\n"
        "    yield from core.write_table(lambda: core.table.build_change(noted, noted, header=False))",
        hint=0,
    ),
    Mutation(
        "an extent is retired after a push",
        "nbdplugin.checkpoint.touch_extents",
        "            use.idle = 0",
        "            pass",
        hint=51,
        faults=("cut",),
        lazy="write",
        steps=1_000,
    ),
    Mutation(
        "an extent is retired without the owed bits of its tracks",
        "nbdplugin.checkpoint._build_checkpoint",
        "pages = set(noted) | (core.table.get_differing() if retired else set())",
        "pages = set(noted)",
        hint=0,
    ),
    Mutation(
        "a checkpoint clears what changed since it began",
        "nbdplugin.checkpoint._build_checkpoint",
        "if core.turn != turn:",
        "if False:",
        hint=7,
        faults=("sync A",),
        lazy="checkpoint",
        steps=1_000,
    ),
    Mutation(
        "recovery lets owed win over invalid",
        "nbdplugin.core.Core._recover",
        "            self.table.mark_owed(",
        "            self.table.invalid.fill(False)\n            self.table.mark_owed(",
        hint=12,
    ),
    Mutation(
        "recovery lets invalid win over owed",
        "nbdplugin.core.Core._recover",
        "self.table.mark_owed(",
        "self.table.mark_invalid(",
        hint=3,
    ),
    Mutation(
        "owed and invalid at once",
        "nbdplugin.tracks.Table.mark_owed",
        "wanted = ~self.invalid.read_bits(span.first, span.count) & ((1 << span.count) - 1)",
        "wanted = (1 << span.count) - 1",
        hint=2,
    ),
    Mutation(
        "the epoch of the peer is ignored",
        "nbdplugin.modes.note_accepted",
        "if header.committed and header.epoch != epoch:",
        "if False:",
        hint=82,
        faults=("write A", "sync B"),
    ),
    Mutation(
        "a session number is sent before it is durable",
        "nbdplugin.modes.begin_session",
        "    yield from core.write_table(build)",
        "    build()\n    yield from ()",
        hint=7,
    ),
    Mutation(
        "an accepted session is not durable at the peer",
        "nbdplugin.target.Target._open",
        "    yield from self._write_header()",
        "    pass",
        hint=2,
    ),
    Mutation(
        "a source that is not whole is not said to be so before the first push",
        "nbdplugin.modes.session_up",
        "if core.table.owed.count and not is_told:",
        "if False:",
        hint="clean | newest here: 0 disconnect | newest here: 0 reconnect, 12 write A",
    ),
    Mutation(
        "the mark of an incomplete destination is not durable",
        "nbdplugin.target.Target._begin",
        "yield from self._write_header()",
        "yield from ()",
        hint=0,
    ),
    Mutation(
        "the closing message comes before the lineage is known to be the peer's",
        "nbdplugin.modes.finish",
        "if header.peer_generation != header.generation:",
        "if False:",
        hint=0,
    ),
    Mutation(
        "a fetch does not look again behind the gate",
        "nbdplugin.transfer.fetch",
        "(run := _find_within(core, track, span.end)) is not None",
        "(run := Span(track, span.end - track) if track < span.end else None) is not None",
        hint=2,
    ),
    Mutation(
        "a read does not look again after its fetch",
        "nbdplugin.requests.read",
        "            while (step := decide(",
        "            if (step := decide(",
        hint=2,
    ),
    Mutation(
        "a write does not look again when its extents are active",
        "nbdplugin.requests._write_in_gate",
        "if core.path is Path.HALTED or get_invalid_edges(core, item.offset, item.length):",
        "if core.path is Path.HALTED:",
        hint=2,
        faults=("sync A",),
    ),
    Mutation(
        "a run of the copy does not look again behind the gate",
        "nbdplugin.transfer._copy_in_gate",
        "if core.turn != turn or not plane.is_all(run.first, run.count):",
        "if False:",
        hint="source invalid, holes | newest here: 0 push, 2 write A",
    ),
    Mutation(
        "a hole is pushed that was one before the gate",
        "nbdplugin.transfer._push",
        "        if not is_zero or piece < length:",
        "        if False:",
        hint="destination invalid, holes | newest here lazy: 0 push, 1 write A",
    ),
    Mutation(
        "a push is not known to be unflushed",
        "nbdplugin.transfer._push",
        "    core.note_sent(run)",
        "    pass",
        hint=109,
    ),
    Mutation(
        "a write whose peer leg failed leaves its session open",
        "nbdplugin.requests._carry_out",
        "            yield from core.end_session(session, outcome.peer)",
        "            yield from ()",
        hint=8,
    ),
    Mutation(
        "a failed sync is tried again",
        "nbdplugin.core.Core.sync_store",
        "        yield from self._distrust_store(error)\n        raise",
        "        yield actions.StoreSync()",
        hint=53,
    ),
    Mutation(
        "a failed sync of the peer is tried again",
        "nbdplugin.target.Target._sync",
        "        self.epoch = self.new_name()\n"
        "        self.is_open = False  # the source greets anew and learns the epoch\n"
        "        raise",
        "        yield actions.StoreSync()",
        hint=0,
        faults=("sync B",),
    ),
    Mutation(
        "a failed sync of the peer leaves its epoch as it was",
        "nbdplugin.target.Target._sync",
        "        self.epoch = self.new_name()",
        "        pass",
        hint=82,
        faults=("write A", "sync B"),
    ),
    Mutation(
        "a table that could not be written is written again",
        "nbdplugin.core.Core.write_table",
        "        self.is_read_only = True",
        "        return True",
        hint=0,
        faults=("table A",),
        steps=1_000,
    ),
    Mutation(
        "a table that could not be written is taken for written",
        "nbdplugin.core.Core.write_table",
        "        self.is_read_only = True",
        "        self.table.note_written(change)\n        return True",
        hint=1,
        faults=("kill A",),
        aim=("table A", "greeting"),
        steps=1_000,
    ),
    Mutation(
        "a failed local write beside a good one at the peer stays valid",
        "nbdplugin.requests._conclude_local_failure",
        "        core.table.mark_invalid(span)",
        "        pass",
        hint=0,
        faults=("write A",),
    ),
    Mutation(
        "the second copy of a page is written before the first is durable",
        "tests.sim.disk.Meta.get_stages",
        '[Stage(BARRIER, copy, b"")] * bool(change.pages)',
        '[Stage(BARRIER, copy, b"")] * bool(change.pages and copy)',
        hint="source invalid | newest here: 0 write A, 24 crash source (torn)",
    ),
    Mutation(
        "the header is written before its pages are durable",
        "tests.sim.disk.Meta.get_stages",
        'stages += [Stage(BARRIER, copy, b"")] * bool(change.pages)',
        "stages += []",
        hint="source invalid | newest here: 0 write A, 24 crash source (torn)",
    ),
    Mutation(
        "a page is done when its first copy is",
        "tests.sim.disk.Meta.get_stages",
        '[Stage(-1, copy, change.header), Stage(BARRIER, copy, b"")]',
        "[Stage(-1, copy, change.header)]",
        hint=0,
    ),
    Mutation(
        "the generation is taken after the acknowledgement",
        "nbdplugin.requests._conclude",
        "        yield from checkpoint.take_generation(core)",
        "        pass",
        hint="clean | newest here: 0 write A, 0 disconnect",
    ),
    Mutation(
        "a commit or resolve that keeps the source takes no new generation",
        "nbdplugin.modes._mark_side",
        "        header.take_generation(core.new_name(), peer_line[0])",
        "        pass",
        hint=0,
    ),
    Mutation(
        "a write with FUA is not flushed",
        "nbdplugin.requests.write",
        "if item.is_fua:",
        "if False:",
        hint=0,
    ),
    Mutation(
        "a flush leaves the source out",
        "nbdplugin.requests._flush_both",
        "    yield from core.sync_store()",
        "    yield from ()",
        hint=0,
    ),
    Mutation(
        "a checkpoint leaves the source out",
        "nbdplugin.checkpoint._checkpoint",
        "    yield from core.sync_store()",
        "    yield from ()",
        hint=0,
    ),
    Mutation(
        "later requests overtake at the gate",
        "nbdplugin.gate.Gate.enter",
        "sum(ticket.overlaps(other) for other in self._tickets)",
        "0",
        hint=4,
    ),
    Mutation(
        "a request is let in while another still blocks it",
        "nbdplugin.gate.Gate.leave",
        "            if other.blockers == 0:",
        "            if not other.is_in:",
        hint=1,
    ),
    Mutation(
        "the disk is taken to say what memory says",
        "nbdplugin.tracks.Table.note_written",
        "        if bits == self._get_memory(page):",
        "        if True:",
        hint=7,
    ),
    Mutation(
        "every page clears invalid bits ahead of the data",
        "nbdplugin.tracks.Table._build_page",
        "invalid = disk.invalid & ~(clear.invalid & ~memory.invalid) | memory.invalid",
        "invalid = memory.invalid",
        hint=11,
    ),
    Mutation(
        "policy stop: a write that the peer lacks is acknowledged",
        "nbdplugin.requests._write_in_gate",
        "if outcome.peer is not None and core.is_strict:",
        "if False:",
        hint=6,
    ),
    Mutation(
        "policy stop: a write begins although the path is lost",
        "nbdplugin.core.Core.is_strict",
        "header.on_path_loss == tracks.STOP",
        "False",
        hint=0,
    ),
    Mutation(
        "a suspended path ends its session without a mark",
        "nbdplugin.modes._end_ready",
        '            yield from core.end_session(core.session, "the path was suspended")',
        "            core.session = None",
        hint=14,
    ),
    Mutation(
        "a commit or resolve goes on before its generation and marks are durable",
        "nbdplugin.modes._mark_side",
        "    yield from core.write_table(build)",
        "    build()",
        hint=0,
    ),
    # Chosen by somebody other than the author of the checks.
    Mutation(
        "a read from the peer does not hold its range",
        "nbdplugin.transfer.read_peer",
        "core.enter_gate(offset, length)",
        "core.enter_gate(core.table.geometry.size, 0)",
        hint=5,
        faults=("read A",),
    ),
    Mutation(
        "a destination that was put back is taken for the one it was",
        "nbdplugin.lineage.judge",
        "if facts.session < greeting.accepted:",
        "if False:",
        hint=2,
    ),
    Mutation(
        "a source that was put back is taken for the one it was",
        "nbdplugin.lineage.judge",
        "if greeting.committed and greeting.accepted < facts.accepted:",
        "if False:",
        hint=4,
    ),
    Mutation(
        "a resolve that keeps the source does not descend from the destination",
        "nbdplugin.modes._mark_side",
        "header.take_generation(core.new_name(), peer_line[0])",
        "header.take_generation(core.new_name())",
        hint=0,
    ),
    Mutation(
        "a commit or resolve that discards the source keeps its lineage",
        "nbdplugin.modes._mark_side",
        "header.generation, header.ancestors = peer_line[0], list(peer_line[1:])",
        "pass",
        hint=2,
    ),
    Mutation(
        "the lineage that the peer will have is not noted",
        "nbdplugin.modes.finish",
        "if header.peer_generation != header.generation:",
        "if False:",
        hint=0,
    ),
    Mutation(
        "a settled write makes tracks valid that a failed write beside it lost",
        "nbdplugin.requests._conclude",
        "core.table.mark_valid(_get_covered(core, item))",
        "core.table.mark_valid(span)",
        hint=29,
        faults=("write A",),
    ),
    Mutation(
        "tracks that became owed during the greeting are not told",
        "nbdplugin.modes.session_up",
        "if core.table.owed.count and not is_told:",
        "if False:",
        hint=7,
    ),
    Mutation(
        "a trim passes over a part of an invalid track",
        "nbdplugin.requests._skip_edges",
        "item.offset, item.length = start + length, end - start - length",
        "item.offset, item.length = item.offset, 0",
        hint=6,
    ),
    Mutation(
        "a sync begins before the marks of a failed one are durable",
        "nbdplugin.core.Core.sync_store",
        "while self.distrusting:",
        "while False:",
        hint=8,
        faults=("sync A", "power A"),
    ),
    Mutation(
        "a policy is answered before it is durable",
        "nbdplugin.modes.set_policy",
        "yield from core.write_header()",
        "yield from ()",
        hint=12,
    ),
    Mutation(
        "a resolve forgets what the peer last accepted",
        "nbdplugin.modes._mark_side",
        "header.accepted, header.epoch, header.doubtful, core.is_loss_untold = accepted, None, False, False",
        "header.epoch, header.doubtful, core.is_loss_untold = None, False, False",
        hint=2,
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
    function = getattr(original, "__func__", None) or getattr(original, "fget", original)  # of what wraps it
    source = textwrap.dedent(inspect.getsource(function))
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
