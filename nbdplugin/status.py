"""status - what a volume says of itself, as the JSON of the control socket.  Pure."""

from __future__ import annotations

from typing import Any

from nbdplugin.tracks import Table


def describe(table: Table) -> dict[str, Any]:
    """What the table alone tells; bytes and tracks."""
    header = table.header
    return {
        "uuid": header.volume,
        "size": header.size,
        "track_size": header.track_size,
        "tracks": table.geometry.tracks,
        "pair": header.pair,
        "side": header.side,
        "peer": header.peer,
        "operation": header.operation,
        "invalidate": header.invalidate,
        "committed": header.committed,
        "ready": header.ready,
        "invalid": table.invalid.count,
        "owed": table.owed.count,
        "incomplete": header.incomplete or table.invalid.count > 0,
        "active_extents": len(header.active),
        "generation": header.generation,
        "ancestors": header.ancestors,
        "last_session": header.session,
        "last_write": header.last_write,
        "on_path_loss": header.on_path_loss,
        "doubtful": header.doubtful,
    }
