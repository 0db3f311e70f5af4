"""--on-path-loss: what a pair's host writes do while its path is lost, set by commands and kept through crashes."""

import asyncio
import contextlib
import os
import signal
import sqlite3
import threading

import nbd
import psutil
import pytest
from live import splits
from live.daemons import Daemon, enrol
from live.splits import wait_state, write
from waiting import WAIT_S, wait_until

from pathctl import config, controlclient
from pathctl.errors import ErrorCode, PathctlError


def plane(host):
    """What the source's process says of itself."""
    return asyncio.run(controlclient.status(config.at(host.root).control_socket("va"), WAIT_S))


def policy(host, name):
    return host.call("pair.show", pair=name)["pair"]["on_path_loss"]


class Writer:
    """One write in a thread of its own."""

    def __init__(self, host, letter):
        self.error = None
        self._thread = threading.Thread(target=self._run, args=(host, letter))
        self._thread.start()

    def _run(self, host, letter):
        try:
            write(host, "va", 2, letter)
        except nbd.Error as error:
            self.error = error

    def is_waiting(self):
        return self._thread.is_alive()

    def join(self):
        self._thread.join(WAIT_S)
        assert not self.is_waiting()
        return self.error


def events(host, *kinds):
    return [event for event in host.call("events.list")["events"] if event["kind"] in kinds]


def test_writes_wait_while_the_path_is_lost_and_go_on_with_it_or_with_another_policy(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta, on_path_loss="stop")
    wait_state(beta, "Synchronized")
    assert [policy(alpha, "va"), policy(beta, "vb")] == ["stop", "stop"]
    assert "Policy stop: host writes wait and then fail" in beta.call("pair.why", pair="vb")["why"]["safe"]
    write(alpha, "va", 2, b"1")
    beta.stop_all()
    wait_state(alpha, "Partitioned")
    first = Writer(alpha, b"2")
    wait_until(lambda: plane(alpha).waiting, "the write waits")
    (halted,) = wait_until(lambda: events(alpha, "path.halted"), "it is told")
    assert halted["message"] == "host writes to alpha:va wait for the path and fail after 10m00s (--on-path-loss stop)"
    why = alpha.call("pair.why", pair="va")["why"]
    assert "Host writes to alpha:va wait for the path and fail after 10m00s" in why["meaning"]
    assert splits.track(alpha, "va", 2) == b"1", "the copies do not part"
    beta.start()
    assert first.join() is None
    wait_state(alpha, "Synchronized")
    assert splits.track(alpha, "va", 2) == splits.track(beta, "vb", 2) == b"2"
    beta.kill()
    os.kill(_destination(beta), signal.SIGKILL)
    wait_state(alpha, "Partitioned")
    second = Writer(alpha, b"3")
    wait_until(lambda: plane(alpha).waiting, "the write waits")
    assert alpha.call("pair.set", pair="va", on_path_loss="continue")["pair"]["on_path_loss"] == "continue"
    assert second.join() is None
    assert splits.track(alpha, "va", 2) == b"3"
    assert alpha.call("pair.show", pair="va")["pair"]["owed"] == 1
    beta.start()
    wait_state(alpha, "Synchronized")


def _destination(host):
    mine = f"control={host.root}/run/pathctl/vb.ctl"
    (pid,) = [process.pid for process in psutil.process_iter(["cmdline"]) if mine in (process.info["cmdline"] or [])]
    return pid


def test_a_write_that_has_waited_long_enough_fails(tmp_path):
    alpha, beta = Daemon(tmp_path, "alpha"), Daemon(tmp_path, "beta")
    file = alpha.root / "etc/pathctl/pathctl.toml"
    file.write_text(file.read_text().replace("[data]\n", "[data]\nfetch_timeout_s = 1\n"))
    try:
        alpha.start()
        beta.start()
        enrol(alpha, beta)
        splits.make_pair(alpha, beta)
        beta.call("pair.set", pair="vb", on_path_loss="stop")  # asked at the destination's host
        changed = [(event["actor"], event["before"], event["after"]) for event in events(alpha, "connection.policy")]
        assert changed == [("uid 0 (root) at host beta", "continue", "stop")]
        before = splits.track(alpha, "va", 2)
        beta.stop_all()
        wait_state(alpha, "Partitioned")
        assert "Input/output error" in str(Writer(alpha, b"2").join())
        assert (splits.track(alpha, "va", 2), alpha.call("pair.show", pair="va")["pair"]["owed"]) == (before, 0)
        alpha.call("pair.suspend", pair="va")  # which says that the copies may part
        assert Writer(alpha, b"3").join() is None
    finally:
        alpha.stop_all()
        beta.stop_all()


def test_the_policy_is_kept_through_crashes_and_the_row_says_what_is_wanted(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta)
    assert (policy(alpha, "va"), plane(alpha).on_path_loss) == ("continue", "continue")
    alpha.call("pair.set", pair="va", on_path_loss="stop")
    assert plane(alpha).on_path_loss == "stop"
    pid = plane(alpha).pid
    alpha.kill()
    os.kill(pid, signal.SIGKILL)
    alpha.start()
    wait_until(lambda: _remembers(alpha, pid), "its metadata remembers")
    wait_state(alpha, "Synchronized")
    alpha.kill()
    with contextlib.closing(sqlite3.connect(alpha.root / "var/lib/pathctl/pathctl.db")) as table, table:
        for name, count in (("pathctl_now", 0), ("pathctl_actor", 0), ("pathctl_cause", 0), ("pathctl_keep", 0)):
            table.create_function(name, count, lambda: 9)
        table.execute("UPDATE connections SET on_path_loss = 'continue'")
    alpha.start()
    wait_until(lambda: plane(alpha).on_path_loss == "continue", "the process is brought to what its row wants")


def _remembers(host, killed):
    """Asked of the process that was started after the killed one."""
    try:
        found = plane(host)
    except PathctlError:
        return False
    return found.pid != killed and found.on_path_loss == "stop"


def test_the_same_create_again_sets_the_policy_that_it_names(hosts):
    alpha, beta = hosts
    splits.make_pair(alpha, beta, on_path_loss="stop")
    again = {"source": "va", "destination": "beta:vb", "invalidate": "destination"}
    assert alpha.call("pair.create", **again)["pair"]["on_path_loss"] == "stop", "what is not named stays"
    assert alpha.call("pair.create", **again, on_path_loss="continue")["pair"]["on_path_loss"] == "continue"
    with pytest.raises(PathctlError, match="nothing is said to be set") as caught:
        alpha.call("pair.set", pair="va")
    assert caught.value.code == ErrorCode.USAGE
    alpha.call("pair.set", pair="va", copy_rate_bytes_s=1 << 20)
    shown = alpha.call("pair.set", pair="va", on_path_loss="stop")["pair"]
    assert (shown["copy_rate_bytes_s"], shown["on_path_loss"]) == (1 << 20, "stop"), "the other stays as it was"
