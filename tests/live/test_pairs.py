"""Creating and deleting a pair with real daemons and real nbdkit: what the tables hold, whatever happens."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import threading
from pathlib import Path

import psutil
import pytest
from live.daemons import BIN, SIZE, make_volumes, nbdkits
from waiting import WAIT_S, wait_until

from pathctl.errors import ErrorCode, ExitCode, PathctlError

ORDERS = ("source", "destination")


def create(alpha, **fields):
    wanted = {"source": "va", "destination": "beta:vb", "invalidate": "destination", **fields}
    return alpha.call("pair.create", **wanted)


def pair_state(host):
    return [pair["state"] for pair in host.call("pair.list")["pairs"]]


def wait_synchronized(host):
    wait_until(lambda: pair_state(host) == ["Synchronized"], f"{host.name} shows Synchronized")


def refused(alpha, **fields):
    with pytest.raises(PathctlError) as caught:
        create(alpha, **fields)
    return caught.value


@pytest.mark.parametrize("invalidate", ORDERS)
@pytest.mark.parametrize("first", ORDERS)
def test_a_pair_is_created_in_either_order_with_either_side_invalid(hosts, first, invalidate):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    good = (beta.image("vb") if invalidate == "source" else alpha.image("va")).read_bytes()
    answer = create(alpha, first=first, invalidate=invalidate)
    assert [step["step"] for step in answer["steps"]] == ["journal", "first", "second", "greet", "ready", "done"]
    assert (answer["pair"]["ready"], answer["pair"]["committed"]) == (True, True)
    (a,), (b,) = alpha.call("connection.list")["connections"], beta.call("connection.list")["connections"]
    assert (a["side"], a["volume"], a["peer"], a["peer_volume"], a["state"]) == ("source", "va", "beta", "vb", "ready")
    assert (b["side"], b["volume"], b["peer"], b["peer_volume"], b["state"]) == (
        "destination",
        "vb",
        "alpha",
        "va",
        "ready",
    )
    assert (a["port"], a["invalidated"], a["pair"]) == (b["port"], invalidate, b["pair"])
    wait_synchronized(alpha)
    wait_synchronized(beta)
    assert alpha.image("va").read_bytes() == beta.image("vb").read_bytes() == good
    alpha.call("pair.delete", pair="va")
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])


@pytest.mark.parametrize("missing", ["source", "destination", "both"])
def test_missing_volumes_are_created_to_fit(hosts, missing):
    alpha, beta = hosts
    if missing == "source":
        beta.call("volume.create", name="vb", size=SIZE, track_size=4096)
    if missing == "destination":
        alpha.call("volume.create", name="va", size=SIZE, track_size=4096)
    both = {"size": SIZE, "track_size": 4096} if missing == "both" else {}
    create(alpha, create=True, **both)
    found = [(v["size"], v["track_size"]) for v in (alpha.volume("va"), beta.volume("vb"))]
    assert found == [(SIZE, 4096)] * 2
    wait_synchronized(alpha)


def test_a_repeated_create_answers_the_pair_that_is_there(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    first = create(alpha)["pair"]["pair"]
    again = create(alpha, size=SIZE)
    assert (again["pair"]["pair"], again["steps"]) == (first, [])
    assert create(alpha, copy_rate_bytes_s=1 << 20)["pair"]["copy_rate_bytes_s"] == 1 << 20
    assert create(alpha)["pair"]["copy_rate_bytes_s"] == 1 << 20
    for other in ({"invalidate": "source"}, {"size": 2 * SIZE}, {"track_size": 4096}):
        assert refused(alpha, **other).code == ErrorCode.REFUSED
    assert len(alpha.call("connection.list")["connections"]) == 1


@pytest.mark.parametrize("host", ["alpha", "beta"])
def test_two_volumes_of_one_host_are_no_pair_and_that_host_is_named(hosts, host):
    error = refused(hosts[0], source=f"{host}:a", destination=f"{host}:b")
    assert (error.code, f"both volumes are on host {host}" in error.message) == (ErrorCode.USAGE, True)


def test_of_two_creates_at_once_the_second_is_told_which_one_runs(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    pause = alpha.fault("pause", "create.first")
    runner = threading.Thread(target=create, args=(alpha,))
    runner.start()
    alpha.wait_reached("create.first")
    (row,) = alpha.call("connection.list")["connections"]
    assert (row["state"], row["ready"]) == ("creating", False)
    error = refused(alpha)
    assert (error.code, row["pair"] in error.message) == (ErrorCode.REFUSED, True)
    pause.unlink()
    runner.join(WAIT_S)
    wait_synchronized(alpha)


def test_a_create_may_be_asked_of_the_destinations_host(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    answer = beta.call("pair.create", source="alpha:va", destination="vb", invalidate="destination")
    assert answer["pair"]["side"] == "destination"
    assert answer["pair"]["source"] == {"host": "alpha", "volume": "va"}
    for verb, state in (("pair.suspend", "Suspended"), ("pair.resume", None)):
        found = beta.call(verb, pair="vb")["pair"]
        assert state is None or found["state"] == state
    assert beta.call("pair.set", pair="vb", copy_rate_bytes_s=0)["pair"]["copy_rate_bytes_s"] == 0
    beta.call("pair.delete", pair="vb", force=True)
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])


CREATING = ("alpha create.create_source", "alpha create.create_destination", "beta peer.create_volume")
CONNECTING = (
    "alpha create.journal",
    "alpha connect.source",
    "alpha create.first",
    "beta connect.destination",
    "alpha create.second",
    "alpha create.greet",
)
# The points of making volumes exist only where volumes are made.
BEFORE_COMMIT = [(point, True) for point in CREATING + CONNECTING] + [(point, False) for point in CONNECTING]


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize(("point", "made"), BEFORE_COMMIT)
def test_a_create_that_fails_before_the_commit_point_leaves_both_tables_as_they_were(hosts, first, made, point):
    alpha, beta = hosts
    if not made:
        make_volumes(alpha, beta)
    before = alpha.rows(), beta.rows()
    host, name = point.split()
    file = (alpha if host == "alpha" else beta).fault("fail", name)
    error = refused(alpha, first=first, create=made, size=SIZE if made else None)
    assert "both hosts are as before" in error.message
    assert error.pending == []
    assert (alpha.rows(), beta.rows()) == before
    assert nbdkits(alpha.root) == nbdkits(beta.root) == []
    assert not list(alpha.root.rglob("*.psk")) + list(beta.root.rglob("*.psk"))
    file.unlink()
    create(alpha, first=first, create=made, size=SIZE if made else None)
    wait_synchronized(alpha)


def test_a_create_without_the_other_host_changes_nothing_and_says_what_to_do(hosts):
    alpha, beta = hosts
    alpha.call("volume.create", name="va", size=SIZE)
    beta.kill()
    for fields in ({}, {"source": "beta:vb", "destination": "va"}):
        error = refused(alpha, **fields)
        assert error.code == ErrorCode.UNREACHABLE
        assert "nothing was changed: see that pathctld runs there" in error.message
    assert alpha.rows() == [{"volume": "va"}]
    beta.start()


def test_a_pair_is_named_by_enough_of_its_uuid_in_either_case(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    pair = create(alpha)["pair"]["pair"]
    for name in (pair, pair[:4], pair.upper()[:9]):
        assert alpha.call("pair.show", pair=name)["pair"]["pair"] == pair
    with pytest.raises(PathctlError, match="give at least 4 digits") as caught:
        alpha.call("pair.show", pair=pair[:3])
    assert caught.value.code == ErrorCode.USAGE


def test_the_error_says_what_was_done_what_failed_and_what_was_undone(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    beta.call("attach", volume="vb")
    error = refused(alpha)
    assert error.code == ErrorCode.REFUSED
    assert error.done == ["journal", "source connection (alpha:va)"]
    assert error.failed == "destination connection (beta:vb)"
    assert error.undone == ["source connection (alpha:va)"]
    assert "attached" in error.message


def test_a_failure_after_the_commit_point_undoes_nothing(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    alpha.fault("fail", "create.ready")
    assert create(alpha)["pair"]["committed"]
    wait_synchronized(beta)


def test_what_a_failed_commit_has_done_is_read_anew_from_the_disk(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    pause = alpha.fault("pause", "create.ready")
    alpha.fault("fail", "create.ready")
    found = []
    runner = threading.Thread(target=lambda: found.append(create(alpha)))
    runner.start()
    alpha.wait_reached("create.ready")
    before = nbdkits(alpha.root)
    pause.unlink()
    runner.join(WAIT_S)
    assert found[0]["pair"]["committed"]
    after = nbdkits(alpha.root)
    assert (len(before), len(after), set(before) & set(after)) == (1, 1, set())


POINTS = ("journal", "create_source", "create_destination", "first", "second", "greet", "ready", "committed", "done")


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("step", POINTS)
def test_a_coordinator_killed_after_any_step_leaves_all_or_nothing(hosts, first, step):
    alpha, beta = hosts
    alpha.fault("pause", f"create.{step}")
    runner = threading.Thread(target=lambda: _try(alpha, first))
    runner.start()
    alpha.wait_reached(f"create.{step}")
    alpha.kill()
    runner.join(WAIT_S)
    (alpha.faults / f"pause-create.{step}").unlink()
    alpha.start()
    is_committed = step in ("ready", "committed", "done")
    if is_committed:
        wait_until(lambda: _ready(alpha) and _ready(beta), "both rows are ready")
        wait_until(lambda: pair_state(alpha) not in ([], ["Creating"]), "the create is finished")
    else:
        wait_until(lambda: not alpha.rows() and not beta.rows(), "both tables are empty again")
        wait_until(lambda: nbdkits(alpha.root) == nbdkits(beta.root) == [], "no process is left")
    create(alpha, create=True, size=SIZE, first=first)
    wait_synchronized(alpha)


def _try(host, first):
    try:
        create(host, create=True, size=SIZE, first=first)
    except PathctlError as error:
        return error
    return None


def _ready(host):
    return [row["state"] for row in host.call("connection.list")["connections"]] == ["ready"]


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("point", ["peer.create_volume", "connect.destination", "peer.finish"])
def test_the_other_daemon_killed_within_its_step_leaves_all_or_nothing(hosts, first, point):
    alpha, beta = hosts
    pause = beta.fault("pause", point)
    found = []
    runner = threading.Thread(target=lambda: found.append(_try(alpha, first)))
    runner.start()
    beta.wait_reached(point)
    beta.kill()
    runner.join(WAIT_S)
    pause.unlink()
    if point == "peer.finish":
        assert found == [None]
        beta.start()
        wait_until(lambda: _ready(alpha) and _ready(beta), "both rows are ready")
        wait_synchronized(alpha)
        return
    assert found[0].pending, "the other host has not answered"
    assert pair_state(alpha) == ["Creating"]
    beta.start()
    wait_until(lambda: not alpha.rows() and not beta.rows(), "both tables are empty again")
    create(alpha, create=True, size=SIZE, first=first)
    wait_synchronized(alpha)


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("step", POINTS)
def test_the_other_daemon_killed_after_any_step_leaves_all_or_nothing(hosts, first, step):
    alpha, beta = hosts
    pause = alpha.fault("pause", f"create.{step}")
    found = []
    runner = threading.Thread(target=lambda: found.append(_try(alpha, first)))
    runner.start()
    alpha.wait_reached(f"create.{step}")
    beta.kill()
    pause.unlink()
    runner.join(WAIT_S)
    assert not runner.is_alive()
    beta.start()
    if found[0] is None:
        wait_until(lambda: _ready(alpha) and _ready(beta), "both rows are ready")
        wait_until(lambda: pair_state(alpha) not in ([], ["Creating"]), "the create is finished")
    else:
        wait_until(lambda: not alpha.rows() and not beta.rows(), "both tables are empty again")
    create(alpha, create=True, size=SIZE, first=first)
    wait_synchronized(alpha)


@pytest.mark.parametrize("first", ORDERS)
@pytest.mark.parametrize("step", ["first", "second", "greet", "ready"])
@pytest.mark.parametrize("victim", ["va", "vb"])
def test_an_nbdkit_killed_after_a_step_does_not_break_the_rest(hosts, first, step, victim):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    pause = alpha.fault("pause", f"create.{step}")
    found = []
    runner = threading.Thread(target=lambda: found.append(_try_made(alpha, first)))
    runner.start()
    alpha.wait_reached(f"create.{step}")
    ours = {f"control={host.root}/run/pathctl/{victim}.ctl" for host in hosts}
    for process in psutil.process_iter(["cmdline"]):
        if ours & set(process.info["cmdline"] or []):
            process.kill()
    pause.unlink()
    runner.join(WAIT_S)
    if found[0] is None:
        wait_synchronized(alpha)
    else:
        assert found[0].pending == []
        assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])
        create(alpha, first=first)
        wait_synchronized(alpha)


def _try_made(host, first):
    try:
        create(host, first=first)
    except PathctlError as error:
        return error
    return None


@pytest.mark.parametrize("step", ["journal", "stop", "destination", "source", "done"])
@pytest.mark.parametrize("victim", ["alpha", "beta"])
def test_a_delete_cut_off_after_any_step_comes_to_its_end(hosts, step, victim):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha)
    wait_synchronized(alpha)
    pause = alpha.fault("pause", f"delete.{step}")
    runner = threading.Thread(target=lambda: _try_delete(alpha))
    runner.start()
    alpha.wait_reached(f"delete.{step}")
    host = alpha if victim == "alpha" else beta
    host.kill()
    pause.unlink()
    runner.join(WAIT_S)
    host.start()
    done = ([{"volume": "va"}], [{"volume": "vb"}])
    wait_until(lambda: (alpha.rows(), beta.rows()) == done, "the pair is deleted on both hosts")
    wait_until(lambda: nbdkits(alpha.root) == nbdkits(beta.root) == [], "no process is left")
    create(alpha)
    wait_synchronized(alpha)


def _try_delete(host):
    try:
        host.call("pair.delete", pair="va")
    except PathctlError as error:
        return error
    return None


def test_deleting_a_source_that_would_lose_data_needs_force(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha, invalidate="source", copy_rate_bytes_s=0)
    with pytest.raises(PathctlError, match="still only at beta:vb"):
        alpha.call("pair.delete", pair="va")
    alpha.call("pair.delete", pair="va", force=True)
    assert alpha.volume("va")["invalid"] == SIZE >> 16


def test_deleting_a_pair_whose_destination_would_be_left_incomplete_needs_force(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha, copy_rate_bytes_s=0)
    for host, name in ((alpha, "va"), (beta, "vb")):
        with pytest.raises(PathctlError, match="beta:vb are out of date") as caught:
            host.call("pair.delete", pair=name)
        assert caught.value.code == ErrorCode.REFUSED
    assert _ready(alpha)
    alpha.call("pair.delete", pair="va", force=True)
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])
    assert beta.volume("vb")["incomplete"]


def test_half_a_pair_is_freed_while_the_other_host_is_gone(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha)
    wait_synchronized(alpha)
    beta.kill()
    with pytest.raises(PathctlError) as caught:
        alpha.call("pair.delete", pair="va")
    assert (caught.value.code, pair_state(alpha)) == (ErrorCode.UNREACHABLE, ["Deleting"])
    alpha.call("pair.delete", pair="va", half=True)
    assert alpha.rows() == [{"volume": "va"}]
    beta.start()
    wait_until(lambda: pair_state(beta) == ["Refused"], "beta has heard that alpha has no such pair any more")
    (alone,) = beta.call("pair.list")["pairs"]
    claims = ("ready", "committed", "invalid", "owed", "copy_rate_bytes_s", "copied_bytes", "direction")
    assert [alone[name] for name in claims] == [None] * len(claims)
    beta.call("pair.delete", pair="vb")
    assert beta.rows() == [{"volume": "vb"}]
    create(alpha)
    wait_synchronized(alpha)


def test_half_a_pair_is_freed_although_its_deletion_is_being_worked_on(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha)
    wait_synchronized(alpha)
    pause = alpha.fault("pause", "delete.stop")
    found = {}
    whole = threading.Thread(target=lambda: found.update(whole=_try_delete(alpha)))
    whole.start()
    alpha.wait_reached("delete.stop")
    beta.kill()
    half = threading.Thread(target=lambda: found.update(half=alpha.call("pair.delete", pair="va", half=True)))
    half.start()
    half.join(0.5)
    assert half.is_alive(), "it waits"
    pause.unlink()
    whole.join(WAIT_S)
    half.join(WAIT_S)
    assert (found["whole"].code, found["half"]["pair"]["state"]) == (ErrorCode.UNREACHABLE, "Deleting")
    assert alpha.rows() == [{"volume": "va"}]
    beta.start()


@pytest.mark.parametrize("verb", ["pair.suspend", "pair.resume"])
def test_a_command_that_the_data_plane_did_not_answer_is_carried_out_when_it_answers_again(hosts, verb):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha)
    wait_synchronized(alpha)
    if verb == "pair.resume":
        alpha.call("pair.suspend", pair="va")
    pid = alpha.volume("va")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(PathctlError, match="did not answer"):
            alpha.call(verb, pair="va")
    finally:
        os.kill(pid, signal.SIGCONT)
    expected = "Suspended" if verb == "pair.suspend" else "Synchronized"
    wait_until(lambda: pair_state(alpha) == [expected], f"{expected} after all")
    assert alpha.volume("va")["pid"] == pid


def test_a_new_pathctld_adopts_what_the_killed_one_started(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha, attach=False)
    alpha.call("attach", volume="va")
    before = alpha.volume("va"), beta.volume("vb")
    for host in hosts:
        host.kill()
        host.start()
    wait_until(lambda: alpha.volume("va")["pid"] and beta.volume("vb")["pid"], "both processes are known again")
    after = alpha.volume("va"), beta.volume("vb")
    assert [v["pid"] for v in after] == [v["pid"] for v in before]
    assert after[0]["device"] == before[0]["device"]
    wait_synchronized(alpha)
    os.kill(after[0]["pid"], signal.SIGKILL)  # the socket was taken back: a new process listens on it
    wait_until(lambda: alpha.volume("va")["pid"] not in (None, after[0]["pid"]), "nbdkit runs again")
    assert Path(after[0]["device"]).read_bytes() == beta.image("vb").read_bytes()


def test_sigterm_ends_pathctld_only(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha)
    pid = alpha.volume("va")["pid"]
    alpha.terminate()
    assert psutil.pid_exists(pid)
    alpha.start()
    assert wait_until(lambda: alpha.volume("va")["pid"], "its process is known again") == pid


def test_a_volume_neither_attached_nor_paired_has_no_process(hosts):
    alpha, _ = hosts
    alpha.call("volume.create", name="va", size=SIZE)
    assert nbdkits(alpha.root) == []
    alpha.call("attach", volume="va")
    assert len(nbdkits(alpha.root)) == 1
    alpha.call("detach", volume="va")
    assert nbdkits(alpha.root) == []


def test_a_device_that_was_made_but_never_recorded_is_removed(hosts):
    alpha, _ = hosts
    alpha.call("volume.create", name="va", size=SIZE)
    device = alpha.call("attach", volume="va")["device"]
    alpha.kill()
    with contextlib.closing(sqlite3.connect(alpha.root / "var/lib/pathctl/pathctl.db")) as table, table:
        table.execute("UPDATE volumes SET device_path = NULL, device_pid = NULL, device_pid_started = NULL")
    alpha.stop_all()
    assert not Path("/sys/block", Path(device).name, "loop").exists()
    assert not Path(alpha.root / "run/pathctl/va.fuse").exists()


def test_a_device_whose_process_has_died_is_shown_so_and_made_anew(hosts):
    alpha, _ = hosts
    alpha.call("volume.create", name="va", size=SIZE)
    device = alpha.call("attach", volume="va")["device"]
    assert alpha.volume("va")["failed"] is None
    for process in psutil.process_iter(["cmdline"]):
        if str(alpha.root / "run/pathctl/va.fuse") in (process.info["cmdline"] or []):
            process.kill()
    wait_until(lambda: alpha.volume("va")["failed"], "the volume has a note")
    shown = alpha.volume("va")
    assert (shown["device"], f"the process behind {device} has ended" in shown["failed"]) == (device, True)
    alpha.call("attach", volume="va")
    assert alpha.volume("va")["failed"] is None


def test_a_backing_that_is_pathctls_own_or_in_use_is_refused(hosts, tmp_path):
    alpha, _ = hosts
    alpha.call("volume.create", name="va", size=SIZE)
    device = alpha.call("attach", volume="va")["device"]
    image = tmp_path / "image"
    image.write_bytes(bytes(SIZE))
    losetup = ["losetup", "--find", "--show", image]
    loop = subprocess.run(losetup, capture_output=True, text=True, check=True).stdout.strip()
    try:
        holder = os.open(loop, os.O_RDONLY | os.O_EXCL)  # as a mount does
        own = [alpha.image("va"), alpha.root / "etc/pathctl/pathctl.toml", alpha.root / "run/pathctl/dev/va", device]
        for backing in [*own, loop]:
            with pytest.raises(PathctlError) as caught:
                alpha.call("volume.create", name="other", backing=str(backing))
            assert caught.value.code == ErrorCode.REFUSED
        os.close(holder)
        assert alpha.call("volume.create", name="other", backing=loop)["volume"]["size"] == SIZE
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_a_restarted_destination_takes_new_pairs_and_its_old_processes_are_started_anew(hosts, tmp_path):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha)
    for restart in (beta.terminate, beta.kill):
        restart()
        beta.start()
        old = wait_until(lambda: beta.volume("vb")["pid"], "its process is known again")
        name = f"later-{restart.__name__}"
        create(alpha, source=name, destination=f"beta:{name}", create=True, size=SIZE)
        os.kill(old, signal.SIGKILL)
        wait_until(lambda old=old: beta.volume("vb")["pid"] not in (None, old), "its process is started anew")
        wait_until(lambda: set(pair_state(alpha)) == {"Synchronized"}, "every pair is Synchronized")


def test_a_second_pathctld_on_the_same_root_is_refused(hosts):
    alpha, _ = hosts
    second = subprocess.run([BIN / "pathctld", "--root", alpha.root], capture_output=True, text=True, timeout=WAIT_S)
    assert (second.returncode, "running already" in second.stderr) == (ExitCode.REFUSED, True)
    assert alpha.call("status")["host"]["name"] == "alpha"
