"""What two real daemons notice and tell: events with actor and cause, progress, why, and how peers are known."""

import contextlib
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import nbd
import psutil
import pytest
from live.daemons import Daemon, enrol
from waiting import WAIT_S, wait_until

from pathctl import channels, events, shapes
from pathctl.errors import ErrorCode, PathctlError

SIZE = 8 << 20
TRACK = 64 << 10
RATE = 4 << 20
ROOT = "uid 0 (root)"


@pytest.fixture
def hosts(tmp_path) -> Iterator[tuple[Daemon, Daemon]]:
    alpha, beta = Daemon(tmp_path, "alpha"), Daemon(tmp_path, "beta")
    for host in (alpha, beta):
        settings = host.root / "etc/pathctl/pathctl.toml"
        settings.write_text(
            settings.read_text() + "[peers]\nlook_every_s = 0.5\n[observe]\nevery_s = 0.2\n[events]\nkeep = 100\n"
        )
        host.start()
    try:
        enrol(alpha, beta)
        yield alpha, beta
    finally:
        alpha.stop_all()
        beta.stop_all()


def make_pair(alpha: Daemon, size: int = SIZE, **fields):
    wanted = {"source": "va", "destination": "beta:vb", "invalidate": "destination", "create": True, "size": size}
    return alpha.call("pair.create", **wanted, **fields)["pair"]


def events_of(host: Daemon, *kinds: str, **fields) -> list[shapes.Event]:
    found = msgspec.convert(host.call("events.list", **fields)["events"], list[shapes.Event])
    assert [event.id for event in found] == sorted({event.id for event in found})
    return [event for event in found if not kinds or event.kind in kinds]


def states(host: Daemon, pair: str) -> list[tuple[str | None, str | None, str]]:
    return [(event.before, event.after, event.actor) for event in events_of(host, "pair.state", pair=pair)]


def shown(host: Daemon, name: str) -> shapes.Pair:
    return msgspec.convert(host.call("pair.show", pair=name)["pair"], shapes.Pair)


def wait_state(host: Daemon, name: str, state: str) -> None:
    wait_until(lambda: shown(host, name).state == state, f"{host.name} shows {name} {state}")


def wait_event(host: Daemon, kind: str, **fields) -> shapes.Event:
    found: shapes.Event = wait_until(lambda: events_of(host, kind, **fields)[-1:], f"{host.name} records {kind}")[0]
    return found


def pid_of(host: Daemon, volume: str) -> int:
    return int(host.volume(volume)["pid"])


def test_a_pairs_life_is_told_at_both_hosts_with_who_asked_and_each_change_once(hosts) -> None:
    alpha, beta = hosts
    pair = make_pair(alpha)["pair"]
    for host, name in ((alpha, "va"), (beta, "vb")):
        wait_state(host, name, "Synchronized")
    alpha.call("pair.suspend", pair="va")
    wait_until(lambda: states(beta, pair)[-1][1] == "Suspended", "beta hears of it by itself")
    beta.call("pair.resume", pair="vb")
    for host, name in ((alpha, "va"), (beta, "vb")):
        wait_state(host, name, "Synchronized")
    alpha.call("pair.delete", pair="va")

    at_alpha, at_beta = states(alpha, pair), states(beta, pair)
    for found in (at_alpha, at_beta):
        chain = [None, *[after for _before, after, _actor in found]]
        assert chain[:-1] == [before for before, _after, _actor in found], "each begins where the last one ended"
        assert [after for _before, after, _actor in found if after in ("Creating", "Suspended", "Deleting")] == [
            "Creating",
            "Suspended",
            "Deleting",
        ]
    asked = {after: actor for _before, after, actor in at_alpha if after in ("Creating", "Suspended", "Deleting")}
    assert asked == {"Creating": ROOT, "Suspended": ROOT, "Deleting": ROOT}
    assert next(actor for before, _after, actor in at_alpha if before == "Suspended") == f"{ROOT} at host beta"
    asked = {after: actor for _before, after, actor in at_beta if after in ("Creating", "Suspended", "Deleting")}
    assert asked == dict.fromkeys(asked, "host alpha")
    assert next(actor for before, _after, actor in at_beta if before == "Suspended") == ROOT
    causes = [event.cause for event in events_of(alpha, "pair.state", pair=pair)]
    assert {"pathctl pair create", "pathctl pair suspend", "pathctl pair resume", "pathctl pair delete"} <= set(causes)
    (suspended,) = [event for event in events_of(beta, "pair.state", pair=pair) if event.after == "Suspended"]
    assert suspended.cause == f"pathctl pair suspend (asked for by {ROOT} at host alpha)"
    assert (suspended.volume, suspended.peer) == ("vb", "alpha")


def test_a_copy_that_ends_and_a_path_that_comes_are_nobodys_command(hosts) -> None:
    alpha, _beta = hosts
    pair = make_pair(alpha)["pair"]
    wait_state(alpha, "va", "Synchronized")
    last = events_of(alpha, "pair.state", pair=pair)[-1]
    assert last.after == "Synchronized"
    if last.before == "SyncInProg":  # which was seen, if a look came while the copy ran
        found = last.actor, last.cause
        assert found == ("pathctld", "the copy is finished and the destination has confirmed it")
    up = wait_event(alpha, "path.up", pair=pair)
    assert (up.actor, up.before, up.after) == ("pathctld", None, f"session {shown(alpha, 'va').session}")


def test_a_suspend_that_alpha_heard_of_already_is_not_recorded_again(hosts) -> None:
    alpha, _beta = hosts
    pair = make_pair(alpha)["pair"]
    for verb in ("suspend", "suspend", "resume", "resume", "suspend"):
        alpha.call(f"pair.{verb}", pair="va")
    for _ in range(20):
        shown(alpha, "va")
    found = [after for _before, after, _actor in states(alpha, pair)]
    assert found.count("Suspended") == 2
    assert all(one != other for one, other in itertools.pairwise(found))


def test_a_killed_process_of_a_destination_is_told_from_both_sides(hosts) -> None:
    alpha, beta = hosts
    pair = make_pair(alpha)["pair"]
    wait_state(alpha, "va", "Synchronized")
    session = shown(alpha, "va").session
    os.kill(pid_of(beta, "vb"), signal.SIGKILL)
    ended = wait_event(beta, "process.ended")
    assert (ended.volume, ended.actor) == ("vb", "pathctld")
    wait_until(lambda: len(events_of(beta, "process.started")) == 2, "beta starts it again")
    up = wait_until(lambda: events_of(alpha, "path.up", pair=pair)[1:], "alpha records another session")[0]
    assert up.after != f"session {session}"
    wait_state(alpha, "va", "Synchronized")


def test_a_daemon_that_is_away_is_told_by_its_peer_and_why_says_what_to_do(hosts) -> None:
    alpha, beta = hosts
    pair = make_pair(alpha)["pair"]
    wait_state(beta, "vb", "Synchronized")
    alpha.kill()
    away = wait_event(beta, "peer.unreachable")
    assert (away.peer, away.actor) == ("alpha", "pathctld")
    wait_until(lambda: states(beta, pair)[-1] == ("Synchronized", "Partitioned", "pathctld"), "beta cannot know")
    found = shown(beta, "vb")
    assert (found.state, found.invalid, found.progress) == ("Partitioned", None, None)
    assert found.since == pytest.approx(time.time(), abs=WAIT_S)
    why = msgspec.convert(beta.call("pair.why", pair="vb")["why"], shapes.Why)
    assert re.match("The data connection from alpha:va was heard .* ago; pathctld on alpha", why.meaning)
    assert (why.state, why.since, why.command) == ("Partitioned", found.since, None)
    (peer,) = msgspec.convert(beta.call("status")["peers"], list[shapes.Peer])
    assert (peer.reachable, "cannot be reached" in (peer.note or "")) == (False, True)
    alpha.start()
    wait_state(beta, "vb", "Synchronized")
    assert wait_event(beta, "peer.reachable").peer == "alpha"
    assert [event.kind for event in events_of(alpha, "daemon.started", "daemon.stopped")] == ["daemon.started"] * 2
    back = events_of(beta, "pair.state", pair=pair)[-1]
    assert (back.actor, back.cause) == ("pathctld", "pathctld of host alpha is heard again")
    assert states(alpha, pair)[-1][1] == "Synchronized", "a restart alone is no change of state"
    alpha.terminate()
    alpha.start()
    kinds = [event.kind for event in events_of(alpha, "daemon.started", "daemon.stopped")]
    assert kinds[-2:] == ["daemon.stopped", "daemon.started"]


def test_why_names_the_command_that_this_host_has_to_type(hosts) -> None:
    alpha, beta = hosts
    make_pair(alpha)
    alpha.call("pair.suspend", pair="va")
    for host, name, who in ((alpha, "va", ROOT), (beta, "vb", "host alpha")):
        why = msgspec.convert(host.call("pair.why", pair=name)["why"], shapes.Why)
        assert (why.state, why.command) == ("Suspended", f"pathctl pair resume {name}")
        assert f"asked for by {who}" in why.cause


def test_what_was_asked_at_the_other_host_says_by_whom_there(hosts) -> None:
    alpha, beta = hosts
    pair = make_pair(alpha)["pair"]
    beta.call("pair.suspend", pair="vb")
    wait_state(alpha, "va", "Suspended")
    (row,) = events_of(alpha, "connection.suspended", pair=pair)
    assert (row.actor, row.cause) == (f"{ROOT} at host beta", "pair.suspend")
    why = msgspec.convert(alpha.call("pair.why", pair="va")["why"], shapes.Why)
    assert why.cause == f"It was asked for by {ROOT} at host beta: pathctl pair suspend."


def test_a_command_that_fails_is_an_event_and_a_look_that_fails_is_none(hosts) -> None:
    alpha, _beta = hosts
    for verb, fields in (
        ("pair.suspend", {"pair": "nothing"}),
        ("pair.show", {"pair": "nothing"}),
        ("pair.why", {"pair": "nothing"}),
        ("volume.delete", {"name": "nothing"}),
    ):
        with pytest.raises(PathctlError):
            alpha.call(verb, **fields)
    found = events_of(alpha, "command.failed")
    assert [(event.cause, event.after, event.actor) for event in found] == [
        ("pair.suspend", ErrorCode.NOT_FOUND, ROOT),
        ("volume.delete", ErrorCode.NOT_FOUND, ROOT),
    ]


def test_a_create_that_was_cut_off_is_told_as_undone(hosts) -> None:
    alpha, _beta = hosts
    pause = alpha.fault("pause", "create.second")
    runner = threading.Thread(target=_try_to_make_pair, args=(alpha,))
    runner.start()
    alpha.wait_reached("create.second")
    (row,) = alpha.call("connection.list")["connections"]
    alpha.kill()
    runner.join(WAIT_S)
    pause.unlink()
    alpha.start()
    undone = wait_event(alpha, "recovery.undone", pair=row["pair"])
    assert (undone.volume, undone.peer, undone.actor) == ("va", "beta", "pathctld")
    assert alpha.rows() == []


def _try_to_make_pair(alpha: Daemon) -> None:
    try:
        make_pair(alpha)
    except PathctlError as error:
        assert error.code == ErrorCode.UNREACHABLE  # noqa: PT017 - not the behaviour that is tested


def test_the_record_is_bounded_and_goes_on(hosts) -> None:
    alpha, _beta = hosts
    for _ in range(120):
        with pytest.raises(PathctlError):
            alpha.call("volume.delete", name="nothing")

    def looks() -> tuple[list[shapes.Event], ...] | None:
        """All, the last three, and what came after the last but one; nothing was recorded meanwhile."""
        found = events_of(alpha, limit=10_000)
        looked = found, events_of(alpha, limit=3), events_of(alpha, after_id=found[-2].id)
        return looked if events_of(alpha, after_id=found[-1].id) == [] else None

    found, three, after = wait_until(looks, "nothing else happens for a moment")
    assert len(found) == 100
    assert found[-1].id >= 120
    assert three == found[-3:]
    assert after == found[-1:]
    assert events_of(alpha, since=time.time() + 3600) == []


def test_a_follower_is_answered_when_something_happens_and_its_number_is_bounded(hosts) -> None:
    alpha, _beta = hosts
    last = events_of(alpha)[-1].id
    found: list[list[dict[str, object]]] = []

    def follow() -> None:
        seen = last
        while True:
            try:
                answer = alpha.call("events.list", after_id=seen, wait_s=60)["events"]
            except PathctlError as error:  # the look whether all are there takes a place too, for a moment
                assert error.code == ErrorCode.REFUSED  # noqa: PT017 - tried again
                continue
            told = [event for event in answer if event["kind"] == "command.failed"]
            if told:
                found.append(told)
                return
            seen = answer[-1]["id"] if answer else seen  # what the hosts notice of each other

    runners = [threading.Thread(target=follow, daemon=True) for _ in range(events.FOLLOWERS_MOST)]
    for runner in runners:
        runner.start()
    wait_until(lambda: _is_full(alpha), "all of them wait")
    with pytest.raises(PathctlError):
        alpha.call("volume.delete", name="nothing")
    for runner in runners:
        runner.join(WAIT_S)
    assert [len(told) for told in found] == [1] * len(runners)


def _is_full(host: Daemon) -> bool:
    """One more is refused; it waits for an event that does not come."""
    try:
        assert host.call("events.list", after_id=1 << 60, wait_s=0.01)["events"] == []
    except PathctlError as error:
        assert error.code == ErrorCode.REFUSED  # noqa: PT017 - waited for
        return True
    return False


def test_pathctld_ends_at_once_although_somebody_follows(hosts) -> None:
    alpha, _beta = hosts
    last = events_of(alpha)[-1].id
    follower = threading.Thread(target=lambda: _follow(alpha, last), daemon=True)
    follower.start()
    alpha.terminate()
    follower.join(WAIT_S)
    assert not follower.is_alive()
    alpha.start()


def _follow(host: Daemon, last: int) -> None:
    try:
        host.call("events.list", after_id=last, wait_s=60)
    except PathctlError as error:
        assert error.code == ErrorCode.UNREACHABLE  # noqa: PT017 - or it was answered the last event


def test_events_of_a_pair_can_still_be_asked_for_when_it_is_gone(hosts) -> None:
    alpha, _beta = hosts
    pair = make_pair(alpha)["pair"]
    wait_state(alpha, "va", "Synchronized")
    alpha.call("pair.delete", pair="va")
    assert events_of(alpha, "connection.deleted", pair=pair)
    with pytest.raises(PathctlError, match="volume va is in no pair"):
        events_of(alpha, pair="va")


def connections(daemon: Daemon, port: int) -> set[int]:
    """The local ports of a daemon's connections to a port."""
    assert daemon.process is not None
    found = psutil.Process(daemon.process.pid).net_connections("tcp")
    return {item.laddr.port for item in found if item.raddr and item.raddr.port == port}


def test_a_destination_looks_at_all_its_pairs_on_one_kept_connection(hosts) -> None:
    alpha, beta = hosts
    for number in range(4):
        names = {"source": f"va{number}", "destination": f"beta:vb{number}"}
        alpha.call("pair.create", **names, invalidate="destination", create=True, size=SIZE)
    before = wait_until(lambda: connections(beta, alpha.port), "beta keeps a connection to alpha")
    for _ in range(10):
        found = msgspec.convert(beta.call("status"), type=dict[str, object])
        pairs = msgspec.convert(found["pairs"], list[shapes.Pair])
        assert [pair.destination.volume for pair in pairs] == [f"vb{number}" for number in range(4)]
        assert all(pair.side == "destination" and pair.invalid is not None for pair in pairs)
    after = connections(beta, alpha.port)
    assert before & after, "it is the same one"
    assert len(after) <= channels.CONNECTIONS_MOST


def test_a_process_that_hangs_at_the_source_costs_its_own_pair_only(hosts) -> None:
    alpha, beta = hosts
    for number in range(2):
        names = {"source": f"va{number}", "destination": f"beta:vb{number}"}
        alpha.call("pair.create", **names, invalidate="destination", create=True, size=SIZE)
        wait_state(beta, f"vb{number}", "Synchronized")
    process = psutil.Process(pid_of(alpha, "va0"))
    process.suspend()
    try:
        wait_state(beta, "vb0", "Partitioned")
        told = f"host alpha says: process {process.pid} of volume va0 is alive but does not answer"
        wait_until(lambda: shown(beta, "vb0").reason == told, "the source's pathctld was heard")
        assert shown(beta, "vb1").state == "Synchronized"
        why = msgspec.convert(alpha.call("pair.why", pair="va0")["why"], shapes.Why)
        assert f"Process {process.pid} of volume va0 is alive but does not answer" in why.meaning
        assert why.command == f"kill -9 {process.pid}"
        hung = wait_event(alpha, "process.hung")
        assert (hung.volume, hung.before, hung.actor) == ("va0", str(process.pid), "pathctld")
        assert events_of(beta, "peer.unreachable") == []
    finally:
        process.resume()
    wait_state(beta, "vb0", "Synchronized")
    assert len(events_of(alpha, "process.hung")) == 1


def explained(host: Daemon, name: str) -> shapes.Why:
    return msgspec.convert(host.call("pair.why", pair=name)["why"], shapes.Why)


def test_a_process_that_hangs_at_the_destination_is_not_called_failed(hosts) -> None:
    alpha, beta = hosts
    make_pair(alpha)
    wait_state(alpha, "va", "Synchronized")
    process = psutil.Process(pid_of(beta, "vb"))
    process.suspend()
    try:
        assert f"if it stays so: `kill -9 {process.pid}`" in beta.volume("vb")["failed"]
        why = explained(beta, "vb")
        assert why.meaning.startswith(f"Process {process.pid} of volume vb is alive but does not answer")
        assert why.command == f"kill -9 {process.pid}"
        process.kill()
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()
    wait_until(lambda: beta.volume("vb")["pid"] not in (None, process.pid), "pathctld starts it again at once")
    wait_state(alpha, "va", "Synchronized")


def test_a_destination_that_hears_neither_daemon_nor_data_says_so(hosts) -> None:
    """As when the cable is cut: both processes of the source are stopped, so that nothing comes any more."""
    alpha, beta = hosts
    make_pair(alpha)
    wait_state(beta, "vb", "Synchronized")
    stopped = [psutil.Process(pid_of(alpha, "va")), psutil.Process(alpha.process.pid)]
    for process in stopped:
        process.suspend()
    try:
        wait_until(lambda: "Nothing came from it for" in explained(beta, "vb").meaning, "the silence is told")
        assert "its data connection is silent too" in (shown(beta, "vb").reason or "")
    finally:
        for process in stopped:
            process.resume()
    wait_state(beta, "vb", "Synchronized")


@pytest.mark.parametrize("gone", ["source", "destination"])
def test_a_half_whose_other_half_is_gone_is_refused_and_told_so(hosts, gone) -> None:
    alpha, beta = hosts
    make_pair(alpha)
    wait_state(beta, "vb", "Synchronized")
    there, its, here, name = (alpha, "va", beta, "vb") if gone == "source" else (beta, "vb", alpha, "va")
    there.call("pair.delete", pair=its, half=True, force=True)
    wait_until(lambda: "no such pair any more" in explained(here, name).meaning, "it is told that the other is gone")
    why = explained(here, name)
    assert (why.state, why.command) == ("Refused", f"pathctl pair delete {name} --half --dry-run")
    wait_state(here, name, "Refused")


def test_status_asks_the_peers_itself_and_does_not_wait_for_the_next_look(hosts) -> None:
    alpha, beta = hosts
    alpha.terminate()
    settings = alpha.root / "etc/pathctl/pathctl.toml"
    settings.write_text(settings.read_text().replace("look_every_s = 0.5", "look_every_s = 3600"))
    alpha.start()
    wait_until(lambda: alpha.call("status")["peers"][0]["reachable"], "beta was heard")
    beta.terminate()
    wait_until(lambda: alpha.call("status")["peers"][0]["reachable"] is False, "status says that beta is away")
    beta.start()
    wait_until(lambda: alpha.call("status")["peers"][0]["reachable"], "status says that beta is back")


def test_a_process_that_does_not_start_is_told_with_why(hosts) -> None:
    alpha, beta = hosts
    make_pair(alpha)
    wait_state(alpha, "va", "Synchronized")
    image = beta.image("vb")
    away = image.with_suffix(".away")
    image.rename(away)
    os.kill(pid_of(beta, "vb"), signal.SIGKILL)
    wait_event(beta, "process.failed")
    why = wait_until(lambda: _starts_with(explained(beta, "vb"), "The process of volume vb does not start"), "told")
    assert "vb.img" in why.cause
    away.rename(image)
    wait_state(alpha, "va", "Synchronized")


def _starts_with(why: shapes.Why, text: str) -> shapes.Why | None:
    return why if why.meaning.startswith(text) else None


class Writer(threading.Thread):
    """A host that writes to the source all the while; it begins anew when its connection breaks."""

    def __init__(self, host: Daemon, volume: str, size: int) -> None:
        super().__init__(daemon=True)
        self.path = str(host.root / f"run/pathctl/{volume}.sock")
        self.size = size
        self.is_over = threading.Event()
        self.written = 0

    def run(self) -> None:
        while not self.is_over.is_set():
            handle = nbd.NBD()
            try:
                handle.connect_unix(self.path)
                while not self.is_over.is_set():
                    handle.pwrite(os.urandom(4096), (self.written * 7919 * 4096) % self.size)
                    self.written += 1
                    self.is_over.wait(0.01)
            except nbd.Error:
                self.is_over.wait(0.05)


def check_progress(found: list[shapes.Progress], tracks: int) -> None:
    for one, other in itertools.pairwise(found):
        assert other.done_tracks + other.left_tracks == other.start_tracks + other.added_tracks
        assert 0 <= other.percent <= 100
        assert (other.percent == 100) == (other.left_tracks == 0)
        if one.copy == other.copy:
            assert other.percent >= one.percent
            assert other.done_tracks >= one.done_tracks
            assert (other.start_tracks, other.started_at) == (one.start_tracks, one.started_at)
    assert found[0].start_tracks == tracks


def test_progress_is_monotone_through_host_writes_and_killed_processes(hosts) -> None:
    alpha, _beta = hosts
    size = 32 << 20
    alpha.call("volume.create", name="va", size=size)
    alpha.image("va").write_bytes(os.urandom(size))
    make_pair(alpha, size, copy_rate_bytes_s=6 << 20)
    writer = Writer(alpha, "va", size // 4)  # of two active extents the first: what a kill owes anew is not all
    writer.start()
    found: list[shapes.Progress] = []

    def follow(until: float) -> bool:
        """Look until the copy has come so far; also through a restart of either process."""
        try:
            pair = shown(alpha, "va")
        except PathctlError:
            return False
        found.extend([pair.progress] if pair.progress else [])
        return bool(found) and found[-1].percent >= until

    wait_until(lambda: follow(70), "much is copied, and the track table was written more than once")
    os.kill(pid_of(alpha, "va"), signal.SIGKILL)
    wait_until(lambda: follow(80), "it goes on")
    alpha.kill()
    alpha.start()
    wait_until(lambda: follow(100), "all is copied")
    writer.is_over.set()
    writer.join(WAIT_S)
    assert writer.written > 50
    check_progress(found, size // (64 << 10))
    assert len({item.copy for item in found}) == 1, "it is one copy all the time"
    assert any(item.added_tracks for item in found), "what was not yet durable at the peer was owed again"


def test_of_a_limited_copy_the_time_to_go_is_told_from_a_tenth_on(hosts) -> None:
    """What is told is compared with the rate that is set and with what it took until then, on the same clock."""
    alpha, beta = hosts
    size = 48 << 20
    alpha.call("volume.create", name="va", size=size)
    alpha.image("va").write_bytes(os.urandom(size))
    begun = time.monotonic()
    make_pair(alpha, size, copy_rate_bytes_s=RATE)
    told: list[tuple[float, shapes.Progress]] = []
    while (pair := shown(beta, "vb")).state != "Synchronized":
        if pair.progress is not None:
            told.append((time.monotonic(), pair.progress))
        wait_until(lambda: told and time.monotonic() - told[-1][0] > 0.25, "a moment passes")
    end = time.monotonic()
    wrong = [
        (progress.percent, progress.eta_s, round(end - at, 1))
        for at, progress in told
        if progress.percent >= 10 and progress.eta_s is None
    ]
    assert len(told) > 10
    assert wrong == [], "from a tenth on there is always a time to go"
    halfway = [(at, progress) for at, progress in told if 40 <= progress.percent <= 60]
    for at, progress in halfway:  # gross errors only: at the rate that is set, or as slowly as it went until now
        least_s = progress.left_tracks * TRACK / RATE
        most_s = max(least_s, progress.left_tracks / progress.done_tracks * (at - begun))
        assert least_s / 2 < (progress.eta_s or 0) < most_s * 2, progress


def test_a_paused_copy_is_told_as_paused(hosts) -> None:
    alpha, _beta = hosts
    make_pair(alpha, copy_rate_bytes_s=0)
    wait_state(alpha, "va", "SyncInProg")
    progress = wait_until(lambda: shown(alpha, "va").progress, "there is a copy")
    assert (progress.rate_bytes_s, progress.eta_s, progress.percent, progress.converging) == (0, None, 0.0, None)
    why = msgspec.convert(alpha.call("pair.why", pair="va")["why"], shapes.Why)
    assert why.command == "pathctl pair set va --copy-rate none"


def test_a_copies_file_that_cannot_be_used_is_left_aside(hosts) -> None:
    alpha, _beta = hosts
    make_pair(alpha, copy_rate_bytes_s=0)
    file = alpha.root / "run/pathctl/copies.json"
    wait_until(file.exists, "the progress is kept")
    alpha.kill()
    file.write_bytes(b'{"damaged')
    alpha.start()
    wait_until(lambda: shown(alpha, "va").progress, "progress is told again")
    assert "cannot be used" in alpha.log.read_text()


def test_a_dead_block_device_is_told_once(hosts) -> None:
    alpha, _beta = hosts
    for name in ("va", "vc"):
        alpha.call("volume.create", name=name, size=SIZE)
        alpha.call("attach", volume=name)
    _server_of(alpha, "va").kill()
    failed = wait_event(alpha, "device.failed")
    assert (failed.volume, failed.actor) == ("va", "pathctld")
    _server_of(alpha, "vc").kill()
    later = wait_until(lambda: events_of(alpha, "device.failed")[1:], "a later round finds the other one dead")
    assert [event.volume for event in later] == ["vc"], "and says nothing more of the first"
    alpha.call("attach", volume="va")
    alpha.call("detach", volume="va")


def _server_of(host: Daemon, volume: str) -> psutil.Process:
    socket = str(host.root / f"run/pathctl/{volume}.sock")
    (found,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"pathctl.fusefile", socket} <= set(process.info["cmdline"] or [])
    ]
    return found


def test_a_peer_whose_clock_is_wrong_is_told_with_how_much(hosts) -> None:
    alpha, beta = hosts
    beta.terminate()
    (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    beta.environment = {"LD_PRELOAD": str(library), "FAKETIME": "+1h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    beta.start()
    told = wait_event(alpha, "peer.clock")
    assert (told.peer, told.actor) == ("beta", "pathctld")
    (peer,) = msgspec.convert(alpha.call("status")["peers"], list[shapes.Peer])
    assert (peer.reachable, peer.clock_skew_s) == (True, pytest.approx(3600, abs=WAIT_S))
    assert "ahead of this host's" in (peer.note or "")
    beta.terminate()
    beta.environment = {}
    beta.start()
    wait_until(lambda: len(events_of(alpha, "peer.clock")) == 2, "the clocks agree again")
    assert alpha.call("status")["peers"][0]["note"] is None
