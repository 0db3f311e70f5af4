"""plugin - nbdkit's callbacks and the errno border: the only importer of nbdkit.

Each callback pins its thread state (see threadstate), passes the call to the connection's export and translates
errors once.  set_error without raising would be success to the client: set and raise.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

import nbdkit

from nbdplugin import lane, logs, params, peer, service
from nbdplugin.errors import PathError, PeerLost, PeerRefused, SessionOver, StoreFailed
from nbdplugin.threadstate import Pins

API_VERSION = 2
monotonic = time.monotonic
log = logging.getLogger("nbdplugin.plugin")
T = TypeVar("T")


class _Process:
    """What this process serves; filled by the configuration callbacks, in nbdkit's order."""

    pairs: dict[str, str]
    params: params.Params
    service: service.HostService | service.PeerService


_process = _Process()
_process.pairs = {}


class _Handle:
    """One connection."""

    __slots__ = ("export", "pins", "stats")

    def __init__(self, export: service.Export) -> None:
        self.export = export
        self.pins = Pins()
        self.stats = export.stats


def _get_errno(error: PathError) -> int:
    if isinstance(error, SessionOver):
        return errno.ESHUTDOWN
    if isinstance(error, StoreFailed) and error.errno == errno.ENOSPC:
        return errno.ENOSPC
    return errno.EIO


def _tell(callback: Callable[..., T], error: Exception) -> None:
    """What nbdkit's client is told of an error; nbdkit itself writes a line with its text."""
    if isinstance(error, PathError):
        nbdkit.set_error(_get_errno(error))
    else:
        log.error("%s failed", callback.__name__, exc_info=error)


def _border(callback: Callable[..., T]) -> Callable[..., T]:
    @functools.wraps(callback)
    def guarded(handle: _Handle, *arguments: Any) -> T:
        handle.pins.pin()
        try:
            return callback(handle, *arguments)
        except Exception as error:
            _tell(callback, error)
            raise

    return guarded


def _timed(kind: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """As `_border`, and the request's time, also of one that fails, is noted: one call for both, on each request."""

    def wrap(callback: Callable[..., T]) -> Callable[..., T]:
        @functools.wraps(callback)
        def guarded(handle: _Handle, *arguments: Any) -> T:
            start = monotonic()
            handle.pins.pin()
            histogram = getattr(handle.stats, kind)
            try:
                return callback(handle, *arguments)
            except Exception as error:
                histogram.errors += 1
                _tell(callback, error)
                raise
            finally:
                histogram.note(monotonic() - start)

        return guarded

    return wrap


def config(key: str, value: str) -> None:
    _process.pairs[key] = value


def _refuse(error: PathError) -> NoReturn:
    """Ends the process before it serves anybody, with one sentence instead of nbdkit's traceback."""
    print(f"nbdkit: error: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def config_complete() -> None:
    try:
        _process.params = params.parse(_process.pairs)
    except PathError as error:
        _refuse(error)


def thread_model() -> int:
    model: int = nbdkit.THREAD_MODEL_PARALLEL
    return model


def get_ready() -> None:
    found = _process.params
    try:
        _process.service = service.make(found)
    except PathError as error:
        _refuse(error)
    logs.set_up(found.volume, _process.service.get_pair, found.log_level, found.log_lines_per_minute)
    _take_lane(_process.service)


def _take_lane(found: service.HostService | service.PeerService) -> None:
    """From here on nbdkit calls the compiled module, which calls our pread and pwrite for what is not plain."""
    if not lane.set_up_compiled():
        return
    border = (found.engine, found.store.get_fd(), found.stats.read, found.stats.write, pread, pwrite)
    if isinstance(found, service.HostService):
        made = lane.compiled.Lane(border, found.core, _conclude, _conclude_alone)
        found.link.on_stream = made.set_stream
    else:
        table = found.target.table
        track_size = table.geometry.track_size
        made = lane.compiled.TargetLane(border, found, found.target, table.header, track_size, service.DataExport)
        found.ask_lane = made.heard
    found.engine.lock = made
    found.lane = "filter" if lane.compiled.is_filter_loaded() else "compiled"
    if lane.compiled.is_filter_loaded():
        made.serve()
    globals().update(pread=made.pread, pwrite=made.pwrite)


def _conclude(
    handle: _Handle, buf: memoryview, _: int, plain: lane.Pass, local: int, number: int, is_lost: bool, waited_s: float
) -> None:
    """A write that the lane carried out and could not end; `local`, `number`: errno of either leg, 0 if it was good."""
    start = monotonic()
    export = handle.export
    assert isinstance(export, service.HostExport)
    error: PeerLost | PeerRefused | None = None if plain.is_mirrored else PeerLost("not sent")
    if number:
        error = peer.explain_answer(number, is_lost, waited_s, _process.service.params.link_timeout_s)
    try:
        export.conclude(buf, plain, local, error)
    except Exception as failure:
        handle.stats.write.errors += 1
        _tell(pwrite, failure)
        raise
    finally:
        handle.stats.write.note(waited_s + monotonic() - start)


def _conclude_alone(buf: memoryview, plain: lane.Pass, local: int, number: int, is_lost: bool, waited_s: float) -> int:
    """As _conclude, for the filter, which has no handle: returns the errno for the client, 0 for success."""
    assert isinstance(_process.service, service.HostService)
    handle = _Handle(service.HostExport(_process.service))
    try:
        _conclude(handle, buf, 0, plain, local, number, is_lost, waited_s)
    except PathError as error:
        return _get_errno(error)
    except Exception:  # noqa: BLE001 - it was told, and there is nobody here to raise it to
        return errno.EIO
    return 0


def after_fork() -> None:
    _process.service.start()


def open(readonly: bool) -> _Handle:
    try:
        return _Handle(_process.service.open_export(nbdkit.export_name()))
    except PathError:
        raise
    except Exception:
        log.exception("open failed")
        raise


def close(handle: _Handle) -> None:
    try:
        handle.export.close()
        handle.pins.release()
    except Exception:
        log.exception("close failed")
        raise


def get_size(handle: _Handle) -> int:
    return handle.export.size


def can_write(handle: _Handle) -> bool:
    return True


def can_flush(handle: _Handle) -> bool:
    return True


def can_trim(handle: _Handle) -> bool:
    return True


def can_zero(handle: _Handle) -> bool:
    return True


def can_multi_conn(handle: _Handle) -> bool:
    return True


def can_extents(handle: _Handle) -> bool:
    return True


def can_fua(handle: _Handle) -> int:
    native: int = nbdkit.FUA_NATIVE
    return native


@_timed("read")
def pread(handle: _Handle, buf: bytearray, offset: int, flags: int) -> None:
    handle.export.read(memoryview(buf), offset)


@_timed("write")
def pwrite(handle: _Handle, buf: memoryview, offset: int, flags: int) -> None:
    handle.export.write(buf, offset, bool(flags & nbdkit.FLAG_FUA))


@_timed("zero")
def zero(handle: _Handle, count: int, offset: int, flags: int) -> None:
    handle.export.zero(offset, count, bool(flags & nbdkit.FLAG_FUA))


@_timed("zero")
def trim(handle: _Handle, count: int, offset: int, flags: int) -> None:
    handle.export.trim(offset, count, bool(flags & nbdkit.FLAG_FUA))


@_timed("flush")
def flush(handle: _Handle, flags: int) -> None:
    handle.export.flush()


@_border
def extents(handle: _Handle, count: int, offset: int, flags: int) -> Iterable[tuple[int, int, int]]:
    hole: int = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [
        (start, length, hole if is_hole else 0) for start, length, is_hole in handle.export.find_extents(offset, count)
    ]
