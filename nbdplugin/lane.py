"""lane - the short way of a plain write: valid tracks, nobody else there, nothing to be made durable first.  Pure.

Nearly every write is plain, and the flows of requests.py ask and yield a dozen times for one.  The lane asks all at
once, in one hold of the core's lock, and says no wherever anything is not as usual; the flows then do what they
always did.  What it admits counts in admission, gate and extents like any other write, and one that does not end
plainly (an error, a session that ended, a failed sync) is concluded by the flows.

`_lanemod.c` is the same in C, over the same objects, with the two legs between: it takes writes and reads from
nbdkit and leaves to Python what is not plain.  The tests run these two functions and those of C under the same
simulator; `use_compiled` says which of them the flows take.  Where the module was not built this one does the work;
the log and the status say so.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from collections.abc import Callable
from typing import Any

from nbdplugin import layout, stats, tracks
from nbdplugin.checkpoint import is_prepared, release_extents, use_extents
from nbdplugin.core import UNFLUSHED_MOST, Core, Extent
from nbdplugin.gate import Ticket
from nbdplugin.geometry import Span


def _find_compiled() -> Any:
    try:
        return importlib.import_module("nbdplugin._lane")
    except ImportError:
        return None


compiled = _find_compiled()

SPAN_MOST = 64  # tracks of a plain write
_VERSION = 2  # of what both files say to each other: a module built from another _lanemod.c is not used
log = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class Pass:
    """A plain write under way.  `is_mirrored`: to both sides; else here only, its tracks being owed or alone."""

    ticket: Ticket
    first: int
    count: int
    is_mirrored: bool
    session: int | None
    distrusts: int

    @property
    def span(self) -> Span:
        return Span(self.first, self.count)


def begin_write(core: Core, offset: int, length: int) -> Pass | None:
    """In flight from here on, or None: not plain, and nothing has changed."""
    table, header = core.table, core.table.header
    if core.is_quiesced or core.is_read_only or header.on_path_loss == tracks.STOP:
        return None
    span = table.geometry.get_span(offset, length)
    if not 0 < span.count <= SPAN_MOST or table.invalid.is_any(span.first, span.count) or not table.is_settled(span):
        return None
    is_owed = table.owed.is_all(span.first, span.count)
    if core.session is not None and not is_owed and table.owed.is_any(span.first, span.count):
        return None
    extents = table.geometry.get_extents(span)
    if not is_prepared(core, extents):
        return None
    ticket = core.gate.try_enter(offset, length)
    if ticket is None:
        return None
    core.in_flight += 1
    use_extents(core, extents)
    if header.pair is not None and core.session is None and not is_owed:
        table.mark_owed(span)
    is_mirrored = core.session is not None and not is_owed
    return Pass(ticket, span.first, span.count, is_mirrored, core.session, core.distrusts)


def end_write(core: Core, plain: Pass) -> bool:
    """Every leg has succeeded: True if the write may be acknowledged; else it is in flight and to be concluded."""
    span, ticket = plain.span, plain.ticket
    table = core.table
    if core.session != plain.session or core.distrusts != plain.distrusts:
        return False
    if table.invalid.is_any(span.first, span.count) or not table.is_settled(span):
        return False
    if not plain.is_mirrored and table.header.pair is not None and not table.owed.is_all(span.first, span.count):
        return False
    if plain.is_mirrored:
        core.note_sent(span)
        core.counts.mirrored_bytes += ticket.end - ticket.offset
    core.counts.write_bytes += ticket.end - ticket.offset
    release_extents(core, table.geometry.get_extents(span))
    core.leave_gate(ticket)
    core.leave()
    return True


begin: Callable[[Core, int, int], Pass | None] = begin_write
end: Callable[[Core, Pass], bool] = end_write


def set_up_compiled() -> bool:
    """Whether the module in C may be used; says why not in the log."""
    if compiled is None or compiled.VERSION != _VERSION:
        what = "was not built" if compiled is None else f"is of version {compiled.VERSION}, not {_VERSION}"
        log.warning("nbdplugin._lane %s, so requests take the slower way through Python: run scripts/setup", what)
        return False
    compiled.set_up(
        ticket=Ticket,
        extent=Extent,
        pass_=Pass,
        span=Span,
        stop=tracks.STOP,
        tracks_per_page=layout.TRACKS_PER_PAGE,
        span_most=SPAN_MOST,
        unflushed_most=UNFLUSHED_MOST,
        bounds_s=stats.BOUNDS_S,
    )
    return True


def use_compiled(is_wanted: bool) -> None:
    """The flows ask the module in C, or this one."""
    global begin, end
    begin, end = (compiled.begin_write, compiled.end_write) if is_wanted else (begin_write, end_write)
