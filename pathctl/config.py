"""config - where everything lies, which values are allowed, how long to wait.

Owns the root setting, the folders below it, and the checks of names, sizes, addresses and ports; what stands in the
optional `etc/pathctl/pathctl.toml` is settings'.  Creates the folders; writes nothing else.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from pathctl import errors, settings
from pathctl.errors import ErrorCode, PathctlError
from pathctl.settings import Settings, Timeouts

DEFAULT_PORT = 7630
DEFAULT_TRACK_SIZE = 64 << 10
SECTOR = 512
MAX_SIZE = 1 << 60
MIN_TRACK_SIZE = 4 << 10
MAX_TRACK_SIZE = 4 << 20
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)
NAME_SAID = 60  # characters of a wrong name that are said again
MAX_SUN_PATH = 107  # sockaddr_un.sun_path, less the final zero


class Config(msgspec.Struct, frozen=True):
    """One root, and everything that follows from it."""

    root: Path
    settings: Settings = Settings()
    lines: Mapping[str, int] = {}  # of the settings file, by key; without an entry it is the default

    @property
    def timeouts(self) -> Timeouts:
        return self.settings.timeouts

    @property
    def settings_file(self) -> Path:
        return self.etc / "pathctl.toml"

    @property
    def etc(self) -> Path:
        return self.root / "etc/pathctl"

    @property
    def state(self) -> Path:
        return self.root / "var/lib/pathctl"

    @property
    def run(self) -> Path:
        return self.root / "run/pathctl"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that is ours."""
        return self.etc, self.state, self.run

    @property
    def database(self) -> Path:
        return self.state / "pathctl.db"

    @property
    def host_key(self) -> Path:
        return self.state / "keys/host.key"

    @property
    def host_certificate(self) -> Path:
        return self.state / "keys/host.crt"

    @property
    def priority(self) -> Path:
        return self.state / "keys/priority"

    @property
    def api_socket(self) -> Path:
        return self.run / "pathctld.sock"

    @property
    def pid_file(self) -> Path:
        return self.run / "pathctld.pid"

    @property
    def stop_all(self) -> str:
        """What to type to end everything below this root."""
        return "pathctld --stop-all" if self.root == Path("/") else f"pathctld --root {self.root} --stop-all"

    def psk(self, pair: str) -> Path:
        return self.state / "keys/psk" / f"{pair}.psk"

    def image(self, volume: str) -> Path:
        return self.state / "volumes" / f"{volume}.img"

    def meta(self, volume: str) -> Path:
        return self.state / "volumes" / f"{volume}.meta"

    def log(self, volume: str) -> Path:
        return self.state / "log" / f"{volume}.log"

    def device_log(self, volume: str) -> Path:
        return self.state / "log" / f"{volume}.fuse"

    def nbd_socket(self, volume: str) -> Path:
        return self.run / f"{volume}.sock"

    def control_socket(self, volume: str) -> Path:
        return self.run / f"{volume}.ctl"

    def fuse_file(self, volume: str) -> Path:
        return self.run / f"{volume}.fuse"

    def device_link(self, volume: str) -> Path:
        return self.run / "dev" / volume

    def make_folders(self) -> None:
        """Create what is missing; keys and state are readable by this user only."""
        self.etc.mkdir(parents=True, exist_ok=True)
        for folder in (self.state, self.run):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.state / "keys/psk", self.state / "volumes", self.state / "log", self.run / "dev"):
            folder.mkdir(parents=True, exist_ok=True)
        (self.state / "keys").chmod(0o700)


def load(root: str | os.PathLike[str] | None = None) -> Config:
    """The configuration below `root`, else below $PATHCTL_ROOT, else below "/"."""
    bare = at(root)
    try:
        found = settings.read(bare.settings_file)
    except PathctlError as error:
        if error.code == ErrorCode.NOT_FOUND:
            return bare
        raise
    return msgspec.structs.replace(bare, settings=found.settings, lines=found.lines)


def at(root: str | os.PathLike[str] | None = None) -> Config:
    """The folders below a root, with default settings: what its file says is not looked at."""
    return Config(Path(root or os.environ.get("PATHCTL_ROOT") or "/").absolute())


def check_name(name: str, what: str) -> str:
    if not NAME.fullmatch(name):
        said = name if len(name) <= NAME_SAID else name[:NAME_SAID] + "..."
        raise errors.usage(
            f"{said!r} is no name for a {what}: use 1 to 63 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
        )
    if name == "pathctld" and what == "volume":  # its sockets lie in the same folder
        raise errors.usage("a volume cannot be called 'pathctld'; choose another name")
    return name


def check_size(size: int) -> int:
    if not 0 < size <= MAX_SIZE or size % SECTOR:
        raise errors.usage(f"a size of {size} bytes cannot be used: it must be a multiple of 512, above 0, up to 2^60")
    return size


def check_track_size(size: int) -> int:
    if not MIN_TRACK_SIZE <= size <= MAX_TRACK_SIZE or size & (size - 1):
        raise errors.usage(f"a track size of {size} bytes cannot be used: it must be a power of two from 4K to 4M")
    return size


def check_address(address: str) -> str:
    """The address in its usual spelling; a name is refused, because sockets are bound to it and keys pinned for it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise errors.usage(f"{address!r} is no IP address; give the address that the other host reaches") from None
    if found.is_unspecified or found.is_multicast:
        raise errors.usage(f"{address} is no address of one host; give the address that the other host reaches")
    return str(found)


def check_port(port: int, data_ports: range = range(0)) -> int:
    """A control port; `data_ports` are those of the host that listens on it, where they are known."""
    if not 0 < port < 65536:
        raise errors.usage(f"port {port} cannot be used: it must be from 1 to 65535")
    if port in data_ports:
        raise errors.usage(
            f"port {port} cannot be used: {data_ports.start} to {data_ports.stop - 1} are for data "
            "(data.port_first and data.port_last in pathctl.toml); choose one outside"
        )
    return port


def check_rate(rate_bytes_s: int | None) -> int | None:
    if rate_bytes_s is not None and not 0 <= rate_bytes_s <= MAX_SIZE:
        raise errors.usage(f"a copy rate of {rate_bytes_s} bytes per second cannot be used: 0 pauses, none is no limit")
    return rate_bytes_s


def check_socket_path(path: Path) -> Path:
    if len(os.fsencode(path)) > MAX_SUN_PATH:
        raise errors.usage(f"{path} is too long for a Unix socket (107 bytes); use a shorter root or name")
    return path


def split_volume(text: str) -> tuple[str | None, str]:
    """`HOST:NAME` or `NAME` -> (host or None, volume), both checked."""
    host, colon, name = text.rpartition(":")
    return check_name(host, "host") if colon else None, check_name(name, "volume")
