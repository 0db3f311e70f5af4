"""pki - who this host is and whom it believes.

Owns the host's key and self-signed certificate, the invitation tokens, the TLS contexts of the control traffic, the
pre-shared key of each pair's data path, and the GnuTLS priority file.  A peer is its *certificate*: that one
certificate is the only trust anchor when we call it, and what it shows is compared again in each request it makes.
Secrets are written to files of mode 0600 and never logged.
"""

import base64
import binascii
import contextlib
import datetime
import hashlib
import os
import secrets
import ssl
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pathctl import config, errors

VALID_FROM = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)  # not looked at: see NO_CHECK_TIME
VALID_DAYS = 36500

# openssl/x509_vfy.h: X509_V_FLAG_NO_CHECK_TIME.  A pinned certificate is good as long as it is pinned; with a clock
# that is years behind, hosts would else refuse each other, and one of them could not even say why.
NO_CHECK_TIME = ssl.VerifyFlags(0x200000)
SECRET_BYTES = 32

# With a PSK GnuTLS settles on ChaCha20, ten times slower than AES on machines with AES instructions.
PRIORITY = "[overrides]\ntls-disabled-cipher = chacha20-poly1305\n"


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `peer invite` hands over: where the host is, what certificate it will show, and the secret to say there."""

    name: str
    address: str
    port: int
    fingerprint: str
    secret: str


def write_secret(path: Path, content: bytes) -> None:
    """Durable, complete or absent, and readable by this user only."""
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise errors.not_written(path, error) from error


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def ensure_identity(cfg: config.Config, name: str) -> None:
    """The key first: a crash in between leaves a key without a certificate, which is made from it."""
    if not cfg.host_key.exists():
        fresh = ec.generate_private_key(ec.SECP256R1())
        pem = fresh.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_secret(cfg.host_key, pem)
    if not cfg.host_certificate.exists():
        key = serialization.load_pem_private_key(cfg.host_key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        write_secret(cfg.host_certificate, _certify(key, name))
    ensure_priority(cfg)


def _certify(key: ec.EllipticCurvePrivateKey, name: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(VALID_FROM)
        .not_valid_after(VALID_FROM + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def ensure_priority(cfg: config.Config) -> None:
    if not cfg.priority.exists() or cfg.priority.read_text() != PRIORITY:
        write_secret(cfg.priority, PRIORITY.encode())


def fingerprint(certificate_pem: str) -> str:
    """SHA-256 over the certificate's DER form, hex."""
    try:
        return x509.load_pem_x509_certificate(certificate_pem.encode()).fingerprint(hashes.SHA256()).hex()
    except ValueError as error:
        raise errors.usage("the other host's certificate cannot be read; join again") from error


def make_token(host_name: str, address: str, port: int, certificate_pem: str) -> tuple[str, str]:
    """-> the token to hand over, and the digest to remember."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    token = Token(host_name, address, port, fingerprint(certificate_pem), secret)
    return base64.urlsafe_b64encode(msgspec.json.encode(token)).decode().rstrip("="), digest(secret)


def read_token(text: str) -> Token:
    try:
        raw = base64.urlsafe_b64decode(text.strip() + "=" * (-len(text.strip()) % 4))
        token = msgspec.json.decode(raw, type=Token)
    except (ValueError, binascii.Error, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise errors.usage("this is no token of `pathctl peer invite`; copy it whole, or make a new one") from error
    config.check_name(token.name, "host")
    config.check_address(token.address)
    config.check_port(token.port)
    return token


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def server_context(cfg: config.Config, certificates: list[str]) -> ssl.SSLContext:
    """For our listener.  CERT_OPTIONAL lets a joining host in without one; the API then allows it `join` only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(cfg.host_certificate, cfg.host_key)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= NO_CHECK_TIME
    for certificate in certificates:
        trust(context, certificate)
    return context


def trust(context: ssl.SSLContext, certificate_pem: str) -> None:
    """Take a peer's certificate as a trust anchor; works on a live context."""
    try:
        context.load_verify_locations(cadata=certificate_pem)
    except ssl.SSLError as error:
        raise errors.usage("the other host's certificate cannot be read; join again") from error


def client_context(cfg: config.Config, certificate_pem: str) -> ssl.SSLContext:
    """For calls to one peer: its certificate is the only one believed, so its address need not be in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= NO_CHECK_TIME
    context.load_cert_chain(cfg.host_certificate, cfg.host_key)
    trust(context, certificate_pem)
    return context


def new_psk() -> str:
    return secrets.token_hex(32)


def write_psk(cfg: config.Config, pair: str, key_hex: str) -> None:
    """One line `PAIR:KEY`, as GnuTLS reads it; nbdkit looks at each handshake."""
    if len(key_hex) != 64 or not all(c in "0123456789abcdef" for c in key_hex):
        raise errors.usage("the pair's key must be 64 hex digits")
    write_secret(cfg.psk(pair), f"{pair}:{key_hex}\n".encode())


def read_psk(cfg: config.Config, pair: str) -> str | None:
    try:
        return cfg.psk(pair).read_text().strip().rpartition(":")[2]
    except FileNotFoundError:
        return None


def remove_psk(cfg: config.Config, pair: str) -> None:
    cfg.psk(pair).unlink(missing_ok=True)
