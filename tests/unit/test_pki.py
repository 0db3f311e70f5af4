"""Keys, tokens and pinned certificates, with real TLS handshakes."""

import asyncio
import ssl

import pytest

from pathctl import config, pki
from pathctl.errors import PathctlError


@pytest.fixture
def hosts(tmp_path):
    found = {}
    for name in ("alpha", "beta", "mallory"):
        found[name] = config.load(tmp_path / name)
        found[name].make_folders()
        pki.ensure_identity(found[name], name)
    return found


def certificate(cfg):
    return cfg.host_certificate.read_text()


async def _greet(server_context, client_context):
    """What each end sees of the other over one connection: the server's view of the client's certificate."""
    seen = asyncio.Queue()

    async def serve(reader, writer):
        seen.put_nowait(writer.get_extra_info("ssl_object").getpeercert(True))
        writer.write(b"hello")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context)
        version = writer.get_extra_info("ssl_object").version()
        try:
            said = await asyncio.wait_for(reader.read(), 5)
        finally:
            writer.close()
        return said, await asyncio.wait_for(seen.get(), 5), version


def test_an_identity_is_made_once_and_readable_by_us_only(hosts):
    cfg = hosts["alpha"]
    before = cfg.host_key.read_bytes(), cfg.host_certificate.read_bytes()
    pki.ensure_identity(cfg, "alpha")
    assert (cfg.host_key.read_bytes(), cfg.host_certificate.read_bytes()) == before
    assert {path.stat().st_mode & 0o777 for path in (cfg.host_key, cfg.host_certificate, cfg.priority)} == {0o600}
    assert "chacha20-poly1305" in cfg.priority.read_text()


def test_a_key_without_its_certificate_gets_one(hosts):
    cfg = hosts["alpha"]
    key = cfg.host_key.read_bytes()
    cfg.host_certificate.unlink()
    pki.ensure_identity(cfg, "alpha")
    assert cfg.host_key.read_bytes() == key
    pki.server_context(cfg, [])


def test_pinned_hosts_meet_over_tls_1_3_and_the_client_is_seen(hosts):
    server = pki.server_context(hosts["alpha"], [])
    pki.trust(server, certificate(hosts["beta"]))  # added to the live context
    client = pki.client_context(hosts["beta"], certificate(hosts["alpha"]))
    said, seen, version = asyncio.run(_greet(server, client))
    assert (said, version) == (b"hello", "TLSv1.3")
    assert seen == ssl.PEM_cert_to_DER_cert(certificate(hosts["beta"]))


def test_a_server_with_another_certificate_is_not_believed(hosts):
    server = pki.server_context(hosts["mallory"], [certificate(hosts["beta"])])
    client = pki.client_context(hosts["beta"], certificate(hosts["alpha"]))
    with pytest.raises(ssl.SSLCertVerificationError):
        asyncio.run(_greet(server, client))


def test_a_client_with_an_unknown_certificate_hears_nothing(hosts):
    server = pki.server_context(hosts["alpha"], [certificate(hosts["beta"])])
    client = pki.client_context(hosts["mallory"], certificate(hosts["alpha"]))
    with pytest.raises((ssl.SSLError, ConnectionError, TimeoutError)):
        asyncio.run(_greet(server, client))


def test_a_token_carries_the_hosts_endpoint_fingerprint_and_secret(hosts):
    text, digest = pki.make_token("alpha", "10.0.0.1", 7630, certificate(hosts["alpha"]))
    token = pki.read_token(f" {text}\n")
    assert (token.name, token.address, token.port) == ("alpha", "10.0.0.1", 7630)
    assert token.fingerprint == pki.fingerprint(certificate(hosts["alpha"]))
    assert pki.digest(token.secret) == digest
    assert token.secret not in digest


@pytest.mark.parametrize("text", ["", "x", "e30", "%%%", "bm9uc2Vuc2U", "ä"])
def test_what_is_no_token_is_told_so(text):
    with pytest.raises(PathctlError, match="token"):
        pki.read_token(text)


def test_a_pairs_key_is_one_line_for_gnutls_and_ours_alone(hosts):
    cfg, pair = hosts["alpha"], "11111111-2222-3333-4444-555555555555"
    key = pki.new_psk()
    pki.write_psk(cfg, pair, key)
    assert cfg.psk(pair).read_text() == f"{pair}:{key}\n"
    assert cfg.psk(pair).stat().st_mode & 0o777 == 0o600
    assert pki.read_psk(cfg, pair) == key
    pki.remove_psk(cfg, pair)
    pki.remove_psk(cfg, pair)
    assert pki.read_psk(cfg, pair) is None


def test_a_certificate_that_cannot_be_read_is_the_other_hosts_mistake():
    for text in ("", "nonsense", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"):
        with pytest.raises(PathctlError):
            pki.fingerprint(text)
