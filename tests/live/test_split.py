"""Pairs whose two sides went different ways: refused, shown on both hosts, resolved either way, cut off anywhere."""

import sqlite3
import threading

import pytest
from live import splits
from live.daemons import Daemon, nbdkits, running
from live.splits import SIZE, states, track, wait_state, write
from waiting import WAIT_S, wait_until

from pathctl.errors import ErrorCode, PathctlError

BEFORE_COMMIT = ("alpha resolve.journal", "beta rejoin.destination", "alpha resolve.rejoin", "alpha resolve.link")
AFTER_COMMIT = ("alpha resolve.commit", "alpha resolve.committed", "beta peer.resolved", "alpha resolve.done")


@pytest.fixture
def hosts(tmp_path):
    with running(*(splits.set_up(Daemon(tmp_path, name)) for name in ("alpha", "beta"))) as both:
        yield both


def resolve(host, name, discard, **fields):
    return host.call("pair.resolve", pair=name, discard=discard, **fields)


def refused(host, name, discard, **fields):
    with pytest.raises(PathctlError) as caught:
        resolve(host, name, discard, **fields)
    return caught.value


def resolved(host):
    return [event for event in host.call("events.list")["events"] if event["kind"] == "pair.resolved"]


def check_equal(alpha, beta, va, vb):
    """Both sides hold the same, and tracks 1 and 2 are as given."""
    for host in (alpha, beta):
        wait_state(host, "Synchronized")
    assert alpha.image("va").read_bytes() == beta.image("vb").read_bytes()
    assert (track(alpha, "va", 1), track(alpha, "va", 2)) == (vb, va)


def check_shown(alpha, beta):
    """Either host tells of both sides."""
    wait_state(beta, "Split")
    for host, name in ((alpha, "va"), (beta, "vb")):
        shown = host.call("pair.show", pair=name)["pair"]
        source, destination = shown["sides"]["source"], shown["sides"]["destination"]
        assert (source["host"], source["owed"], source["ended"]) == ("alpha", 1, False)
        assert (destination["host"], destination["ended"], destination["in_use"]) == ("beta", True, False)
        assert source["generation"] != destination["generation"]
        assert abs(source["last_write"] - destination["last_write"]) < 60
        assert "both volumes may hold data that the other lacks" in shown["reason"]
        why = host.call("pair.why", pair=name)["why"]
        assert all(f"{side['host']}:{side['volume']}: last written" in why["safe"] for side in (source, destination))
        for lost in ("source", "destination"):
            assert f"`pathctl pair resolve {name} --discard {lost} --dry-run`" in why["next"]
        assert name in [shown[pair["side"]]["volume"] for pair in host.call("status")["pairs"]]


@pytest.mark.parametrize("discard", ["source", "destination"])
def test_a_half_that_was_freed_and_written_is_split_and_resolved_each_way(hosts, discard):
    alpha, beta = hosts
    pair = splits.make_pair(alpha, beta)
    before = track(alpha, "va", 1), track(alpha, "va", 2)
    splits.part(alpha, beta)
    check_shown(alpha, beta)
    assert (track(beta, "vb", 1), track(alpha, "va", 1)) == (b"B", before[0]), "nothing is copied"
    host, name = (alpha, "va") if discard == "source" else (beta, "vb")  # asked at the host that loses
    lost, kept = ("alpha:va", "beta:vb") if discard == "source" else ("beta:vb", "alpha:va")
    plan = resolve(host, name, discard, dry_run=True)["plan"]
    assert f"all 2M (2097152 bytes) of {lost}, last written" in plan["loses"][0]
    assert plan["loses"][0].endswith(f"replaced by the data of {kept}")
    assert states(alpha) == ["Split"]
    answer = resolve(host, name, discard)
    assert answer["resolved"]["discarded"] == discard
    assert [step["step"] for step in answer["resolved"]["steps"]] == ["journal", "rejoin", "link", "commit", "done"]
    check_equal(alpha, beta, *((before[1], b"B") if discard == "source" else (b"A", before[0])))
    for side in hosts:
        (event,) = resolved(side)
        assert (event["after"], event["pair"]) == (f"{discard} discarded", pair)
        (row,) = side.call("connection.list")["connections"]
        assert (row["pair"], row["state"], row["invalidated"]) == (pair, "ready", discard)
    asked = "uid 0 (root)" + (" at host beta" if host is beta else "")
    assert resolved(alpha)[0]["actor"] == asked
    error = refused(alpha, "va", discard)
    assert (error.code, "there is nothing to resolve" in error.message) == (ErrorCode.REFUSED, True)
    alpha.call("pair.delete", pair="va")
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])


def test_a_half_that_was_freed_and_not_written_is_refused_and_goes_on_too(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    alpha.kill()
    beta.call("pair.delete", pair="vb", half=True)
    alpha.start()
    wait_state(alpha, "Refused")
    wait_until(lambda: alpha.call("pair.show", pair="va")["pair"]["sides"], "the other side was asked")
    assert beta.rows() == [{"volume": "vb"}], "freed as it was asked for"
    beta.call("attach", volume="vb")
    error = refused(alpha, "va", "destination")
    assert "beta:vb is attached" in error.message
    assert "`pathctl detach vb` at beta" in error.message
    beta.call("detach", volume="vb")
    write(alpha, "va", 2, b"A")
    resolve(alpha, "va", "destination")
    check_equal(alpha, beta, b"A", track(alpha, "va", 1))


def test_a_source_in_use_is_not_discarded_unless_forced(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    splits.part(alpha, beta)
    before = track(alpha, "va", 2)
    alpha.call("attach", volume="va")
    error = refused(alpha, "va", "source")
    assert (error.code, "`pathctl detach va`" in error.message) == (ErrorCode.REFUSED, True)
    plan = resolve(alpha, "va", "source", force=True, dry_run=True)["plan"]
    assert "destroys the good copy at beta:vb" in plan["loses"][-1]
    assert (states(alpha), track(alpha, "va", 2)) == (["Split"], before)
    resolve(alpha, "va", "source", force=True)
    wait_state(alpha, "Synchronized")
    assert track(alpha, "va", 1) == track(beta, "vb", 1) == b"B"


def test_an_incomplete_volume_is_never_the_one_that_is_kept(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    alpha.call("pair.suspend", pair="va")
    for number in range(4):
        write(alpha, "va", 8 + number, b"A")
    alpha.call("pair.set", pair="va", copy_rate_bytes_s=0)
    alpha.call("pair.resume", pair="va")
    wait_state(beta, "SyncInProg")
    splits.wait_incomplete(beta)
    alpha.kill()
    beta.call("pair.delete", pair="vb", half=True, force=True)
    alpha.start()
    wait_state(alpha, "Refused")
    error = refused(alpha, "va", "source")
    assert (error.code, "beta:vb is incomplete" in error.message) == (ErrorCode.REFUSED, True)
    resolve(alpha, "va", "destination")
    alpha.call("pair.set", pair="va", copy_rate_bytes_s=None)
    check_equal(alpha, beta, track(alpha, "va", 2), track(alpha, "va", 1))


def test_without_the_other_host_nothing_is_resolved_and_it_is_said_so(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    splits.part(alpha, beta)
    beta.kill()
    for discard in ("source", "destination"):
        error = refused(alpha, "va", discard)
        assert error.code == ErrorCode.UNREACHABLE
        assert "nothing was changed: a pair is resolved at both hosts" in error.message
    assert alpha.call("pair.show", pair="va")["pair"]["sides"]["destination"]["ended"], "as it was when it was heard"
    beta.start()


def test_a_volume_that_is_another_one_by_now_is_told_before_it_is_overwritten(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    alpha.kill()
    beta.call("pair.delete", pair="vb", half=True)
    beta.call("volume.delete", name="vb")
    alpha.start()
    wait_state(alpha, "Refused")
    assert "host beta has no volume vb any more" in refused(alpha, "va", "destination").message
    beta.call("volume.create", name="vb", size=SIZE)
    wait_state(alpha, "Split")
    for discard, kept in (("source", "beta:vb"), ("destination", "alpha:va")):
        loses = resolve(alpha, "va", discard, dry_run=True)["plan"]["loses"]
        assert any("share no history" in said and f"see that {kept} is" in said for said in loses)
    resolve(alpha, "va", "destination")
    check_equal(alpha, beta, track(alpha, "va", 2), track(alpha, "va", 1))


def test_a_split_pair_can_be_deleted_at_the_host_that_has_freed_its_half(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    splits.part(alpha, beta)
    wait_state(beta, "Split")
    beta.call("pair.delete", pair="vb", force=True)
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])
    assert [volume["incomplete"] for volume in (alpha.volume("va"), beta.volume("vb"))] == [False, False]


def test_while_a_pair_is_resolved_other_commands_are_told_so(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    splits.part(alpha, beta)
    runner, pause, found = begin(alpha, beta, "alpha resolve.link", "destination")
    for verb, fields in (
        ("pair.suspend", {}),
        ("pair.set", {"copy_rate_bytes_s": 0}),
        ("pair.delete", {}),
        ("pair.resolve", {"discard": "source"}),
    ):
        with pytest.raises(PathctlError, match="is being resolved") as caught:
            alpha.call(verb, pair="va", **fields)
        assert caught.value.code == ErrorCode.REFUSED
    for verb, fields in (("attach", {"volume": "vb"}), ("volume.accept", {"name": "vb"})):
        with pytest.raises(PathctlError) as caught:
            beta.call(verb, **fields)
        assert caught.value.code == ErrorCode.REFUSED
    pause.unlink()
    runner.join(WAIT_S)
    assert found[0]["resolved"]["discarded"] == "destination"
    check_equal(alpha, beta, b"A", track(alpha, "va", 1))


# set back to an older copy


def test_a_source_that_was_set_back_is_refused_then_split_and_resolved(hosts, tmp_path):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    older = splits.Older(alpha, "va", tmp_path)
    alpha.call("pair.suspend", pair="va")
    write(alpha, "va", 1, b"B")
    alpha.call("pair.resume", pair="va")
    wait_state(alpha, "Synchronized")
    older.put_back()
    wait_state(alpha, "Refused")
    assert "host beta has newer data than this volume" in alpha.call("pair.show", pair="va")["pair"]["reason"]
    write(alpha, "va", 2, b"A")
    alpha.call("pair.resume", pair="va")  # tried again at once
    wait_state(alpha, "Split")
    wait_state(beta, "Split")
    sides = beta.call("pair.show", pair="vb")["pair"]["sides"]
    assert (sides["source"]["owed"], sides["destination"]["ended"]) == (1, False)
    resolve(beta, "vb", "destination")
    check_equal(alpha, beta, b"A", track(alpha, "va", 1))
    assert track(alpha, "va", 1) != b"B"


def test_a_source_that_was_set_back_and_has_missed_no_cut_is_refused_too(hosts, tmp_path):
    """The generation is the same: only the sessions tell."""
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    session = splits.get_session(alpha)
    older = splits.Older(alpha, "va", tmp_path)
    wait_until(lambda: splits.get_session(alpha) > session, "alpha and beta have greeted each other again")
    wait_state(alpha, "Synchronized")
    write(alpha, "va", 1, b"B")
    older.put_back()
    wait_state(alpha, "Refused")
    assert "host beta has newer data than this volume" in alpha.call("pair.show", pair="va")["pair"]["reason"]
    resolve(alpha, "va", "source")
    check_equal(alpha, beta, track(beta, "vb", 2), b"B")


@pytest.mark.parametrize("discard", ["source", "destination"])
def test_a_destination_that_was_set_back_is_refused_and_resolved(hosts, tmp_path, discard):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    session = splits.get_session(alpha)
    older = splits.Older(beta, "vb", tmp_path)
    wait_until(lambda: splits.get_session(alpha) > session, "alpha and beta have greeted each other again")
    wait_state(alpha, "Synchronized")
    write(alpha, "va", 1, b"A")
    old = track(alpha, "va", 2)
    older.put_back()
    wait_state(alpha, "Refused")
    wait_state(beta, "Refused")
    assert "older than what it had confirmed" in alpha.call("pair.show", pair="va")["pair"]["reason"]
    before = track(beta, "vb", 1)
    resolve(alpha, "va", discard)
    check_equal(alpha, beta, old, before if discard == "source" else b"A")


def test_a_destination_set_back_to_before_the_pair_is_refused_and_resolved(hosts, tmp_path):
    alpha, beta = hosts
    beta.call("volume.create", name="vb", size=SIZE)
    older = splits.Older(beta, "vb", tmp_path)
    alpha.call("pair.create", source="va", destination="beta:vb", invalidate="destination", create=True)
    write(alpha, "va", 1, b"A")
    wait_state(alpha, "Synchronized")
    older.put_back()
    wait_state(alpha, "Refused")
    assert "does not belong to this pair" in alpha.call("pair.show", pair="va")["pair"]["reason"]
    resolve(beta, "vb", "destination")
    check_equal(alpha, beta, b"\0", b"A")


# cut off


def as_before(alpha, beta, pair):
    """Nothing of a resolve is left, and the pair has ended at beta for ever but for another resolve."""
    with sqlite3.connect(f"file:{beta.root}/var/lib/pathctl/pathctl.db?mode=ro", uri=True) as table:
        ended = table.execute("SELECT outcome FROM ended WHERE id = ?", (pair,)).fetchall()
        journal = table.execute("SELECT * FROM journal").fetchall()
    table.close()
    with sqlite3.connect(f"file:{alpha.root}/var/lib/pathctl/pathctl.db?mode=ro", uri=True) as table:
        journal += table.execute("SELECT * FROM journal").fetchall()
    table.close()
    assert (ended, journal) == ([("deleted",)], [])
    assert beta.call("connection.list")["connections"] == []
    wait_until(lambda: nbdkits(beta.root) == [] and not list(beta.root.rglob("*.psk")), "no process or key is left")
    assert (track(alpha, "va", 2), track(beta, "vb", 1)) == (b"A", b"B")
    assert beta.call("volume.show", name="vb")["volume"]["incomplete"] is False


def begin(alpha, beta, point, discard):
    """A resolve that waits at a point; -> how it ends, once its thread is joined, and the host of the point."""
    name, where = point.split()
    host = alpha if name == "alpha" else beta
    pause, found = host.fault("pause", where), []

    def run():
        try:
            found.append(resolve(alpha, "va", discard))
        except PathctlError as error:
            found.append(error)

    runner = threading.Thread(target=run)
    runner.start()
    host.wait_reached(where)
    (host.faults / f"reached-{where}").unlink()
    return runner, pause, found


def test_a_resolve_that_fails_before_its_commit_leaves_both_hosts_as_they_were(hosts):
    alpha, beta = hosts
    pair = splits.make_pair(alpha, beta)
    splits.part(alpha, beta)
    for point in BEFORE_COMMIT:
        name, where = point.split()
        file = (alpha if name == "alpha" else beta).fault("fail", where)
        error = refused(alpha, "va", "destination")
        assert "both hosts are as before, and no data was changed" in error.message, point
        assert error.pending == []
        as_before(alpha, beta, pair)
        wait_state(alpha, "Split")
        file.unlink()
    resolve(alpha, "va", "destination")
    check_equal(alpha, beta, b"A", track(alpha, "va", 1))


@pytest.mark.parametrize("victim", ["alpha", "beta"])
def test_a_resolve_cut_off_before_its_commit_leaves_all_or_nothing(hosts, victim):
    alpha, beta = hosts
    pair = splits.make_pair(alpha, beta)
    splits.part(alpha, beta)
    for point in BEFORE_COMMIT:
        runner, pause, found = begin(alpha, beta, point, "destination")
        host = alpha if victim == "alpha" else beta
        host.kill()
        pause.unlink()
        runner.join(WAIT_S)
        host.start()
        wait_until(lambda: not _open(alpha) and not _open(beta), f"cut off at {point}, it has ended")
        if isinstance(found[0], PathctlError):
            wait_state(alpha, "Split")
            as_before(alpha, beta, pair)
        else:  # beta's data plane was there, and that is all the commit needs
            assert (victim, point in BEFORE_COMMIT[2:]) == ("beta", True)
            check_equal(alpha, beta, b"A", track(alpha, "va", 1))
            splits.part(alpha, beta)
    resolve(alpha, "va", "source")
    wait_state(alpha, "Synchronized")


def _open(host):
    with sqlite3.connect(f"file:{host.root}/var/lib/pathctl/pathctl.db?mode=ro", uri=True) as table:
        found = table.execute("SELECT * FROM journal").fetchall()
    table.close()
    return found


@pytest.mark.parametrize("victim", ["alpha", "beta"])
def test_a_resolve_cut_off_after_its_commit_comes_to_its_end(hosts, victim):
    alpha, beta = hosts
    pair = splits.make_pair(alpha, beta)
    for count, point in enumerate(AFTER_COMMIT, 1):
        splits.part(alpha, beta)
        runner, pause, _ = begin(alpha, beta, point, "destination")
        host = alpha if victim == "alpha" else beta
        host.kill()
        pause.unlink()
        runner.join(WAIT_S)
        host.start()
        wait_until(lambda: not _open(alpha) and not _open(beta), f"cut off at {point}, it is finished")
        check_equal(alpha, beta, b"A", track(alpha, "va", 1))
        assert [len(resolved(host)) for host in hosts] == [count, count]
        assert [row["pair"] for row in beta.call("connection.list")["connections"]] == [pair]
