"""A host goes to another address while its path is in use: all of it follows, or nothing is changed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import threading

import pytest
from live.daemons import BIN, Daemon
from waiting import WAIT_S, wait_until

from pathctl import config, pki
from pathctl.errors import ErrorCode, PathctlError

SIZE = 16 << 20
NEW = "127.0.0.2"


def create(alpha, beta, **fields):
    alpha.call("volume.create", name="va", size=SIZE)
    beta.call("volume.create", name="vb", size=SIZE)
    alpha.image("va").write_bytes(os.urandom(SIZE))
    return alpha.call("pair.create", source="va", destination="beta:vb", invalidate="destination", **fields)


def wait_state(host, wanted):
    wait_until(lambda: [pair["state"] for pair in host.call("pair.list")["pairs"]] == [wanted], f"it is {wanted}")


def refused(host, verb, **fields):
    with pytest.raises(PathctlError) as caught:
        host.call(verb, **fields)
    return caught.value


def address(host, of):
    found = host.call("host.show")["host"] if host is of else host.call("peer.list")["peers"][0]
    return found["address"], found["port"]


def listens(ip, port):
    with contextlib.suppress(OSError):
        socket.create_connection((ip, port), WAIT_S).close()
        return True
    return False


class Fio:
    """Random writes with a check of all that was written, on a device, until it is told to end."""

    def __init__(self, device):
        command = ["fio", "--name=job", f"--filename={device}", "--rw=randrw", "--bs=4k", "--iodepth=8", "--size=16m"]
        command += ["--ioengine=libaio", "--direct=1", "--verify=crc32c", "--verify_backlog=64", "--time_based"]
        command += ["--runtime=600", "--output-format=json", "--verify_state_save=0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def end(self):
        assert self.process.poll() is None, self.process.communicate()
        self.process.terminate()
        out, err = self.process.communicate(timeout=WAIT_S)
        job = json.loads(out[out.index("{") :])["jobs"][0]
        assert job["error"] == 0, err
        return job["write"]["total_ios"]


@pytest.mark.parametrize("mover", ["alpha", "beta"])
def test_a_host_moves_while_its_path_is_written_to_and_all_of_it_follows(hosts, mover):
    alpha, beta = hosts
    device = create(alpha, beta, attach=True)["device"]
    wait_state(alpha, "Synchronized")
    host, other = (alpha, beta) if mover == "alpha" else (beta, alpha)
    (row,) = beta.call("connection.list")["connections"]
    written = alpha.volume("va")["counters"]["write_bytes"]
    job = Fio(device)
    wait_until(lambda: alpha.volume("va")["counters"]["write_bytes"] > written, "fio writes")
    for ip in (NEW, "127.0.0.1", NEW):
        found = host.call("host.set", address=ip, port=host.port)["host"]
        assert (found["address"], address(host, host), address(other, host)) == (ip, (ip, host.port), (ip, host.port))
        wait_state(alpha, "Synchronized")
        wait_state(beta, "Synchronized")
        old = "127.0.0.1" if ip == NEW else NEW
        assert (listens(ip, host.port), listens(old, host.port)) == (True, False)
        if host is beta:
            assert (listens(ip, row["port"]), listens(old, row["port"])) == (True, False)
    assert job.end() > 0
    for one, kind in ((host, "host.changed"), (other, "peer.changed")):
        kinds = [event["kind"] for event in one.call("events.list")["events"]]
        assert kinds.count(kind) == 3
    assert host.call("host.set", address=NEW, port=host.port)["host"]["address"] == NEW  # repeated safely
    for one in hosts:
        one.terminate()
        one.start()
        wait_state(alpha, "Synchronized")
    alpha.call("detach", volume="va")
    beta.call("pair.delete", pair="vb")
    assert alpha.image("va").read_bytes() == beta.image("vb").read_bytes()


def test_a_host_moves_to_another_port_only(hosts):
    alpha, beta = hosts
    create(alpha, beta)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
        error = refused(beta, "host.set", address="127.0.0.1", port=port)
        assert (error.code, "Address already in use" in error.message) == (ErrorCode.REFUSED, True)
    assert address(beta, beta) == ("127.0.0.1", beta.port)
    beta.call("host.set", address="127.0.0.1", port=port)
    assert (address(alpha, beta), listens("127.0.0.1", beta.port)) == (("127.0.0.1", port), False)
    alpha.call("pair.suspend", pair="va")
    beta.call("pair.resume", pair="vb")
    wait_state(alpha, "Synchronized")


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"address": "192.0.2.1"}, ErrorCode.REFUSED, "Cannot assign requested address; nothing was changed"),
        ({"address": "0.0.0.0"}, ErrorCode.USAGE, "no address of one host"),
        ({"address": "beta.example"}, ErrorCode.USAGE, "no IP address"),
        ({"address": NEW, "port": "of data"}, ErrorCode.USAGE, "data"),
    ],
)
def test_an_address_that_cannot_be_listened_on_is_refused_and_nothing_is_changed(hosts, fields, code, words):
    alpha, beta = hosts
    create(alpha, beta)
    if "port" in fields:
        fields, words = fields | {"port": beta.data_port}, str(beta.data_port)
    error = refused(beta, "host.set", **fields)
    assert (error.code, words in error.message) == (code, True), error.message
    assert (address(beta, beta), address(alpha, beta)) == (("127.0.0.1", beta.port),) * 2
    wait_state(alpha, "Synchronized")


def test_a_data_port_that_is_taken_at_the_new_address_is_refused(hosts):
    alpha, beta = hosts
    create(alpha, beta)
    (row,) = beta.call("connection.list")["connections"]
    with socket.create_server((NEW, row["port"])):
        error = refused(beta, "host.set", address=NEW)
    assert (error.code, f"for pair {row['pair']}" in error.message) == (ErrorCode.REFUSED, True)
    wait_state(alpha, "Synchronized")


def test_a_peer_that_was_away_when_the_host_moved_is_told_by_hand(hosts):
    alpha, beta = hosts
    create(alpha, beta)
    wait_state(alpha, "Synchronized")
    alpha.kill()
    error = refused(beta, "host.set", address=NEW)
    command = f"pathctl peer set beta --address {NEW}:{beta.port}"
    assert (error.code, command in error.message) == (ErrorCode.UNREACHABLE, True), error.message
    assert address(beta, beta) == (NEW, beta.port)
    alpha.start()
    wait_state(alpha, "Partitioned")
    alpha.call("peer.set", name="beta", address=NEW)
    wait_state(alpha, "Synchronized")
    wait_state(beta, "Synchronized")


def test_an_address_where_nobody_answers_is_recorded_only_with_force(hosts):
    alpha, beta = hosts
    create(alpha, beta)
    error = refused(alpha, "peer.set", name="beta", address="127.0.0.9")
    assert (error.code, "nothing was changed" in error.message) == (ErrorCode.UNREACHABLE, True)
    assert "--force" in error.message
    assert address(alpha, beta) == ("127.0.0.1", beta.port)
    alpha.call("peer.set", name="beta", address=NEW, force=True)  # it is about to move there
    beta.call("host.set", address=NEW)
    wait_state(alpha, "Synchronized")
    assert refused(alpha, "peer.set", name="gamma", address=NEW).code == ErrorCode.NOT_FOUND


@pytest.mark.parametrize("force", [False, True])
def test_another_host_at_the_address_is_refused_whatever_is_forced(hosts, tmp_path, force):
    alpha, beta = hosts
    create(alpha, beta)
    gamma = Daemon(tmp_path, "gamma").start()
    try:
        gamma.call("host.init", name="beta", address=NEW, port=gamma.port)  # it even has the name
        error = refused(alpha, "peer.set", name="beta", address=NEW, port=gamma.port, force=force)
        assert "another certificate" in error.message
        assert "--force" not in error.message
        assert address(alpha, beta) == ("127.0.0.1", beta.port)
        wait_state(alpha, "Synchronized")
    finally:
        gamma.stop_all()


def test_nobody_but_the_peer_itself_moves_it(hosts, tmp_path):
    """peer.moved moves the caller, whom its certificate names, and nobody else."""
    import http.client

    alpha, beta = hosts
    cfg = config.load(beta.root)
    context = pki.client_context(cfg, config.load(alpha.root).host_certificate.read_text())
    connection = http.client.HTTPSConnection("127.0.0.1", alpha.port, timeout=WAIT_S, context=context)
    body = json.dumps({"address": "127.0.0.9", "port": beta.port})
    connection.request("POST", "/v1/peer/peer.moved", body, {"Pathctl-Protocol": "1-2"})
    answer = connection.getresponse()
    assert (answer.status, b"cannot be reached" in answer.read()) == (502, True)
    connection.close()
    assert address(alpha, beta) == ("127.0.0.1", beta.port)


def test_a_create_that_is_under_way_outlives_the_move_of_its_peer(hosts):
    alpha, beta = hosts
    alpha.call("volume.create", name="va", size=SIZE)
    beta.call("volume.create", name="vb", size=SIZE)
    pause = alpha.fault("pause", "create.committed")
    found = []

    def run():
        found.append(alpha.call("pair.create", source="va", destination="beta:vb", invalidate="destination"))

    runner = threading.Thread(target=run)
    runner.start()
    alpha.wait_reached("create.committed")
    beta.call("host.set", address=NEW)
    pause.unlink()
    runner.join(WAIT_S)
    wait_state(alpha, "Synchronized")
    wait_state(beta, "Synchronized")


STRANGERS = [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\x16\x03\x03junk" * 20]


@pytest.mark.parametrize("answer", STRANGERS, ids=["http", "ssh", "garbage"])
def test_what_answers_at_a_peers_address_and_is_no_pathctld_is_told_as_such(hosts, answer):
    alpha, _ = hosts
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve():
            with contextlib.suppress(OSError):
                while True:
                    client, _ = server.accept()
                    with client:
                        client.recv(4096)
                        client.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        for force in (False, True):
            with pytest.raises(PathctlError) as caught:
                alpha.call("peer.set", name="beta", address="127.0.0.1", port=port, force=force)
            message = caught.value.message
            assert f"something else than pathctld answers at 127.0.0.1:{port}, where host beta should be" in message
            assert message.count("check the address") == 1
        server.shutdown(socket.SHUT_RDWR)


def test_ending_all_right_after_a_stop_waits_for_it(hosts):
    alpha, _ = hosts
    assert alpha.process is not None
    alpha.process.send_signal(signal.SIGTERM)
    ending = subprocess.Popen([BIN / "pathctld", "--root", alpha.root, "--stop-all"], stderr=subprocess.PIPE, text=True)
    _, said = ending.communicate(timeout=WAIT_S)
    assert (ending.returncode, "Traceback" in said) == (0, False), said
    alpha.process.wait(WAIT_S)
    assert not list((alpha.root / "run/pathctl").glob("*.ctl"))
    alpha.start()
