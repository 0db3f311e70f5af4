"""protocol - versions of the control traffic between two pathctld, and what each of them knows.

Each request and each answer carries HEADER with the oldest and the newest version that its sender speaks, `1-2`; who
sends none speaks version 1.  Two hosts use the newest version that both speak.  Without one, the host that notices
refuses before anything is changed: a called one reads the header first, and a caller that has dropped version 1 asks
(`ping`) whether a host announces itself before it calls it for anything else.

    1  no announcement
    2  announces itself; `ping` tells the time; knows the verbs of SINCE; what is forwarded may be a dry run, and says
       who asked
    3  tells what a volume of a pair that is apart holds, resolves such pairs (state Split), has --on-path-loss

For tests $PATHCTL_PROTOCOL=`OLDEST-NEWEST` makes pathctld play another release: `1-1` announces nothing and knows no
newer verb, `9-10` is one that has dropped ours.  The data planes have versions of their own (nbdplugin/lineage.py)
and $PATHCTL_DATA_PROTOCOL.
"""

import os
import re
from typing import NamedTuple

from pathctl import errors

HEADER = "Pathctl-Protocol"

# Verbs between hosts that version 1 does not know.
SINCE = {"peer.moved": 2, "pair.check": 2, "pairs.look": 2, "pair.held": 3, "pair.rejoin": 3, "pair.resolved": 3}
DRY_RUN = 2  # the version from which a forwarded verb may be a dry run
ACTOR = 2  # the version from which a forwarded verb says who asked for it
RESOLVE = 3  # the version from which `pair resolve` may be forwarded, and a pair may be Split
POLICY = 3  # the version from which a pair has --on-path-loss


class Versions(NamedTuple):
    """What a host speaks, both ends included."""

    oldest: int
    newest: int

    def __str__(self) -> str:
        return f"version {self.newest}" if self.oldest == self.newest else f"versions {self.oldest} to {self.newest}"


OURS = Versions(1, 3)
FIRST = Versions(1, 1)
_RANGE = re.compile(r"([1-9][0-9]{0,5})-([1-9][0-9]{0,5})")


def spoken() -> Versions:
    """What this host speaks."""
    text = os.environ.get("PATHCTL_PROTOCOL")
    return parse(text) if text else OURS


def headers() -> dict[str, str]:
    """What this host says of itself in each request and answer."""
    ours = spoken()
    return {HEADER: f"{ours.oldest}-{ours.newest}"} if ours.newest > 1 else {}


def parse(text: str | None) -> Versions:
    """What the other one says of itself; what cannot be read is taken for version 1, which says nothing."""
    found = _RANGE.fullmatch(text or "")
    versions = Versions(int(found[1]), int(found[2])) if found else FIRST
    return versions if versions.oldest <= versions.newest else FIRST


def agree(host: str, theirs: Versions) -> int:
    """The version to be used with a host; refused when there is none."""
    ours = spoken()
    version = min(ours.newest, theirs.newest)
    if version < max(ours.oldest, theirs.oldest):
        raise errors.refused(
            f"{host} speaks {theirs} of the control protocol and this one {ours}, so they cannot work together; "
            "nothing was changed: bring both hosts to one release of pathctl"
        )
    return version


def knows(verb: str) -> bool:
    """Whether this host knows a verb between hosts."""
    return SINCE.get(verb, 1) <= spoken().newest


def require(host: str, version: int, needed: int, what: str, instead: str = "") -> None:
    """Refuse what a host of this version does not know; `instead`: what else can be done."""
    if version < needed:
        raise errors.refused(
            f"host {host} speaks version {version} of the control protocol, which has no {what}; nothing was changed: "
            f"bring it to this release of pathctl{instead}"
        )


def require_dry_run(host: str, version: int) -> None:
    require(host, version, DRY_RUN, "--dry-run", ", or give --yes to do without the look at what would be lost")
