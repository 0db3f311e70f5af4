"""moves - a host at another address: this one (host.set), or a peer (peer.set, or told by itself: peer.moved).

A host is its certificate, so nobody is enrolled anew.  The host that moves listens there with its control port and its
data ports, then tells its peers; a peer asks at the new address before it believes it, and its sources' data planes go
there.  A peer that cannot be told is named in the error, and `pathctl peer set` does it from its side.
"""

import asyncio
from typing import Any

import msgspec

from pathctl import channels, config, db, errors, peers, planes, protocol, reach, supervise
from pathctl.errors import ErrorCode, NoAnswer, PathctlError
from pathctl.node import Node


class SetHost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    address: str
    port: int | None = None  # as it is


class SetPeer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    address: str
    port: int | None = None  # as it is
    force: bool = False


class Moved(msgspec.Struct, frozen=True):
    """Told to a peer: where the caller is now."""

    address: str
    port: int


# this host


async def show_host(node: Node, body: peers.Nothing) -> dict[str, Any]:
    node.host()
    return {"host": peers.host_json(node)}


async def set_host(node: Node, body: SetHost) -> dict[str, Any]:
    """Listen at another address, with the data ports too, and tell the peers; repeated, it tells them again."""
    found = node.host()
    port = config.check_port(found.port if body.port is None else body.port, node.cfg.settings.data.ports)
    wanted = db.Host(found.name, config.check_address(body.address), port)
    if wanted != found:
        _refuse_unusable(node, found, wanted)
        node.db.set_host(wanted)
        node.listening.clear()
        node.listen_error = None
        node.moved.set()
    await peers.listening(node)
    failed = [*await _move_planes(node), *await _tell_peers(node, wanted)]
    if failed:
        raise PathctlError(
            ErrorCode.UNREACHABLE,
            f"this host is at {wanted.address}:{wanted.port} now, but {'; '.join(failed)}",
            done=[f"host {wanted.name} at {wanted.address}:{wanted.port}"],
            pending=failed,
        )
    return {"host": peers.host_json(node)}


def _join(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _refuse_unusable(node: Node, found: db.Host, wanted: db.Host) -> None:
    """The control port and each data port must be free there."""
    ports = {wanted.port: "the control traffic"} if (found.address, found.port) != (wanted.address, wanted.port) else {}
    if found.address != wanted.address:
        ports |= {row.port: f"pair {row.pair}" for row in _destinations(node) if row.port is not None}
    for port, what in ports.items():
        why = supervise.why_not_free(wanted.address, port)
        if why is not None:
            raise errors.refused(
                f"{wanted.address}:{port} cannot be listened on for {what}: {why}; nothing was changed: give the "
                "address to an interface of this host, or free the port"
            )


def _destinations(node: Node) -> list[db.Connection]:
    return [row for row in node.db.connections() if row.side == "destination"]


async def _move_planes(node: Node) -> list[str]:
    """Serve each destination at the new address; -> what has failed."""

    async def move(volume: str) -> str | None:
        async with node.locks[volume]:
            try:
                await planes.settle(node, volume)
            except PathctlError as error:
                return (
                    f"volume {volume} is not served there yet ({error.message}), which pathctld goes on with by itself"
                )
        return None

    found = await asyncio.gather(*(move(row.volume) for row in _destinations(node)))
    return [item for item in found if item is not None]


async def _tell_peers(node: Node, host: db.Host) -> list[str]:
    """-> which peers were not told, and what to type there."""

    async def tell(name: str) -> str | None:
        command = f"pathctl peer set {host.name} --address {_join(host.address, host.port)}"
        try:
            if await peers.version(node, name) < protocol.SINCE["peer.moved"]:
                return f"host {name} is of an older release, so bring it to this one, then run `{command}` there"
            await peers.call(
                node, name, "peer.moved", Moved(host.address, host.port), 2 * node.cfg.timeouts.peer_look_s
            )
        except PathctlError as error:
            return f"host {name} was not told ({error.message}): run `{command}` there"
        return None

    found = await asyncio.gather(*(tell(peer.name) for peer in node.db.peers()))
    return [item for item in found if item is not None]


# a peer


async def set_peer(node: Node, body: SetPeer) -> dict[str, Any]:
    """Record where a peer is, after it has answered there; `force`: also when nobody answers."""
    found = node.peer(body.name)
    port = config.check_port(found.port if body.port is None else body.port)
    wanted = db.Peer(found.name, config.check_address(body.address), port, found.certificate)
    try:
        await peers.ask_there(node, wanted)
    except NoAnswer as error:
        if not body.force or peers.is_another(error):
            hint = "" if peers.is_another(error) else ", or give --force to record it all the same"
            raise PathctlError(error.code, f"{error.message}; nothing was changed: check the address{hint}") from error
    await _go_there(node, wanted)
    await peers.ping(node, wanted.name)
    return {"peer": peers.peer_json(node, wanted)}


async def moved(node: Node, peer: str, body: Moved) -> dict[str, Any]:
    """The caller says where it is now; it has to answer there."""
    address, port = config.check_address(body.address), config.check_port(body.port)
    wanted = msgspec.structs.replace(node.peer(peer), address=address, port=port)
    await peers.ask_there(node, wanted)
    await _go_there(node, wanted)
    reach.heard(node, peer)
    return {}


async def _go_there(node: Node, peer: db.Peer) -> None:
    """Record the address, and send the data planes of our sources there."""
    node.db.upsert_peer(peer)
    await channels.drop(node, peer.name)
    rows = [row for row in node.db.connections() if row.peer == peer.name and row.side == "source" and row.port]
    await asyncio.gather(*(_link(node, row) for row in rows))
    node.wake.set()  # operations that waited for it


async def _link(node: Node, row: db.Connection) -> None:
    try:
        await planes.link(node, row)
    except PathctlError:
        node.supervisor.bring_again(row.volume)  # its keeper tells it until it listens
