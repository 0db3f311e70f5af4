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
from typing import Any

import aiohttp
import msgspec

from pathctl import controlclient, copyprogress, errors, shapes
from pathctl.config import Config
from pathctl.db import Database, Host, Peer, Volume
from pathctl.supervise import Supervisor


class Sample(msgspec.Struct, frozen=True):
    """What one look at a pair found.  `status` is what the data plane here says: the source's, or the destination's."""

    at: float  # seconds since the epoch
    pair: shapes.Pair
    status: controlclient.Status | None
    failed: str | None  # why the volume here cannot do its part
    is_heard: bool  # the source told its part: its data plane, or from the destination its pathctld
    is_ended_there: bool = False  # the other host has no such pair any more
    hung: int | None = None  # the volume's process here is alive and does not answer
    is_down: bool = False  # the volume's process here does not start


class Recorded(msgspec.Struct):
    """What was last recorded of a pair: its state, and of its path the session and the refusal."""

    state: str | None = None
    since: float | None = None
    actor: str | None = None
    cause: str | None = None
    is_alone: bool = False  # from a destination that did not hear the source's host
    look: int = 0  # the number of the look that told it
    path_look: int = 0
    session: int | None = None
    refusal: str | None = None


class HeldThere(msgspec.Struct, frozen=True):
    """What the other host says of its side of a pair whose source is here, while the two are apart."""

    held: shapes.Held | None  # None: it has no such volume
    is_newer: bool  # written since the two were last equal
    is_related: bool  # the two share a history


class Left(msgspec.Struct, frozen=True):
    """A pair that has ended here, whose source's host goes on asking for it, and our volume was written since."""

    volume: str
    peer: str
    peer_volume: str


class DiskErrors(msgspec.Struct, frozen=True):
    """Read errors of one volume's disk, as its process counts them."""

    pid: int | None
    told: int  # of them, by an event
    at: float  # monotonic clock: of that event


class Hang(msgspec.Struct, frozen=True):
    """A process that is alive and does not answer."""

    pid: int
    since: float  # monotonic clock
    is_told: bool = False  # as an event


class Reach(msgspec.Struct, frozen=True):
    """What is known of a peer's pathctld."""

    is_reachable: bool
    at: float  # seconds since the epoch: when it was last asked, or heard
    note: str | None = None  # why it is not reachable, or what is odd about it
    clock_skew_s: float | None = None  # its clock less ours
    is_clock_off: bool = False  # by more than is put up with


class Channel(msgspec.Struct, frozen=True):
    """Connections to a peer that are kept, and what they were made for: another one needs others."""

    address: str
    port: int
    certificate: str
    session: aiohttp.ClientSession


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
    moved: asyncio.Event = field(default_factory=asyncio.Event)  # set when this host got another address
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    # the TCP listener: set when it serves, why it does not, and the live TLS context that new peers are added to
    listening: asyncio.Event = field(default_factory=asyncio.Event)
    listen_error: str | None = None
    server_context: ssl.SSLContext | None = None
    protocols: dict[str, int] = field(default_factory=dict)  # by peer: the control protocol last spoken with it
    # by operation: the question to a peer that is being waited for, and those whose half here is being freed
    asking: dict[str, asyncio.Task[dict[str, Any]]] = field(default_factory=dict)
    freeing: set[str] = field(default_factory=set)
    # what the observer has found: by pair, by peer; how far the copies are; set when it should look now
    samples: dict[str, Sample] = field(default_factory=dict)
    recorded: dict[str, Recorded] = field(default_factory=dict)
    forwarding: dict[str, tuple[str, str]] = field(default_factory=dict)  # by pair: who asked here, for which verb
    reach: dict[str, Reach] = field(default_factory=dict)
    copies: copyprogress.Tracker = field(default_factory=copyprogress.Tracker)
    look_now: asyncio.Event = field(default_factory=asyncio.Event)
    look_at: set[str | None] = field(default_factory=set)  # what that is about: pairs, or None for everything
    ping_now: asyncio.Event = field(default_factory=asyncio.Event)
    channels: dict[str, Channel] = field(default_factory=dict)  # by peer
    news: asyncio.Event = field(default_factory=asyncio.Event)  # set, and replaced, when an event was recorded
    followers: int = 0  # that wait for it
    dead_devices: set[str] = field(default_factory=set)  # volumes whose block device is known to be dead
    hangs: dict[str, Hang] = field(default_factory=dict)  # by volume
    ended_there: set[str] = field(default_factory=set)  # pairs with their source here that the other host has not
    held_there: dict[str, HeldThere] = field(default_factory=dict)  # by pair with its source here, while it is apart
    left: dict[str, Left] = field(default_factory=dict)  # by pair with its source elsewhere that has ended here
    disk_errors: dict[str, DiskErrors] = field(default_factory=dict)  # by volume

    def host(self) -> Host:
        found = self.db.host()
        if found is None:
            raise errors.refused("this host has no name yet; run `pathctl host init --name NAME --address ADDRESS`")
        return found

    def peer(self, name: str) -> Peer:
        found = self.db.peer(name)
        if found is None:
            near = errors.see(name, (peer.name for peer in self.db.peers()), "pathctl peer list")
            raise errors.not_found(f"no host called {errors.quote(name)} is enrolled; {near}")
        return found

    def volume(self, name: str) -> Volume:
        found = self.db.volume(name)
        if found is None:
            near = errors.see(name, (volume.name for volume in self.db.volumes()), "pathctl volume list")
            raise errors.not_found(f"there is no volume {errors.quote(name)} on this host; {near}")
        return found

    def look_soon(self, pair: str | None = None) -> None:
        """Have the observer look at this pair, or without one at everything."""
        self.look_at.add(pair)
        self.look_now.set()

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
