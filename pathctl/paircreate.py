"""paircreate - the sequence that creates a path, and everything that may become of it.

Runs at the source's host.  The intent is in the journal before the first effect, each step before it is sent.  `ready`
is the commit point.  `stepper` tells what that means; what cannot be ended because the other host does not answer,
`pairrecover` goes on with.
"""

import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from pathctl import (
    config,
    controlclient,
    db,
    devices,
    errors,
    faults,
    pairsteps,
    peers,
    pki,
    planes,
    protocol,
    statelog,
    stepper,
    units,
    volumes,
)
from pathctl.errors import NoAnswer, PathctlError
from pathctl.node import Node


class Create(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the user asks for; `source` and `destination` are NAME or HOST:NAME.

    Defaults are left out when it is forwarded: a host of an older version knows fewer fields.
    """

    source: str
    destination: str
    invalidate: db.Side
    first: db.Side = "source"
    create: bool = False
    size: int | None = None
    track_size: int | None = None
    attach: bool = False
    force: bool = False
    copy_rate_bytes_s: int | None = None
    on_path_loss: db.OnPathLoss | None = None
    dry_run: bool = False


class Spec(stepper.Spec, frozen=True):
    """What is going to be done, as the journal keeps it."""

    invalidate: db.Side
    first: db.Side
    create_source: bool
    create_destination: bool
    size: int
    track_size: int
    force: bool
    copy_rate_bytes_s: int | None
    on_path_loss: db.OnPathLoss = "continue"  # an entry of an older release has none

    @property
    def second(self) -> db.Side:
        return "destination" if self.first == "source" else "source"


class Created(msgspec.Struct, frozen=True):
    """The answer: the pair, and how long each step took; no steps when it was there already."""

    pair: str
    steps: list[dict[str, Any]]


def spec_of(entry: db.Entry) -> Spec:
    return msgspec.json.decode(entry.spec, type=Spec)


async def create(node: Node, body: Create, source: str, peer: str, destination: str) -> Created:
    """Create the path from volume `source` here to `destination` at `peer`; the same again answers the existing one."""
    existing = find_existing(node, body, source, peer, destination)
    if existing is not None:
        _refuse_differing(node, body, existing)
        return Created(existing.pair, [])
    _refuse_attached(node, body, source)
    spec = await _plan(node, body, source, peer, destination)
    started = time.monotonic()
    with node.working_on(spec.operation):
        node.db.open_entry(spec.build_entry("pair.create"))
        run = _Run(node, spec, started)
        await run.run()
    return Created(spec.pair, run.steps)


async def plan(node: Node, body: Create, source: str, peer: str, destination: str) -> dict[str, Any]:
    """What `create` would do and overwrite, after all checks at both hosts; changes nothing."""
    existing = find_existing(node, body, source, peer, destination)
    if existing is not None:
        _refuse_differing(node, body, existing)
        return _as_plan([f"nothing: pair {existing.pair} is there already"], [])
    _refuse_attached(node, body, source)
    spec = await _plan(node, body, source, peer, destination)
    await _check_source(node, spec)
    wanted = pairsteps.Check(
        destination, source, body.invalidate, spec.size, spec.track_size, create=spec.create_destination
    )
    try:
        protocol.require_dry_run(peer, await peers.version(node, peer))
        await peers.call(node, peer, "pair.check", wanted, node.cfg.timeouts.peer_look_s)
    except NoAnswer as error:
        raise unchanged(error) from error
    attach = [f"attach {node.host().name}:{source} as a block device"] * body.attach
    return _as_plan([*_in_plain_words(node, spec), *attach], _what_is_overwritten(node, spec))


def _in_plain_words(node: Node, spec: Spec) -> list[str]:
    """The steps, for one who decides whether they shall be done."""
    here, there = spec.get_names(node)
    lost, good = (here, there) if spec.invalidate == "source" else (there, here)
    made = f"of {volumes.both(spec.size)}, all zeroes, in tracks of {units.format_size(spec.track_size)}"
    connections = {"source": f"connect {here} as the source", "destination": f"connect {there} as the destination"}
    words = {
        "create_source": f"create volume {here} {made}",
        "create_destination": f"create volume {there} {made}",
        "first": connections[spec.first],
        "second": connections[spec.second],
        "greet": f"check that data passes between {here} and {there}",
        "ready": f"make the path ready: all tracks of {lost} become invalid and are copied from {good}",
    }
    return [words[name] for name in step_names(spec) if name in words]


def _as_plan(steps: list[str], loses: list[str]) -> dict[str, Any]:
    return {"plan": {"steps": steps, "loses": loses}}


async def _check_source(node: Node, spec: Spec) -> None:
    if spec.create_source:
        volumes.check_make(node, spec.source, spec.size, spec.track_size)
        return
    row = node.volume(spec.source)
    await pairsteps.check_free(node, row)
    if spec.invalidate == "destination":
        await volumes.refuse_incomplete(node, row)


def _what_is_overwritten(node: Node, spec: Spec) -> list[str]:
    here, there = spec.get_names(node)
    is_source = spec.invalidate == "source"
    lost, good = (here, there) if is_source else (there, here)
    if spec.create_source if is_source else spec.create_destination:
        return []
    replaced = f"all {volumes.both(spec.size)} of {lost} are replaced by the data of {good}"
    return [replaced, *(_what_is_written_back(node, spec) if is_source else [])]


def _what_is_written_back(node: Node, spec: Spec) -> list[str]:
    """An attached source: the kernel knows nothing of the change, and writes go on to both sides."""
    row = node.volume(spec.source)
    if not row.attached:
        return []
    here, there = spec.get_names(node)
    used = devices.use(row.device_path) if row.device_path else None
    device = f"{row.device_path or here} is attached{f' and {used}' if used else ''}"
    written = "what its page cache or file system still writes back of the old data"
    return [f"{device}: {written} destroys the good copy at {there}, too"]


def find_existing(node: Node, body: Create, source: str, peer: str, destination: str) -> db.Connection | None:
    row = node.db.connection_of(source)
    wanted = ("source", peer, destination, body.invalidate)
    if row is None or (row.side, row.peer, row.peer_volume, row.invalidated) != wanted:
        return None
    return row if row.state in ("ready", "suspended") else None


def _refuse_differing(node: Node, body: Create, existing: db.Connection) -> None:
    row = node.volume(existing.volume)
    if (body.size or row.size, body.track_size or row.track_size) != (row.size, row.track_size):
        raise errors.refused(
            f"pair {existing.pair} exists already, with {volumes.sizes(row.size, row.track_size)}, which is not "
            "what was asked for; leave the sizes away, or delete it first"
        )


def _refuse_attached(node: Node, body: Create, source: str) -> None:
    row = node.db.volume(source)
    if row is not None and row.attached and body.invalidate == "source" and not body.force:
        raise errors.refused(
            f"volume {source} is attached, so its content may be cached here and must not become invalid; detach it, "
            "create the pair, then attach (or give --force: what the cache still writes back then destroys the good "
            "copy at the destination)"
        )


async def _plan(node: Node, body: Create, source: str, peer: str, destination: str) -> Spec:
    """Look at both volumes and decide what is to be made; no effects."""
    config.check_rate(body.copy_rate_bytes_s)
    if body.size is not None:
        config.check_size(body.size)
    if body.track_size is not None:
        config.check_track_size(body.track_size)
    here = pairsteps.look_own_volume(node, source)
    try:
        there = await pairsteps.look_peer_volume(node, peer, destination)
    except NoAnswer as error:
        raise unchanged(error) from error
    own = node.host().name
    for name, found in ((f"{own}:{source}", here), (f"{peer}:{destination}", there)):
        if found is None and not body.create:
            raise errors.not_found(f"there is no volume {name}; make it, or give --create")
    size, track_size = _fit(body, here, there, f"{own}:{source}", f"{peer}:{destination}")
    return Spec(
        operation=str(uuid.uuid4()),
        pair=str(uuid.uuid4()),
        source=source,
        peer=peer,
        destination=destination,
        invalidate=body.invalidate,
        first=body.first,
        create_source=here is None,
        create_destination=there is None,
        size=size,
        track_size=track_size,
        force=body.force,
        copy_rate_bytes_s=body.copy_rate_bytes_s,
        on_path_loss=body.on_path_loss or "continue",
    )


def unchanged(error: PathctlError) -> PathctlError:
    """A peer could not be asked, and nothing had been begun."""
    if isinstance(error, NoAnswer) and peers.is_another(error):
        return PathctlError(error.code, f"{error.message}; nothing was changed")
    return PathctlError(
        error.code,
        f"{error.message}; nothing was changed: see that pathctld runs there and that the network lets us through, "
        "then repeat the command",
    )


def _fit(
    body: Create, here: pairsteps.Look | None, there: pairsteps.Look | None, source: str, destination: str
) -> tuple[int, int]:
    """The size and track size of both volumes."""
    if here is not None and there is not None and _sizes(here) != _sizes(there):
        raise errors.refused(
            f"the source {source} has {volumes.sizes(*_sizes(here))}, the destination {destination} has "
            f"{volumes.sizes(*_sizes(there))}, and both must be equal; nothing was changed: "
            + (
                _how_to_fit(source, here, there)
                if body.invalidate == "source"
                else _how_to_fit(destination, there, here)
            )
        )
    look = here or there
    if look is None and body.size is None:
        raise errors.usage("neither volume exists yet, so their size must be given with --size")
    given = (body.size or 0, body.track_size or config.DEFAULT_TRACK_SIZE)
    size, track_size = _sizes(look) if look is not None else given
    if (body.size or size, body.track_size or track_size) != (size, track_size):
        raise errors.refused(
            f"volume {source if here is not None else destination} has {volumes.sizes(size, track_size)}, and "
            "something else was asked for; nothing was changed: leave --size and --track-size away, or give "
            f"--size {size} --track-size {track_size}"
        )
    return config.check_size(size), config.check_track_size(track_size)


def _sizes(found: pairsteps.Look) -> tuple[int, int]:
    assert found.size is not None
    assert found.track_size is not None
    return found.size, found.track_size


def _how_to_fit(lost: str, found: pairsteps.Look, good: pairsteps.Look) -> str:
    """What to do about the volume that is to be overwritten, without a loss that was not meant."""
    if found.use is not None:
        return f"{lost} was to be overwritten and is {found.use}, so name another volume, or a new one with --create"
    host, _, name = lost.partition(":")
    size, track_size = _sizes(good)
    return (
        f"{lost} is to be overwritten, so make it anew on {host} with `pathctl volume delete {name} --yes` and "
        f"`pathctl volume create {name} --size {size} --track-size {track_size}`, then repeat"
    )


class _Run(stepper.Stepper[Spec]):
    """One run of the steps, or what is left of it."""

    words = stepper.Words(
        verb="create",
        commit="ready",
        created="created",
        made_ready="made ready",
        ready="ready",
        as_before="both hosts are as before",
    )
    _port: int | None = None

    async def all(self) -> None:
        spec = self._spec
        connect = {"source": self._connect_source, "destination": self._connect_destination}
        actions: dict[str, Callable[[], Awaitable[None]]] = {
            "journal": self._journal,
            "create_source": self._create_source,
            "create_destination": self._create_destination,
            "first": connect[spec.first],
            "second": connect[spec.second],
            "greet": self._greet,
            "ready": self._ready,
        }
        for name in step_names(spec):
            await self.take(name, actions[name])

    async def _journal(self) -> None:
        pki.write_psk(self._node.cfg, self._spec.pair, pki.new_psk())

    async def _create_source(self) -> None:
        spec = self._spec
        async with self._node.locks[spec.source]:
            await volumes.make(self._node, spec.source, spec.size, spec.track_size, operation=spec.operation)

    async def _create_destination(self) -> None:
        spec = self._spec
        body = pairsteps.CreateVolume(
            spec.operation, spec.pair, spec.destination, spec.source, spec.size, spec.track_size
        )
        await self.ask("pair.create_volume", body)

    async def _connect_source(self) -> None:
        spec = self._spec
        body = self._connect(spec.source, spec.destination)
        await pairsteps.connect_source(self._node, spec.peer, body, spec.copy_rate_bytes_s, spec.on_path_loss)

    async def _connect_destination(self) -> None:
        answer = await self.ask("pair.connect", self._connect(self._spec.destination, self._spec.source))
        self._port = peers.read(self._spec.peer, "pair.connect", answer.get("port"), int)

    def _connect(self, volume: str, peer_volume: str) -> pairsteps.Connect:
        spec = self._spec
        psk = pki.read_psk(self._node.cfg, spec.pair)
        assert psk is not None, "written in the step `journal`"
        return pairsteps.Connect(
            spec.operation, spec.pair, volume, peer_volume, spec.invalidate, psk, spec.size, spec.track_size
        )

    async def _greet(self) -> None:
        """The data planes meet before anything is promised: a failure here fails the second step."""
        node, spec = self._node, self._spec
        assert self._port is not None
        node.db.set_port(spec.pair, self._port)
        row = node.db.connection(spec.pair)
        assert row is not None
        await planes.link(node, row)
        await planes.command(node, spec.source, "greet", pair=spec.pair, timeout_s=node.cfg.timeouts.greet_s)

    async def _ready(self) -> None:
        """THE COMMIT POINT: one command, one durable change in the source's metadata."""
        spec = self._spec
        answer = await planes.command(
            self._node,
            spec.source,
            "commit",
            operation=spec.operation,
            pair=spec.pair,
            invalid=spec.invalidate,
            force=spec.force,
        )
        statelog.read_copy(self._node, msgspec.convert(answer, controlclient.Status))

    def label(self, step: str) -> str:
        spec = self._spec
        here, there = spec.get_names(self._node)
        connections = {"source": f"source connection ({here})", "destination": f"destination connection ({there})"}
        return {
            "journal": "journal",
            "create_source": f"source volume ({here})",
            "create_destination": f"destination volume ({there})",
            "first": connections[spec.first],
            "second": connections[spec.second],
            "greet": f"first contact with {there} over the data port",
            "ready": f"source ready ({here})",
        }[step]

    def is_commit(self, found: controlclient.Status) -> bool:
        return found.committed

    async def undo(self, *, cut: bool) -> tuple[list[str], list[str]]:
        node, spec = self._node, self._spec
        node.db.set_entry_state(spec.operation, "undoing")
        undone: list[str] = []
        pending: list[str] = []
        here, there = spec.get_names(node)
        sides: tuple[db.Side, db.Side] = (spec.second, spec.first)
        for side in sides:
            try:
                undone += await (self._undo_source(cut) if side == "source" else self._undo_destination())
            except PathctlError as error:
                pending.append(f"{side} connection ({here if side == 'source' else there})")
                node.db.set_note(spec.operation, f"being undone: {error.message}")
        if not pending:
            node.db.close_entry(spec.operation, "undone")
        return undone, pending

    async def _undo_source(self, cut: bool) -> list[str]:
        spec = self._spec
        return await pairsteps.drop(self._node, spec.operation, spec.pair, spec.source, cut=cut)

    async def _undo_destination(self) -> list[str]:
        begun = self._node.db.steps(self._spec.operation)
        connect = "first" if self._spec.first == "destination" else "second"
        if "create_destination" not in begun and connect not in begun:
            return []  # the peer has never been asked for anything
        return await self.undo_there()

    async def finish(self) -> None:
        node, spec = self._node, self._spec
        node.db.commit_pair(spec.operation, spec.pair)
        await faults.point("create.committed")
        if await self.tell_committed("pair.finish", spec.which):
            node.db.close_entry(spec.operation, "done")
            await faults.point("create.done")


def step_names(spec: Spec) -> list[str]:
    """The steps in their order."""
    made = ["create_source"] * spec.create_source
    made += ["create_destination"] * spec.create_destination
    return ["journal", *made, "first", "second", "greet", "ready"]


async def go_on(node: Node, entry: db.Entry) -> str | None:
    """What a crash, or a host that did not answer, left unfinished; -> the event that tells how it ended, if it did."""
    return await _Run(node, spec_of(entry)).go_on(entry)
