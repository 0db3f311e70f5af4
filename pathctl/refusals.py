"""refusals - what to do where the other data plane answers a greeting no: a table by a sign in its sentence.  Pure.

Templates, filled in by why.  Where it is about whose data is the good one, the way out is `pair resolve`; `next` holds
for a host of an older release, which has none.
"""

import msgspec

DELETE = "pathctl pair delete {volume} --force --dry-run"
DELETES = " says what that loses, the same with --yes in place of --dry-run does it"


class Refusal(msgspec.Struct, frozen=True):
    """`sign` is in the peer's answer (nbdplugin/lineage.py, peer.py)."""

    sign: str
    next: str
    command: str | None = None
    decide: str | None = None  # where it can be resolved: how the two sides are to be looked at


_ANEW = (
    "Nothing happens by itself. {decide} Then delete the pair (the command below" + DELETES + ") and create it anew: "
    "`pathctl pair create {source_at} {destination_at} --invalidate SIDE`."
)
_TRIED = "It is tried again every few seconds and goes on by itself once the cause is gone. "

REFUSALS = (
    Refusal(
        " version",
        _TRIED + "Bring both hosts to one version of pathctl. A volume's process goes on with the old one until it is "
        "started anew: `pathctld --stop-all`, when its devices may be away for a moment, then pathctld again.",
    ),
    Refusal(
        "does not belong to this pair",
        _ANEW.replace("{decide}", "SIDE is `destination` unless {destination} has the better data."),
        DELETE,
        "The metadata of {destination} is that of another pair, or of none: an older copy of it was put in its place.",
    ),
    Refusal(
        "another size or track size",
        _ANEW.replace("{decide}", "SIDE is `destination`; the sizes must be equal."),
        DELETE,
    ),
    Refusal("newer session", _TRIED + "The next attempt takes a higher number."),
    Refusal(
        "older than what it had confirmed",
        _ANEW.replace(
            "{decide}",
            "{destination} was set back (an old copy of its disk was put in its place), so SIDE is `destination`: "
            "the data of {source} is the newer.",
        ),
        DELETE,
        "{destination} was set back (an old copy of its disk was put in its place): the data of {source} is the newer.",
    ),
    Refusal(
        "incomplete, so it cannot be the copy to fetch from",
        "Nothing happens by itself. {destination} does not hold all of its data. Delete the pair (the command below"
        + DELETES
        + "); if {source} is complete create it anew with `--invalidate destination`, else bring {destination}'s data "
        "from where it is complete first.",
        DELETE,
    ),
    Refusal(
        "newer data than this volume",
        _ANEW.replace(
            "{decide}",
            "{destination} was written to on its own and has the newer data: SIDE is `source` to keep that, "
            "`destination` to throw it away.",
        ),
        DELETE,
        "{destination} has data that {source} lacks, and not the other way round: {source} was set back (an old copy "
        "of its disk was put in its place), or {destination} was written to on its own.",
    ),
    Refusal(
        "written apart",
        "Nothing happens by itself, and no program can decide this: both volumes were written to without the other "
        "(split brain). Save what is needed of one side, then delete the pair (`"
        + DELETE
        + "`"
        + DELETES
        + ") and create it anew "
        "with the side to throw away as `--invalidate`.",
    ),
    Refusal(
        "do not share a history",
        _ANEW.replace("{decide}", "Look at both volumes: SIDE is the one whose data is thrown away."),
        DELETE,
        "Look at both volumes: one of them may be another than is meant.",
    ),
    Refusal("not one of this protocol", _TRIED + "Bring both hosts to one version of pathctl."),
    Refusal(
        "No space left",
        _TRIED + "Make room on the file system of {destination} at host {destination_host}.",
    ),
    Refusal(
        "Input/output error",
        "It is tried again every few seconds. The disk of {destination} gives errors: look at it on "
        "{destination_host} (dmesg, SMART); if it is broken, delete the pair (`"
        + DELETE
        + "`"
        + DELETES
        + ") and create it with "
        "a volume on a good one.",
    ),
    Refusal("", _TRIED + "See the log of {destination} on {destination_host}."),
)


def find(reason: str) -> Refusal:
    return next(refusal for refusal in REFUSALS if refusal.sign in reason)
