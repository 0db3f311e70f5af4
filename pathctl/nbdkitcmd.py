"""nbdkitcmd - from rows to the command line and environment of one nbdkit.  Pure: looks nothing up, starts nothing."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec

from pathctl import config, db, settings

# Requests of one connection that can be in work.  For the host three numbers belong together:
#     fusefile.MAX_BACKGROUND (256)  <=  data.max_waiters (256, settings.py)  <  threads (288)
# All that the kernel sends at once may wait for the peer without one being turned away, and requests which need nobody
# are still received then.  The peer's connections carry one or few requests each.
THREADS = {"host": settings.HOST_THREADS, "peer": 1}

# What a running data plane can be told too: those of settings.data that are limits of its waits.
LIMITS = ("fetch_timeout_s", "link_timeout_s", "flush_timeout_s", "command_timeout_s")

LISTEN_FD = 3  # where nbdkit looks for the socket (sd_listen_fds(3))

PASSED = ("PYTHONPATH", "HOME", "LANG", "TZ", "TMPDIR", "PATHCTL_DATA_PROTOCOL")  # the last is for tests

# LISTEN_PID must be nbdkit's own process id: exec keeps the shell's.
LAUNCHER = ("/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh")


class Plane(msgspec.Struct, frozen=True):
    """Everything that makes one volume's process what it is; when it differs, the process is another one."""

    volume: str
    uuid: str
    role: Literal["host", "peer"]
    backing: str
    managed: bool
    meta: str
    control: str
    log: str
    unix: str | None = None  # role host: the path of the listening socket
    address: str | None = None  # role peer
    port: int | None = None
    psk_file: str | None = None


def plane(cfg: config.Config, host: db.Host | None, volume: db.Volume, row: db.Connection | None) -> Plane | None:
    """What should run for a volume: None when it is neither attached nor paired."""
    common = Plane(
        volume=volume.name,
        uuid=volume.uuid,
        role="host",
        backing=volume.backing,
        managed=volume.managed,
        meta=str(cfg.meta(volume.name)),
        control=str(cfg.control_socket(volume.name)),
        log=str(cfg.log(volume.name)),
        unix=str(cfg.nbd_socket(volume.name)),
    )
    if row is not None and row.side == "destination":
        assert host is not None, "a connection exists only on a host with a name"
        return msgspec.structs.replace(
            common, role="peer", unix=None, address=host.address, port=row.port, psk_file=str(cfg.psk(row.pair))
        )
    return common if volume.attached or row is not None else None


def argv(wanted: Plane, nbdkit: str, plugin: str, lane: str | None, found: settings.Settings) -> list[str]:
    """The whole command, launcher included.  `lane`: the compiled lane, where this nbdkit takes it as a filter."""
    tls = [f"--tls-psk={wanted.psk_file}", "--tls=require"] if wanted.psk_file else []
    parameters = [f"{name}={getattr(found.data, name)}" for name in (*LIMITS, "max_waiters")]
    parameters += [f"log_level={found.log.level}", f"log_lines_per_minute={found.log.lines_per_minute}"]
    return [
        *LAUNCHER,
        nbdkit,
        "--foreground",
        "-t",
        str(THREADS[wanted.role]),
        *tls,
        *([f"--filter={lane}"] if lane else []),
        "python",
        plugin,
        f"role={wanted.role}",
        f"volume={wanted.volume}",
        f"uuid={wanted.uuid}",
        f"meta={wanted.meta}",
        f"backing={wanted.backing}",
        f"control={wanted.control}",
        *parameters,
    ]


def environment(own: Mapping[str, str], priority: Path) -> dict[str, str]:
    """The interpreter's own folder goes first on PATH: nbdkit's Python is the first python3 there."""
    bin_folder = str(Path(sys.executable).parent)
    passed = {
        name: own[name]
        for name in ("PYTHONPATH", "HOME", "LANG", "TZ", "TMPDIR", "PATHCTL_DATA_PROTOCOL")
        if name in own
    }
    return {
        **passed,
        "PATH": f"{bin_folder}:{own.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}",
        "LISTEN_FDS": "1",
        "MALLOC_MMAP_THRESHOLD_": "131072",  # fixed: a request's large buffer goes back to the kernel when freed
        "MALLOC_ARENA_MAX": "2",  # an arena for each of so many threads costs megabytes in a process that rests
        "GNUTLS_SYSTEM_PRIORITY_FILE": str(priority),
    }
