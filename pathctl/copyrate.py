"""copyrate - how fast each copy of this host may go, when all of them together have a limit.

`shares` is pure.  What a data plane is told is never above what is set for its pair; a pair for which nothing is set
has `copy.pair_rate_bytes_s`.  `apply` is called after each look at the pairs and tells only what has changed.
"""

import asyncio
import logging
from collections.abc import Mapping

from pathctl import controlclient, errors, logs
from pathctl.node import Node

log = logging.getLogger(__name__)

Rate = int | None  # bytes per second; None: no limit, 0: paused


def shares(total: Rate, limits: Mapping[str, Rate]) -> dict[str, Rate]:
    """What each may have of the total, max-min fair: who wants less than an even part leaves the rest to the others.

    No share is above its own limit, none is above another's without being wanted less there, and together they are
    the total unless the limits are less.  Paused stays paused.
    """
    if total is None:
        return dict(limits)
    found: dict[str, Rate] = {}
    left = total
    waiting = sorted(limits, key=lambda pair: (_height(limits[pair]), pair))
    for served, pair in enumerate(waiting):
        even = left // (len(waiting) - served)
        limit = limits[pair]
        share = even if limit is None else min(limit, even)
        found[pair] = share
        left -= share
    return {pair: found[pair] for pair in limits}


def _height(limit: Rate) -> float:
    return float("inf") if limit is None else limit


def own(node: Node, rate_bytes_s: Rate) -> Rate:
    """A pair's limit, where `rate_bytes_s` is what is set for it."""
    return node.cfg.settings.copy.pair_rate_bytes_s if rate_bytes_s is None else rate_bytes_s


def wanted(node: Node, pair: str, rate_bytes_s: Rate) -> Rate:
    """What the pair's data plane is to be told now, where `rate_bytes_s` is what is set for it.

    One that does not copy is told what it will have when it begins: it must not run off before the next look.
    """
    return shares(node.cfg.settings.copy.rate_bytes_s, _copying(node) | {pair: own(node, rate_bytes_s)})[pair]


def _copying(node: Node) -> dict[str, Rate]:
    """The limits of the pairs whose source is here and whose copy runs."""
    rows = {row.pair: row for row in node.db.connections() if row.side == "source"}
    return {
        pair: own(node, rows[pair].copy_rate_bytes_s)
        for pair, sample in node.samples.items()
        if pair in rows and sample.status is not None and sample.status.session and _left(sample.status)
    }


def _left(status: controlclient.Status) -> int:
    return status.invalid + status.owed


async def apply(node: Node) -> None:
    """Tell each data plane its share, if it has another.  Never raises: the next look is soon."""
    changed = []
    copying = _copying(node)
    for row in node.db.connections():
        sample = node.samples.get(row.pair)
        if row.side != "source" or sample is None or sample.status is None:
            continue
        limits = copying | {row.pair: own(node, row.copy_rate_bytes_s)}
        share = shares(node.cfg.settings.copy.rate_bytes_s, limits)[row.pair]
        if share != sample.status.copy_rate_bytes_s:
            changed.append(_tell(node, row.volume, row.pair, share))
    await asyncio.gather(*changed)


async def _tell(node: Node, volume: str, pair: str, share: Rate) -> None:
    try:
        await controlclient.call(
            node.cfg.control_socket(volume), "set", node.cfg.timeouts.status_s, copy_rate_bytes_s=share
        )
    except errors.PathctlError as error:
        log.debug(
            "volume %s is not told its copy rate: %s", volume, error.message, extra=logs.of(volume=volume, pair=pair)
        )
