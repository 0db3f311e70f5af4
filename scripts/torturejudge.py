"""torturejudge - from the logs of writers, faults and samples: did requests stall, and was too much sent again?  Pure.

Bounds, from the issue that asked for the torture: no request to valid tracks takes over a second, except a mirrored
write that a fault caught in flight; that ends within link_timeout_s + 2 s of the fault.  What is sent again is at most
twice what had to be, and 256 active extents more after each crash of a data plane.

A request is not held against the product while its own side of the volume was made to stand still (SIGSTOP) or has
disk errors, nor while it waits for an invalid track.  What the machine took is measured by the control writer and
taken off.  So is the time that a request to the block device spends behind a flush: Linux's loop driver, which stands
in for nbd where the kernel has none, starts no other request while one is under way (the socket's writers see none of
this).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from torturedata import FAILED, OK, Record

STALL_S = 1.0
SPARE_S = 2.0
EXTENT = 16 << 20
ACTIVE_MOST = 256
FACTOR = 2
LATE_S = 0.05  # of the control writer: from here on the machine counts as stalled
AFTER_S = 1.0  # for what queued up before a process that stood still


@dataclasses.dataclass
class Fault:
    """What was done, and when.  `onsets`: each moment from which mirrored writes may be without an answer."""

    kind: str
    start: float
    end: float = float("inf")
    onsets: list[float] = dataclasses.field(default_factory=list)
    is_lasting: bool = False  # every moment is an onset: a slow link
    freezes: frozenset[str] = frozenset()  # whose requests stand still by definition: device, socket
    fails: frozenset[str] = frozenset()  # whose requests may fail
    is_until_whole: bool = False  # it lasts until the path is ready and the source has all there is, on its disk
    crash_extents: int | None = None  # of a data plane's crash: extents active at the source then

    def covers(self, record: Record, after_s: float = AFTER_S) -> bool:
        return record.start < self.end + after_s and record.end > self.start


@dataclasses.dataclass
class Sample:
    """What the two data planes said at one moment; None where one gave no answer."""

    at: float
    source: dict[str, int | None] | None
    destination: dict[str, int | None] | None


@dataclasses.dataclass
class Stalls:
    """Longest of each class, in seconds, and the requests over their bound."""

    valid_s: float = 0.0
    mirrored_s: float = 0.0
    own_s: float = 0.0
    invalid_s: float = 0.0
    doubt_s: float = 0.0
    behind_s: float = 0.0
    machine_s: float = 0.0
    over: list[str] = dataclasses.field(default_factory=list)
    machines: int = 0  # requests that would be over, but for what the machine took

    def merge(self, other: Stalls) -> None:
        for name in ("valid_s", "mirrored_s", "own_s", "invalid_s", "doubt_s", "behind_s", "machine_s"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        self.over += other.over
        self.machines += other.machines


class Judge:
    """One round.  `is_pull`: every track is invalid at first, until a request to it has succeeded."""

    def __init__(
        self,
        records: Sequence[Record],
        control: Iterable[Record],
        faults: Sequence[Fault],
        device_writers: int,
        track_size: int,
        link_timeout_s: float,
        doubts: Sequence[tuple[float, float]] = (),
    ) -> None:
        self._records = sorted(records, key=lambda record: record.end)
        self._late = [(r.start, r.end) for r in control if r.end - r.start > LATE_S]
        self._faults = faults
        self._device_writers = device_writers
        self._track_size = track_size
        self._limit_s = link_timeout_s + SPARE_S
        self._doubts = doubts
        self._flushes = unite([(r.start, r.end) for r in self._records if r.kind == "f" and self._who(r) == "device"])

    def _who(self, record: Record) -> str:
        return "device" if record.writer < self._device_writers else "socket"

    def find_unexcused(self) -> list[str]:
        """Requests that failed although nothing was done that may make them fail."""
        return [
            f"{describe(record)} failed"
            for record in self._records
            if record.outcome == FAILED
            and not any(self._who(record) in fault.fails and fault.covers(record, 5.0) for fault in self._faults)
        ]

    # -- stalls

    def find_stalls(self, is_pull: bool) -> Stalls:
        found = Stalls(machine_s=max((end - start for start, end in self._late), default=0.0))
        valid: set[int] = set()
        for record in self._records:  # in the order of their ends
            taken_s = record.end - record.start
            tracks = record.get_tracks(self._track_size) if record.kind != "f" else range(0)
            if any(self._who(record) in fault.freezes and fault.covers(record) for fault in self._faults):
                found.own_s = max(found.own_s, taken_s)
            elif is_pull and not valid.issuperset(tracks):
                found.invalid_s = max(found.invalid_s, taken_s)
            elif record.kind != "r" and overlap(self._doubts, record):
                found.doubt_s = max(found.doubt_s, taken_s)
            elif record.outcome == OK:
                self._classify(record, taken_s, found)
            if record.outcome == OK:
                valid.update(tracks)
        return found

    def _classify(self, record: Record, taken_s: float, found: Stalls) -> None:
        behind_s = overlap(self._flushes, record) if self._who(record) == "device" and record.kind != "f" else 0.0
        if behind_s > STALL_S:
            found.behind_s, taken_s = max(found.behind_s, behind_s), taken_s - behind_s
        since_s = None if record.kind == "r" else self._since_onset(record)
        if since_s is not None:
            found.mirrored_s = max(found.mirrored_s, since_s)
            bound_s, counted_s = self._limit_s, since_s
        else:
            found.valid_s = max(found.valid_s, taken_s)
            bound_s, counted_s = STALL_S, taken_s
        if counted_s > bound_s:
            machine_s = overlap(self._late, record)
            if counted_s - machine_s > bound_s:
                near = ", ".join(f.kind for f in self._faults if f.covers(record, 5.0)) or "no fault"
                found.over.append(f"{describe(record)}: {counted_s:.2f} s, machine {machine_s:.2f} s; {near}")
            else:
                found.machines += 1

    def _since_onset(self, record: Record) -> float | None:
        """How long a change was in flight after the last onset that can have caught it; None if none can."""
        onsets = [at for fault in self._faults for at in fault.onsets if at < record.end]
        onsets += [
            min(record.end, max(record.start, fault.start))
            for fault in self._faults
            if fault.is_lasting and fault.start < record.end and record.start < fault.end
        ]
        near = [at for at in onsets if record.start < at + self._limit_s]
        return record.end - max(record.start, *near) if near else None


def unite(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same stretches of time, without overlaps."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def overlap(spans: Sequence[tuple[float, float]], record: Record) -> float:
    return sum(max(0.0, min(end, record.end) - max(start, record.start)) for start, end in spans)


def describe(record: Record) -> str:
    return (
        f"request {record.sequence} of writer {record.writer} ({record.kind} {record.length} at {record.offset}), "
        f"{record.start:.3f} to {record.end:.3f}"
    )


def prolong(faults: Iterable[Fault], samples: Sequence[Sample]) -> None:
    """What disk errors have made invalid is so until it has been brought over again."""
    for fault in faults:
        if fault.is_until_whole:
            whole = (s.at for s in samples if s.at > fault.end and s.source is not None and is_whole(s.source))
            fault.end = next(whole, float("inf"))


def find_doubts(samples: Iterable[Sample]) -> list[tuple[float, float]]:
    """When only the peer had something that it may not have flushed: writes with FUA wait for the path then.

    Told by the samples, and so from the last one before to the first one after.
    """
    found, start, last = [], None, 0.0
    for sample in samples:
        is_doubtful = sample.source is not None and bool(sample.source["doubtful"])
        if is_doubtful and start is None:
            start = last
        elif start is not None and sample.source is not None and not is_doubtful:
            found.append((start, sample.at))
            start = None
        last = sample.at
    return found if start is None else [*found, (start, last)]


def is_clean(source: dict[str, int | None]) -> bool:
    return source["session"] is not None and not source["owed"]


def is_whole(source: dict[str, int | None]) -> bool:
    return source["session"] is not None and source["invalid"] == 0 and not source["doubtful"]


# -- what was sent again


@dataclasses.dataclass
class Resent:
    """Bytes.  `copied`: what the copy wrote at the destination, `first` of it before; `needed`: the lower bound."""

    copied: int
    first: int
    needed: int
    allowance: int

    @property
    def resent(self) -> int:
        return max(0, self.copied - self.first)

    @property
    def is_too_much(self) -> bool:
        return self.resent > FACTOR * self.needed + self.allowance


def count_resent(
    records: Sequence[Record], samples: Sequence[Sample], faults: Sequence[Fault], first: int, track_size: int
) -> Resent:
    crashes = [fault.crash_extents for fault in faults if fault.crash_extents is not None]
    return Resent(
        copied=add_up((sample.at, sample.destination) for sample in samples),
        first=first,
        needed=count_needed(records, samples, track_size),
        allowance=sum(min(ACTIVE_MOST, extents) * EXTENT for extents in crashes),
    )


def skip_first_copy(samples: Sequence[Sample]) -> tuple[Sequence[Sample], int]:
    """Samples from its end on, and what the copy had written by then: before, what it is to bring is owed anyway."""
    for number, sample in enumerate(samples):
        if sample.destination is not None and sample.source is not None and is_clean(sample.source):
            return samples[number:], sample.destination["copied_bytes"] or 0
    return (), 0


def add_up(samples: Iterable[tuple[float, dict[str, int | None] | None]]) -> int:
    """The destination's count of bytes that the copy wrote, over all its processes, each of which began with 0."""
    total, pid, last = 0, None, 0
    for _at, status in samples:
        if status is None:
            continue
        copied = status["copied_bytes"] or 0
        total += copied - (last if status["pid"] == pid else 0)
        pid, last = status["pid"], copied
    return total


def get_down(samples: Sequence[Sample]) -> list[tuple[float, float]]:
    """Periods, each a little short, in which one process of the source had no session."""
    found: list[tuple[float, float]] = []
    for one, other in itertools.pairwise(samples):
        if one.source is None or other.source is None or one.source["pid"] != other.source["pid"]:
            continue
        if one.source["session"] is None and other.source["session"] is None:
            if found and found[-1][1] == one.at:
                found[-1] = found[-1][0], other.at
            else:
                found.append((one.at, other.at))
    return found


def count_needed(records: Sequence[Record], samples: Sequence[Sample], track_size: int) -> int:
    """Bytes of the tracks written while the peer could not have them: each once until nothing was owed any more."""
    down = get_down(samples)
    events: list[tuple[float, Record | None]] = [
        (s.at, None) for s in samples if s.source is not None and is_clean(s.source)
    ]
    events += [
        (record.end, record)
        for record in records
        if record.is_change and record.outcome == OK and any(u <= record.start and record.end <= v for u, v in down)
    ]
    total, owed = 0, set[int]()
    for _at, record in sorted(events, key=lambda event: event[0]):
        if record is None:
            total, owed = total + len(owed), set()
        else:
            owed.update(record.get_tracks(track_size))
    return (total + len(owed)) * track_size
