"""pairresolve - the sequence that lets a pair go on whose two volumes went different ways: one side's data is given up.

Runs at the source's host.  The intent is in the journal before the first effect.  The destination makes its half of
the pair again if that has ended there; this is the only operation that overrides the record of an ended pair.  Then
the source's data plane marks the whole discarded side (`commit`): THE COMMIT POINT.  `stepper` tells what that means;
what cannot be ended because the other host does not answer, `pairrecover` goes on with.
"""

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from pathctl import (
    actor,
    apart,
    controlclient,
    db,
    devices,
    errors,
    faults,
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
from pathctl.errors import NoAnswer, PathctlError
from pathctl.node import Node, Sample

STEPS = ("journal", "rejoin", "link", "commit")


class Resolve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the user asks for."""

    pair: str
    discard: db.Side
    force: bool = False
    dry_run: bool = False


class Spec(stepper.Spec, frozen=True):
    """What is going to be done, as the journal keeps it."""

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


# what is looked at first


async def resolve(node: Node, row: db.Connection, body: Resolve) -> shapes.Resolved:
    """Let the pair go on with the data of the side that is not discarded; `row` is the source's."""
    started = time.monotonic()
    spec, _ = await _plan(node, row, body)
    with node.working_on(spec.operation):
        node.db.open_entry(spec.build_entry("pair.resolve"))
        run = _Run(node, spec, started)
        await run.run()
    return shapes.Resolved(spec.discard, msgspec.convert(run.steps, list[shapes.Step]))


async def plan(node: Node, row: db.Connection, body: Resolve) -> dict[str, Any]:
    """What `resolve` would do and lose, after all checks; changes nothing."""
    spec, sample = await _plan(node, row, body)
    here, there = spec.get_names(node)
    lost, kept = (here, there) if body.discard == "source" else (there, here)
    steps = [f"make {there} the destination of the pair again"] * (row.pair in node.ended_there)
    steps.append(f"mark all tracks of {lost} as invalid, in one step, and make the path ready")
    steps.append(f"copy all {volumes.both(spec.size)} of {kept} over {lost}")
    return {"plan": {"steps": steps, "loses": _what_is_lost(node, spec, sample, lost, kept)}}


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
    here, there = spec.get_names(node)
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
    _, there = spec.get_names(node)
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


class _Run(stepper.Stepper[Spec]):
    """One run of the steps, or what is left of it."""

    words = stepper.Words(
        verb="resolve",
        commit="commit",
        created="resolved",
        made_ready="resolved",
        ready="resolved",
        as_before="both hosts are as before, and no data was changed",
    )
    _port: int | None = None

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
        answer = await self.ask("pair.rejoin", body)
        self._port = peers.read(spec.peer, "pair.rejoin", answer.get("port"), int)

    async def _link(self) -> None:
        assert self._port is not None
        await self._set_port(self._port)

    async def _set_port(self, port: int | None) -> None:
        """Tell the source's data plane where its peer's is now, or was before."""
        node, pair = self._node, self._spec.pair
        row = node.db.connection(pair)
        if row is None or row.port == port or port is None:
            return
        node.db.set_port(pair, port)
        await planes.link(node, msgspec.structs.replace(row, port=port))

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

    def label(self, step: str) -> str:
        here, there = self._spec.get_names(self._node)
        return {
            "journal": "journal",
            "rejoin": f"destination connection ({there})",
            "link": f"way to the destination ({here})",
            "commit": f"source resolved ({here})",
        }[step]

    def is_commit(self, found: controlclient.Status) -> bool:
        return found.operation == self._spec.operation

    async def undo(self, *, cut: bool) -> tuple[list[str], list[str]]:
        """As everywhere; the source's data plane has nothing to be undone, so `cut` is of no matter."""
        node, spec = self._node, self._spec
        node.db.set_entry_state(spec.operation, "undoing")
        undone: list[str] = []
        try:
            await self._set_port(spec.port)
            if "rejoin" in node.db.steps(spec.operation):
                undone = await self.undo_there()
        except PathctlError as error:
            node.db.set_note(spec.operation, f"being undone: {error.message}")
            return undone, [self.label("rejoin")]
        node.db.close_entry(spec.operation, "undone")
        return undone, []

    async def finish(self) -> None:
        node, spec = self._node, self._spec
        node.db.commit_resolved(spec.operation, spec.pair, spec.discard)
        pairheld.forget(node, spec.pair)
        await faults.point("resolve.committed")
        body = pairsteps.Resolved(spec.operation, spec.pair, spec.destination, spec.source, spec.discard)
        if await self.tell_committed("pair.resolved", body):
            ours = msgspec.structs.replace(body, volume=spec.source, peer_volume=spec.destination)
            with actor.by(spec.asked_by, "pair.resolve"):
                pairsteps.end_resolving(node, ours, spec.peer)
            await faults.point("resolve.done")


async def go_on(node: Node, entry: db.Entry) -> str | None:
    """What a crash, or a host that did not answer, left unfinished; -> the event that tells how it ended, if it did."""
    return await _Run(node, spec_of(entry)).go_on(entry)
