"""What changes over the years: a look before a step, one host gone for good, volumes left incomplete, a new address."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import threading

import psutil
import pytest
from live.daemons import BIN, SIZE, make_volumes
from waiting import WAIT_S, wait_until

from pathctl.errors import ErrorCode, ExitCode, PathctlError

TRACKS = SIZE >> 16


def create(host, **fields):
    wanted = {"source": "va", "destination": "beta:vb", "invalidate": "destination", **fields}
    return host.call("pair.create", **wanted)


def state(host):
    return [pair["state"] for pair in host.call("pair.list")["pairs"]]


def wait_state(host, wanted):
    wait_until(lambda: state(host) == [wanted], f"{host.name} shows {wanted}")


def refused(host, verb, **fields):
    with pytest.raises(PathctlError) as caught:
        host.call(verb, **fields)
    return caught.value


def everything(*hosts):
    """All rows and all files of the volumes."""
    files = [
        {path.name: path.read_bytes() for path in sorted(host.image("v").parent.iterdir()) if path.is_file()}
        for host in hosts
    ]
    return [host.rows() for host in hosts], files


# -- dry runs


@pytest.mark.parametrize("asked", ["alpha", "beta"])
@pytest.mark.parametrize("invalidate", ["source", "destination"])
def test_a_dry_create_says_whose_data_is_replaced_and_changes_nothing(hosts, invalidate, asked):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    before = everything(alpha, beta)
    host, fields = (alpha, {}) if asked == "alpha" else (beta, {"source": "alpha:va", "destination": "vb"})
    plan = create(host, invalidate=invalidate, dry_run=True, **fields)["plan"]
    lost, good = ("beta:vb", "alpha:va") if invalidate == "destination" else ("alpha:va", "beta:vb")
    assert plan["loses"] == [f"all 8M ({SIZE} bytes) of {lost} are replaced by the data of {good}"]
    assert plan["steps"] == [
        "connect alpha:va as the source",
        "connect beta:vb as the destination",
        "check that data passes between alpha:va and beta:vb",
        f"make the path ready: all tracks of {lost} become invalid and are copied from {good}",
    ]
    assert everything(alpha, beta) == before


def test_a_dry_create_of_new_volumes_loses_nothing(hosts):
    alpha, beta = hosts
    assert create(alpha, create=True, size=SIZE, dry_run=True)["plan"]["loses"] == []
    alpha.call("volume.create", name="va", size=SIZE)
    plan = create(alpha, create=True, attach=True, dry_run=True)["plan"]
    assert plan["loses"] == []
    assert plan["steps"][0] == f"create volume beta:vb of 8M ({SIZE} bytes), all zeroes, in tracks of 64K"
    assert plan["steps"][-1] == "attach alpha:va as a block device"
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [])
    create(alpha, create=True)
    assert create(alpha, dry_run=True)["plan"]["loses"] == []
    beta.call("volume.create", name="other", size=SIZE)
    error = refused(alpha, "pair.create", source="va", destination="beta:other", invalidate="destination", dry_run=True)
    assert (error.code, "already in pair" in error.message) == (ErrorCode.REFUSED, True)


WRONG = {
    "the destination is attached": (lambda a, b: b.call("attach", volume="vb"), {}, "attached"),
    "the source is attached": (lambda a, b: a.call("attach", volume="va"), {"invalidate": "source"}, "attached"),
    "there is no destination": (None, {"destination": "beta:none"}, "no volume beta:none"),
    "the sizes are not as asked": (None, {"size": 4 << 20}, "something else was asked for"),
    "the destination's name is taken": (None, {"create": True, "destination": "beta:pathctld"}, "cannot be called"),
    "a size too large": (None, {"create": True, "source": "vn", "destination": "beta:vn", "size": 1 << 60}, "no files"),
    "a size of zero": (None, {"size": 0}, "above 0"),
    "a rate below zero": (None, {"copy_rate_bytes_s": -1}, "copy rate"),
    "one volume": (None, {"destination": "alpha:va"}, "both volume va of host alpha"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_dry_create_is_refused_for_what_the_real_one_is_refused(hosts, name):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    prepare, fields, words = WRONG[name]
    if prepare:
        prepare(alpha, beta)
    for dry_run in (True, False):
        with pytest.raises(PathctlError) as caught:
            create(alpha, **fields, dry_run=dry_run)
        assert words in caught.value.message
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])


@pytest.mark.parametrize("invalidate", ["source", "destination"])
def test_sizes_that_differ_are_refused_with_commands_that_fit_them(hosts, invalidate):
    alpha, beta = hosts
    alpha.call("volume.create", name="va", size=SIZE)
    beta.call("volume.create", name="vb", size=SIZE * 2, track_size=4096)
    message = refused(alpha, "pair.create", source="va", destination="beta:vb", invalidate=invalidate).message
    if invalidate == "destination":
        host, old, fit = beta, "vb", {"name": "vb", "size": SIZE, "track_size": 65536}
    else:
        host, old, fit = alpha, "va", {"name": "va", "size": SIZE * 2, "track_size": 4096}
    assert f"`pathctl volume delete {old} --yes`" in message
    assert f"`pathctl volume create {old} --size {fit['size']} --track-size {fit['track_size']}`" in message
    host.call("volume.delete", name=old)
    host.call("volume.create", **fit)
    create(alpha, invalidate=invalidate)
    wait_state(alpha, "Synchronized")


def test_a_dry_delete_of_a_volume_names_its_file_and_size(hosts):
    alpha, _ = hosts
    alpha.call("volume.create", name="va", size=SIZE)
    before = everything(alpha)
    plan = alpha.call("volume.delete", name="va", dry_run=True)["plan"]
    assert plan["loses"] == [f"{alpha.image('va')} with all 8M ({SIZE} bytes) of volume va is deleted"]
    plan = alpha.call("volume.create", name="new", size=SIZE, dry_run=True)["plan"]
    assert (plan["loses"], len(plan["steps"])) == ([], 3)
    assert everything(alpha) == before
    another = {"name": "va", "size": SIZE * 2, "dry_run": True}
    assert "there is a volume va already" in refused(alpha, "volume.create", **another).message


@pytest.mark.parametrize("asked", ["alpha", "beta"])
def test_a_dry_delete_of_a_pair_says_what_only_the_other_side_has(hosts, asked):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha, invalidate="source", copy_rate_bytes_s=0)
    host, name = (alpha, "va") if asked == "alpha" else (beta, "vb")
    assert "still only at beta:vb" in refused(host, "pair.delete", pair=name, dry_run=True).message
    plan = host.call("pair.delete", pair=name, force=True, dry_run=True)["plan"]
    lost = f"{TRACKS} of {TRACKS} tracks, 8M ({SIZE} bytes), of alpha:va exist only at beta:vb"
    assert plan["loses"] == [f"{lost} and could not be read any more"]
    alpha.call("pair.set", pair="va", copy_rate_bytes_s=None)
    wait_state(alpha, "Synchronized")
    plan = host.call("pair.delete", pair=name, dry_run=True)["plan"]
    assert (plan["loses"], plan["steps"][-1]) == ([], "the data of alpha:va is complete")
    assert state(alpha) == ["Synchronized"]
    beta.kill()
    if host is alpha:
        error = refused(alpha, "pair.delete", pair="va", dry_run=True)
        assert (error.code, "--half" in error.message) == (ErrorCode.UNREACHABLE, True)
    beta.start()


# -- one host gone for good


def freeze(host):
    """The host is gone without a word: nothing of it answers any more, no connection is refused."""
    pids = [host.process.pid]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any(word.startswith(f"control={host.root}") for word in words):
            pids.append(process.pid)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    return pids


def thaw(pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


STATES = ("Synchronized", "to_source", "to_destination", "Suspended")


@pytest.mark.parametrize("gone", ["frozen", "killed"])
@pytest.mark.parametrize("wanted", STATES)
@pytest.mark.parametrize("survivor", ["alpha", "beta"])
def test_a_half_is_freed_without_the_other_host_and_says_whether_its_data_is_complete(hosts, survivor, wanted, gone):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    paused = {"copy_rate_bytes_s": 0} if wanted.startswith("to_") else {}
    create(alpha, invalidate="source" if wanted == "to_source" else "destination", **paused)
    if paused:
        wait_state(alpha, "SyncInProg")
        if wanted == "to_destination":
            wait_until(lambda: beta.volume("vb")["incomplete"], "the destination knows that it is incomplete")
    else:
        wait_state(alpha, "Synchronized")
    if wanted == "Suspended":
        alpha.call("pair.suspend", pair="va")
    host, other, name = (alpha, beta, "va") if survivor == "alpha" else (beta, alpha, "vb")
    pids = freeze(other) if gone == "frozen" else []
    if gone == "killed":
        other.stop_all()
    try:
        plan = host.call("pair.delete", pair=name, half=True, dry_run=True)["plan"]
        answer = host.call("pair.delete", pair=name, half=True, limit_s=WAIT_S)["pair"]
        check_left(host, name, plan, answer, is_whole=(survivor, wanted) not in INCOMPLETE)
    finally:
        thaw(pids)
        if gone == "killed":
            other.start()


INCOMPLETE = (("alpha", "to_source"), ("beta", "to_destination"))


def check_left(host, name, plan, answer, *, is_whole):
    shown = host.volume(name)
    assert (shown["pair"], shown["incomplete"], plan["loses"] == []) == (None, not is_whole, is_whole)
    assert plan["steps"][-1] == answer["reason"]
    assert host.rows() == [{"volume": name}]
    if is_whole:
        assert f"the data of {host.name}:{name} is complete" in answer["reason"]
        host.call("attach", volume=name)
        return
    assert f"{host.name}:{name} is left incomplete" in answer["reason"]
    error = refused(host, "attach", volume=name)
    assert (error.code, f"pathctl volume accept {name}" in error.message) == (ErrorCode.REFUSED, True)
    assert host.call("volume.accept", name=name, dry_run=True)["plan"]["loses"]
    assert host.volume(name)["incomplete"]
    for _ in range(2):
        found = host.call("volume.accept", name=name)["volume"]
        assert (found["incomplete"], found["invalid"]) == (False, 0)
    kinds = [event["kind"] for event in host.call("events.list")["events"]]
    assert kinds.count("volume.accepted") == 1
    host.call("attach", volume=name)


@pytest.mark.parametrize("step", ["journal", "first", "second", "ready", "committed"])
@pytest.mark.parametrize("survivor", ["alpha", "beta"])
def test_a_half_is_freed_while_the_pair_is_being_created(hosts, survivor, step):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    pause = alpha.fault("pause", f"create.{step}")
    runner = threading.Thread(target=try_create, args=(alpha,))
    runner.start()
    alpha.wait_reached(f"create.{step}")
    host, other, name = (alpha, beta, "va") if survivor == "alpha" else (beta, alpha, "vb")
    other.kill()
    pause.unlink()
    runner.join(WAIT_S)
    free(host, name)
    other.start()
    free(other, "vb" if host is alpha else "va")
    create(alpha)
    wait_state(alpha, "Synchronized")


def free(host, name):
    """Its half, whatever has become of the pair: what was cut off may be at its end, or be ended, at the same time."""

    def is_free():
        with contextlib.suppress(PathctlError):
            host.call("pair.delete", pair=name, half=True)
        return host.rows() == [{"volume": name}]

    wait_until(is_free, f"{host.name}:{name} is free")


def try_create(host):
    with contextlib.suppress(PathctlError):
        create(host)


def test_an_incomplete_volume_is_no_good_side_and_becomes_complete_as_the_invalidated_one(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha, invalidate="source", copy_rate_bytes_s=0)
    alpha.call("pair.delete", pair="va", force=True)
    assert alpha.volume("va")["incomplete"]
    command = [BIN / "pathctl", "--root", alpha.root, "volume", "show", "va"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert f"incomplete: {TRACKS} of {TRACKS} tracks were only on another host; make it complete" in shown
    for dry_run in (True, False):
        with pytest.raises(PathctlError, match="pathctl volume accept va") as caught:
            create(alpha, dry_run=dry_run)
        assert caught.value.code == ErrorCode.REFUSED
    with pytest.raises(PathctlError, match="pathctl volume accept va"):
        beta.call("pair.create", source="vb", destination="alpha:va", invalidate="source")
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])
    create(alpha, invalidate="source")
    wait_state(alpha, "Synchronized")
    alpha.call("pair.delete", pair="va")
    assert not alpha.volume("va")["incomplete"]
    assert alpha.image("va").read_bytes() == beta.image("vb").read_bytes()


def test_an_incomplete_volume_becomes_complete_as_a_destination(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha, invalidate="source", copy_rate_bytes_s=0)
    alpha.call("pair.delete", pair="va", force=True)
    beta.call("pair.create", source="vb", destination="alpha:va", invalidate="destination")
    wait_state(beta, "Synchronized")
    beta.call("pair.delete", pair="vb")
    assert not alpha.volume("va")["incomplete"]
    alpha.call("attach", volume="va")
    assert alpha.image("va").read_bytes() == beta.image("vb").read_bytes()


def test_a_paired_or_attached_volume_is_not_accepted(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    assert alpha.call("volume.accept", name="va", dry_run=True)["plan"]["loses"] == []
    create(alpha)
    assert "is in pair" in refused(alpha, "volume.accept", name="va").message
    assert "is in pair" in refused(beta, "volume.accept", name="vb").message
    alpha.call("pair.delete", pair="va", force=True)
    alpha.call("attach", volume="va")
    assert "is attached" in refused(alpha, "volume.accept", name="va").message
    assert refused(alpha, "volume.accept", name="none").code == ErrorCode.NOT_FOUND


# -- two creates at once


@pytest.mark.parametrize("first", ["source", "destination"])
@pytest.mark.parametrize("directions", ["same", "opposite"])
def test_of_creates_from_both_hosts_at_once_at_most_one_wins_and_both_tables_agree(hosts, directions, first):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    theirs = (
        {"source": "alpha:va", "destination": "vb"}
        if directions == "same"
        else {
            "source": "vb",
            "destination": "alpha:va",
        }
    )
    for _ in range(5):
        found = race(
            lambda: create(alpha, first=first),
            lambda: beta.call("pair.create", **theirs, invalidate="destination", first=first),
        )
        errors = [item for item in found if isinstance(item, PathctlError)]
        won = {item["pair"]["pair"] for item in found if not isinstance(item, PathctlError)}
        assert len(won) <= 1
        for error in errors:
            assert (error.code, error.pending) == (ErrorCode.REFUSED, []), error.message
            assert "try again" in error.message or "delete that pair" in error.message, error.message
        wait_until(lambda: not journaled(alpha) and not journaled(beta), "nothing is under way")
        rows = [{row["pair"] for row in host.call("connection.list")["connections"]} for host in hosts]
        assert rows == [won, won]
        if won:
            (host,) = {pair["source"]["host"] for pair in alpha.call("pair.list")["pairs"]}
            host = alpha if host == "alpha" else beta
            wait_state(host, "Synchronized")
            host.call("pair.delete", pair=won.pop())


def race(*calls):
    found = [None] * len(calls)

    def run(number):
        try:
            found[number] = calls[number]()
        except PathctlError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "no deadlock"
    return found


def journaled(host):
    return [pair for pair in host.call("pair.list")["pairs"] if pair["state"] in ("Creating", "Deleting")]


def test_repeated_commands_do_no_harm(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    pair = create(alpha)["pair"]["pair"]
    wait_state(alpha, "Synchronized")
    for verb, wanted in (("pair.suspend", "Suspended"), ("pair.resume", "Synchronized")):
        for _ in range(2):
            alpha.call(verb, pair="va")
        wait_state(alpha, wanted)
    alpha.call("pair.delete", pair="va")
    for host in hosts:
        for half in (False, True):
            error = refused(host, "pair.delete", pair=pair, half=half)
            assert (error.code, "has ended here (deleted)" in error.message) == (ErrorCode.NOT_FOUND, True)
    for _ in range(2):
        alpha.call("attach", volume="va")
    for _ in range(2):
        alpha.call("detach", volume="va")
    alpha.call("volume.delete", name="va")
    error = refused(alpha, "volume.delete", name="va")
    assert (error.code, "no volume va" in error.message) == (ErrorCode.NOT_FOUND, True)


def test_a_name_that_is_not_known_is_answered_with_a_near_one_or_the_list(hosts):
    alpha, _ = hosts
    alpha.call("volume.create", name="home", size=SIZE)
    cases = [
        ("volume.show", {"name": "hoem"}, "there is no volume hoem on this host; did you mean home; see"),
        ("volume.delete", {"name": "xyz"}, "there is no volume xyz on this host; see `pathctl volume list`"),
        ("attach", {"volume": "\x1b[31mhome"}, r"there is no volume '\x1b[31mhome' on this host"),
        ("volume.accept", {"name": "v" * 300}, f"there is no volume '{'v' * 80}...' on this host"),
        ("pair.show", {"pair": "home"}, "volume home is in no pair; look with `pathctl volume show home`"),
        ("pair.delete", {"pair": "home", "half": True}, "volume home is in no pair"),
        ("pair.delete", {"pair": "nothing"}, "no pair here is called nothing"),
        ("peer.set", {"name": "beat", "address": "127.0.0.1"}, "no host called beat is enrolled; did you mean beta"),
    ]
    for verb, fields, words in cases:
        error = refused(alpha, verb, **fields)
        assert (error.code, words in error.message) == (ErrorCode.NOT_FOUND, True), error.message
    with pytest.raises(PathctlError, match="no host called betta is enrolled; did you mean beta"):
        create(alpha, source="home", destination="betta:vb")


def test_an_ambiguous_prefix_names_the_pairs_that_it_may_mean(hosts):
    alpha, _ = hosts
    for number in range(2):
        create(alpha, source=f"v{number}", destination=f"beta:v{number}", create=True, size=SIZE)
    alpha.terminate()
    pairs = ["abcd0000-0000-4000-8000-000000000001", "abcd0000-0000-4000-8000-000000000002"]
    with contextlib.closing(sqlite3.connect(alpha.root / "var/lib/pathctl/pathctl.db")) as table, table:
        for name in [row[0] for row in table.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")]:
            table.execute(f"DROP TRIGGER {name}")
        for number, pair in enumerate(pairs):
            table.execute("UPDATE connections SET pair = ? WHERE volume = ?", (pair, f"v{number}"))
    alpha.start()
    error = refused(alpha, "pair.show", pair="abcd")
    assert error.code == ErrorCode.USAGE
    assert all(f"{pair} (v{number})" in error.message for number, pair in enumerate(pairs))
    reason = alpha.call("pair.show", pair="v0")["pair"]["reason"]
    assert "by its metadata" in reason
    assert "`pathctl pair delete v0 --half`" in reason


def test_ending_all_says_who_still_uses_a_device(hosts):
    alpha, _ = hosts
    alpha.call("volume.create", name="va", size=SIZE)
    device = alpha.call("attach", volume="va")["device"]
    alpha.terminate()
    with open(device, "rb"):
        found = subprocess.run(
            [BIN / "pathctld", "--root", alpha.root, "--stop-all"], capture_output=True, text=True, timeout=60
        )
    assert (found.returncode, f"{device} is open in" in found.stderr) == (ExitCode.REFUSED, True), found.stderr
    alpha.start()
    assert alpha.volume("va")["device"] == device


def test_a_volume_that_is_there_as_asked_for_is_answered_and_a_different_one_refused(hosts, tmp_path):
    alpha, _ = hosts
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(SIZE))
    for fields in ({"name": "va", "size": SIZE}, {"name": "vd", "backing": str(disk)}):
        first = alpha.call("volume.create", **fields)["volume"]
        plan = alpha.call("volume.create", **fields, dry_run=True)["plan"]
        assert plan == {"steps": [f"nothing: volume {fields['name']} is there already"], "loses": []}
        assert alpha.call("volume.create", **fields)["volume"]["uuid"] == first["uuid"]
        for other in ({"size": SIZE // 2}, {"track_size": 4096}):
            message = refused(alpha, "volume.create", **{**fields, **other}).message
            assert f"there is a volume {fields['name']} already" in message
    assert "there is a volume" in refused(alpha, "volume.create", name="vd", size=SIZE).message


def test_what_has_been_deleted_is_said_to_have_been(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    pair = create(alpha)["pair"]["pair"]
    alpha.call("pair.delete", pair="va", force=True)
    for host, name in ((alpha, "va"), (beta, "vb")):
        error = refused(host, "pair.delete", pair=name)
        assert error.code == ErrorCode.NOT_FOUND
        assert f"volume {name} is in no pair any more: pair {pair} has been deleted" in error.message
        host.call("volume.delete", name=name)
        for dry_run in (True, False):
            error = refused(host, "volume.delete", name=name, dry_run=dry_run)
            assert error.code == ErrorCode.NOT_FOUND
            assert f"there is no volume {name} on this host any more: it has been deleted (20" in error.message


def test_what_is_not_known_of_a_volume_is_null(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha, copy_rate_bytes_s=0)
    wait_until(lambda: beta.volume("vb")["incomplete"], "the destination knows that it is incomplete")
    assert beta.volume("vb")["invalid"] is None
    os.kill(alpha.volume("va")["pid"], signal.SIGSTOP)
    shown = alpha.volume("va")
    assert [shown[field] for field in ("clients", "invalid", "incomplete")] == [None] * 3
    assert "does not answer" in shown["failed"]


def test_a_volume_that_does_not_fit_and_is_in_use_is_not_advised_to_be_deleted(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha)
    alpha.call("volume.create", name="small", size=SIZE // 2)
    message = refused(alpha, "pair.create", source="small", destination="beta:vb", invalidate="destination").message
    assert f"source alpha:small has 4M ({SIZE // 2} bytes) in tracks of 64K" in message
    assert "beta:vb was to be overwritten and is the destination of a pair with alpha:va" in message
    assert "volume delete" not in message
    beta.call("volume.create", name="used", size=SIZE)
    beta.call("attach", volume="used")
    message = refused(alpha, "pair.create", source="small", destination="beta:used", invalidate="destination").message
    assert "beta:used was to be overwritten and is attached as a block device" in message
    wait_state(alpha, "Synchronized")


@pytest.mark.parametrize("asked", ["alpha", "beta"])
def test_a_command_that_the_data_plane_did_not_answer_is_told_as_pending_and_carried_out(hosts, asked):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha)
    wait_state(alpha, "Synchronized")
    host, name = (alpha, "va") if asked == "alpha" else (beta, "vb")
    pid = alpha.volume("va")["pid"]
    os.kill(pid, signal.SIGSTOP)
    error = refused(host, "pair.suspend", pair=name)
    assert (error.code, error.pending) == (ErrorCode.TIMEOUT, ["pair suspend of alpha:va"])
    assert "the wish is recorded and pathctld goes on by itself until it is so" in error.message
    os.kill(pid, signal.SIGCONT)
    wait_state(alpha, "Suspended")
    events = alpha.call("events.list", pair="va")["events"]
    (found,) = [event for event in events if (event["kind"], event["after"]) == ("pair.state", "Suspended")]
    assert found["cause"] == "pathctl pair suspend"
    assert found["actor"] == ("uid 0 (root)" if asked == "alpha" else "uid 0 (root) at host beta")


def test_a_delete_asked_for_while_the_peer_is_gone_names_the_half(hosts):
    alpha, beta = hosts
    make_volumes(alpha, beta)
    create(alpha)
    alpha.kill()
    for dry_run in (True, False):
        error = refused(beta, "pair.delete", pair="vb", dry_run=dry_run)
        assert error.code == ErrorCode.UNREACHABLE
        assert "nothing was changed" in error.message
        assert "`pathctl pair delete vb --half`" in error.message
    alpha.start()
