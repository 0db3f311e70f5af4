"""Hosts of different releases: the newest version that both speak is used, or nothing is changed."""

import sqlite3
import subprocess
from pathlib import Path

import pytest
from live import splits
from live.daemons import Daemon, enrol
from waiting import WAIT_S, wait_until

from pathctl.errors import ErrorCode, PathctlError

SIZE = 4 << 20
PAIR = {"source": "va", "destination": "beta:vb", "invalidate": "destination", "create": True, "size": SIZE}


@pytest.fixture
def hosts(tmp_path):
    alpha, beta = Daemon(tmp_path, "alpha"), Daemon(tmp_path, "beta")
    yield alpha, beta
    alpha.stop_all()
    beta.stop_all()


def start(host, control=None, data=None):
    given = {"PATHCTL_PROTOCOL": control, "PATHCTL_DATA_PROTOCOL": data}
    host.environment = {name: value for name, value in given.items() if value}
    host.start()


def states(host):
    return [pair["state"] for pair in host.call("pair.list")["pairs"]]


def wait_state(host, *wanted):
    wait_until(lambda: states(host) == list(wanted), f"{host.name} shows {wanted}")


@pytest.mark.parametrize("old", ["alpha", "beta", "both"])
def test_a_host_of_the_first_version_works_with_one_of_ours(hosts, old):
    for host in hosts:
        first = "1-1" if old in (host.name, "both") else None
        start(host, first, first)
    alpha, beta = hosts
    enrol(alpha, beta)
    alpha.call("pair.create", **PAIR)
    wait_state(alpha, "Synchronized")
    wait_state(beta, "Synchronized")
    beta.call("pair.suspend", pair="vb")
    found = [event for event in alpha.call("events.list")["events"] if event["kind"] == "connection.suspended"]
    assert [event["actor"] for event in found] == ["host beta"], "the first version does not say who asked there"
    beta.call("pair.resume", pair="vb")
    wait_state(alpha, "Synchronized")
    beta.call("pair.delete", pair="vb")
    assert (alpha.rows(), beta.rows()) == ([{"volume": "va"}], [{"volume": "vb"}])


@pytest.mark.parametrize(("control", "caller"), [("1-1", "beta"), ("1-1", "alpha"), (None, "beta"), (None, "alpha")])
def test_hosts_without_a_common_version_do_not_enrol_each_other(hosts, control, caller):
    alpha, beta = hosts
    start(alpha, control)
    start(beta, "9-10")
    for host in hosts:
        host.call("host.init", name=host.name, address="127.0.0.1", port=host.port)
    one, other = (beta, alpha) if caller == "beta" else (alpha, beta)
    with pytest.raises(
        PathctlError, match=r"versions 9 to 10.* nothing was changed: bring both hosts to one"
    ) as caught:
        one.call("peer.join", token=other.call("peer.invite")["token"])
    assert caught.value.code == ErrorCode.REFUSED
    assert [host.call("peer.list")["peers"] for host in hosts] == [[], []]


@pytest.mark.parametrize("control", ["1-1", None])
@pytest.mark.parametrize("caller", ["alpha", "beta"])
def test_a_pair_with_a_host_that_has_become_too_new_is_refused_before_anything_changes(hosts, control, caller):
    alpha, beta = hosts
    for host in hosts:
        start(host, control)
    enrol(alpha, beta)
    beta.terminate()
    start(beta, "9-10")
    host, other = (alpha, "beta") if caller == "alpha" else (beta, "alpha")
    fields = PAIR | {"source": "v", "destination": f"{other}:v"}
    with pytest.raises(PathctlError) as caught:
        host.call("pair.create", **fields)
    ours = "version 1" if control else "versions 1 to 3"
    assert (caught.value.code, caught.value.pending) == (ErrorCode.REFUSED, [])
    assert all(words in caught.value.message for words in (ours, "versions 9 to 10", "control protocol"))
    assert (alpha.rows(), beta.rows()) == ([], [])


@pytest.mark.parametrize(("source", "destination"), [("9-10", None), (None, "9-10"), ("9-10", "1-1"), ("1-1", "9-10")])
def test_data_planes_without_a_common_version_undo_the_pair_before_data_moves(hosts, source, destination):
    alpha, beta = hosts
    start(alpha, data=source)
    start(beta, data=destination)
    enrol(alpha, beta)
    with pytest.raises(PathctlError, match="of the data protocol") as caught:
        alpha.call("pair.create", **PAIR)
    assert (caught.value.code, "both hosts are as before" in caught.value.message) == (ErrorCode.REFUSED, True)
    names = {"9-10": "versions 9 to 10", "1-1": "version 1", None: "versions 1 to 2"}
    assert f"the source speaks {names[source]} of" in caught.value.message
    assert f"the destination {names[destination]};" in caught.value.message
    assert (alpha.rows(), beta.rows()) == ([], [])


@pytest.mark.parametrize("caller", ["alpha", "beta"])
def test_what_the_first_version_does_not_know_is_refused_with_its_number(hosts, caller):
    alpha, beta = hosts
    start(alpha, "1-1" if caller == "beta" else None)
    start(beta, "1-1" if caller == "alpha" else None)
    enrol(alpha, beta)
    host = alpha if caller == "alpha" else beta
    fields = PAIR if caller == "alpha" else PAIR | {"source": "alpha:va", "destination": "vb"}
    with pytest.raises(PathctlError, match="speaks version 1 of the control protocol, which has no") as caught:
        host.call("pair.create", **fields, dry_run=True)
    assert caught.value.code == ErrorCode.REFUSED
    assert (alpha.rows(), beta.rows()) == ([], [])


@pytest.mark.parametrize("old", ["alpha", "beta"])
def test_a_host_of_the_second_version_works_with_one_that_knows_policies_and_split_pairs(hosts, old):
    alpha, beta = hosts
    for host in hosts:
        start(host, "1-2" if host.name == old else None)
    enrol(alpha, beta)
    alpha.call("pair.create", **PAIR)
    wait_state(beta, "Synchronized")
    if old == "alpha":
        for verb, fields in (("pair.set", {"on_path_loss": "stop"}), ("pair.resolve", {"discard": "source"})):
            with pytest.raises(PathctlError, match="host alpha speaks version 2 of the control protocol, which has no"):
                beta.call(verb, pair="vb", **fields)
        beta.call("pair.set", pair="vb", copy_rate_bytes_s=1 << 20)
        return
    alpha.call("pair.set", pair="va", on_path_loss="stop")
    alpha.kill()
    beta.call("pair.delete", pair="vb", half=True)
    alpha.start()
    wait_state(alpha, "Refused")
    with pytest.raises(PathctlError, match="host beta speaks version 2 of the control protocol, which has no"):
        alpha.call("pair.resolve", pair="va", discard="destination")
    alpha.call("pair.delete", pair="va", half=True)
    alpha.call("pair.create", **PAIR)
    wait_state(beta, "Synchronized")


def test_a_split_pair_is_refused_to_a_host_that_does_not_know_the_word(hosts, tmp_path):
    alpha, beta = hosts
    start(alpha)
    start(beta, "1-2")
    enrol(alpha, beta)
    alpha.call("pair.create", **PAIR)
    wait_state(alpha, "Synchronized")
    older = splits.Older(alpha, "va", tmp_path)
    alpha.call("pair.suspend", pair="va")
    splits.write(alpha, "va", 1, b"A")
    alpha.call("pair.resume", pair="va")
    wait_state(alpha, "Synchronized")
    older.put_back()
    wait_state(alpha, "Refused")
    splits.write(alpha, "va", 2, b"B")
    alpha.call("pair.resume", pair="va")
    wait_state(alpha, "Split")
    wait_state(beta, "Refused")


def test_metadata_of_a_newer_format_is_refused_with_both_numbers(hosts):
    alpha, _ = hosts
    alpha.start()
    alpha.call("volume.create", name="va", size=SIZE)
    meta = alpha.image("va").with_suffix(".meta")
    age_by_one(meta)
    with pytest.raises(PathctlError, match=r"format 3.* reads formats 1 to 2; start the pathctl that wrote it"):
        alpha.call("attach", volume="va")
    assert "format 3" in alpha.volume("va")["failed"]
    assert not alpha.volume("va")["attached"]


def age_by_one(meta: Path) -> None:
    """Both copies of the header say the next format, and are sealed as that would."""
    from nbdplugin import layout

    raw = bytearray(meta.read_bytes())
    for copy in (0, 1):
        start_at = layout.get_header_offset(copy)
        page = raw[start_at : start_at + layout.HEADER_SIZE]
        page[8:10] = (layout.VERSION + 1).to_bytes(2, "little")
        page[48:64] = layout._seal(bytes(page[:48]), bytes(page[64:]))
        raw[start_at : start_at + layout.HEADER_SIZE] = page
    meta.write_bytes(raw)


def test_a_database_of_a_newer_schema_is_refused(hosts):
    alpha, _ = hosts
    alpha.start()
    alpha.terminate()
    with sqlite3.connect(alpha.root / "var/lib/pathctl/pathctl.db") as table:
        table.execute("PRAGMA user_version = 99")
    found = subprocess.run(
        [Path(alpha.process.args[0]), "--root", alpha.root], capture_output=True, text=True, timeout=WAIT_S
    )
    table.execute("PRAGMA user_version = 3")
    table.close()
    assert (found.returncode != 0, "schema 99" in found.stderr) == (True, True), found.stderr


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
WRONG_CLOCKS = {"@2019-05-01 10:00:00": "behind", "@2125-01-01 10:00:00": "ahead of"}


@pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed; run scripts/setup")
@pytest.mark.parametrize("clock", WRONG_CLOCKS)
def test_a_clock_that_is_off_by_years_is_told_and_keeps_nobody_from_working(hosts, clock):
    """The certificates are made as valid from 2020 to 2119."""
    alpha, beta = hosts
    for host in hosts:
        start(host)
    enrol(alpha, beta)
    beta.terminate()
    beta.environment = {"LD_PRELOAD": str(FAKETIME), "FAKETIME": clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    beta.start()
    (peer,) = alpha.call("peer.list")["peers"]
    assert (peer["reachable"], f" {WRONG_CLOCKS[clock]} this host's" in peer["note"]) == (True, True)
    beta.call("pair.create", **PAIR | {"source": "vb", "destination": "alpha:va"})
    alpha.call("pair.create", **PAIR | {"source": "wa", "destination": "beta:wb"})
    wait_state(alpha, "Synchronized", "Synchronized")
