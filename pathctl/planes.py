"""planes - brings each volume's data plane to what the rows say, and asks it how it is.

`settle` starts, replaces or stops the process of one volume; `bring` tells a running process what it does not
remember itself (where its peer is, the copy rate) and what it may have missed (suspend, resume).
"""

import asyncio
import os
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pathctl import actor, controlclient, copyrate, db, errors, nbdkitcmd, supervise
from pathctl.node import Hang, Node

FORMAT_LIMIT_S = 120.0
LOOKS_MOST = 32  # at data planes at once, for somebody who waits
LOOKS_BESIDE = 8  # when nobody waits: so many that a few which hang hold nobody up, so few that commands get through
HUNG_S = 10.0  # without an answer, until that is an event


async def settle(node: Node, volume: str) -> None:
    """Make the volume's process what the rows want.  The caller holds the volume's lock."""
    wanted = plane(node, volume)
    if wanted is None:
        await node.supervisor.stop(volume)
    else:
        await node.supervisor.ensure(wanted)


async def can_run(node: Node, volume: str) -> bool:
    """Settle; False where the process does not start, so that nothing of the volume is served: it goes on being tried.

    The caller holds the volume's lock.
    """
    try:
        await settle(node, volume)
    except errors.PathctlError:
        keeper = node.supervisor.get(volume)
        if keeper is None or keeper.failure is None:
            raise
        return False
    return True


def plane(node: Node, volume: str) -> nbdkitcmd.Plane | None:
    row = node.db.volume(volume)
    return None if row is None else nbdkitcmd.plane(node.cfg, node.db.host(), row, node.db.connection_of(volume))


async def bring_started(node: Node, volume: str) -> None:
    """Tell a process that was started, adopted or not reached before what its row wants; repeat it if it fails.

    The address comes first, without the volume's lock: who holds that may be waiting for the path (a detach writes
    its device out).
    """
    row = _told_row(node, volume)
    if row is not None:
        await link(node, row)
    await _limit(node, volume)
    async with node.locks[volume]:
        await bring(node, volume)


async def _limit(node: Node, volume: str) -> None:
    """Settings that have changed since the process was started; one of an older release has no such limits."""
    found = await status(node, volume)
    wanted = {name: float(getattr(node.cfg.settings.data, name)) for name in nbdkitcmd.LIMITS}
    if found.limits and found.limits != wanted:
        await command(node, volume, "limits", **wanted)


def _told_row(node: Node, volume: str) -> db.Connection | None:
    row = node.db.connection_of(volume)
    is_told = row is not None and row.side == "source" and row.state in ("ready", "suspended")
    return row if is_told else None


async def bring(node: Node, volume: str) -> None:
    """Tell the process what its row wants.  The caller holds the volume's lock."""
    row = _told_row(node, volume)
    if row is None:
        return
    found = await status(node, volume)
    if found.pair != row.pair:
        raise errors.internal(f"volume {volume} says it is in pair {found.pair}, its row says {row.pair}; delete it")
    await link(node, row)
    await command(node, volume, "set", copy_rate_bytes_s=copyrate.wanted(node, row.pair, row.copy_rate_bytes_s))
    if found.on_path_loss not in (None, row.on_path_loss):
        await set_policy(node, row)
    wants_ready = row.state == "ready"
    if found.ready != wants_ready:
        op = "resume" if wants_ready else "suspend"
        await command(node, volume, op, operation=str(uuid.uuid4()), pair=row.pair)


async def hurry(node: Node, row: db.Connection) -> None:
    """The path is asked for now: what its process does to reach the peer is begun anew, without a pause."""
    await command(node, row.volume, "resume", operation=str(uuid.uuid4()), pair=row.pair)


async def set_policy(node: Node, row: db.Connection) -> None:
    """What host writes do while the path is lost; durable in the volume's metadata when this returns."""
    await command(node, row.volume, "policy", pair=row.pair, on_path_loss=row.on_path_loss)


async def link(node: Node, row: db.Connection) -> None:
    """Tell the source's data plane where its peer's is."""
    peer = node.peer(row.peer)
    await command(
        node,
        row.volume,
        "link",
        pair=row.pair,
        address=peer.address,
        port=row.port,
        psk_file=str(node.cfg.psk(row.pair)),
        identity=row.pair,
    )


async def command(node: Node, volume: str, op: str, **fields: object) -> Mapping[str, Any]:
    return await controlclient.call(node.cfg.control_socket(volume), op, node.cfg.timeouts.control_s, **fields)


async def status(node: Node, volume: str) -> controlclient.Status:
    return await controlclient.status(node.cfg.control_socket(volume), node.cfg.timeouts.status_s)


class Look(msgspec.Struct, frozen=True):
    """What is known of a volume right now: its status, running or not, or why there is none."""

    status: controlclient.Status | None
    failed: str | None
    hung: int | None = None  # its process, which is alive and does not answer
    is_down: bool = False  # its process does not start


async def look(node: Node, volume: str) -> Look:
    """Never raises: a volume that cannot be looked at is a fact to show."""
    keeper = node.supervisor.get(volume)
    try:
        found = await (status(node, volume) if keeper is not None else read_meta(node, volume))
    except errors.PathctlError as error:
        if keeper is not None and keeper.failure is not None:
            return Look(None, keeper.failure, is_down=True)
        hung = _hung(keeper, error)
        _note_hang(node, volume, hung)
        if hung is not None:
            return Look(None, f"process {hung} of volume {volume} is alive but does not answer", hung)
        return Look(None, error.message)
    _note_hang(node, volume, None)
    return Look(found, found.failed)


class Looks:
    """One round of looks: whoever asks for a volume in it shares the one answer."""

    def __init__(self, node: Node, most: int = LOOKS_MOST) -> None:
        self._node = node
        self._asked: dict[str, asyncio.Task[Look]] = {}
        self._places = asyncio.Semaphore(most)

    async def at(self, volume: str) -> Look:
        if volume not in self._asked:
            self._asked[volume] = asyncio.create_task(self._look(volume))
        return await self._asked[volume]

    async def _look(self, volume: str) -> Look:
        async with self._places:
            return await look(self._node, volume)


def _hung(keeper: supervise.Keeper | None, error: errors.PathctlError) -> int | None:
    """Of a process that has just ended, the socket is closed or gone."""
    is_gone = isinstance(error.__cause__, ConnectionRefusedError | FileNotFoundError)
    is_asked = isinstance(error, errors.NoAnswer) and not is_gone
    return keeper.pid if keeper is not None and keeper.is_ready and is_asked else None


def _note_hang(node: Node, volume: str, pid: int | None) -> None:
    """Told once when it has lasted; the process is not killed, it may be in a long request to its disk."""
    known = node.hangs.pop(volume, None)
    if pid is None:
        return
    now = time.monotonic()
    if known is None or known.pid != pid:
        known = Hang(pid, now)
    if not known.is_told and now - known.since >= HUNG_S:
        with actor.by():
            message = (
                f"process {pid} of volume {volume} is alive but has not answered for {HUNG_S:g} s; if it stays so, "
                f"`kill -9 {pid}`: acknowledged writes survive that, and pathctld starts it again at once"
            )
            is_told = node.db.record("process.hung", message, volume=volume, before=str(pid))
        known = msgspec.structs.replace(known, is_told=is_told)
    node.hangs[volume] = known


_metas: dict[tuple[Path, int], controlclient.Status] = {}  # by file and time of change: it changes only while it runs


async def read_meta(node: Node, volume: str) -> controlclient.Status:
    path = node.cfg.meta(volume)
    try:
        key = (path, os.stat(path).st_mtime_ns)
    except OSError as error:
        raise errors.internal(f"the metadata of volume {volume} cannot be read: {error.strerror}") from error
    if key not in _metas:
        out = await run_format("show", "--meta", str(path))
        for old in [known for known in _metas if known[0] == path]:
            del _metas[old]
        _metas[key] = _decode(out, volume)
    row = node.db.volume(volume)
    if row is not None and row.uuid != _metas[key].uuid:
        raise errors.internal(f"{path} is the metadata of another volume; put the file of volume {volume} back")
    return _metas[key]


async def is_readable(node: Node, volume: str) -> bool:
    """Whether the metadata of a volume without a process says anything."""
    try:
        await read_meta(node, volume)
    except errors.PathctlError:
        return False
    return True


def _decode(raw: bytes, volume: str) -> controlclient.Status:
    try:
        return msgspec.json.decode(raw, type=controlclient.Status)
    except msgspec.DecodeError as error:
        raise errors.internal(f"the metadata of volume {volume} shows as something unexpected: {error}") from error


async def run_format(*arguments: str) -> bytes:
    """Run nbdplugin's format tool; -> its output.  Raises with the sentence it said."""
    words: tuple[Any, ...] = (sys.executable, "-m", "nbdplugin.format", *arguments)
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(*words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe)
    try:
        out, err = await asyncio.wait_for(child.communicate(), FORMAT_LIMIT_S)
    except BaseException as error:
        child.kill()
        await child.wait()
        if isinstance(error, TimeoutError):
            raise errors.internal(f"the metadata tool did not end within {FORMAT_LIMIT_S:g} s") from error
        raise
    if child.returncode != 0:
        lines = err.decode(errors="replace").strip().splitlines()
        raise errors.internal(lines[-1] if lines else f"the metadata tool failed ({child.returncode})")
    return out
