"""diskerrors - read errors of a volume's disk, as its process counts them, become events.

The first is told at once, then at most one event a minute: a disk that dies gives thousands.
"""

import time

from pathctl import actor, controlclient
from pathctl.node import DiskErrors, Node

AGAIN_S = 60.0


def note(node: Node, volume: str, found: controlclient.Status) -> None:
    """Tell what has come since the last event; counters begin anew with the process."""
    count = found.counters.get("read_errors", 0)
    known = node.disk_errors.get(volume)
    if known is None or known.pid != found.pid:
        is_first_look = known is None
        known = DiskErrors(found.pid, 0, 0.0)
        if is_first_look and node.db.last_event("disk.failing", volume) is not None:
            known = DiskErrors(found.pid, count, time.monotonic())  # told before pathctld was started anew
        node.disk_errors[volume] = known
    now = time.monotonic()
    if count <= known.told or (known.told and now - known.at < AGAIN_S):
        return
    node.disk_errors[volume] = DiskErrors(found.pid, count, now)
    row = node.db.connection_of(volume)
    answered, repaired = found.counters.get("peer_reads", 0), found.counters.get("repaired_tracks", 0)
    there = f"{row.peer}:{row.peer_volume}" if row is not None else "another host"
    message = (
        f"the disk under volume {volume} gave {count} read errors since its process was started; {answered} of those "
        f"reads were answered with the data of {there}, and {repaired} tracks were written anew: look at the disk "
        "(dmesg, SMART)"
    )
    with actor.by():
        node.db.record(
            "disk.failing",
            message,
            volume=volume,
            pair=row.pair if row else None,
            peer=row.peer if row else None,
            before=str(known.told),
            after=str(count),
        )
