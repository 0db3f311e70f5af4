"""The lab itself: it comes up, is cut and healed, and leaves nothing, whatever happened before."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lablib
import psutil
import pytest
from waiting import WAIT_S, wait_until

LOST_S = 1.0  # for an answer that does not come
LISTEN = "import socket; s = socket.create_server(('', 9)); print(flush=True); s.accept()"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], 9), timeout=float(sys.argv[2]))"


@pytest.fixture
def lab() -> Iterator[lablib.Lab]:
    lab = lablib.Lab(f"t{os.getpid()}")
    lab.up()
    yield lab
    lab.down()


def run_lab(lab: lablib.Lab, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [lablib.REPO / "scripts/lab", *words],
        env=os.environ | {"PATHCTL_LAB": lab.name},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
        cwd="/",
    )


def test_both_hosts_know_each_other_after_up(lab: lablib.Lab) -> None:
    for host, other in (("alpha", "beta"), ("beta", "alpha")):
        peers = lab.host(host).pathctl("peer", "list")["peers"]
        assert [(peer["name"], peer["reachable"]) for peer in peers] == [(other, True)]


def test_up_again_leaves_the_running_daemons_alone(lab: lablib.Lab) -> None:
    before = [host.pids() for host in lab.hosts.values()]
    lab.up()
    assert [host.pids() for host in lab.hosts.values()] == before


def can_connect(lab: lablib.Lab, source: str, target: str, limit_s: float = WAIT_S) -> bool:
    with lab.host(target).popen(sys.executable, "-c", LISTEN, stdout=subprocess.PIPE) as listener:
        assert listener.stdout is not None
        listener.stdout.readline()
        tried = lab.host(source).run(sys.executable, "-c", CONNECT, lab.host(target).address, str(limit_s), check=False)
        listener.kill()
    return tried.returncode == 0


def test_a_cut_drops_everything_both_ways_until_it_is_healed(lab: lablib.Lab) -> None:
    assert can_connect(lab, "alpha", "beta")
    for _ in range(2):  # both may be repeated
        lab.cut()
        assert not can_connect(lab, "alpha", "beta", LOST_S)
        assert not can_connect(lab, "beta", "alpha", LOST_S)
    for _ in range(2):
        lab.heal()
        assert can_connect(lab, "alpha", "beta")
        assert can_connect(lab, "beta", "alpha")


def test_pathctld_can_be_stopped_killed_and_started(lab: lablib.Lab) -> None:
    beta = lab.host("beta")
    for end in (beta.stop, beta.kill):
        end()
        assert beta.pids() == []
        beta.start()
        assert len(beta.pids()) == 1


def test_exec_runs_a_command_on_that_host_and_passes_its_exit_code_on(lab: lablib.Lab) -> None:
    shown = run_lab(lab, "exec", "beta", "--", "pathctl", "--json")
    assert shown.returncode == 2
    shown = run_lab(lab, "exec", "beta", "--", "sh", "-c", "pathctl status --json; ip -br address; exit 7")
    assert shown.returncode == 7
    assert '"name": "beta"' in shown.stdout
    assert "10.77.0.2/24" in shown.stdout


def test_a_wrong_call_is_one_sentence(lab: lablib.Lab) -> None:
    shown = run_lab(lab, "exec", "gamma", "--", "true")
    assert shown.returncode == 1
    assert shown.stderr == "lab: this lab has no host 'gamma'; it has alpha and beta\n"


def use(lab: lablib.Lab) -> Path:
    """A pair, a device, a mounted file system with a process in it."""
    alpha, beta = lab.hosts.values()
    beta.pathctl("volume", "create", "w", "--size", "64M")
    device = alpha.pathctl("pair", "create", "v", "beta:w", "--invalidate", "source", "--create", "--attach")["device"]
    place = lab.folder / "mnt"
    place.mkdir()
    alpha.run("mkfs.ext4", "-q", device)
    alpha.run("mount", device, place)
    alpha.run("setsid", "--fork", "sh", "-c", f"cd {place} && exec sleep 600 >/dev/null 2>&1 </dev/null")
    return place


def test_down_leaves_nothing_of_a_lab_in_full_use(lab: lablib.Lab) -> None:
    use(lab)
    assert {line.split()[0] for line in lab.litter()} == {"process", "loop", "mount", "namespace", "folder"}
    lab.down()
    assert lab.litter() == []
    assert run_lab(lab, "down").returncode == 0


def test_up_and_down_work_after_everything_was_killed(lab: lablib.Lab) -> None:
    place = use(lab)
    for process in list(lab._processes()):
        os.kill(process.pid, signal.SIGKILL)
    lablib._run("umount", "--lazy", str(place))
    shown = run_lab(lab, "up")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert lab.host("alpha").pathctl("pair", "wait", "v", "--timeout", "60")["pair"]["state"] == "Synchronized"
    for process in list(lab._processes()):
        os.kill(process.pid, signal.SIGKILL)
    lab.down()
    assert lab.litter() == []


def test_labs_of_different_names_do_not_meet(lab: lablib.Lab) -> None:
    other = lablib.Lab(f"u{os.getpid()}")
    try:
        other.up()
        assert not set(other.host("alpha").pids()) & set(lab.host("alpha").pids())
    finally:
        other.down()
    assert lab.host("alpha").answers()


LISTEN_ON = "import socket; s = socket.create_server(('', 9)); print(flush=True); c, _ = s.accept(); print(c.recv(9))"
TALK = (
    "import socket, sys; s = socket.create_connection((sys.argv[1], 9), timeout=60); print(flush=True); input(); "
    "s.send(b'late'); print(s.recv(9))"
)


@contextlib.contextmanager
def connected(lab: lablib.Lab) -> Iterator[tuple["subprocess.Popen[str]", "subprocess.Popen[str]"]]:
    """A client on alpha, a server on beta; the client sends when it is told to."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with lab.host("beta").popen(sys.executable, "-c", LISTEN_ON, **pipes) as server:
        assert server.stdout is not None
        server.stdout.readline()
        with lab.host("alpha").popen(sys.executable, "-c", TALK, lab.host("beta").address, **pipes) as client:
            assert client.stdout is not None
            client.stdout.readline()
            yield client, server
            for process in (client, server):
                process.kill()


def test_what_one_host_sends_can_be_cut_off_alone(lab: lablib.Lab) -> None:
    with connected(lab) as (client, server):
        lab.cut("beta")
        client.stdin.write("\n")
        client.stdin.flush()
        assert server.stdout.readline() == "b'late'\n"  # alpha is heard, its answer is not
        assert not can_connect(lab, "alpha", "beta", LOST_S)
    lab.cut("alpha")
    assert lab.is_cut()
    lab.heal()
    assert not lab.is_cut()
    assert can_connect(lab, "alpha", "beta")


def test_a_reset_ends_connections_at_both_ends_until_it_is_healed(lab: lablib.Lab) -> None:
    with connected(lab) as (client, _server):
        lab.reset()
        assert lab.is_cut()
        assert "reset" in client.communicate("\n", timeout=WAIT_S)[0]
    assert not can_connect(lab, "alpha", "beta")
    lab.heal()
    assert can_connect(lab, "alpha", "beta")


def test_a_slow_network_lets_through_what_it_is_told(lab: lablib.Lab) -> None:
    lab.slow_down("1mbit")
    shown = lab.host("alpha").run("sh", "-c", f"nsenter --net=/run/netns/{lab.net} tc qdisc show").stdout
    assert shown.count("tbf") == 2
    assert can_connect(lab, "alpha", "beta")
    lab.heal()
    assert not lab.is_cut()


def test_processes_are_found_frozen_and_woken_by_their_names(lab: lablib.Lab) -> None:
    place = use(lab)
    alpha = lab.host("alpha")
    for what in ("pathctld", "nbdkit:v", "device:v"):
        (pid,) = alpha.find(what)
        assert run_lab(lab, "freeze", "alpha", what).returncode == 0
        process = psutil.Process(pid)
        wait_until(lambda process=process: process.status() == "stopped", f"{what} is frozen")  # type: ignore[misc]
        assert run_lab(lab, "thaw", "alpha", what).returncode == 0
        wait_until(lambda process=process: process.status() != "stopped", f"{what} is woken")  # type: ignore[misc]
    assert (place / "lost+found").is_dir()
    shown = run_lab(lab, "freeze", "alpha", "nbdkit:other")
    assert shown.stderr == "lab: alpha has no nbdkit:other that runs\n"
