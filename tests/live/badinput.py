"""badinput - what users do wrong, and what goes wrong around them: one table for a test and scripts/check-errors.

A case is one command line at a prepared scene (badscene) with the exit code it must end with and the words its
sentence must contain.  LINES are the lines that the project has promised to answer; each has at least one case.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Any

from live import badact, badprepare
from live.badcase import INTERRUPT, Case

from pathctl.errors import ExitCode

LINES = (
    "unknown volume",
    "unknown peer",
    "unknown pair",
    "ambiguous prefix",
    "peer unreachable",
    "peer answering nonsense",
    "peer of another version",
    "peer with a wrong clock",
    "volume already paired",
    "volume attached",
    "volume in use: mounted",
    "volume in use: another loop",
    "volume in use: another process",
    "source and destination the same",
    "nothing to resolve",
    "a policy that there is not",
    "sizes that differ",
    "size is no number",
    "size is zero",
    "size is negative",
    "size is not a multiple of 512",
    "size is larger than the file system allows",
    "track sizes that are not allowed",
    "backing missing",
    "backing a folder",
    "backing read-only",
    "pathctld not running",
    "no permission",
    "disk full",
    "a damaged table",
    "a damaged database",
    "two creates at the same time",
    "names with slashes",
    "names with spaces",
    "names with control characters",
    "names of 300 characters",
    "names of Unicode look-alikes",
    "Ctrl-C at any moment",
    "output to a closed pipe",
)
OK, INTERNAL, USAGE, NOT_FOUND, REFUSED, UNREACHABLE = (
    ExitCode.OK,
    ExitCode.INTERNAL,
    ExitCode.USAGE,
    ExitCode.NOT_FOUND,
    ExitCode.REFUSED,
    ExitCode.UNREACHABLE,
)


def each(line: str, typed: Iterable[str], code: int, *words: str, **more: Any) -> list[Case]:
    """Several command lines that fail in the same way."""
    return [Case(line, one, code, words, **more) for one in typed]


def each_way(
    line: str, typed: str, code: int, *words: str, ways: Iterable[badprepare.Prepare], **more: Any
) -> list[Case]:
    """One command line that fails in the same way at several scenes."""
    return [Case(line, typed, code, words, way, **more) for way in ways]


def pair(source: str, destination: str, more: str = "", invalid: str = "destination") -> str:
    return f"pair create {source} {destination} --invalidate {invalid} --yes {more}".strip()


def volume_verbs(name: str) -> list[str]:
    words = ("volume show", "volume delete", "volume accept", "attach", "detach")
    return [f"{verb} {name}" for verb in words]


def pair_verbs(name: str) -> list[str]:
    words = (
        "pair show",
        "pair suspend",
        "pair resume",
        "pair delete",
        "pair wait",
        "pair watch",
        "why",
        "events --pair",
    )
    with_options = ("pair set {} --copy-rate 1M", "pair set {} --on-path-loss stop", "pair resolve {} --discard source")
    return [*(f"{verb} {name}" for verb in words), *(typed.format(name) for typed in with_options)]


UNKNOWN = [
    *each("unknown volume", volume_verbs("nosuch"), NOT_FOUND, "nosuch", "volume list"),
    Case("unknown volume", pair("nosuch", "beta:bfree"), NOT_FOUND, ("alpha:nosuch", "--create")),
    Case("unknown volume", pair("afree", "beta:nosuch"), NOT_FOUND, ("beta:nosuch", "--create")),
    Case("unknown volume", pair("beta:nosuch", "afree"), NOT_FOUND, ("beta:nosuch", "--create")),
    Case("unknown volume", pair("anew", "beta:bnew", "--create"), USAGE, ("--size",)),
    Case("unknown peer", pair("afree", "delta:x"), NOT_FOUND, ("delta", "peer list")),
    Case("unknown peer", pair("delta:x", "afree"), NOT_FOUND, ("delta", "peer list")),
    Case("unknown peer", pair("delta:x", "beta:bfree"), USAGE, ("must be on this host", "alpha")),
    Case("unknown peer", "peer set delta --address 127.0.0.1", NOT_FOUND, ("delta", "peer list")),
    Case("unknown peer", "peer join no-token", USAGE, ("peer invite",)),
    Case("unknown peer", "peer join {token}", REFUSED, ("alpha",), badprepare.own_token),
    *each("unknown pair", pair_verbs("nosuch"), NOT_FOUND, "nosuch"),
    Case("unknown pair", "pair show 00000000-0000-4000-8000-000000000000", NOT_FOUND, ("00000000-0000",)),
    Case("unknown pair", "pair show afree", NOT_FOUND, ("afree",)),
    *each("ambiguous prefix", pair_verbs("{pair3}"), USAGE, "4 digits"),
    *each(
        "ambiguous prefix",
        ("pair show abcd", "pair delete abcd --yes", "why abcd"),
        USAGE,
        "abcd",
        "2 pairs",
        prepare=badprepare.ambiguous,
        at="gamma",
    ),
    Case("ambiguous prefix", "pair show ''", USAGE, ("4 digits",)),
]

AT_GAMMA = "peer set gamma --address 127.0.0.1:{gamma_port}"
FREE_PAIR = pair("afree", "gamma:gfree")

PEERS = [
    *each(
        "peer unreachable",
        (FREE_PAIR, pair("gamma:gfree", "afree"), pair("anew", "gamma:gnew", "--create --size 8M")),
        UNREACHABLE,
        "gamma",
        "nothing was changed",
    ),
    Case("peer unreachable", AT_GAMMA, UNREACHABLE, ("gamma",)),
    Case("peer unreachable", "peer set beta --address 127.0.0.1:{gamma_port}", UNREACHABLE, ("beta", "{gamma_port}")),
    Case("peer unreachable", "peer join {token}", UNREACHABLE, ("gamma", "not changed"), badprepare.token_of_gamma),
    *each_way(
        "peer answering nonsense", FREE_PAIR, UNREACHABLE, "gamma", "nothing was changed", ways=badprepare.UNHEARD
    ),
    *each_way("peer answering nonsense", FREE_PAIR, INTERNAL, "gamma", "repeat", ways=badprepare.NONSENSE),
    Case("peer answering nonsense", pair("gamma:gfree", "afree"), INTERNAL, ("gamma",), badprepare.web_page),
    Case("peer answering nonsense", AT_GAMMA, UNREACHABLE, ("gamma", "certificate"), badprepare.foreign_tls),
    Case(
        "peer answering nonsense",
        "peer set gamma --address 127.0.0.1:{beta_port}",
        UNREACHABLE,
        ("gamma", "certificate"),
    ),
]

CLOCKS = (badprepare.days_ahead, badprepare.in_2009)  # which is said; nothing depends on it

RELEASES = [
    *each(
        "peer of another version",
        (FREE_PAIR, pair("gamma:gfree", "afree")),
        REFUSED,
        "gamma",
        "version",
        prepare=badprepare.newer_control,
    ),
    Case(
        "peer of another version",
        FREE_PAIR,
        REFUSED,
        ("gamma", "version", "both hosts are as before"),
        badprepare.newer_data,
        is_undone=True,
    ),
    *each_way("peer with a wrong clock", "peer list", OK, "the clock of host gamma", ways=CLOCKS, has_json=False),
    *each_way(
        "peer with a wrong clock",
        FREE_PAIR,
        OK,
        "created",
        ways=CLOCKS,
        check=badact.all_or_nothing("", "pair delete afree --force --yes"),
        has_json=False,
    ),
]

BACKED = "volume create anew --backing"

IN_USE = [
    Case("volume already paired", pair("apaired", "beta:bfree"), REFUSED, ("apaired", "already in pair {pair}")),
    Case(
        "volume already paired",
        pair("afree", "beta:bpaired"),
        REFUSED,
        ("bpaired", "already in pair {pair}"),
        is_undone=True,
    ),
    Case("volume already paired", pair("beta:bpaired", "afree"), REFUSED, ("bpaired", "already in pair {pair}")),
    Case("volume already paired", "volume delete apaired --yes", REFUSED, ("apaired", "{pair}")),
    Case("volume already paired", "attach bpaired", REFUSED, ("bpaired", "destination"), at="beta"),
    Case("volume already paired", "volume create apaired --size 4M", REFUSED, ("apaired",)),
    Case("volume already paired", pair("apaired", "beta:bpaired", invalid="source"), REFUSED, ("apaired",)),
    Case("volume attached", "volume delete aatt --yes", REFUSED, ("aatt", "`pathctl detach aatt`")),
    Case("volume attached", pair("aatt", "beta:bfree", invalid="source"), REFUSED, ("aatt", "detach")),
    Case("volume attached", pair("afree", "beta:batt"), REFUSED, ("batt", "detach"), is_undone=True),
    Case("volume attached", f"{BACKED} {{device}}", REFUSED, ("{device}", "belongs to pathctl")),
    Case("volume in use: mounted", f"{BACKED} {{device}}", REFUSED, ("{device}", "mounted"), badprepare.mounted_device),
    Case("volume in use: mounted", f"{BACKED} {{file}}", REFUSED, ("{file}", "mounted"), badprepare.mounted_device),
    Case(
        "volume in use: another loop", f"{BACKED} {{file}}", REFUSED, ("{file}", "{device}"), badprepare.loop_over_file
    ),
    Case(
        "volume in use: another loop",
        f"{BACKED} {{device}}",
        REFUSED,
        ("{device}", "{above}"),
        badprepare.loop_over_loop,
    ),
    Case("volume in use: another process", f"{BACKED} {{file}}", REFUSED, ("{file}", "{pid}"), badprepare.opened_file),
    Case(
        "volume in use: another process",
        f"{BACKED} {{device}}",
        REFUSED,
        ("{device}", "{pid}"),
        badprepare.opened_device,
    ),
    *each(
        "source and destination the same",
        (pair("afree", "afree"), pair("afree", "alpha:afree"), pair("alpha:afree", "alpha:afree")),
        USAGE,
        "both volume afree of host alpha",
    ),
    Case("source and destination the same", pair("beta:bfree", "beta:bfree"), USAGE, ("bfree", "beta", "both")),
    Case("source and destination the same", pair("afree", "alpha:abig"), USAGE, ("alpha", "two hosts")),
]

RESOLVE = "pair resolve {} --discard {}"
WELL = ("Synchronized", "nothing to resolve", "nothing was changed")

APART = [
    *(
        Case("nothing to resolve", f"{RESOLVE.format(name, side)} {more}", REFUSED, WELL, at=at)
        for at, name in (("alpha", "apaired"), ("beta", "bpaired"))
        for side in ("source", "destination")
        for more in ("--yes", "--dry-run", "--force --yes")
    ),
    Case("nothing to resolve", RESOLVE.format("apaired", "both"), USAGE, ("'source', 'destination'",)),
    Case("nothing to resolve", "pair resolve apaired --yes", USAGE, ("--discard",)),
    Case(
        "nothing to resolve",
        f"{RESOLVE.format('apaired', 'source')} --yes",
        REFUSED,
        ("Suspended", "`pathctl pair resume apaired`"),
        badprepare.suspended,
    ),
    *each(
        "a policy that there is not",
        ("pair set apaired --on-path-loss maybe", pair("afree", "beta:bfree", "--on-path-loss ''")),
        USAGE,
        "'continue', 'stop'",
    ),
    Case("a policy that there is not", "pair set apaired", USAGE, ("--on-path-loss", "--copy-rate")),
]

FITTING = "pathctl volume create {} --size {} --track-size {}"

SIZES = [
    Case("sizes that differ", pair("afree", "beta:bbig"), REFUSED, (FITTING.format("bbig", 8388608, 65536),)),
    Case("sizes that differ", pair("beta:bbig", "afree"), REFUSED, (FITTING.format("afree", 16777216, 65536),)),
    Case("sizes that differ", pair("atracks", "beta:bfree"), REFUSED, (FITTING.format("bfree", 8388608, 4096),)),
    *each(
        "sizes that differ",
        (pair("afree", "beta:bfree", "--size 16M"), pair("afree", "beta:bnew", "--create --size 16M")),
        REFUSED,
        "alpha:afree",
        "--size 8388608",
    ),
    Case("sizes that differ", f"{BACKED} {{file}} --size 16M", REFUSED, ("truncate --size",), badprepare.plain_file),
    *each(
        "size is no number",
        (
            f"volume create anew --size={shlex.quote(size)}"
            for size in ("abc", "", "1..5G", "1e9", "NaN", "1 G B", "0x1000")
        ),
        USAGE,
        "no size",
        "10G",
    ),
    Case("size is no number", "volume create anew --size=\u0661\u0660G", USAGE, ("no size", "10G")),
    Case("size is no number", pair("anew", "beta:bnew", "--create --size=many"), USAGE, ("no size", "10G")),
    *each("size is zero", ("volume create anew --size 0", "volume create anew --size 0.0G"), USAGE, "above 0"),
    Case("size is zero", pair("anew", "beta:bnew", "--create --size=0"), USAGE, ("above 0",)),
    *each("size is negative", (f"volume create anew --size={size}" for size in (-1, -4096, "-1G")), USAGE, "-", "10G"),
    *each(
        "size is not a multiple of 512", (f"volume create anew --size {n}" for n in (1000, 8388609)), USAGE, "of 512"
    ),
    Case("size is not a multiple of 512", "volume create anew --size 0.3K", USAGE, ("whole number",)),
    Case("size is not a multiple of 512", pair("anew", "beta:bnew", "--create --size 1000"), USAGE, ("of 512",)),
    Case("size is not a multiple of 512", f"{BACKED} {{file}}", REFUSED, ("of 512",), badprepare.uneven_file),
    Case("size is larger than the file system allows", "volume create anew --size 1E", REFUSED, ("file system", "1E")),
    *each(
        "size is larger than the file system allows",
        ("volume create anew --size 2E", f"volume create anew --size {'9' * 30}"),
        USAGE,
        "2^60",
    ),
    Case(
        "size is larger than the file system allows",
        pair("anew", "beta:bnew", "--create --size 1E"),
        REFUSED,
        ("file system", "1E"),
    ),
    *each(
        "track sizes that are not allowed",
        (f"volume create anew --size 8M --track-size={size}" for size in ("0", "512", "2K", "8M", "96K", "5000")),
        USAGE,
        "power of two from 4K to 4M",
    ),
    *each(
        "track sizes that are not allowed",
        (f"volume create anew --size 8M --track-size={n}" for n in ("-4K", "x")),
        USAGE,
    ),
    Case(
        "track sizes that are not allowed",
        pair("anew", "beta:bnew", "--create --size=8M --track-size=96K"),
        USAGE,
        ("power of two",),
    ),
]

BACKINGS = [
    *each(
        "backing missing",
        (f"{BACKED} {{missing}}", f"{BACKED} {{missing}} --size 8M", f"{BACKED} {{file}}/below"),
        NOT_FOUND,
        "does not exist",
        prepare=badprepare.plain_file,
    ),
    Case("backing missing", f"{BACKED} ''", USAGE, ("--backing",)),
    Case("backing a folder", f"{BACKED} {{folder}}", USAGE, ("{folder}", "folder")),
    Case("backing a folder", f"{BACKED} /dev/null", USAGE, ("/dev/null",)),
    Case("backing a folder", f"{BACKED} {{fifo}}", USAGE, ("{fifo}",), badprepare.odd_files),
    Case("backing a folder", f"{BACKED} {{socket}}", USAGE, ("{socket}",), badprepare.odd_files),
    Case("backing read-only", f"{BACKED} {{device}}", REFUSED, ("{device}", "read-only"), badprepare.read_only_device),
    Case("backing read-only", f"{BACKED} {{file}}", REFUSED, ("{file}", "writ"), badprepare.read_only_mount),
    Case("backing read-only", f"{BACKED} {{alpha_root}}/var/lib/pathctl/pathctl.db", REFUSED, ("pathctl itself",)),
]

NOT_HERE = [
    *each(
        "pathctld not running",
        ("status", "volume list", "pair show x", pair("a", "b:c"), "events", "why x", "peer invite", "backup x"),
        UNREACHABLE,
        "nothing was done",
        "`pathctld --root {root}`",
        prepare=badprepare.nowhere,
        at="nowhere",
    ),
    Case("pathctld not running", "status", UNREACHABLE, ("pathctld --root",), at="gamma"),
    *each(
        "no permission",
        ("status", "volume delete afree --yes", pair("afree", "beta:bfree"), "events", "backup x"),
        REFUSED,
        "you may not use",
        "as root",
        act=badact.as_nobody,
    ),
]

FULL = each(
    "disk full",
    ("volume create gnew --size 8M", pair("gfree", "alpha:afree"), "peer invite", "attach gfree"),
    INTERNAL,
    "the file system of {state} is full",
    "make room",
    prepare=badprepare.full_disk,
    at="gamma",
)

DAMAGED = [
    *each(
        "a damaged table",
        ("attach gfree", pair("gfree", "alpha:afree"), pair("alpha:afree", "gfree")),
        INTERNAL,
        "gfree.meta",
        prepare=badprepare.damaged_table,
        at="gamma",
        is_undone=True,
    ),
    *each_way(
        "a damaged database",
        "",
        INTERNAL,
        "{path} is damaged",
        "pathctl restore",
        ways=(badprepare.flipped, badprepare.cut_off, badprepare.overwritten),
        at="gamma",
        program="pathctld",
        has_json=False,
    ),
    Case(
        "a damaged database",
        "--stop-all",
        INTERNAL,
        ("{path} is damaged",),
        badprepare.overwritten,
        at="gamma",
        program="pathctld",
        has_json=False,
    ),
]

OTHER_WON = badact.all_or_nothing("", "pair wait afree", "pair delete afree --yes")

TWO_AT_ONCE = [
    Case(
        "two creates at the same time",
        pair("afree", "beta:bfree", f"--first {first}"),
        REFUSED,
        ("free", "pair.create"),
        is_undone=True,
        act=badact.while_other(host, point, at, other),
        check=OTHER_WON,
    )
    for first in ("source", "destination")
    for host, point, at, other in (
        ("beta", "create.journal", "beta", pair("bfree", "alpha:afree")),
        ("beta", "create.first", "beta", pair("bfree", "alpha:afree")),
        ("beta", "create.first", "beta", pair("bfree", "alpha:afree", "--first destination")),
        ("beta", "create.second", "beta", pair("bfree", "alpha:afree")),
        ("beta", "create.first", "alpha", pair("alpha:afree", "bfree")),
        ("beta", "create.first", "alpha", pair("alpha:afree", "bfree", "--first destination")),
        ("alpha", "create.first", "alpha", pair("afree", "beta:bfree")),
    )
]

NAMES = [
    *(
        Case(f"names {kind}", typed, USAGE, ("a-z",))
        for kind, name in (
            ("with slashes", "../../etc/passwd"),
            ("with slashes", "a/b"),
            ("with spaces", "'my volume'"),
            ("with spaces", "' '"),
            ("with spaces", "''"),
            ("with control characters", "'a\x1b[31mred'"),
            ("with control characters", "'a\nb'"),
            ("with control characters", "'a\x7f'"),
            ("with control characters", "'a\u202eb'"),
            ("of 300 characters", "a" * 300),
            ("of Unicode look-alikes", "v\u0430"),
            ("of Unicode look-alikes", "v\u2024img"),
            ("of Unicode look-alikes", "\uff41\uff42"),
            ("of Unicode look-alikes", "v\u0661"),
        )
        for typed in (f"volume create {name} --size 8M", pair(name, "beta:bfree"), pair("afree", f"beta:{name}"))
    ),
    *(
        Case(f"names {kind}", f"{verb} {name}", NOT_FOUND)
        for kind, name in (
            ("with slashes", "../../etc/passwd"),
            ("with spaces", "'my volume'"),
            ("with control characters", "'a\x1b[31mred\a'"),
            ("of 300 characters", "a" * 300),
            ("of Unicode look-alikes", "afr\u0435e"),
        )
        for verb in ("volume show", "pair show", "attach", "why")
    ),
    *each(
        "names with control characters",
        ("volume create a\udcff --size 8M", "volume show a\udcff", pair("afree", "beta:\udcff")),
        USAGE,
        "UTF-8",
        "nothing was done",
    ),
    *(
        Case(f"names {kind}", f"host init --name {name} --address 127.0.0.1", USAGE, ("a-z",))
        for kind, name in (
            ("with slashes", "a/b"),
            ("with control characters", "'al\tpha'"),
            ("of Unicode look-alikes", "alph\u0430"),
        )
    ),
]

NEW_PAIR = pair("anew", "beta:bnew", "--create --size 4M")
NEW_GONE = (
    "pair wait anew",
    "pair delete anew --yes",
    "volume delete anew --yes",
    "at beta: volume delete bnew --yes",
)
CREATING = (
    *(f"alpha create.{step}" for step in ("journal", "create_source", "create_destination", "first", "second")),
    *(f"alpha create.{step}" for step in ("greet", "ready", "committed", "done")),
    "alpha connect.source",
    "beta peer.create_volume",
    "beta connect.destination",
    "beta peer.finish",
)
DELETING = (
    *(f"alpha delete.{step}" for step in ("journal", "stop", "destination", "source", "done")),
    "beta peer.end",
)

INTERRUPTED = [
    *(
        Case(
            "Ctrl-C at any moment",
            NEW_PAIR,
            INTERRUPT,
            ("interrupted", "pathctl status"),
            act=badact.interrupted_at(*point.split()),
            check=badact.all_or_nothing(NEW_PAIR, *NEW_GONE),
            has_json=False,
        )
        for point in CREATING
    ),
    *(
        Case(
            "Ctrl-C at any moment",
            "pair delete anew --yes",
            INTERRUPT,
            ("interrupted", "pathctl status"),
            badprepare.new_pair,
            act=badact.interrupted_at(*point.split()),
            check=badact.ends_without_pair,
            has_json=False,
        )
        for point in DELETING
    ),
    *each(
        "Ctrl-C at any moment",
        ("events --follow", "pair wait apaired --for Suspended"),
        INTERRUPT,
        "interrupted",
        act=badact.interrupted_while_it_waits,
        has_json=False,
    ),
]

CLOSED = [
    *each(
        "output to a closed pipe",
        ("status", "--help", "volume list --json", "events --json", "completion bash", "metrics"),
        OK,
        act=badact.to_a_reader_that_has_gone,
        has_json=False,
    ),
    Case(
        "output to a closed pipe",
        "volume show nosuch",
        NOT_FOUND,
        ("nosuch",),
        act=badact.to_a_reader_that_has_gone,
        has_json=False,
    ),
    *each(
        "output to a closed pipe",
        ("status", "--help", "volume list --json", "events"),
        INTERNAL,
        "output",
        "No space left",
        act=badact.to_a_full_device,
        has_json=False,
    ),
    *each(
        "output to a closed pipe",
        ("status", "volume delete afree --yes"),
        INTERNAL,
        "closed",
        "nothing was done",
        act=badact.without_stdout,
        has_json=False,
    ),
    Case(
        "output to a closed pipe",
        "volume delete afree --yes",
        INTERNAL,
        act=badact.without_any_stream,
        is_silent=True,
        has_json=False,
    ),
]

CASES = [
    *UNKNOWN,
    *PEERS,
    *RELEASES,
    *IN_USE,
    *APART,
    *SIZES,
    *BACKINGS,
    *NOT_HERE,
    *FULL,
    *DAMAGED,
    *TWO_AT_ONCE,
    *NAMES,
    *INTERRUPTED,
    *CLOSED,
]
