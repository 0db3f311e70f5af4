"""node - the parts of one running pathctld, handed down to the modules that work with them.

Holds no logic of its own: the configuration, the database, the data planes, the peers, the locks, and the record of
which operations somebody is working on.
"""

import asyncio
import collections
import contextlib
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field

from pathctl import errors
from pathctl.config import Config
from pathctl.db import Database, Host, Peer, Volume
from pathctl.supervise import Supervisor


@dataclass(slots=True)
class Node:
    """One pathctld.  Lock order: an operation in hand, then the lock of its volume; never two volumes' locks."""

    cfg: Config
    db: Database
    supervisor: Supervisor
    tasks: asyncio.TaskGroup
    locks: collections.defaultdict[str, asyncio.Lock] = field(
        default_factory=lambda: collections.defaultdict(asyncio.Lock)
    )
    in_hand: set[str] = field(default_factory=set)
    # set when there may be unfinished business, when the host got its name, when pathctld is to end
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    named: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    # the TCP listener: set when it serves, why it does not, and the live TLS context that new peers are added to
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    listen_error: str | None = None
    server_context: ssl.SSLContext | None = None

    def host(self) -> Host:
        found = self.db.host()
        if found is None:
            raise errors.refused("this host has no name yet; run `pathctl host init --name NAME --address ADDRESS`")
        return found

    def peer(self, name: str) -> Peer:
        found = self.db.peer(name)
        if found is None:
            raise errors.not_found(f"no host called {name} is enrolled; see `pathctl peer list`")
        return found

    def volume(self, name: str) -> Volume:
        found = self.db.volume(name)
        if found is None:
            raise errors.not_found(f"there is no volume {name} on this host; see `pathctl volume list`")
        return found

    @contextlib.contextmanager
    def working_on(self, operation: str) -> Iterator[None]:
        """Keep the background task off an operation that a request is carrying out."""
        if operation in self.in_hand:
            raise errors.refused(f"operation {operation} is being worked on at this moment; try again")
        self.in_hand.add(operation)
        try:
            yield
        finally:
            self.in_hand.discard(operation)
            self.wake.set()
