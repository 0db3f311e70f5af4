"""peers - the other hosts: enrolment, and calls to them.

A call has a time limit and believes only the peer's pinned certificate.  A peer that answers with an error raises
that PathctlError; a peer that does not answer raises NoAnswer, and then the caller must not conclude anything.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any, TypeVar

import aiohttp
import msgspec

from pathctl import channels, config, db, errors, pki, protocol, reach
from pathctl.errors import ErrorCode
from pathctl.node import Node

ANSWER_LIMIT = 1 << 20
LISTEN_LIMIT_S = 5.0
TIME_MOST = 1e11  # seconds since the epoch
LOOKS = ("ping", "pairs.look", "volume.look", "pair.outcome", "pair.held")  # change nothing: sent on kept connections


Read = TypeVar("Read")


class Init(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    address: str
    port: int = config.DEFAULT_PORT


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a verb without fields."""


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str


class JoinSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a joining host sends to the inviting one."""

    secret: str
    name: str
    address: str
    port: int
    certificate: str


class Identity(msgspec.Struct, frozen=True):
    """What the inviting host answers."""

    name: str
    address: str
    port: int
    certificate: str


class _Error(msgspec.Struct, frozen=True):
    code: ErrorCode
    message: str
    done: list[str] = []
    failed: str | None = None
    undone: list[str] = []
    pending: list[str] = []


class _Failure(msgspec.Struct, frozen=True):
    error: _Error


# user verbs


async def init(node: Node, body: Init) -> dict[str, Any]:
    wanted = db.Host(
        config.check_name(body.name, "host"),
        config.check_address(body.address),
        config.check_port(body.port, node.cfg.settings.data.ports),
    )
    found = node.db.host()
    if found is not None and found != wanted:
        raise errors.refused(
            f"this host is already {found.name} at {found.address}:{found.port}; nothing was changed: its peers know "
            "it by its name, which stays, and it is moved with `pathctl host set --address "
            f"{wanted.address}:{wanted.port}`"
        )
    pki.ensure_identity(node.cfg, wanted.name)
    if found is None:
        node.db.insert_host(wanted)
    node.named.set()
    await listening(node)
    return {"host": host_json(node)}


async def listening(node: Node) -> None:
    try:
        await asyncio.wait_for(node.listening.wait(), LISTEN_LIMIT_S)
    except TimeoutError as error:
        host = node.host()
        raise errors.internal(
            f"{host.address}:{host.port} cannot be listened on ({node.listen_error or 'no answer yet'}); the host has "
            "its name, and pathctld goes on trying: give the address to an interface or free the port"
        ) from error


def host_json(node: Node) -> dict[str, Any] | None:
    host = node.db.host()
    if host is None:
        return None
    fingerprint = pki.fingerprint(node.cfg.host_certificate.read_text())
    return {"name": host.name, "address": host.address, "port": host.port, "fingerprint": fingerprint}


async def invite(node: Node, body: Nothing) -> dict[str, Any]:
    host = node.host()
    await listening(node)
    token, digest = pki.make_token(host.name, host.address, host.port, node.cfg.host_certificate.read_text())
    lasts_s = node.cfg.timeouts.invite_s
    now = time.time()
    node.db.insert_invite(digest, now + lasts_s, now)
    return {"token": token, "expires_s": int(lasts_s)}


async def join(node: Node, body: Join) -> dict[str, Any]:
    """Show the token's secret to the host that made it; its certificate must be the one that the token names."""
    host = node.host()
    token = pki.read_token(body.token)
    if token.name == host.name:
        raise errors.refused(f"the token was made by a host called {host.name}, like this one; host names must differ")
    mine = JoinSecret(token.secret, host.name, host.address, host.port, node.cfg.host_certificate.read_text())
    pin = aiohttp.Fingerprint(bytes.fromhex(token.fingerprint))
    try:
        if protocol.spoken().oldest > 1:
            await _hear_version(node, token, pin)
        limit_s = node.cfg.timeouts.peer_look_s
        answer = await _post(node, token.name, token.address, token.port, pin, "join", mine, limit_s)
    except errors.NoAnswer as error:
        raise errors.PathctlError(
            error.code,
            f"{error.message}; this host was not changed: see that pathctld runs there and that the network lets us "
            "through, then repeat the command",
        ) from error
    found = read(token.name, "join", answer, Identity)
    if pki.fingerprint(found.certificate) != token.fingerprint:
        raise errors.refused("the host that answered showed another certificate than the token names; make a new token")
    peer = db.Peer(token.name, token.address, token.port, found.certificate)
    enrol(node, peer)
    reach.heard(node, peer.name)
    return {"peer": peer_json(node, peer)}


async def _hear_version(node: Node, token: pki.Token, pin: aiohttp.Fingerprint) -> None:
    """Refused when the host speaks none of our versions; that it does not know us yet does not matter."""
    ask = _post(node, token.name, token.address, token.port, pin, "ping", Nothing(), node.cfg.timeouts.peer_look_s)
    try:
        await ask
    except errors.PathctlError:
        if token.name not in node.protocols:
            raise


async def list_all(node: Node, body: Nothing) -> dict[str, Any]:
    """Asks each of them."""
    await asyncio.gather(*(ping(node, peer.name) for peer in node.db.peers()))
    return list_known(node)


def list_known(node: Node) -> dict[str, Any]:
    """As they were when they were last asked or heard; waits for none."""
    return {"peers": [peer_json(node, peer) for peer in node.db.peers()]}


def peer_json(node: Node, peer: db.Peer) -> dict[str, Any]:
    known = node.reach.get(peer.name)
    return {
        "name": peer.name,
        "address": peer.address,
        "port": peer.port,
        "fingerprint": pki.fingerprint(peer.certificate),
        "reachable": known.is_reachable if known else None,
        "protocol": node.protocols.get(peer.name),
        "clock_skew_s": known.clock_skew_s if known else None,
        "note": known.note if known else None,
    }


# what a joining host asks of us


async def admit(node: Node, body: JoinSecret) -> dict[str, Any]:
    """Enrol a host that knows the secret of an invitation."""
    host = node.host()
    config.check_name(body.name, "host")
    if body.name == host.name:
        raise errors.refused(f"the inviting host is called {host.name} too; host names must differ")
    peer = db.Peer(body.name, config.check_address(body.address), config.check_port(body.port), body.certificate)
    fingerprint = pki.fingerprint(peer.certificate)
    pki.client_context(node.cfg, peer.certificate)  # refuses what is no certificate, before anything is recorded
    node.db.redeem_invite(pki.digest(body.secret), time.time(), fingerprint, peer)
    _trust(node, peer)
    mine = Identity(host.name, host.address, host.port, node.cfg.host_certificate.read_text())
    return msgspec.structs.asdict(mine)


def enrol(node: Node, peer: db.Peer) -> None:
    node.db.upsert_peer(peer)
    _trust(node, peer)


def _trust(node: Node, peer: db.Peer) -> None:
    if node.server_context is not None:
        pki.trust(node.server_context, peer.certificate)


# calls


async def call(node: Node, name: str, verb: str, body: msgspec.Struct, limit_s: float) -> dict[str, Any]:
    """One verb at a peer; raises the peer's own PathctlError, or NoAnswer."""
    peer = node.peer(name)
    if verb in protocol.SINCE:
        protocol.require(name, await version(node, name), protocol.SINCE[verb], f"`{verb}`")
    elif verb != "ping" and protocol.spoken().oldest > 1:
        await version(node, name)  # a host of version 1 would carry it out without looking
    try:
        answer = await (_look if verb in LOOKS else _command)(node, peer, verb, body, limit_s)
    except errors.NoAnswer as error:
        if verb == "ping" or not error.sent:
            reach.unheard(node, name, error)
        else:
            node.ping_now.set()  # too slow, or gone
        raise
    except errors.PathctlError:
        reach.heard(node, name)
        raise
    reach.heard(node, name)
    return answer


async def _command(node: Node, peer: db.Peer, verb: str, body: msgspec.Struct, limit_s: float) -> dict[str, Any]:
    context = pki.client_context(node.cfg, peer.certificate)
    return await _post(node, peer.name, peer.address, peer.port, context, verb, body, limit_s)


async def _look(node: Node, peer: db.Peer, verb: str, body: msgspec.Struct, limit_s: float) -> dict[str, Any]:
    """On the kept connections; once more on new ones when those turn out to be dead."""
    for is_last in (False, True):
        session = await channels.get(node, peer)
        try:
            return await _send(node, peer.name, peer.address, peer.port, session, verb, body, limit_s)
        except errors.NoAnswer as error:
            await channels.drop(node, peer.name)
            if is_last or not isinstance(error.__cause__, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):
                raise
            if isinstance(error.__cause__, aiohttp.ClientConnectorError):
                raise
    raise AssertionError("the last turn returns or raises")


async def ask_there(node: Node, peer: db.Peer) -> None:
    """Whether the peer answers at this address; raises NoAnswer, also where another host does."""
    await _command(node, peer, "ping", Nothing(), node.cfg.timeouts.peer_look_s)


def is_another(error: errors.NoAnswer) -> bool:
    """Whether somebody answered who is not the peer that was asked."""
    another = aiohttp.ServerFingerprintMismatch | aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError
    return isinstance(error.__cause__, another)


async def ping(node: Node, name: str) -> None:
    """Ask a peer whether it is there; what comes of it is in `node.reach`."""
    asked = time.time()
    try:
        answer = await call(node, name, "ping", Nothing(), node.cfg.timeouts.status_s)
    except errors.PathctlError as error:
        known = node.reach.get(name)
        if known is not None and not isinstance(error, errors.NoAnswer):
            node.reach[name] = msgspec.structs.replace(known, note=error.message)
        return
    their_time = answer.get("time")
    if isinstance(their_time, int | float) and abs(their_time) < TIME_MOST:
        reach.note_clock(node, name, their_time, asked, time.time())


async def version(node: Node, name: str) -> int:
    """The control protocol spoken with a peer; asks it where that is not known."""
    if name not in node.protocols:
        await call(node, name, "ping", Nothing(), node.cfg.timeouts.peer_look_s)
    return node.protocols[name]


async def _post(
    node: Node,
    name: str,
    address: str,
    port: int,
    trusted: Any,
    verb: str,
    body: msgspec.Struct,
    limit_s: float,
) -> dict[str, Any]:
    """On a connection of its own."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as session:
        return await _send(node, name, address, port, session, verb, body, limit_s)


async def _send(
    node: Node,
    name: str,
    address: str,
    port: int,
    session: aiohttp.ClientSession,
    verb: str,
    body: msgspec.Struct,
    limit_s: float,
) -> dict[str, Any]:
    url = f"https://{f'[{address}]' if ':' in address else address}:{port}/v1/peer/{verb}"
    limits = aiohttp.ClientTimeout(total=limit_s, sock_connect=min(limit_s, node.cfg.timeouts.peer_connect_s))
    raw, headers = msgspec.json.encode(body), protocol.headers()
    try:
        async with session.post(url, data=raw, headers=headers, timeout=limits, allow_redirects=False) as response:
            answer = await _read(name, verb, response)
            theirs = protocol.parse(response.headers.get(protocol.HEADER))
            node.protocols[name] = protocol.agree(f"host {name}", theirs)
            return _answer(name, verb, response.status, answer)
    except (aiohttp.ServerFingerprintMismatch, aiohttp.ClientConnectorCertificateError) as error:
        raise errors.NoAnswer(
            ErrorCode.UNREACHABLE,
            f"the host at {address}:{port} is not {name}: it shows another certificate",
            sent=False,
        ) from error
    except aiohttp.ClientSSLError as error:
        raise errors.NoAnswer(
            ErrorCode.UNREACHABLE,
            f"something else than pathctld answers at {address}:{port}, where host {name} should be",
            sent=False,
        ) from error
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        node.protocols.pop(name, None)  # it may come back as another release
        raise errors.NoAnswer(
            ErrorCode.UNREACHABLE, f"host {name} at {address}:{port} cannot be reached", sent=False
        ) from error
    except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
        what = f"host {name} at {address}:{port} was asked ({verb}) and did not answer"
        if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError):  # a refused certificate too
            what += ": it broke off the connection, because its pathctld ended or it forgot this host"
        raise errors.NoAnswer(ErrorCode.UNREACHABLE, what, sent=True) from error


async def _read(name: str, verb: str, response: aiohttp.ClientResponse) -> bytes:
    raw = b""
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > ANSWER_LIMIT:
            raise _not_understood(name, verb, f"more than {ANSWER_LIMIT} bytes")
    return raw


def read(name: str, verb: str, answer: object, kind: type[Read]) -> Read:
    """What host `name` has answered, if it is what it should be."""
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise _not_understood(name, verb, str(error)) from error


def _not_understood(name: str, verb: str, what: str) -> errors.PathctlError:
    return errors.internal(
        f"host {name} answered {verb} with something else than pathctld does ({what}); see what runs at its address, "
        "and which version, then repeat the command"
    )


def _answer(name: str, verb: str, status: int, raw: bytes) -> dict[str, Any]:
    try:
        if status == 200:
            return msgspec.json.decode(raw, type=dict[str, Any])
        found: Mapping[str, Any] = msgspec.to_builtins(msgspec.json.decode(raw, type=_Failure).error)
    except msgspec.DecodeError as error:
        raise _not_understood(name, verb, "no JSON of pathctl") from error
    raise errors.PathctlError(
        ErrorCode(found["code"]),
        found["message"],
        done=found["done"],
        failed=found["failed"],
        undone=found["undone"],
        pending=found["pending"],
    )
