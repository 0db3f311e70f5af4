"""settings - every key of pathctl.toml: its type, default, unit, allowed range and reason, here and nowhere else.

The structs below are the table: a field's annotation carries its `Key`, its default is the key's.  `read` makes
`Settings` of a file and remembers the line of each key; whatever is wrong in it is told with file, line and what
would do.  `python -m pathctl.settings` prints an example file made of the table.  pathctld reads the file once, when
it starts.  Knows no other module of the daemon's.
"""

import dataclasses
import difflib
import functools
import inspect
import ipaddress
import json
import re
import sys
import tomllib
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from pathctl import errors, shapes, units
from pathctl.errors import PathctlError

HOST_THREADS = 288  # of an nbdkit that serves the host: requests of one connection that can be in work
DEVICE_REQUESTS = 256  # of one device, that the kernel may have under way at once
MOST = 1 << 60
FILE_MOST = 1 << 20
NONE = "none"


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """What is to be known of one key, beside its type and default.  Bounds are inclusive."""

    unit: str
    reason: str
    low: float = 0
    high: float = 0
    words: tuple[str, ...] = ()  # a text must be one of these, if there are any


Seconds = functools.partial(Key, "s")


class Log(msgspec.Struct, frozen=True):
    """What pathctld writes to stderr, or the journal, and each nbdkit to its file."""

    level: Annotated[
        str, Key("level", "the least important lines that are written", words=("debug", "info", "warning", "error"))
    ] = "info"
    lines_per_minute: Annotated[
        int, Key("lines", "of one kind; more are counted and not written, so that a storm fills no disk", 1, 100_000)
    ] = 60
    volume_bytes: Annotated[
        int,
        Key("bytes", "of one volume's log file; beyond, it becomes FILE.1, one of which is kept", 64 << 10, 1 << 30),
    ] = 1 << 20


class Events(msgspec.Struct, frozen=True):
    """The record of what has changed (`pathctl events`)."""

    keep: Annotated[int, Key("events", "the oldest of more are forgotten", 100, 1_000_000)] = 10_000


class Metrics(msgspec.Struct, frozen=True):
    """Metrics for Prometheus; they are always on pathctld's Unix socket too (`pathctl metrics`)."""

    listen: Annotated[
        str,
        Key(
            "ADDRESS:PORT", "where /metrics is served by HTTP, loopback only and open to anybody there; empty: nowhere"
        ),
    ] = ""


class Copy(msgspec.Struct, frozen=True):
    """The background copy of the pairs whose source is here."""

    rate_bytes_s: Annotated[
        int | None, Key("bytes/s", "of all copies of this host together, shared out among them; 0 pauses them", 0, MOST)
    ] = None
    pair_rate_bytes_s: Annotated[
        int | None, Key("bytes/s", "of a pair for which none is set (--copy-rate); 0 pauses it", 0, MOST)
    ] = None


class Data(msgspec.Struct, frozen=True):
    """The data plane: one nbdkit for each volume that is attached or paired.

    After a restart of pathctld those that run have the timeouts too (that of the link from the next session on);
    max_waiters, and for their logs log.level and log.lines_per_minute, hold for those started from then on.
    """

    port_first: Annotated[
        int, Key("TCP port", "first of those for destination volumes; the firewall must let them through", 1, 65535)
    ] = 7700
    port_last: Annotated[
        int, Key("TCP port", "last of those; each destination volume of this host takes one", 1, 65535)
    ] = 7899
    fetch_timeout_s: Annotated[
        int,
        Seconds(
            "a request that needs the path waits so long, then fails: long, as an I/O error makes ext4 read-only",
            1,
            86_400,
        ),
    ] = 600
    link_timeout_s: Annotated[
        int,
        Seconds("without a byte moved for a request so long, the path is lost; writes under way wait for it", 1, 600),
    ] = 10
    flush_timeout_s: Annotated[int, Seconds("the same for a flush, which may write out much at the peer", 1, 3600)] = 30
    command_timeout_s: Annotated[
        int, Seconds("a command (suspend, delete, ...) waits so long for requests under way", 1, 3600)
    ] = 30
    max_waiters: Annotated[
        int,
        Key(
            "requests",
            "of one volume that may wait for the path: all that a device may send, below nbdkit's threads",
            DEVICE_REQUESTS,
            HOST_THREADS - 1,
        ),
    ] = 256

    @property
    def ports(self) -> range:
        return range(self.port_first, self.port_last + 1)


class Timeouts(msgspec.Struct, frozen=True):
    """Limits of pathctld's own waits; there is seldom a reason to change one."""

    status_s: Annotated[float, Seconds("a look at one nbdkit", 0.1, 60)] = 2.0
    control_s: Annotated[
        float, Seconds("a changing command to one nbdkit: above data.command_timeout_s + data.flush_timeout_s", 1, 8000)
    ] = 75.0
    start_s: Annotated[float, Seconds("a new nbdkit, until it answers", 1, 3600)] = 30.0
    drain_s: Annotated[float, Seconds("an nbdkit that is to be stopped, until it is at rest", 1, 3600)] = 15.0
    greet_s: Annotated[float, Seconds("the first greeting between the data planes", 1, 600)] = 10.0
    peer_connect_s: Annotated[float, Seconds("a connection to a peer", 0.1, 60)] = 5.0
    peer_look_s: Annotated[float, Seconds("a question to a peer", 0.1, 600)] = 5.0
    peer_step_s: Annotated[float, Seconds("a step of a sequence at a peer: above start_s + control_s", 1, 12_000)] = (
        120.0
    )
    verb_s: Annotated[float, Seconds("a whole command; it goes on behind, not below peer_step_s", 1, 86_400)] = 300.0
    body_s: Annotated[float, Seconds("the body of a request to arrive", 0.1, 600)] = 10.0
    handshake_s: Annotated[float, Seconds("the TLS handshake of who connects", 0.1, 600)] = 5.0
    retry_s: Annotated[float, Seconds("between two tries of unfinished business", 0.05, 600)] = 2.0
    invite_s: Annotated[float, Seconds("the life of a token of `pathctl peer invite`", 1, 604_800)] = 900.0


class Peers(msgspec.Struct, frozen=True):
    """How the other hosts are watched."""

    look_every_s: Annotated[float, Seconds("between two looks whether a peer can be reached", 0.5, 3600)] = 10.0
    clock_skew_s: Annotated[float, Seconds("a peer whose clock is further off than this is warned of", 0.1, 86_400)] = (
        5.0
    )


class Observe(msgspec.Struct, frozen=True):
    """How the volumes of this host are watched: states, progress, events."""

    every_s: Annotated[float, Seconds("between two looks; with hundreds of pairs pathctld takes longer", 0.2, 60)] = 1.0


class Settings(msgspec.Struct, frozen=True):
    """The content of pathctl.toml, a section each."""

    log: Log = Log()
    events: Events = Events()
    metrics: Metrics = Metrics()
    copy: Copy = Copy()
    data: Data = Data()
    timeouts: Timeouts = Timeouts()
    peers: Peers = Peers()
    observe: Observe = Observe()


class Entry(msgspec.Struct, frozen=True):
    """One key of the table."""

    section: str
    name: str
    kind: Any  # int, float, str, or int | None
    default: Any
    key: Key

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}"

    def wants(self) -> str:
        """What would do, in words."""
        if self.kind is str:
            return f"one of {', '.join(self.key.words)}" if self.key.words else f"a text, {self.key.unit}"
        size = '; sizes may be written as in "50M"' if self.key.unit.startswith("bytes") else ""
        none = f', or "{NONE}"' if _is_optional(self) else ""
        what = "a number" if self.kind is float else "a whole number"
        return f"{what} from {_number(self.key.low)} to {_number(self.key.high)} ({self.key.unit}){none}{size}"


def _is_optional(entry: Entry) -> bool:
    return type(None) in typing.get_args(entry.kind)


def _number(value: float) -> str:
    return f"{value:g}" if value < 1e6 or value != int(value) else str(int(value))


def _sections() -> dict[str, type[msgspec.Struct]]:
    return {name: typing.cast(type[msgspec.Struct], kind) for name, kind in typing.get_type_hints(Settings).items()}


@functools.cache
def table() -> dict[str, Entry]:
    """Every key, by `section.name`, in the order of the example file."""
    found = {}
    for section, struct in _sections().items():
        hints = typing.get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            kind, key = typing.get_args(hints[field.name])
            entry = Entry(section, field.name, kind, field.default, key)
            found[entry.path] = entry
    return found


# -- reading ----------------------------------------------------------------------------------------------


class Found(msgspec.Struct, frozen=True):
    """What a file says: the settings, and the line of each key that stands in it."""

    settings: Settings
    lines: Mapping[str, int]


class _Problem(Exception):
    """One thing that is wrong in the file.  Go on and look for more."""

    def __init__(self, line: int | None, message: str) -> None:
        super().__init__(message)
        self.line, self.message = line, message


def read(path: Path) -> Found:
    """Raises USAGE with everything that is wrong, NOT_FOUND if there is no such file."""
    text = _read_text(path)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _syntax_error(path, text, str(error)) from None
    except RecursionError:
        raise _syntax_error(path, text, "Brackets are nested too deeply (at line 1, column 1)") from None
    lines = _find_lines(text)
    problems: list[_Problem] = []
    values: dict[str, dict[str, Any]] = {section: {} for section in _sections()}
    for name, value in tree.items():
        _collect(name, value, lines, values, problems)
    sections: dict[str, Any] = {name: struct(**values[name]) for name, struct in _sections().items()}
    settings = Settings(**sections)
    if not problems:
        problems = [_Problem(max(lines.get(key, 0) for key in keys) or None, said) for keys, said in _clashes(settings)]
    if problems:
        raise _refusal(path, problems)
    return Found(settings, lines)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_MOST + 1)
    except FileNotFoundError:
        raise errors.not_found(f"there is no settings file {path}; without one the defaults hold") from None
    except OSError as error:
        raise errors.usage(
            f"the settings file {path} cannot be read: {error.strerror}; mend that, then start again"
        ) from None
    if len(raw) > FILE_MOST:
        raise errors.usage(f"the settings file {path} has more than {FILE_MOST >> 20} MiB, so it is no settings file")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise errors.usage(f"{path}, line {line}: this is not UTF-8 text; save the file as UTF-8") from None


def _syntax_error(path: Path, text: str, said: str) -> PathctlError:
    """tomllib tells the line in its sentence, or that it is the end."""
    match = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", said)
    line = int(match[1]) if match and match[1] else text.count("\n", 0, len(text.rstrip())) + 1
    what = said[: match.start()] if match else said
    where = f" in column {match[2]}" if match and match[2] else ""
    hint = 'a key is written as in `level = "info"`, a section as in `[log]`'
    return errors.usage(f"{path}, line {line}: this is no TOML: {what[:1].lower()}{what[1:]}{where}; {hint}")


def _find_lines(text: str) -> dict[str, int]:
    """The line on which each section, and each key of one, begins; the text as a whole is good TOML.

    tomllib tells no lines.  A statement may have several; so lines are gathered until they are TOML by themselves,
    below the header of their section.
    """
    found: dict[str, int] = {}
    header, pending, first = "", "", 0
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would know more ends of lines than TOML
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        first, pending = first if pending else number, f"{pending}{line}\n"
        try:
            tree = tomllib.loads(header + pending)
        except tomllib.TOMLDecodeError:
            continue
        is_header = pending.lstrip().startswith("[")
        for section, value in tree.items():
            found.setdefault(section, first)
            for name in value if isinstance(value, dict) and not is_header else ():
                found.setdefault(f"{section}.{name}", first)
        header, pending = (pending if is_header else header), ""
    return found


def _collect(
    section: str, value: Any, lines: Mapping[str, int], values: dict[str, dict[str, Any]], problems: list[_Problem]
) -> None:
    """The keys of one section into `values`, what is wrong with them into `problems`."""
    if section not in values:
        problems.append(_Problem(lines.get(section), _no_section(section, isinstance(value, dict))))
        return
    if not isinstance(value, dict):
        said = f"{_shown(section)} is a section: write [{section}] on a line of its own, and its keys below"
        problems.append(_Problem(lines.get(section), said))
        return
    for name, raw in value.items():
        entry = table().get(f"{section}.{name}")
        line = lines.get(f"{section}.{name}", lines.get(section))
        try:
            if entry is None:
                raise ValueError(_no_key(section, name))
            values[section][name] = _convert(entry, raw)
        except ValueError as error:
            problems.append(_Problem(line, str(error)))


def _no_section(name: str, is_section: bool) -> str:
    sections = list(_sections())
    if not is_section:
        homes = [entry.section for entry in table().values() if entry.name == name]
        if homes:
            return f"{name} stands before any section; write it below [{homes[0]}]"
        return f"there is no key {_shown(name)}, and a key stands below its section; " + _suggest(
            name, _names(), "keys"
        )
    return f"there is no section [{_shown(name)}]; " + _suggest(name, sections, "sections")


def _no_key(section: str, name: str) -> str:
    ours = [entry.name for entry in table().values() if entry.section == section]
    elsewhere = [entry.section for entry in table().values() if entry.name == name]
    said = f"there is no key {_shown(name)} in [{section}]; "
    return said + (f"it stands in [{elsewhere[0]}]" if elsewhere else _suggest(name, ours, "keys there"))


def _names() -> list[str]:
    return [entry.name for entry in table().values()]


def _suggest(name: str, known: list[str], what: str) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else f"{what} are {', '.join(known)}"


def _shown(value: Any) -> str:
    """Something from the file, short and on one line."""
    text = (
        value
        if isinstance(value, str) and re.fullmatch(r"[\w.-]+", value, re.ASCII)
        else json.dumps(value, default=str)
    )
    return text if len(text) <= 60 else text[:60] + "..."


def _convert(entry: Entry, raw: Any) -> Any:
    """The value as the code wants it; ValueError, with a sentence, unless it is one."""
    refusal = ValueError(f"{entry.path} cannot be {_shown_value(raw)}: it takes {entry.wants()}")
    if entry.kind is str:
        if not isinstance(raw, str) or (entry.key.words and raw not in entry.key.words):
            raise refusal
        return check_listen(raw) if entry.path == "metrics.listen" else raw
    if _is_optional(entry) and raw == NONE:
        return None
    value = _parse_size(raw) if isinstance(raw, str) and entry.key.unit.startswith("bytes") else raw
    if isinstance(value, bool) or not isinstance(value, int | float if entry.kind is float else int):
        raise refusal
    if not entry.key.low <= value <= entry.key.high:  # neither is NaN
        raise refusal
    return float(value) if entry.kind is float else value


def _shown_value(raw: Any) -> str:
    return json.dumps(raw) if isinstance(raw, str) and len(raw) <= 60 else _shown(raw)


def _parse_size(text: str) -> int | None:
    try:
        return units.parse_rate(text) if text != NONE else None
    except ValueError:
        return None


def check_listen(text: str) -> str:
    """ADDRESS:PORT of this host's loopback, or nothing."""
    if not text:
        return text
    address, _, port = text.rpartition(":")
    try:
        found = ipaddress.ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError(
            f"metrics.listen cannot be {_shown(text)}: it takes ADDRESS:PORT, as in 127.0.0.1:9630"
        ) from None
    if not found.is_loopback:
        raise ValueError(f"metrics.listen cannot be {text}: only a loopback address is allowed, as in 127.0.0.1:9630")
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError(f"metrics.listen cannot be {_shown(text)}: the port is from 1 to 65535, as in 127.0.0.1:9630")
    return text


def split_listen(text: str) -> tuple[str, int]:
    """(address, port) of a checked `metrics.listen` that is not empty."""
    address, _, port = text.rpartition(":")
    return address.removeprefix("[").removesuffix("]"), int(port)


def _clashes(found: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys that do not fit each other, and what would do."""
    data, times = found.data, found.timeouts
    if data.port_first > data.port_last:
        yield (
            ("data.port_first", "data.port_last"),
            (f"data.port_first ({data.port_first}) is above data.port_last ({data.port_last}); swap or correct them"),
        )
    least = data.command_timeout_s + data.flush_timeout_s
    if times.control_s <= least:
        yield (
            ("timeouts.control_s", "data.command_timeout_s", "data.flush_timeout_s"),
            (
                f"timeouts.control_s ({times.control_s:g}) must be above data.command_timeout_s + data.flush_timeout_s "
                f"({least}), or what nbdkit answers a moment later is taken for lost"
            ),
        )
    if times.peer_step_s <= times.start_s + times.control_s:
        yield (
            ("timeouts.peer_step_s", "timeouts.start_s", "timeouts.control_s"),
            (
                f"timeouts.peer_step_s ({times.peer_step_s:g}) must be above timeouts.start_s + timeouts.control_s "
                f"({times.start_s + times.control_s:g})"
            ),
        )
    if times.verb_s < times.peer_step_s:
        yield (
            ("timeouts.verb_s", "timeouts.peer_step_s"),
            (f"timeouts.verb_s ({times.verb_s:g}) must not be below timeouts.peer_step_s ({times.peer_step_s:g})"),
        )
    if found.metrics.listen and split_listen(found.metrics.listen)[1] in data.ports:
        yield (
            ("metrics.listen", "data.port_first", "data.port_last"),
            (
                f"metrics.listen takes a port of the data plane's ({data.port_first} to {data.port_last}); "
                "choose another"
            ),
        )


def _refusal(path: Path, problems: list[_Problem]) -> PathctlError:
    problems.sort(key=lambda problem: problem.line or 0)
    said = [f"line {problem.line}: {problem.message}" if problem.line else problem.message for problem in problems]
    return errors.usage(f"{path}, " + "; and ".join(said))


# -- telling ----------------------------------------------------------------------------------------------


def describe(settings: Settings, lines: Mapping[str, int], path: Path) -> list[shapes.Setting]:
    """Every key with its value and where that comes from."""
    return [
        shapes.Setting(
            key=entry.path,
            value=getattr(getattr(settings, entry.section), entry.name),
            default=entry.default,
            unit=entry.key.unit,
            source=f"{path}:{lines[entry.path]}" if entry.path in lines else "default",
            reason=entry.key.reason,
        )
        for entry in table().values()
    ]


def check(path: Path, *, is_optional: bool = False) -> dict[str, Any]:
    """What `config show` would say if pathctld were started with this file; raises what is wrong with it.

    `is_optional`: without the file the defaults hold, as they do for pathctld.
    """
    try:
        found = read(path)
    except PathctlError as error:
        if not is_optional or error.code != errors.ErrorCode.NOT_FOUND:
            raise
        found = Found(Settings(), {})
    return {"file": str(path), "settings": msgspec.to_builtins(describe(found.settings, found.lines, path))}


def example() -> str:
    """A file that shows every key with its default, commented out."""
    lines = ["# pathctl.toml - the settings of pathctld, which reads them when it starts.", "#"]
    lines += ["# Every key with its default; take the # away to change one.  Then: pathctl config check, and restart"]
    lines += ["# pathctld; the volumes go on without it meanwhile."]
    for section, struct in _sections().items():
        lines += ["", *_remark(struct.__doc__ or ""), f"[{section}]"]
        for entry in table().values():
            if entry.section == section:
                lines += [f"# {entry.key.reason}", f"# {entry.wants()}", f"#{entry.name} = {_toml(entry.default)}", ""]
        lines.pop()
    return "\n".join(lines) + "\n"


def _remark(text: str) -> list[str]:
    return [f"# {line}".rstrip() for line in inspect.cleandoc(text).splitlines()]


def _toml(value: Any) -> str:
    return json.dumps(NONE if value is None else value)


if __name__ == "__main__":
    sys.stdout.write(example())
