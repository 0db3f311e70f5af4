"""api - the two doors of pathctld: the Unix socket for this host's users, the TLS port for its peers.

POST /v1/VERB and /v1/peer/VERB with a JSON object, a JSON object back; on the Unix socket GET /metrics too.  Every body
is validated by its verb's struct here, every error becomes an answer here, and nowhere else.  A verb runs as a task of
its own: a client that goes away does not cut it off.  On the TLS port the caller's certificate is compared with the
enrolled ones in each request; without one, only `join` is open.
"""

import asyncio
import contextlib
import hashlib
import logging
import pwd
import socket
import ssl
import struct
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from pathctl import (
    actor,
    backup,
    errors,
    events,
    metrics,
    moves,
    pairheld,
    pairs,
    pairsteps,
    pairview,
    peers,
    pki,
    planes,
    problems,
    protocol,
    reach,
    settings,
    volumes,
)
from pathctl.errors import ErrorCode, PathctlError
from pathctl.node import Node

log = logging.getLogger(__name__)

BODY_LIMIT = 64 << 10

HTTP_STATUS = {
    ErrorCode.USAGE: 400,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.REFUSED: 409,
    ErrorCode.UNREACHABLE: 502,
    ErrorCode.TIMEOUT: 504,
    ErrorCode.INTERNAL: 500,
}

PEERS_S = 0.1  # of a status, for peers to answer in

Answer = Awaitable[dict[str, Any]]
UserHandler = Callable[[Node, Any], Answer]
PeerHandler = Callable[[Node, str, Any], Answer]


async def status(node: Node, body: peers.Nothing) -> dict[str, Any]:
    """Peers as they are now, if they answer, or refuse to, at once; else as they were when they were last heard."""
    known = [] if node.stopping.is_set() else node.db.peers()
    asked = [node.tasks.create_task(peers.ping(node, peer.name)) for peer in known]
    if asked:
        await asyncio.wait(asked, timeout=PEERS_S)  # the others go on
    looks = planes.Looks(node)
    found_volumes, found_pairs = await asyncio.gather(volumes.show_all(node, looks), pairs.show_all(node, looks))
    host = {"host": peers.host_json(node), "problems": problems.find(node)}
    return host | peers.list_known(node) | {"volumes": found_volumes, "pairs": found_pairs}


async def config_show(node: Node, body: peers.Nothing) -> dict[str, Any]:
    """The settings as they were when pathctld started: those that hold."""
    file = node.cfg.settings_file
    found = settings.describe(node.cfg.settings, node.cfg.lines, file)
    return {"file": str(file), "settings": msgspec.to_builtins(found)}


async def shutdown(node: Node, body: peers.Nothing) -> dict[str, Any]:
    """End everything of this host: devices, nbdkit processes, pathctld.  The rows stay for the next start."""
    for row in node.db.volumes():
        if row.attached or row.device_path is not None:
            async with node.locks[row.name]:
                await planes.can_run(node, row.name)  # what the device still holds is written out through it
                await volumes.remove_device(node, node.volume(row.name))
    node.supervisor.is_closing = True
    for name in node.supervisor.volumes():
        async with node.locks[name]:
            await node.supervisor.stop(name)
    node.stopping.set()
    return {}


async def ping(node: Node, peer: str, body: peers.Nothing) -> dict[str, Any]:
    told = {"name": node.host().name}
    return told | {"time": time.time()} if protocol.spoken().newest > 1 else told


USER_VERBS: dict[str, tuple[type[msgspec.Struct], UserHandler]] = {
    "host.init": (peers.Init, peers.init),
    "host.show": (peers.Nothing, moves.show_host),
    "host.set": (moves.SetHost, moves.set_host),
    "host.shutdown": (peers.Nothing, shutdown),
    "config.show": (peers.Nothing, config_show),
    "peer.invite": (peers.Nothing, peers.invite),
    "peer.join": (peers.Join, peers.join),
    "peer.list": (peers.Nothing, peers.list_all),
    "backup.make": (backup.Make, backup.make),
    "peer.set": (moves.SetPeer, moves.set_peer),
    "volume.create": (volumes.Create, volumes.create),
    "volume.list": (peers.Nothing, volumes.list_all),
    "volume.show": (volumes.Name, volumes.show),
    "volume.delete": (volumes.Change, volumes.delete),
    "volume.accept": (volumes.Change, volumes.accept),
    "attach": (volumes.Attach, volumes.attach),
    "detach": (volumes.Attach, volumes.detach),
    "pair.list": (peers.Nothing, pairs.list_all),
    "connection.list": (peers.Nothing, pairs.connections),
    "status": (peers.Nothing, status),
    "events.list": (events.List, events.list_events),
    "pair.why": (pairview.Which, events.explain),
    **pairs.VERBS,
}

# What is typed for a verb whose name it is not.
COMMANDS = {"backup.make": "pathctl backup", "host.shutdown": "pathctld --stop-all"}

# What changes nothing: that it failed is for its caller only.
LOOKS = frozenset(
    (
        "config.show",
        "connection.list",
        "events.list",
        "host.show",
        "pair.list",
        "pair.show",
        "pair.why",
        "peer.list",
        "status",
        "volume.list",
        "volume.show",
    )
)

PEER_VERBS: dict[str, tuple[type[msgspec.Struct], PeerHandler]] = {
    "ping": (peers.Nothing, ping),
    "peer.moved": (moves.Moved, moves.moved),
    "volume.look": (pairsteps.LookVolume, pairsteps.look_volume),
    "pair.check": (pairsteps.Check, pairsteps.check),
    "pair.create_volume": (pairsteps.CreateVolume, pairsteps.create_volume),
    "pair.connect": (pairsteps.Connect, pairsteps.connect_destination),
    "pair.finish": (pairsteps.Which, pairsteps.finish),
    "pair.undo": (pairsteps.Which, pairsteps.undo),
    "pair.end": (pairsteps.Which, pairsteps.end),
    "pair.outcome": (pairsteps.Which, pairsteps.outcome),
    "pair.rejoin": (pairsteps.Rejoin, pairsteps.rejoin),
    "pair.resolved": (pairsteps.Resolved, pairsteps.resolved),
    "pair.held": (pairheld.Ask, pairheld.tell),
    "forward": (pairview.Forward, pairs.forwarded),
    "pairs.look": (pairview.Look, pairview.look_for_peer),
}


def user_app(node: Node) -> web.Application:
    app = web.Application(client_max_size=BODY_LIMIT)

    async def handle(request: web.Request) -> web.Response:
        actor.who.set(_user(request))
        actor.why.set(request.match_info["verb"])
        return await _answer(node, request, lambda verb, raw: _user_call(node, verb, raw))

    app.router.add_post("/v1/{verb}", handle)
    metrics.add_route(app, node)
    return app


def peer_app(node: Node) -> web.Application:
    app = web.Application(client_max_size=BODY_LIMIT)

    async def handle(request: web.Request) -> web.Response:
        caller = _caller(node, request)
        actor.who.set(f"host {caller}" if caller else "a host that is not known")
        actor.why.set(request.match_info["verb"])
        theirs = protocol.parse(request.headers.get(protocol.HEADER))

        def call(verb: str, raw: bytes) -> Answer:
            version = protocol.agree(f"host {caller}" if caller else "the host that calls", theirs)
            if caller is not None:
                node.protocols[caller] = version
                reach.asked_by(node, caller)
            return _peer_call(node, caller, verb, raw)

        answer = await _answer(node, request, call)
        answer.headers.update(protocol.headers())
        return answer

    app.router.add_post("/v1/peer/{verb}", handle)
    return app


def _user_call(node: Node, verb: str, raw: bytes) -> Answer:
    if verb not in USER_VERBS:
        raise _no_verb(verb)
    kind, handler = USER_VERBS[verb]
    body = _decode(verb, raw, kind)
    return _told(node, verb, body, handler(node, body))


async def _told(node: Node, verb: str, body: msgspec.Struct, work: Answer) -> dict[str, Any]:
    """Record it when a command that would have changed something fails."""
    try:
        return await work
    except PathctlError as error:
        if verb not in LOOKS and not getattr(body, "dry_run", False):
            message = f"`{COMMANDS.get(verb, 'pathctl ' + verb.replace('.', ' '))}` failed: {error.message}"
            volume, pair = _meant(node, body)
            node.db.record("command.failed", message, volume=volume, pair=pair, after=error.code.value)
        raise


def _meant(node: Node, body: msgspec.Struct) -> tuple[str | None, str | None]:
    """The volume and pair of this host that a command named, as far as they are known."""
    name = getattr(body, "pair", None) or getattr(body, "volume", None) or getattr(body, "source", None)
    with contextlib.suppress(PathctlError):
        half = pairview.find(node, str(name or getattr(body, "name", "")))
        return half.volume, half.pair
    return (str(name) if node.db.volume(str(name)) is not None else None), None


def _user(request: web.Request) -> str:
    """`uid 0 (root)`: whose process is at the other end of the Unix socket."""
    found = request.transport.get_extra_info("socket") if request.transport else None
    if found is None:
        return "a user who has gone"
    _pid, uid, _gid = struct.unpack("3i", found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"uid {uid}"


def _peer_call(node: Node, caller: str | None, verb: str, raw: bytes) -> Answer:
    if verb == "join":
        joining = _decode(verb, raw, peers.JoinSecret)
        actor.who.set(f"host {joining.name}")
        return peers.admit(node, joining)
    if caller is None:
        raise errors.refused("this host does not know the certificate that was shown; enrol with `pathctl peer join`")
    if verb not in PEER_VERBS or not protocol.knows(verb):
        raise _no_verb(verb)
    kind, handler = PEER_VERBS[verb]
    return handler(node, caller, _decode(verb, raw, kind))


def _no_verb(verb: str) -> PathctlError:
    return errors.usage(f"there is no verb {verb!r}; both hosts should run the same version of pathctl")


def _decode(verb: str, raw: bytes, kind: type[msgspec.Struct]) -> Any:
    try:
        return msgspec.json.decode(raw or b"{}", type=kind)
    except msgspec.DecodeError as error:  # a ValidationError is one
        raise errors.usage(f"{verb}: {error}") from error


def _caller(node: Node, request: web.Request) -> str | None:
    """The peer whose pinned certificate was shown; None when none was."""
    channel: ssl.SSLObject | None = request.transport.get_extra_info("ssl_object") if request.transport else None
    shown = channel.getpeercert(True) if channel is not None else None
    if shown is None:
        return None
    fingerprint = hashlib.sha256(shown).hexdigest()
    return next((peer.name for peer in node.db.peers() if pki.fingerprint(peer.certificate) == fingerprint), None)


async def _answer(node: Node, request: web.Request, call: Callable[[str, bytes], Answer]) -> web.Response:
    verb = request.match_info["verb"]
    try:
        async with asyncio.timeout(node.cfg.timeouts.body_s):
            raw = await request.read()
        if node.stopping.is_set():
            raise PathctlError(ErrorCode.UNREACHABLE, "pathctld is being stopped; start it, then repeat the command")
        result = await _within_limit(node, verb, call(verb, raw))
    except TimeoutError:
        return _failure(PathctlError(ErrorCode.TIMEOUT, f"the body of {verb} did not arrive in time"))
    except PathctlError as error:
        return _failure(error)
    return web.Response(body=msgspec.json.encode(result), content_type="application/json")


def _failure(error: PathctlError) -> web.Response:
    body = msgspec.json.encode({"error": error.as_json()})
    return web.Response(status=HTTP_STATUS[error.code], body=body, content_type="application/json")


async def _within_limit(node: Node, verb: str, work: Answer) -> dict[str, Any]:
    """Run a verb as a task of the node's; when it takes too long, it goes on without its caller."""
    task = node.tasks.create_task(_root(verb, work), name=verb)
    done, _ = await asyncio.wait([task], timeout=node.cfg.timeouts.verb_s)
    if not done:
        raise PathctlError(
            ErrorCode.TIMEOUT,
            f"{verb} is not finished after {node.cfg.timeouts.verb_s:g} s and goes on; look with `pathctl status`",
        )
    if task.cancelled():
        raise PathctlError(
            ErrorCode.UNREACHABLE, f"pathctld was stopped while it worked on {verb}; start it, then repeat the command"
        )
    result = task.result()
    if isinstance(result, PathctlError):
        raise result
    return result


async def _root(verb: str, work: Answer) -> dict[str, Any] | PathctlError:
    try:
        return await work
    except PathctlError as error:
        return error
    except Exception:
        log.exception("%s", verb)
        return errors.internal(f"{verb} failed because of a mistake in pathctl; its log has the details, report them")
