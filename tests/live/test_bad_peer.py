"""A peer that lies: a destination that answers nonsense, a source that asks for what is not its own.

Whatever it says is refused, told once and not in a loop, and changes nothing; with the real peer back all goes on.
"""

from __future__ import annotations

import functools
import json
import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbd
import psutil
import pytest
from live.conftest import MIB, MakePair
from live.planes import ControlError, Pair, Plane
from waiting import WAIT_S, wait_until

TRACK = 65536
META_SIZE = 64 << 10
SIZE = 4 * MIB
LENGTH = struct.Struct(">I")
LIAR = Path(__file__).with_name("liar.py")
LONG = "x" * 9000


class Liar:
    """nbdkit with the liar's plugin on a port of its own."""

    def __init__(self, folder: Path, psk_file: Path) -> None:
        self.orders = folder / "orders"
        self.asked = folder / "orders.asked"
        self.say({})
        port_file = folder / "liar.pid"
        command = ["nbdkit", "--foreground", "--pidfile", str(port_file), "--port", "0", "--ipaddr", "127.0.0.1"]
        command += ["--tls=require", f"--tls-psk={psk_file}", "python", str(LIAR), f"orders={self.orders}"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_until(port_file.exists, "the liar listens")
        found = psutil.Process(self.process.pid).net_connections("tcp")
        (self.port,) = {item.laddr.port for item in found if item.status == psutil.CONN_LISTEN}

    def say(self, reply: dict[str, Any], raw: bytes | None = None, **orders: object) -> None:
        """`reply` changes an acceptance; `raw` is the whole answer."""
        what = {"json": reply} if raw is None else {"raw": raw.hex()}
        orders = {"meta_size": META_SIZE, "data_size": SIZE, "reply": what} | orders
        draft = self.orders.with_suffix(".new")
        draft.write_text(json.dumps(orders))
        draft.rename(self.orders)

    def count_greetings(self) -> int:
        return self.asked.read_text().split().count("greet") if self.asked.exists() else 0

    def close(self) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)


@pytest.fixture
def pair(make_pair: MakePair) -> Pair:
    """Not created yet."""
    return make_pair(size=SIZE, source_data=os.urandom(MIB), destination_data=os.urandom(MIB))


@pytest.fixture
def liar(pair: Pair, tmp_path: Path) -> Iterator[Liar]:
    liar = Liar(tmp_path, pair.source.psk_file)
    yield liar
    liar.close()


def read_log(plane: Plane) -> list[str]:
    """The data plane's own lines, without time and level of those that come once."""
    lines = (plane.folder / f"{plane.name}.log").read_text().splitlines()
    return [line for line in lines if not re.search("level=info", line)]


def get_facts(plane: Plane) -> dict[str, Any]:
    """What no peer may change."""
    status = plane.get_status()
    names = ("pair", "committed", "invalid", "owed", "generation", "ancestors", "incomplete", "size", "pid", "failed")
    return {name: status[name] for name in names}


def sealed(text: bytes) -> bytes:
    return LENGTH.pack(len(text)) + text


RAW = {
    "nothing": b"",
    "not JSON": sealed(b"hello"),
    "cut off": sealed(b'{"verdict": "accepted"'),
    "no object": sealed(b"[1, 2]"),
    "null": sealed(b"null"),
    "longer than the answer": LENGTH.pack(1 << 31) + b'{"verdict": "accepted"}',
    "not UTF-8": sealed(b'{"verdict": "\xff\xfe"}'),
    "nested": sealed(b"[" * 16000),
    "huge number": sealed(b'{"verdict": "old_session", "session": ' + b"9" * 5000 + b"}"),
}
REPLIES: dict[str, dict[str, Any]] = {
    "no verdict": {"verdict": None},
    "a list for a verdict": {"verdict": ["accepted"]},
    "an object for a verdict": {"verdict": {"a": 1}},
    "an unknown verdict": {"verdict": "splendid"},
    "a long message": {"verdict": "unrelated", "message": LONG},
    "a message that is no text": {"verdict": "unrelated", "message": {"a": [1]}},
    "busy at length": {"verdict": "busy", "message": LONG},
    "a huge session": {"verdict": "old_session", "session": 10**30},
    "a negative session": {"verdict": "old_session", "session": -5},
    "a session that is true": {"verdict": "old_session", "session": True},
    "an old session for ever": {"verdict": "old_session", "session": "7"},
    "no generation": {"generation": None},
    "a generation that is a list": {"generation": ["a"]},
    "a generation without end": {"generation": LONG},
    "an empty generation": {"generation": ""},
    "ancestors that are a word": {"ancestors": "abc"},
    "ancestors that are numbers": {"ancestors": [1, 2]},
    "ancestors without end": {"ancestors": ["g"] * 3000},
    "long ancestors": {"ancestors": [LONG]},
    "an epoch without end": {"epoch": LONG},
    "no epoch": {"epoch": None},
    "an epoch that is an object": {"epoch": {"a": 1}},
}


def say(liar: Liar, kind: str) -> None:
    if kind in RAW:
        liar.say({}, RAW[kind])
    else:
        liar.say(REPLIES[kind])


@pytest.mark.parametrize("invalid", ["source", "destination"])
def test_no_pair_is_made_with_a_peer_whose_answer_makes_no_sense(pair: Pair, liar: Liar, invalid: str) -> None:
    pair.connect(invalid)
    before = get_facts(pair.source)
    pair.link(liar.port)
    for kind in (*RAW, *REPLIES):
        say(liar, kind)
        with pytest.raises(ControlError) as refused:
            pair.source.ask("greet", pair=pair.uuid, timeout_s=WAIT_S)
        assert len(str(refused.value)) < 700, kind
        assert "Traceback" not in str(refused.value)
        assert get_facts(pair.source) == before, kind
        with pytest.raises(ControlError, match="not greeted"):
            pair.source.ask("commit", operation="op", pair=pair.uuid, invalid=invalid)
    liar.say({}, meta_size=META_SIZE + 512)
    with pytest.raises(ControlError, match=f"{META_SIZE + 512} bytes instead of {META_SIZE}"):
        pair.source.ask("greet", pair=pair.uuid, timeout_s=WAIT_S)
    assert get_facts(pair.source) == before
    pair.link()
    pair.source.ask("greet", pair=pair.uuid, timeout_s=WAIT_S)
    pair.source.ask("commit", operation="op", pair=pair.uuid, invalid=invalid)
    pair.wait_synchronized()
    assert pair.source.read_store() == pair.destination.read_store()


def try_three_times(pair: Pair, liar: Liar) -> None:
    goal = liar.count_greetings() + 3

    def has_greeted() -> bool:
        pair.link(liar.port)  # asks at once, instead of after the back-off
        return liar.count_greetings() >= goal

    wait_until(has_greeted, "three greetings")


TELLING = {
    "cut off": "not JSON",
    "nested": "not JSON",
    "longer than the answer": "not JSON",
    "no object": "not an object",
    "an unknown verdict": "refuses the path",
    "a long message": "refuses the path",
    "an epoch without end": "epoch",
    "no epoch": "epoch",
}


def lose_peer(pair: Pair) -> None:
    pair.create("destination")
    pair.wait_synchronized()
    pair.destination.kill()
    wait_until(lambda: pair.source.get_status()["session"] is None, "the loss is noticed")


def wait_shown(pair: Pair, said: str) -> dict[str, Any]:
    """The status that shows it."""

    def shown() -> dict[str, Any] | None:
        status = pair.source.get_status()
        return status if said in (status["link_error"] or "") else None

    found: dict[str, Any] = wait_until(shown, f"{said!r} is shown")
    return found


def find_lines(pair: Pair, said: str) -> list[str]:
    return [line for line in read_log(pair.source) if said in line]


def check_together_again(pair: Pair) -> None:
    pair.destination.start()
    pair.link()
    pair.wait_synchronized()
    assert pair.source.read_store() == pair.destination.read_store()


def test_a_pair_whose_peer_talks_nonsense_goes_on_here_and_says_so_once(pair: Pair, liar: Liar) -> None:
    lose_peer(pair)
    pid = pair.source.get_status()["pid"]
    for kind, said in TELLING.items():
        say(liar, kind)
        lines = len(read_log(pair.source))
        try_three_times(pair, liar)
        status = wait_shown(pair, said)
        assert (status["session"], len(status["link_error"]) < 700) == (None, True), kind
        told = read_log(pair.source)[lines:]
        assert len(told) <= 3, told
        assert len([line for line in told if said in line]) <= 1, told
        with pair.source.open() as handle:
            handle.pwrite(b"n" * 4096, 0)
            handle.flush()
            assert handle.pread(4096, 0) == b"n" * 4096
    for said in set(TELLING.values()):
        wait_until(functools.partial(find_lines, pair, said), f"{said!r} is logged")
    assert pair.source.get_status()["pid"] == pid
    check_together_again(pair)


def test_a_peer_of_another_size_gets_nothing_and_that_is_said_once(pair: Pair, liar: Liar) -> None:
    lose_peer(pair)
    with pair.source.open() as handle:
        handle.pwrite(b"o" * TRACK * 3, 0)
    sizes: list[dict[str, object]] = [{"meta_size": 512}, {"data_size": SIZE * 2}, {"data_size": SIZE - 512}]
    for size in sizes:
        liar.say({}, None, **size)
        said = f"{next(iter(size.values()))} bytes instead of"
        for _ in range(3):
            pair.link(liar.port)
        wait_shown(pair, said)
        wait_until(functools.partial(find_lines, pair, said), "the size is told")
        assert len(find_lines(pair, said)) <= 2  # of the attempt, and of the session
    assert pair.source.get_status()["owed"] >= 3
    assert "write" not in liar.asked.read_text()
    pair.destination.start()
    pair.link()
    # With the key of the pair the liar took sessions that the real peer knows nothing of.
    wait_until(lambda: pair.source.get_status()["verdict"] == "rolled_back", "the real peer is not trusted now")
    pair.source.ask("resolve", operation="op-resolve", pair=pair.uuid, discard="destination")
    pair.wait_synchronized()
    assert pair.source.read_store() == pair.destination.read_store()


# --- a source that is none, with the pair's key ---


def connect(pair: Pair, export: str) -> nbd.NBD:
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_tls_psk_file(str(pair.source.psk_file))
    handle.set_tls_username(pair.uuid)
    handle.set_export_name(export)
    handle.set_strict_mode(0)  # sends what libnbd knows to be wrong
    handle.connect_tcp("127.0.0.1", str(pair.destination.port))
    return handle


def greet(pair: Pair, message: Any) -> Any:
    """The answer to a message on a connection of its own."""
    return ask(connect(pair, "meta"), message)


def ask(handle: nbd.NBD, message: Any) -> Any:
    handle.pwrite(sealed(json.dumps(message).encode()), 0)
    reply = handle.pread(16 << 10, 0)
    return json.loads(reply[LENGTH.size : LENGTH.size + LENGTH.unpack_from(reply)[0]])


def make_greeting(pair: Pair, /, **changed: Any) -> dict[str, Any]:
    """One that would be accepted, but for what is changed."""
    status = pair.source.get_status()
    fields = {"op": "greet", "pair": pair.uuid, "size": SIZE, "track_size": TRACK, "protocol": 2, "oldest": 1}
    fields |= {"session": status["last_session"] + 1, "accepted": status["last_session"], "committed": True}
    fields |= {"invalidate": "destination", "generation": status["generation"], "ancestors": status["ancestors"]}
    return fields | {"differs": False} | changed


@pytest.fixture
def live(pair: Pair) -> Pair:
    """Synchronized, with a session that is up."""
    pair.create("destination")
    pair.wait_synchronized()
    return pair


def check_undisturbed(pair: Pair, before: dict[str, Any], session: int) -> None:
    assert get_facts(pair.destination) == before
    assert pair.source.get_status()["session"] == session, "the real session goes on"
    with pair.source.open() as handle:
        handle.pwrite(b"u" * 4096, TRACK)
        handle.flush()
    assert pair.source.get_status()["owed"] == 0
    assert pair.source.read_store() == pair.destination.read_store()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "another pair": ({"pair": "00000000-0000-0000-0000-000000000000"}, "wrong_pair"),
    "no pair": ({"pair": ""}, "wrong_pair"),
    "another size": ({"size": SIZE * 2}, "wrong_shape"),
    "another track size": ({"track_size": 4096}, "wrong_shape"),
    "an old session": ({"session": 1}, "old_session"),
    "a past that we do not have": ({"accepted": 1 << 40, "session": 1 << 41}, "rolled_back"),
    "another history": ({"generation": "g", "ancestors": []}, "unrelated"),
    "session 0": ({"session": 0}, "malformed"),
    "a negative session": ({"session": -1}, "malformed"),
    "a session too large for anything": ({"session": 1 << 62}, "malformed"),
    "a session that is true": ({"session": True}, "malformed"),
    "a session that is text": ({"session": "9"}, "malformed"),
    "a session that is no whole number": ({"session": 1e3}, "malformed"),
    "ancestors that are no list": ({"ancestors": "g"}, "malformed"),
    "ancestors that are numbers": ({"ancestors": [1]}, "malformed"),
    "too many ancestors": ({"ancestors": ["g"] * 65}, "malformed"),
    "long ancestors": ({"generation": LONG, "ancestors": ["g" * 1000] * 40}, "unrelated"),
    "a field too many": ({"more": 1}, "malformed"),
    "a version that is text": ({"protocol": "2"}, "malformed"),
    "a version that nobody speaks": ({"protocol": 1 << 40}, "malformed"),
    "nothing": ({"pair": None, "size": None}, "malformed"),
}


def test_a_greeting_that_does_not_fit_is_refused_and_leaves_the_real_session_alone(live: Pair) -> None:
    before, session = get_facts(live.destination), live.source.get_status()["session"]
    lines = len(read_log(live.destination))
    for kind, (changed, verdict) in WRONG.items():
        for _ in range(3):
            answer = greet(live, make_greeting(live, **changed))
            assert answer["verdict"] == verdict, (kind, answer)
    told = read_log(live.destination)[lines:]  # before the answer
    verdicts = {verdict for _, verdict in WRONG.values()}
    assert sorted(re.findall(r"\((\w+)\)", " ".join(told))) == sorted(verdicts), told
    check_undisturbed(live, before, session)


MESSAGES = {
    "no length": b"xyz",
    "a length that is not its own": LENGTH.pack(5) + b"{}",
    "not JSON": sealed(b"hello"),
    "not UTF-8": sealed(b"\xff\xfe\x00"),
    "nested": sealed(b"[" * 60000),
    "a huge number": sealed(b"9" * 60000),
}


def test_a_message_that_is_none_is_an_error_and_nothing_else(live: Pair) -> None:
    before, session = get_facts(live.destination), live.source.get_status()["session"]
    for kind, raw in MESSAGES.items():
        with pytest.raises(nbd.Error, match="Input/output"):
            connect(live, "meta").pwrite(raw, 0)
        assert "Traceback" not in (live.destination.folder / "destination.log").read_text(), kind
    ops: list[Any] = [None, [], 5, "greet", {}, {"op": None}, {"op": "complete"}, {"op": "begin"}, {"op": ["greet"]}]
    for message in ops:
        with pytest.raises(nbd.Error):
            greet(live, message)
    for change in ("pwrite", "trim", "zero"):
        handle = connect(live, "meta")
        with pytest.raises(nbd.Error):
            handle.pwrite(sealed(b"{}"), 512) if change == "pwrite" else getattr(handle, change)(512, 0)
    assert "Traceback" not in (live.destination.folder / "destination.log").read_text()
    check_undisturbed(live, before, session)


LINES: list[dict[str, Any]] = [
    {},
    {"generation": "g"},
    {"generation": "g", "ancestors": "abc"},
    {"generation": 5, "ancestors": []},
    {"generation": "", "ancestors": []},
    {"generation": LONG, "ancestors": []},
    {"generation": "g", "ancestors": ["h"] * 9},
    {"generation": "g", "ancestors": [None]},
]


def test_a_lineage_that_makes_no_sense_is_refused_also_in_a_session_of_its_own(live: Pair) -> None:
    before = get_facts(live.destination)
    live.source.kill()
    handle = connect(live, "meta")
    session = live.destination.get_status()
    greeting = {"op": "greet", "pair": live.uuid, "size": SIZE, "track_size": TRACK, "protocol": 2, "oldest": 1}
    greeting |= {"session": session["last_session"] + 1, "accepted": session["last_session"], "committed": True}
    greeting |= {"invalidate": "destination", "differs": True}
    greeting |= {"generation": before["generation"], "ancestors": before["ancestors"]}
    assert ask(handle, greeting)["verdict"] == "accepted"
    for line in LINES:
        answer = ask(handle, {"op": "complete"} | line)
        assert (answer["ok"], "lineage" in answer["message"]) == (False, True), line
    assert ask(handle, {"op": "splendid"})["ok"] is False
    assert get_facts(live.destination) == before
    live.source.start()
    live.link()
    live.wait_synchronized()  # the other one's messages were refused: it has changed nothing
    assert live.source.read_store() == live.destination.read_store()


OUTSIDE = [(SIZE, 512), (SIZE - 512, 1024), (SIZE * 4, 4096), ((1 << 63) - 512, 512), ((1 << 64) - 512, 512)]


def test_nothing_is_read_or_written_outside_of_the_volume(live: Pair) -> None:
    before, session = get_facts(live.destination), live.source.get_status()["session"]
    calls: list[Callable[[nbd.NBD, int, int], object]] = [
        lambda handle, offset, length: handle.pwrite(b"!" * length, offset),
        lambda handle, offset, length: handle.zero(length, offset),
        lambda handle, offset, length: handle.trim(length, offset),
        lambda handle, offset, length: handle.pread(length, offset),
    ]
    for offset, length in OUTSIDE:
        for call in calls:
            handle = connect(live, f"data/{live.uuid}/{session}/host")
            with pytest.raises(nbd.Error):
                call(handle, offset, length)
    assert live.destination.backing.stat().st_size == SIZE
    check_undisturbed(live, before, session)


REQUESTS = {"pwrite": (b"!" * 512, 0), "zero": (TRACK, 0), "trim": (TRACK, 0), "pread": (512, 0), "flush": ()}


def test_requests_of_no_session_are_refused_and_counted(live: Pair) -> None:
    before, session = get_facts(live.destination), live.source.get_status()["session"]
    count = live.destination.get_status()["counters"]["refused_requests"]
    for number in (session - 1, session + 1, 0, (1 << 63) - 1):
        handle = connect(live, f"data/{live.uuid}/{number}/copy")
        for request, arguments in REQUESTS.items():
            with pytest.raises(nbd.Error, match="shutdown"):
                getattr(handle, request)(*arguments)
    assert live.destination.get_status()["counters"]["refused_requests"] == count + 20
    told = [line for line in read_log(live.destination) if "level=warning" in line and "session" in line]
    assert len(told) == 1, told
    check_undisturbed(live, before, session)


@pytest.mark.parametrize("name", ["", "data", "data/x/1/host", "data/{pair}/-1/host", "data/{pair}/x/host", "META"])
def test_an_export_that_is_none_is_unknown(live: Pair, name: str) -> None:
    with pytest.raises(nbd.Error):
        connect(live, name.format(pair=live.uuid))
    assert live.source.get_status()["session"] is not None
