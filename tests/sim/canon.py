"""canon - one fingerprint for all states of a World that cannot be told apart by what follows.

Taken when nothing is possible any more.  What is written is told apart only within its cell, times only by their
order, names, sessions and numbers of changes only by their relation to each other.  Whatever is not known here, a
new field for example, is taken as it is: then more states differ than need to, never fewer.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import itertools
import marshal
import types
from collections.abc import Iterable
from typing import Any

from nbdplugin import layout, tracks
from nbdplugin.actions import Waiter
from nbdplugin.bitmap import Bitmap
from nbdplugin.core import Core, Request
from nbdplugin.gate import Ticket
from nbdplugin.target import Target
from tests.sim.disk import A, B, Meta, Stores
from tests.sim.model import FLIGHT, Model
from tests.sim.rules import Rules

SESSIONS = ("session", "accepted")
UNSEEN = {  # what nothing is decided by
    Core: {"counts", "link_error", "was_refused", "ending", "new_name", "max_waiters", "turn", "distrusts", "doubts"}
    | {"marked_before", "views"},
    Target: {"new_name", "read_bytes", "written_bytes", "fetched_bytes", "fetched_tracks", "spoken"},
}


def get_digest(world: Any) -> bytes:
    """16 bytes."""
    drawn = marshal.dumps(Canon(world).draw(), 2)  # 2: no references, which would depend on who else holds an object
    return hashlib.blake2b(drawn, digest_size=16).digest()


class Canon:
    """The relations within one state."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.names: dict[str, int] = {}
        known = [table.header.session for table in (world.core.table, world.target.table)]
        self.last_session = max(known)
        self.changes = [self._rank_changes(side) for side in (A, B)]

    def draw(self) -> Any:
        world = self.world
        return (
            self._draw_owner(world.core, A),
            self._draw_views(world.core),
            world.core.table.marked - world.core.marked_before > world.core.max_active,
            self._draw_owner(world.target, B),
            [self._draw_meta(side) for side in (A, B)],
            self._draw_cells(),
            self._draw_link(),
            [self._draw_task(task) for task in world.machine.tasks],
            [self._freeze(getattr(world, name), A) for name in ("is_greeting", "is_finishing", "is_telling")],
        )

    # --- the processes ---

    def _draw_owner(self, owner: Core | Target, side: int) -> Any:
        unseen = UNSEEN[type(owner)]
        return [(key, self._freeze(value, side, key)) for key, value in vars(owner).items() if key not in unseen]

    @staticmethod
    def _draw_views(core: Core) -> Any:
        """What was told of holes and is still believed."""
        known = [(key, view) for key, view in sorted(core.views.items()) if view.session == core.session]
        return [(key, view.first, view.ends, view.are_holes) for key, view in known if view.turn == core.turn]

    def _freeze(self, value: Any, side: int, key: str = "") -> Any:
        """As it is, but for what has a relation to others."""
        kind = type(value)
        if value is None or kind is bool or kind is bytes:
            return value
        if kind is str:
            return self._name(value) if value.startswith("name-") else value
        if key == "pages_since":
            return self.changes[side][value]
        if kind is int or kind is float:
            return value - self.last_session if value and key in SESSIONS else value
        if kind is dict:
            return self._freeze_dict(value, side, key)
        if kind is list or kind is tuple:
            return [self._freeze(item, side) for item in value]
        if kind is set or kind is frozenset:
            return sorted(self._freeze(item, side) for item in value)
        if kind is Bitmap:
            return value.read_bits(0, value.size)
        if kind is tracks.Fill:
            return value.value, self.changes[side][value.since]
        if kind is tracks.Table:
            fields = vars(value) | {"sequence": self.changes[side][value.sequence]}
            for name in ("geometry", "volume", "marked"):
                del fields[name]
            return [(name, self._freeze(field, side)) for name, field in fields.items()]
        return self._freeze_object(value, side)

    def _freeze_dict(self, value: dict[Any, Any], side: int, key: str) -> Any:
        if key == "running":  # callbacks by session
            return sorted((number - self.last_session, count) for number, count in value.items() if count)
        return sorted((self._freeze(k, side), self._freeze(v, side)) for k, v in value.items())

    def _freeze_object(self, value: Any, side: int) -> Any:
        if isinstance(value, enum.Enum):
            return value.name
        if isinstance(value, tuple):
            return [self._freeze(item, side) for item in value]
        if isinstance(value, Waiter):
            return "waiter", value.is_done
        if isinstance(value, Request):
            return "request", value.is_in
        if isinstance(value, Ticket):
            return "ticket", value.offset, value.end, value.is_in, value.blockers
        if value is self.world or isinstance(value, Core | Target):
            return type(value).__name__
        if isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType | type):
            return value.__qualname__
        if isinstance(value, BaseException):
            return type(value).__name__
        if isinstance(value, types.GeneratorType):
            return value.__qualname__
        names = get_names(type(value)) or sorted(vars(value))
        return type(value).__name__, [(name, self._freeze(getattr(value, name), side, name)) for name in names]

    def _name(self, text: str) -> str:
        return f"#{self.names.setdefault(text, len(self.names))}"

    # --- the metadata ---

    def _get_images(self, meta: Meta) -> Iterable[tuple[bytes, bool, int]]:
        """Each copy; a twin that is equal only once."""
        yield meta.headers[0], True, 0
        if meta.headers[1] != meta.headers[0]:
            yield meta.headers[1], True, 0
        for index, (raw, twin) in enumerate(zip(*meta.pages, strict=True)):
            yield raw, False, index
            if twin != raw:
                yield twin, False, index
        for (page, _), older in getattr(meta, "unsynced", {}).items():
            for raw in older:
                yield raw, page < 0, max(page, 0)

    def _rank_changes(self, side: int) -> dict[int, int]:
        table = (self.world.core, self.world.target)[side].table
        numbers = {0, -1, table.sequence, *get_changes(table.header)}
        for image in self._get_images(self.world.machine.metas[side]):
            number, found = read_image(*image)
            numbers.add(number)
            if isinstance(found, tracks.Header):
                numbers.update(get_changes(found))
        return {number: rank for rank, number in enumerate(sorted(numbers))}

    def _draw_meta(self, side: int) -> Any:
        meta = self.world.machine.metas[side]
        drawn = []
        for image in self._get_images(meta):
            number, found = read_image(*image)
            drawn.append((self.changes[side][number], self._freeze(found, side)))
        twins = meta.headers[0] == meta.headers[1], [raw == twin for raw, twin in zip(*meta.pages, strict=True)]
        return drawn, twins, [(key, len(older)) for key, older in getattr(meta, "unsynced", {}).items()]

    # --- the data ---

    def _draw_cells(self) -> Any:
        model: Model = self.world.model
        rules: Rules = self.world.rules
        general = [model.flushed, float(rules.local_failure)]
        flying: dict[int, int] = {}
        for found in model.found:
            for write in found:
                if write.end == FLIGHT:
                    flying.setdefault(id(write), len(flying))
        cells = [self._draw_cell(cell, general, flying) for cell in range(len(model.found))]
        lost = sorted((key, "lost") for key in rules._lost)
        return cells, lost, sorted(model.unknown), len(model.reads), rules._is_blind(), rules.is_table_failed

    def _draw_cell(self, cell: int, general: list[float], flying: dict[int, int]) -> Any:
        stores: Stores = self.world.stores
        model: Model = self.world.model
        dirty = [flatten(stores.dirty[side].get(cell)) for side in (A, B)]
        found = model.found[cell]
        held = [stores.cells[A][cell], stores.cells[B][cell], *dirty[A], *dirty[B]]
        values = dict.fromkeys([*held, *(write.value for write in found)])
        reverts = model.reverts.get(cell, ())
        if len(values) == len(found) == 1 and not reverts and not found[0].lost and found[0].end < FLIGHT:
            write, flushed = found[0], model.flushed
            known = write.start < flushed, write.start <= flushed, write.end < flushed, write.end <= flushed
            return held[0] == 0, len(dirty[A]), len(dirty[B]), known, write.is_acked, write.is_durable
        here = {0: 0}
        for value in values:
            here.setdefault(value, len(here))
        oldest = [(value, *self._get_lost(cell, value)) for value in values]
        times = {*general, *reverts, *(item[1] for item in oldest)}
        times |= {time for write in found for time in (write.start, write.end)}
        rank = {time: number for number, time in enumerate(sorted(times))}
        writes = [
            (
                here[write.value],
                rank[write.start],
                rank[write.end],
                write.is_acked,
                write.is_durable,
                flying.get(id(write)),
                [here.get(value, value) for at, value in write.lost.items() if at == cell],
            )
            for write in found
        ]
        return (
            [here[value] for value in held],
            len(dirty[A]),
            [(here[value], rank[time], is_durable) for value, time, is_durable in oldest],
            writes,
            [rank[time] for time in (*general, *reverts)],
        )

    def _get_lost(self, cell: int, value: int) -> tuple[float, bool]:
        """All that the writes of the past still decide."""
        model: Model = self.world.model
        return model.find_oldest_lost(cell, value), model.is_durable_lost(cell, value)

    # --- the link, and who waits ---

    def _draw_link(self) -> Any:
        machine = self.world.machine
        conns = [conn.session - self.last_session for conn in machine.conns.values() if conn.is_alive]
        return machine.ways, sorted(conns), [self._draw_late(message.call) for message in machine.late]

    def _draw_late(self, call: Any) -> Any:
        """What a late message would still do: its session, its range and its values as they are."""
        fields = zip(call.action._fields, call.action, strict=True)
        drawn = [self._freeze(value, A) for key, value in fields if key not in SESSIONS]
        return type(call.action).__name__, call.conn.session - self.last_session, drawn

    def _draw_task(self, task: Any) -> Any:
        """Where its flow stands, and its variables."""
        drawn, flow = [], task.flow
        while isinstance(flow, types.GeneratorType):
            frame = flow.gi_frame
            variables = sorted(frame.f_locals.items(), key=lambda item: item[0])
            frozen = [(name, self._freeze(value, task.side)) for name, value in variables]
            drawn.append((flow.__qualname__, frame.f_lasti, frozen))
            flow = flow.gi_yieldfrom
        return task.side, task.name, drawn


def get_changes(header: tracks.Header) -> list[int]:
    """The numbers of changes that a header names."""
    return [header.pages_since, *(fill.since for fill in header.planes.values())]


@functools.cache
def get_names(kind: type) -> list[str]:
    """The fields of a dataclass."""
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


@functools.lru_cache(1 << 14)
def read_image(raw: bytes, is_header: bool, index: int) -> tuple[int, Any]:
    """(number of the change, what it says)."""
    found = layout.decode(raw, layout.KIND_HEADER if is_header else layout.KIND_BITS, index, None)
    if found is None:
        return -1, "bad"
    if not found.sequence or not is_header:
        return found.sequence, found.payload
    return found.sequence, tracks.decode_header(found.payload)


def flatten(value: Any) -> list[int]:
    """What a dirty cell held before: nothing, one value or several."""
    if value is None:
        return []
    return list(itertools.chain(value)) if isinstance(value, list) else [value]
