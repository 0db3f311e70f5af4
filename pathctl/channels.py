"""channels - connections to the peers that are kept, so that a look costs no TLS handshake.

One session for each peer, made for its address and certificate; another address or certificate gets another one.
For questions only: a request sent on a connection that has died meanwhile is lost without an error, and for what
changes something that would read as "perhaps carried out".
"""

import aiohttp

from pathctl import db, pki
from pathctl.node import Channel, Node

KEEP_S = 30.0  # an idle connection; the pings come more often
CONNECTIONS_MOST = 16


async def get(node: Node, peer: db.Peer) -> aiohttp.ClientSession:
    known = node.channels.get(peer.name)
    wanted = (peer.address, peer.port, peer.certificate)
    if known is not None and (known.address, known.port, known.certificate) == wanted and not known.session.closed:
        return known.session
    context = pki.client_context(node.cfg, peer.certificate)
    connector = aiohttp.TCPConnector(ssl=context, keepalive_timeout=KEEP_S, limit=CONNECTIONS_MOST)
    session = aiohttp.ClientSession(connector=connector)
    node.channels[peer.name] = Channel(*wanted, session)
    if known is not None:
        await known.session.close()
    return session


async def drop(node: Node, name: str) -> None:
    known = node.channels.pop(name, None)
    if known is not None:
        await known.session.close()


async def close_all(node: Node) -> None:
    for name in list(node.channels):
        await drop(node, name)
