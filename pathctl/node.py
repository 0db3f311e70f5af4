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
    in_hand: dict[str, asyncio.Event] = field(default_factory=dict)  # by operation; set when it is let go
    # set when there may be unfinished business, when the host got its name, when pathctld is to end
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    named: asyncio.Event = field(default_factory=asyncio.Event)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    # the TCP listener: set when it serves, why it does not, and the live TLS context that new peers are added to
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    listen_error: str | None = None
    server_context: ssl.SSLContext | None = None
    protocols: dict[str, int] = field(default_factory=dict)  # by peer: the control protocol last spoken with it

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
        with self.holding(operation):
            try:
                yield
            finally:
                self.wake.set()

    @contextlib.contextmanager
    def holding(self, operation: str) -> Iterator[None]:
        """As `working_on`, without waking the background task at the end: for that task itself."""
        if operation in self.in_hand:
            raise errors.refused(f"operation {operation} is being worked on at this moment; try again")
        self.in_hand[operation] = asyncio.Event()
        try:
            yield
        finally:
            self.in_hand.pop(operation).set()

    async def until_free(self, operation: str) -> None:
        """Wait until nobody works on the operation; as long as one command or one question to a peer may take."""
        try:
            async with asyncio.timeout(max(self.cfg.timeouts.control_s, self.cfg.timeouts.peer_look_s)):
                while operation in self.in_hand:
                    await self.in_hand[operation].wait()
        except TimeoutError:
            raise errors.refused(f"operation {operation} is still being worked on; try again") from None
