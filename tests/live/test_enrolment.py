"""Two real pathctld getting to know each other over TLS, and whom they turn away."""

import http.client
import json
import socket
import ssl

import pytest
from live.daemons import Daemon, enrol
from waiting import WAIT_S

from pathctl import config, pki
from pathctl.errors import ErrorCode, PathctlError


@pytest.fixture
def hosts(tmp_path):
    alpha, beta = Daemon(tmp_path, "alpha").start(), Daemon(tmp_path, "beta").start()
    yield alpha, beta
    alpha.stop_all()
    beta.stop_all()


def init(*hosts):
    for host in hosts:
        host.call("host.init", name=host.name, address="127.0.0.1", port=host.port)


def post(host, verb, body, context):
    """One request to a host's TLS port -> status and answer."""
    connection = http.client.HTTPSConnection("127.0.0.1", host.port, timeout=WAIT_S, context=context)
    try:
        connection.request("POST", f"/v1/peer/{verb}", json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def stranger_context():
    """A client without a certificate that believes anything."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_nothing_listens_on_the_network_before_host_init(hosts):
    alpha, _ = hosts
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", alpha.port), 5)
    init(alpha)
    socket.create_connection(("127.0.0.1", alpha.port), 5).close()


def test_joining_enrols_both_ways_and_survives_a_restart(hosts):
    alpha, beta = hosts
    enrol(alpha, beta)
    for _ in range(2):
        for host, other in ((alpha, "beta"), (beta, "alpha")):
            (peer,) = host.call("peer.list")["peers"]
            assert (peer["name"], peer["reachable"]) == (other, True)
        for host in hosts:
            host.terminate()
            host.start()
    beta.kill()
    assert alpha.call("peer.list")["peers"][0]["reachable"] is False
    beta.start()


def test_host_init_may_be_repeated_but_not_changed(hosts):
    alpha, _ = hosts
    init(alpha, alpha)
    before = alpha.call("status")["host"]
    with pytest.raises(
        PathctlError, match=r"already alpha.* by its name, which stays.*`pathctl host set --address 127"
    ):
        alpha.call("host.init", name="gamma", address="127.0.0.1", port=alpha.port)
    with pytest.raises(PathctlError, match=f"'{'x' * 60}...' is no name"):
        alpha.call("host.init", name="x" * 300, address="127.0.0.1", port=alpha.port)
    assert alpha.call("status")["host"] == before


def test_a_token_serves_one_host_only(hosts, tmp_path):
    alpha, beta = hosts
    init(alpha, beta)
    token = alpha.call("peer.invite")["token"]
    beta.call("peer.join", token=token)
    beta.call("peer.join", token=token)  # repeated safely
    gamma = Daemon(tmp_path, "gamma").start()
    try:
        init(gamma)
        with pytest.raises(PathctlError, match="unknown, used or expired"):
            gamma.call("peer.join", token=token)
        assert gamma.call("peer.list")["peers"] == []
    finally:
        gamma.stop_all()
    assert [peer["name"] for peer in alpha.call("peer.list")["peers"]] == ["beta"]


def test_a_host_that_is_not_the_one_in_the_token_is_not_told_the_secret(hosts):
    alpha, beta = hosts
    init(alpha, beta)
    token = pki.read_token(alpha.call("peer.invite")["token"])
    certificate = config.load(beta.root).host_certificate.read_text()
    forged, _ = pki.make_token("alpha", token.address, token.port, certificate)
    with pytest.raises(PathctlError, match="another certificate"):
        beta.call("peer.join", token=forged)
    assert beta.call("peer.list")["peers"] == []


def test_who_shows_no_certificate_may_only_join(hosts):
    alpha, beta = hosts
    enrol(alpha, beta)
    for verb, body in (("ping", {}), ("volume.look", {"volume": "v"}), ("forward", {"verb": "pair.list", "body": {}})):
        status, answer = post(alpha, verb, body, stranger_context())
        assert (status, answer["error"]["code"]) == (409, ErrorCode.REFUSED)
    status, _ = post(alpha, "join", {}, stranger_context())
    assert status == 400


def test_who_shows_an_unknown_certificate_gets_no_answer(hosts, tmp_path):
    alpha, beta = hosts
    enrol(alpha, beta)
    mallory = config.load(tmp_path / "mallory")
    mallory.make_folders()
    pki.ensure_identity(mallory, "beta")
    context = pki.client_context(mallory, config.load(alpha.root).host_certificate.read_text())
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        post(alpha, "ping", {}, context)


def test_the_users_socket_is_for_its_user_only(hosts):
    alpha, _ = hosts
    assert config.load(alpha.root).api_socket.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("verb", "fields"),
    [
        ("volume.create", {}),
        ("volume.create", {"name": 1}),
        ("volume.create", {"name": "v", "size": 512, "colour": "red"}),
        ("volume.create", {"name": "V", "size": 512}),
        ("pair.create", {"source": "a", "destination": "b:c", "invalidate": "both"}),
        ("nonsense", {}),
    ],
)
def test_a_body_that_is_not_as_it_should_be_is_a_usage_error(hosts, verb, fields):
    alpha, _ = hosts
    with pytest.raises(PathctlError) as caught:
        alpha.call(verb, **fields)
    assert caught.value.code == ErrorCode.USAGE
