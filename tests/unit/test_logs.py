"""Lines of the log: their form, what never gets into one, and how many there may be."""

import io
import logging
import os
import re
import secrets
import shlex
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from waiting import WAIT_S, wait_until

from nbdplugin import logs as plane_logs
from pathctl import actor, config, logs, pki, shapes
from pathctl.settings import Log

PAIR = "1156d1aa-0c0e-4a4e-9a39-0d8f0a1c5b7e"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Output(io.StringIO):
    def lines(self) -> list[str]:
        return self.getvalue().splitlines()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def out():
    return Output()


@pytest.fixture
def log(out, clock):
    """A logger of its own with pathctld's handler, ten lines of a kind a minute."""
    logger = logging.Logger("pathctl.supervise")
    logger.addHandler(logs.Handler(out, 10, is_journal=False, clock=clock))
    return logger


def event(**fields):
    base = dict.fromkeys(("volume", "pair", "peer", "before", "after", "cause"))
    values = {"id": 7, "at": 1.0, "kind": "pair.state", "actor": "pathctld", "message": "m"}
    return shapes.Event(**base | values | fields)


def parse(line: str) -> dict[str, str]:
    """A line of logfmt, as a shell would cut it."""
    return dict(word.partition("=")[::2] for word in shlex.split(line))


def test_a_line_is_keys_and_values_with_time_level_and_what_it_is_about(log, out):
    log.warning("nbdkit of volume %s does not run: %s", "home", 'it said "no"', extra=logs.of(volume="home", pair=PAIR))
    (line,) = out.lines()
    assert re.match(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=warning part=supervise msg=", line)
    found = parse(line)
    assert found["msg"] == 'nbdkit of volume home does not run: it said "no"'
    assert (found["volume"], found["pair"]) == ("home", PAIR)


def test_under_systemd_a_line_begins_with_its_priority_and_has_no_time(out, clock):
    handler = logs.Handler(out, 10, is_journal=True, clock=clock)
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        handler.handle(logging.LogRecord("pathctl.x", level, "", 0, "m", (), None))
    assert [line[:3] for line in out.lines()] == ["<7>", "<6>", "<4>", "<3>"]
    assert not any("time=" in line for line in out.lines())


def test_the_journal_is_known_by_its_file(tmp_path, monkeypatch):
    with (tmp_path / "journal").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert logs._is_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not logs._is_journal(stream)
    assert not logs._is_journal(io.StringIO())


@given(st.text(alphabet=st.characters(), max_size=200))
def test_no_text_from_outside_breaks_a_line_or_reaches_it_raw(text):
    said = logs.quote(text)
    assert said.isprintable()
    assert len(said.splitlines()) <= 1
    assert re.fullmatch(r'[^\s"=]+|"(?:[^"\\]|\\.)*"', said)


def test_control_characters_newlines_and_escapes_are_written_as_such(log, out):
    log.info("volume %s", 'a\n<0>level=error msg="\x1b[31mx\x00\u202e\u2028\ud800')
    (line,) = out.lines()
    assert line.isprintable()
    assert r"a\n<0>level=error msg=\"\u001b[31mx\u0000\u202e\u2028\ud800" in line


def test_a_traceback_is_one_line_with_the_end_of_it(log, out):
    try:
        raise ValueError("x" * 10_000 + "the end")
    except ValueError:
        log.exception("task %s failed", "start")
    (line,) = out.lines()
    assert "the end" in line
    assert len(line) < 2 * logs.TRACE_MOST


def test_a_call_with_a_mistake_in_it_is_still_heard(log, out):
    log.warning("%d tracks", "no number")
    assert "no number" in out.getvalue()


def test_who_asked_is_on_the_line(log, out):
    who, why = actor.who.set("uid 0 (root)"), actor.why.set("pair.suspend")
    try:
        log.info("done")
    finally:
        actor.who.reset(who)
        actor.why.reset(why)
    assert 'actor="uid 0 (root)" cause=pair.suspend' in out.getvalue()


def make_secrets(folder: Path) -> list[str]:
    cfg = config.Config(folder)
    cfg.make_folders()
    pki.ensure_identity(cfg, "alpha")
    certificate = cfg.host_certificate.read_text()
    token, digest = pki.make_token("alpha", "192.0.2.1", 7630, certificate)
    pki.write_psk(cfg, PAIR, pki.new_psk())
    psk = cfg.psk(PAIR).read_text().strip().rpartition(":")[2]
    key_lines = [line for line in cfg.host_key.read_text().splitlines() if "-----" not in line]
    return [token, pki.read_token(token).secret, digest, psk, *key_lines]


def test_no_secret_of_pathctls_gets_into_a_line(tmp_path, log, out):
    key = "".join(f"{line}\n" for line in make_secrets(tmp_path)[4:])
    texts = [*make_secrets(tmp_path)[:4], f"{PAIR}:{secrets.token_hex(32)}", f"secret={secrets.token_hex(4)}"]
    texts.append(f"-----BEGIN PRIVATE KEY-----\n{key}-----END PRIVATE KEY-----")
    for text in texts:
        log.warning("%s failed", text, extra=logs.of(detail=text))
        log.warning("it was '%s'", text)
    hidden = [piece for text in texts for piece in re.split(r"[\n=:]", text) if len(piece) >= 8]
    said = [
        piece for piece in hidden if piece in out.getvalue() and piece not in ("secret", PAIR) and "---" not in piece
    ]
    assert said == []
    assert out.getvalue().count("[secret]") >= 3 * len(texts)


@pytest.mark.parametrize(
    "text",
    [
        f"pair {PAIR} is ready",
        "/var/lib/pathctl/volumes/a-very-long-name-of-a-volume-that-goes-on-and-on.img",
        "volume " + "x" * 63,
        f"psk_file=/var/lib/pathctl/keys/psk/{PAIR}.psk",
        "the token has expired",
        "1152921504606846976 bytes",
    ],
)
def test_what_is_no_secret_stays(text):
    assert logs.redact(text) == text


def test_of_one_kind_so_many_pass_in_a_minute_and_the_others_are_counted(log, out, clock):
    for number in range(1000):
        log.warning("request %d failed", number, extra=logs.of(volume="home"))
    assert len(out.lines()) == 10
    log.warning("request %d failed", 0, extra=logs.of(volume="other"))
    log.info("another kind")
    assert len(out.lines()) == 12
    clock.now += logs.WINDOW_S
    log.info("another kind")
    assert len(out.lines()) == 14
    assert 'msg="990 more suppressed in the last minute: request %d failed" volume=home' in out.lines()[12]
    log.warning("request %d failed", 0, extra=logs.of(volume="home"))
    assert len(out.lines()) == 15


def test_kinds_without_end_are_not_remembered_without_end(clock):
    limiter = logs.Limiter(1, clock)
    held = 0
    for kind in range(10 * logs.KINDS_MOST):
        assert limiter.admit(kind)
        assert not limiter.admit(kind)
        held += sum(count for _, count in limiter.take_held())
        assert len(limiter._windows) <= logs.KINDS_MOST + 1
    clock.now += logs.WINDOW_S
    assert held + sum(count for _, count in limiter.take_held()) == 10 * logs.KINDS_MOST


def test_each_event_is_one_line_with_all_that_is_known_of_it(monkeypatch, out, clock):
    handler = logs.Handler(out, 10, is_journal=True, clock=clock)
    monkeypatch.setattr(logs._events, "handlers", [handler])
    monkeypatch.setattr(logs._events, "level", logging.INFO)
    logs.write_event(
        event(pair=PAIR, volume="home", before="Synchronized", after="Partitioned", message="the link\nbroke")
    )
    logs.write_event(event(pair=PAIR, volume="home", before="Partitioned", after="SyncInProg", message="it is back"))
    assert [line[:3] for line in out.lines()] == ["<4>", "<6>"]
    found = parse(out.lines()[1])
    assert (found["event"], found["pair"], found["volume"]) == ("pair.state", PAIR, "home")
    assert (found["before"], found["after"], found["msg"]) == ("Partitioned", "SyncInProg", "it is back")


def test_a_level_below_the_set_one_is_not_written(out):
    root, handlers, level = logging.getLogger(), list(logging.getLogger().handlers), logging.getLogger().level
    try:
        logs.set_up(Log(level="warning"), out)
        logging.getLogger("pathctl.x").info("not this")
        logging.getLogger("pathctl.x").warning("but this")
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = handlers
        root.setLevel(level)
    assert [parse(line)["msg"] for line in out.lines()] == ["but this"]


def test_a_stream_that_takes_nothing_stops_nobody(clock):
    stream = open("/dev/full", "w")  # noqa: SIM115
    handler = logs.Handler(stream, 10, is_journal=False, clock=clock)
    handler.handle(logging.LogRecord("pathctl.x", logging.INFO, "", 0, "m", (), None))
    with pytest.raises(OSError, match="No space left"):
        stream.close()


def test_a_log_that_grows_is_bounded_while_it_is_appended_to(tmp_path):
    file = tmp_path / "home.log"
    with file.open("ab", buffering=0) as writer:
        writer.write(b"a" * 500 + b"z" * 1000)
        assert logs.bound_all(tmp_path, 1000) == [file]
        writer.write(b"new\n")
        assert file.read_bytes() == b"new\n"
    assert (tmp_path / "home.log.1").read_bytes() == b"z" * 1000
    assert logs.bound_all(tmp_path, 1000) == []


def test_a_log_is_emptied_also_where_there_is_no_room_for_its_copy(tmp_path):
    file = tmp_path / "home.log"
    file.write_bytes(b"x" * 2000)
    (tmp_path / "home.log.1").mkdir()
    assert not logs.bound(file, 1000)
    assert file.stat().st_size == 0


# the data plane's own, which may not import ours


def test_the_data_planes_lines_have_the_same_form(out, clock):
    theirs = plane_logs.Handler(out, "home", lambda: PAIR, 10, clock)
    ours = logs.Handler(out, 10, is_journal=False, clock=clock)
    record = logging.LogRecord("x", logging.WARNING, "", 0, 'it said "%s"', ("a\nb",), None)
    theirs.handle(record)
    record.fields = {"volume": "home", "pair": PAIR}
    ours.handle(record)
    first, second = (line.partition(" ")[2] for line in out.lines())
    assert first == second


@given(st.text(alphabet=st.characters(), max_size=200))
def test_the_data_plane_quotes_as_we_do(text):
    assert plane_logs.quote(text) == logs.quote(text)
    assert plane_logs.quote(text, 10) == logs.quote(text, 10)


def test_the_data_plane_holds_back_what_is_too_much_and_tells_how_much(out, clock):
    handler = plane_logs.Handler(out, "home", lambda: None, 10, clock)
    try:
        for number in range(100):
            handler.handle(logging.LogRecord("x", logging.WARNING, "", 0, "request %d failed", (number,), None))
        assert len(out.lines()) == 10
        clock.now += plane_logs.WINDOW_S
        handler.handle(logging.LogRecord("x", logging.INFO, "", 0, "another", (), None))
        assert 'msg="90 more suppressed in the last minute: request %d failed" volume=home' in out.lines()[10]
        assert len(out.lines()) == 12
    finally:
        assert handler._timer is not None
        handler._timer.cancel()


def test_the_data_plane_tells_what_it_held_back_although_nothing_else_is_logged(monkeypatch, out):
    monkeypatch.setattr(plane_logs, "WINDOW_S", 0.01)
    handler = plane_logs.Handler(out, "home", lambda: None, 1, time.monotonic)
    handler.handle(logging.LogRecord("x", logging.WARNING, "", 0, "it failed", (), None))
    while handler._timer is None and "more suppressed" not in out.getvalue():  # until one is held back
        handler.handle(logging.LogRecord("x", logging.WARNING, "", 0, "it failed", (), None))
    wait_until(lambda: "more suppressed" in out.getvalue(), "the timer has run")


def test_a_thread_of_the_data_plane_that_fails_is_told_with_its_traceback(monkeypatch, out, clock):
    monkeypatch.setattr(plane_logs.log, "handlers", [plane_logs.Handler(out, "home", lambda: None, 10, clock)])
    monkeypatch.setattr(threading, "excepthook", plane_logs._tell_lost)
    thread = threading.Thread(target=lambda: 1 / 0, name="watch-3")
    thread.start()
    thread.join(WAIT_S)
    (line,) = out.lines()
    assert 'msg="thread watch-3 failed"' in line
    assert "ZeroDivisionError" in line
    assert "test_logs.py" in line
