"""pairresolve - the sequence that lets a pair go on whose two volumes went different ways: one side's data is given up.

Runs at the source's host.  The intent is in the journal before the first effect.  The destination makes its half of
the pair again if that has ended there; this is the only operation that overrides the record of an ended pair.  Then
the source's data plane marks the whole discarded side (`commit`): THE COMMIT POINT.  Until there every failure, and a
crash found at the next start, leads to `undo`; after it to `finish`.  What cannot be ended because the other host does
not answer stays in the journal, and `pairrecover` goes on with it.
"""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import msgspec

from pathctl import (
    actor,
    apart,
    controlclient,
    db,
    devices,
    errors,
    faults,
    logs,
    pairheld,
    pairsteps,
    pairview,
    peers,
    pki,
    planes,
    protocol,
    shapes,
    statelog,
    stepper,
    units,
    volumes,
)
from pathctl.errors import ErrorCode, NoAnswer, PathctlError
from pathctl.node import Node, Sample

log = logging.getLogger(__name__)

STEPS = ("journal", "rejoin", "link", "commit")


class Resolve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the user asks for."""

    pair: str
    discard: db.Side
    force: bool = False
    dry_run: bool = False


class Spec(msgspec.Struct, frozen=True):
    """What is going to be done, as the journal keeps it."""

    operation: str
    pair: str
    source: str  # the volume here
    peer: str
    destination: str  # the volume at the peer
    discard: db.Side
    force: bool
    size: int
    track_size: int
    port: int | None  # as it was before
    asked_by: str

    @property
    def keep(self) -> db.Side:
        return "destination" if self.discard == "source" else "source"


def spec_of(entry: db.Entry) -> Spec:
    return msgspec.json.decode(entry.spec, type=Spec)


def _entry_of(spec: Spec) -> db.Entry:
    return db.Entry(
        operation=spec.operation,
        verb="pair.resolve",
        role="coordinator",
        pair=spec.pair,
        volume=spec.source,
        peer=spec.peer,
        peer_volume=spec.destination,
        spec=msgspec.json.encode(spec).decode(),
    )


# what is looked at first


async def resolve(node: Node, row: db.Connection, body: Resolve) -> shapes.Resolved:
    """Let the pair go on with the data of the side that is not discarded; `row` is the source's."""
    started = time.monotonic()
    spec, _ = await _plan(node, row, body)
    with node.working_on(spec.operation):
        node.db.open_entry(_entry_of(spec))
        return await _run(node, spec, started)


async def plan(node: Node, row: db.Connection, body: Resolve) -> dict[str, Any]:
    """What `resolve` would do and lose, after all checks; changes nothing."""
    spec, sample = await _plan(node, row, body)
    here, there = _names(node, spec)
    lost, kept = (here, there) if body.discard == "source" else (there, here)
    steps = [f"make {there} the destination of the pair again"] * (row.pair in node.ended_there)
    steps.append(f"mark all tracks of {lost} as invalid, in one step, and make the path ready")
    steps.append(f"copy all {volumes.both(spec.size)} of {kept} over {lost}")
    return {"plan": {"steps": steps, "loses": _what_is_lost(node, spec, sample, lost, kept)}}


def _names(node: Node, spec: Spec) -> tuple[str, str]:
    return f"{node.host().name}:{spec.source}", f"{spec.peer}:{spec.destination}"


def _what_is_lost(node: Node, spec: Spec, sample: Sample, lost: str, kept: str) -> list[str]:
    sides = sample.pair.sides
    assert sides is not None, "checked by _plan"
    held = sides.source if spec.discard == "source" else sides.destination
    since = _apart_since(node, spec.pair)
    written = f", last written {units.format_time(held.last_write)}" if held.last_write is not None else ""
    apart_since = f"since the two were last connected ({units.format_time(since)})" if since else "without the other"
    all_of_it = f"all {volumes.both(spec.size)} of {lost}{written}"
    said = [f"{all_of_it}, and so all that was written to it {apart_since}: replaced by the data of {kept}"]
    there = node.held_there.get(spec.pair)
    if there is not None and not there.is_related:
        said.append(
            f"the two volumes share no history (accepted as it was, or another volume of that name): see that {kept} "
            "is the one that is meant"
        )
    row = node.volume(spec.source)
    if spec.discard == "source" and row.attached:
        used = devices.use(row.device_path) if row.device_path else None
        said.append(
            f"{row.device_path or lost} is attached{f' and {used}' if used else ''}: what its page cache or file "
            f"system still writes back of the old data destroys the good copy at {kept}, too"
        )
    return said


def _apart_since(node: Node, pair: str) -> float | None:
    """When the path was last lost, as far as events are kept."""
    found = (event.at for event in reversed(node.db.events(pair=pair, limit=1000)) if event.kind == "path.lost")
    return next(found, None)


async def _plan(node: Node, row: db.Connection, body: Resolve) -> tuple[Spec, Sample]:
    """Look at both sides and refuse what cannot be done; no effects."""
    _refuse_busy(node, row)
    half = next(half for half in pairview.halves(node) if half.pair == row.pair)
    sample = await pairview.look(node, half)
    if sample.status is not None and sample.status.ready and sample.status.session is None:
        await _ask(node, row, sample.status)
        sample = await pairview.look(node, half)
    _refuse_agreeing(node, row, sample)
    volume = node.volume(row.volume)
    spec = Spec(
        operation=str(uuid.uuid4()),
        pair=row.pair,
        source=row.volume,
        peer=row.peer,
        destination=row.peer_volume,
        discard=body.discard,
        force=body.force,
        size=volume.size,
        track_size=volume.track_size,
        port=row.port,
        asked_by=actor.who.get(),
    )
    assert sample.status is not None
    assert sample.pair.sides is not None
    _refuse_source(node, spec, sample.status)
    _refuse_destination(node, spec, sample.pair.sides.destination)
    return spec, sample


def _refuse_busy(node: Node, row: db.Connection) -> None:
    entry = node.db.entry_of(row.volume)
    if entry is not None or row.state in ("creating", "deleting"):
        what = {"pair.create": "created", "pair.delete": "deleted", "pair.resolve": "resolved"}
        raise errors.refused(
            f"pair {row.pair} is being {what[entry.verb] if entry else row.state}; nothing was changed: wait until "
            "that has ended, then repeat the command"
        )
    if row.state == "suspended":
        raise errors.refused(
            f"pair {row.pair} is Suspended, so its two sides were not compared; nothing was changed: resume it with "
            f"`pathctl pair resume {row.volume}`, then see with `pathctl why {row.volume}` whether there is something "
            "to resolve"
        )


async def _ask(node: Node, row: db.Connection, found: controlclient.Status) -> None:
    """What the other host has; it must answer, since both sides are changed."""
    try:
        protocol.require(row.peer, await peers.version(node, row.peer), protocol.RESOLVE, "`pair resolve`")
        await pairheld.ask(node, row, found)
    except NoAnswer as error:
        raise PathctlError(
            error.code,
            f"{error.message}; nothing was changed: a pair is resolved at both hosts, so see that pathctld runs there "
            "and that the network lets us through, then repeat the command",
        ) from error


def _refuse_agreeing(node: Node, row: db.Connection, sample: Sample) -> None:
    """There must be something to resolve."""
    pair = sample.pair
    if pair.sides is not None:
        return
    reason = f" ({pair.reason})" if pair.reason else ""
    if pair.state in apart.STATES:
        raise errors.refused(
            f"pair {row.pair} is {pair.state}{reason}, which is not about whose data is the good one, so there is "
            f"nothing to resolve; nothing was changed: see `pathctl why {row.volume}`"
        )
    raise errors.refused(
        f"pair {row.pair} is {pair.state}{reason}: its two sides are not known to have gone different ways, so there "
        f"is nothing to resolve; nothing was changed: see `pathctl why {row.volume}`"
    )


def _refuse_source(node: Node, spec: Spec, found: controlclient.Status) -> None:
    here, there = _names(node, spec)
    if found.on_path_loss is None:
        raise errors.refused(
            f"the process of {here} is of an older release, which has no `pair resolve`; nothing was changed: start it "
            "anew with `pathctld --stop-all`, when its devices may be away for a moment, and pathctld again"
        )
    if spec.discard == "destination":
        if found.invalid or found.incomplete:
            raise errors.refused(
                f"{here} lacks data itself ({found.invalid} of {found.tracks} tracks), so it cannot replace {there}; "
                "nothing was changed: discard the source, or delete the pair"
            )
        return
    is_attached = node.volume(spec.source).attached
    if (is_attached or found.clients) and not spec.force:
        what = "attached" if is_attached else f"in use by {found.clients} clients"
        raise errors.refused(
            f"{here} is {what}, so what it holds may be cached here and must not be replaced; nothing was changed: "
            f"`pathctl detach {spec.source}`, resolve the pair, then attach it (or give --force: what the cache still "
            "writes back then destroys the good copy at the destination)"
        )


def _refuse_destination(node: Node, spec: Spec, held: shapes.Held) -> None:
    _, there = _names(node, spec)
    if node.held_there.get(spec.pair) is not None and node.held_there[spec.pair].held is None:
        raise errors.refused(
            f"host {spec.peer} has no volume {spec.destination} any more; nothing was changed: free this half with "
            f"`pathctl pair delete {spec.source} --half` and create a new pair"
        )
    if held.in_use:
        device = f" as {held.device}" if held.device else ""
        raise errors.refused(
            f"{there} is attached{device}; nothing was changed: end its use and `pathctl detach {spec.destination}` at "
            f"{spec.peer}, then repeat the command"
        )
    if spec.discard == "source" and held.incomplete:
        raise errors.refused(
            f"{there} is incomplete, so it cannot replace {node.host().name}:{spec.source}; nothing was changed: "
            "discard the destination, or delete the pair"
        )


# the steps


class _Run(stepper.Stepper):
    """One run of the steps."""

    def __init__(self, node: Node, spec: Spec, started: float) -> None:
        super().__init__(node, spec.operation, "resolve", lambda name: step_label(node, spec, name), started)
        self._spec = spec
        self._port: int | None = None

    async def all(self) -> None:
        actions: dict[str, Callable[[], Awaitable[None]]] = {
            "journal": self._journal,
            "rejoin": self._rejoin,
            "link": self._link,
            "commit": self._commit,
        }
        for name in STEPS:
            await self.take(name, actions[name])

    async def _journal(self) -> None:
        """The pair's key is still here, unless somebody has removed it."""
        if pki.read_psk(self._node.cfg, self._spec.pair) is None:
            pki.write_psk(self._node.cfg, self._spec.pair, pki.new_psk())

    async def _rejoin(self) -> None:
        node, spec = self._node, self._spec
        psk = pki.read_psk(node.cfg, spec.pair)
        assert psk is not None, "written in the step `journal`"
        body = pairsteps.Rejoin(
            spec.operation, spec.pair, spec.destination, spec.source, spec.discard, psk, spec.size, spec.track_size
        )
        limit_s = node.cfg.timeouts.peer_step_s
        answer = await pairsteps.ask(node, spec.operation, spec.peer, "pair.rejoin", body, limit_s)
        self._port = peers.read(spec.peer, "pair.rejoin", answer.get("port"), int)

    async def _link(self) -> None:
        assert self._port is not None
        await _set_port(self._node, self._spec, self._port)

    async def _commit(self) -> None:
        """THE COMMIT POINT: one command, one durable change in the source's metadata."""
        node, spec = self._node, self._spec
        answer = await planes.command(
            node,
            spec.source,
            "resolve",
            operation=spec.operation,
            pair=spec.pair,
            discard=spec.discard,
            force=spec.force,
        )
        node.copies.forget(spec.pair)
        statelog.read_copy(node, msgspec.convert(answer, controlclient.Status))


async def _set_port(node: Node, spec: Spec, port: int | None) -> None:
    """Tell the source's data plane where its peer's is now, or was before."""
    row = node.db.connection(spec.pair)
    if row is None or row.port == port or port is None:
        return
    node.db.set_port(spec.pair, port)
    await planes.link(node, msgspec.structs.replace(row, port=port))


def step_label(node: Node, spec: Spec, step: str) -> str:
    here, there = _names(node, spec)
    return {
        "journal": "journal",
        "rejoin": f"destination connection ({there})",
        "link": f"way to the destination ({here})",
        "commit": f"source resolved ({here})",
    }[step]


async def _run(node: Node, spec: Spec, started: float) -> shapes.Resolved:
    run = _Run(node, spec, started)
    try:
        await run.all()
    except PathctlError as error:
        if not await _committed_after(node, spec, run, error):
            await _fail(node, spec, run, error)
        about = logs.of(volume=spec.source, pair=spec.pair)
        log.warning("pair %s was resolved although its last step said: %s", spec.pair, error.message, extra=about)
    await finish(node, spec)
    run.note("done")
    return shapes.Resolved(spec.discard, msgspec.convert(run.steps, list[shapes.Step]))


async def _committed_after(node: Node, spec: Spec, run: _Run, error: PathctlError) -> bool:
    """Whether the failed step was the commit and it has taken effect all the same."""
    if run.at != "commit":
        return False
    # One that was not turned down may stand in the data plane's memory and not on its disk.
    is_open = error.code != ErrorCode.REFUSED
    try:
        return await is_committed(node, spec, cut=is_open)
    except PathctlError as unknown:
        node.db.set_note(spec.operation, unknown.message)
        raise PathctlError(
            error.code,
            f"it is not known whether pair {spec.pair} was resolved ({unknown.message}); it stays in the journal and "
            "pathctld finishes or undoes it as soon as the source's data plane answers",
            done=run.done,
            failed=step_label(node, spec, run.at),
            pending=[step_label(node, spec, run.at)],
        ) from error


async def is_committed(node: Node, spec: Spec, *, cut: bool) -> bool:
    """The truth about the commit point: what the source's metadata says.

    `cut`: the command may still be under way; start nbdkit anew first, so that what it says is final.
    """
    async with node.locks[spec.source]:
        if node.db.connection(spec.pair) is None:
            return False
        await planes.settle(node, spec.source)
        if cut:
            await node.supervisor.restart(spec.source)
        found = await planes.status(node, spec.source)
    return found.pair == spec.pair and found.operation == spec.operation


async def _fail(node: Node, spec: Spec, run: _Run, error: PathctlError) -> NoReturn:
    """Undo, and tell all of it in one sentence."""
    undone, pending = await undo(node, spec)
    failed = step_label(node, spec, run.at)
    rest = f"undone: {', '.join(undone)}" if undone else "nothing had to be undone"
    if pending:
        rest += f"; still to be undone: {', '.join(pending)}, which pathctld goes on with by itself"
    else:
        rest += "; both hosts are as before, and no data was changed"
    raise PathctlError(
        error.code,
        f"the pair was not resolved, because its {failed} failed: {error.message}; {rest}",
        done=run.done,
        failed=failed,
        undone=undone,
        pending=pending,
    ) from error


async def undo(node: Node, spec: Spec) -> tuple[list[str], list[str]]:
    """Undo at both hosts whatever was begun, the last first; -> what was undone, what could not be yet."""
    node.db.set_entry_state(spec.operation, "undoing")
    undone: list[str] = []
    try:
        await _set_port(node, spec, spec.port)
        if "rejoin" in node.db.steps(spec.operation):
            body = pairsteps.Which(spec.operation, spec.pair, spec.destination, spec.source)
            limit_s = node.cfg.timeouts.control_s
            answer = await pairsteps.ask(node, spec.operation, spec.peer, "pair.undo", body, limit_s)
            undone = peers.read(spec.peer, "pair.undo", answer.get("undone", []), list[str])
    except PathctlError as error:
        node.db.set_note(spec.operation, f"being undone: {error.message}")
        return undone, [step_label(node, spec, "rejoin")]
    node.db.close_entry(spec.operation, "undone")
    return undone, []


async def finish(node: Node, spec: Spec) -> None:
    """After the commit point: record it here and there.  While the peer does not answer, the journal stays open."""
    node.db.commit_resolved(spec.operation, spec.pair, spec.discard)
    pairheld.forget(node, spec.pair)
    await faults.point("resolve.committed")
    body = pairsteps.Resolved(spec.operation, spec.pair, spec.destination, spec.source, spec.discard)
    try:
        async with node.locks[spec.source]:
            await planes.bring(node, spec.source)
        await pairsteps.ask(node, spec.operation, spec.peer, "pair.resolved", body, node.cfg.timeouts.peer_look_s)
    except PathctlError as error:
        node.db.set_note(spec.operation, f"resolved, but not yet recorded as such by both hosts: {error.message}")
        about = logs.of(volume=spec.source, pair=spec.pair)
        log.warning("pair %s is resolved; %s", spec.pair, error.message, extra=about)
        if isinstance(error, NoAnswer) or error.code != ErrorCode.REFUSED:
            return
    with actor.by(spec.asked_by, "pair.resolve"):
        pairsteps.end_resolving(
            node, msgspec.structs.replace(body, volume=spec.source, peer_volume=spec.destination), spec.peer
        )
    await faults.point("resolve.done")


async def go_on(node: Node, entry: db.Entry) -> str | None:
    """What a crash, or a host that did not answer, left unfinished; -> the event that tells how it ended, if it did."""
    spec = spec_of(entry)
    is_done = entry.state == "committed"
    if entry.state == "forward" and "commit" in node.db.steps(entry.operation):
        is_done = await is_committed(node, spec, cut=True)
    if is_done:
        await finish(node, spec)
        return "recovery.finished"
    _, pending = await undo(node, spec)
    return None if pending else "recovery.undone"
