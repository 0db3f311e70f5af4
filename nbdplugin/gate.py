"""gate - which byte ranges are in flight, so that overlapping requests reach both copies in one order.  Pure.

First come, first served: a request enters when nothing before it, in flight or waiting, overlaps it.  A fetch and a
run of the copy hold whole tracks and so exclude every write to them.  The number of entries is bounded by the
number of requests nbdkit admits.  The caller holds the core's lock.
"""

from __future__ import annotations


class Ticket:
    """A place in the gate; `is_in` once the range is the holder's alone."""

    __slots__ = ("blockers", "end", "is_in", "offset", "owner")

    def __init__(self, offset: int, length: int, owner: object) -> None:
        self.offset = offset
        self.end = offset + length
        self.owner = owner
        self.blockers = 0
        self.is_in = False

    def overlaps(self, other: Ticket) -> bool:
        return self.offset < other.end and other.offset < self.end


class Gate:
    """Invariant: no two tickets that are in overlap; `blockers` counts the earlier tickets that overlap."""

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []

    def __len__(self) -> int:
        return len(self._tickets)

    def enter(self, offset: int, length: int, owner: object = None) -> Ticket:
        """Queues for the range; the ticket is in at once if nothing overlaps."""
        ticket = Ticket(offset, length, owner)
        ticket.blockers = sum(ticket.overlaps(other) for other in self._tickets)
        ticket.is_in = ticket.blockers == 0
        self._tickets.append(ticket)
        return ticket

    def try_enter(self, offset: int, length: int) -> Ticket | None:
        """A ticket that is in, or None where something overlaps; nothing is queued."""
        probe = Ticket(offset, length, None)
        if any(probe.overlaps(other) for other in self._tickets):
            return None
        probe.is_in = True
        self._tickets.append(probe)
        return probe

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """Gives the range up; returns the tickets that are in because of it, oldest first."""
        index = self._tickets.index(ticket)
        del self._tickets[index]
        admitted = []
        for other in self._tickets[index:]:
            if ticket.overlaps(other):
                other.blockers -= 1
                if other.blockers == 0:
                    other.is_in = True
                    admitted.append(other)
        return admitted
