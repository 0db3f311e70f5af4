"""observe - looks at everything of this host from time to time, and tells what has changed.

One round every `observe.every_s`: all pairs (their states are recorded by statelog, their copies' progress is kept),
all block devices, then the copy rates.  With many pairs a round costs more, and the next one comes later, so that the
whole stays a small part of one processor.  Peers are asked every `peers.look_every_s`, beside that.  A pair that a
command changes is looked at at once, and alone: the events of the configuration poke the observer.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Sequence
from pathlib import Path

from pathctl import (
    channels,
    controlclient,
    copyrate,
    diskerrors,
    errors,
    events,
    logs,
    pairview,
    peers,
    planes,
    shapes,
    statelog,
    volumes,
)
from pathctl.node import Node

log = logging.getLogger(__name__)

SHARE = 0.03  # of one processor, for the rounds
LONGEST_S = 30.0  # between two rounds, whatever they cost
POKED_S = 0.05  # after a poke: what was begun has a moment to take effect, and several pokes are one
KEEP_S = 10.0  # how old copies.json may be while nothing is copied
KEPT_MOST = 16 << 20  # bytes of copies.json


def on_event(node: Node, event: shapes.Event) -> None:
    """For db.on_event: a log line, the followers, and a look at what has just been changed."""
    logs.write_event(event)
    events.announce(node)
    if event.kind.startswith("connection.") or event.kind == "pair.resolved":
        # After the transaction's caller has gone on; in its context, so that what is found is on its behalf.
        asyncio.get_running_loop().call_soon(_look_at_busy, node, event.pair)
        node.look_soon(event.pair)
    if event.kind.startswith(("peer.", "path.")) or event.kind == "host.created":
        node.ping_now.set()


def _look_at_busy(node: Node, pair: str | None) -> None:
    """Creating and Deleting follow from the rows alone, and may be over before the next round."""
    with contextlib.suppress(errors.PathctlError):
        half = next((half for half in pairview.halves(node) if half.pair == pair), None)
        if half is not None and half.busy is not None:
            pairview.note_busy(node, half)


async def run(node: Node) -> None:
    """Until cancelled."""
    _load_copies(node)
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_watch_pairs(node))
            both.create_task(_watch_peers(node))
    finally:
        await channels.close_all(node)


async def _watch_pairs(node: Node) -> None:
    kept_at = 0.0
    while True:
        node.look_now.clear()
        node.look_at.clear()
        begun = time.process_time()
        await _told(_round(node))
        if node.copies.is_changing or time.monotonic() - kept_at > KEEP_S:
            kept_at = time.monotonic()
            _keep_copies(node)
        spent_s = time.process_time() - begun
        await _watch_poked(node, min(max(node.cfg.settings.observe.every_s, spent_s / SHARE), LONGEST_S))


async def _watch_poked(node: Node, pause_s: float) -> None:
    """For so long, or until everything is to be looked at: look at the pairs that the observer is poked about."""
    end = time.monotonic() + pause_s
    with contextlib.suppress(TimeoutError):
        while True:
            await asyncio.wait_for(node.look_now.wait(), end - time.monotonic())
            await asyncio.sleep(POKED_S)
            if None in node.look_at:
                return
            node.look_now.clear()
            poked = set(node.look_at)
            node.look_at.clear()
            await _told(_look_at_pairs(node, [half for half in _halves(node) if half.pair in poked]))


async def _told(work: Awaitable[None]) -> None:
    try:
        await work
    except errors.PathctlError as error:
        log.warning("the pairs cannot be looked at: %s", error.message)


async def _round(node: Node) -> None:
    if node.db.host() is None:
        return
    known = _halves(node)
    await _look_at_pairs(node, known)
    alone = sorted(set(node.supervisor.volumes()) - {half.volume for half in known})
    looks = await asyncio.gather(*(planes.look(node, name) for name in alone))
    for name, look in zip(alone, looks, strict=True):
        _note_disk(node, name, look.status)
    _look_at_devices(node)


def _halves(node: Node) -> list[pairview.Half]:
    """All pairs of this host; what is kept of others is forgotten."""
    known = pairview.halves(node)
    statelog.forget_others(node, {half.pair for half in known})
    return known


async def _look_at_pairs(node: Node, wanted: Sequence[pairview.Half]) -> None:
    looks = planes.Looks(node, planes.LOOKS_BESIDE)
    samples = await pairview.look_all(node, wanted, is_fresh=False, looks=looks)
    for half, sample in zip(wanted, samples, strict=True):
        _note_disk(node, half.volume, sample.status)
    await copyrate.apply(node)


def _note_disk(node: Node, volume: str, status: controlclient.Status | None) -> None:
    if status is not None:
        diskerrors.note(node, volume, status)


def _look_at_devices(node: Node) -> None:
    """A dead device is told once, until it is well again."""
    for row in node.db.volumes():
        failure = volumes.device_failure(row) if row.attached else None
        if failure is None:
            node.dead_devices.discard(row.name)
        elif row.name not in node.dead_devices:
            node.dead_devices.add(row.name)
            node.db.record("device.failed", f"volume {row.name}: {failure}", volume=row.name, before=row.device_path)


async def _watch_peers(node: Node) -> None:
    while True:
        node.ping_now.clear()
        try:
            if node.db.host() is not None:
                known = {peer.name for peer in node.db.peers()}
                await asyncio.gather(*(channels.drop(node, name) for name in node.channels.keys() - known))
                await asyncio.gather(*(peers.ping(node, name) for name in known))
                await pairview.ask_whether_there(node, pairview.halves(node))
        except errors.PathctlError as error:
            log.warning("the peers cannot be looked at: %s", error.message)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(node.ping_now.wait(), node.cfg.settings.peers.look_every_s)
            await asyncio.sleep(POKED_S)


# how far the copies are, for the next pathctld


def _copies_file(node: Node) -> Path:
    return node.cfg.run / "copies.json"


def _load_copies(node: Node) -> None:
    path = _copies_file(node)
    with contextlib.suppress(FileNotFoundError):
        try:
            raw = path.read_bytes() if path.stat().st_size <= KEPT_MOST else b""
            if not node.copies.load(raw, time.monotonic()):
                log.warning("%s cannot be used; the progress of running copies is told from here on", path)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            log.warning("%s cannot be read: %s", path, error.strerror)


def _keep_copies(node: Node) -> None:
    """Complete or as it was; not durable, the next boot begins anew."""
    path = _copies_file(node)
    new = path.with_name(path.name + ".new")
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(node.copies.dump())
        new.replace(path)
    except OSError as error:
        log.warning("%s cannot be written: %s", path, error.strerror)
