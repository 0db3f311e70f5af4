"""From rows to nbdkit's command line."""

import dataclasses
import sys
from pathlib import Path

import pytest

from nbdplugin import params
from pathctl import config, db, fusefile, nbdkitcmd, settings

CFG = config.Config(Path("/r"))
HOST = db.Host("alpha", "10.0.0.1", 7630)
VOLUME = db.Volume("v1", "u1", 1 << 20, 65536, "/dev/sdx", False, "ready")
SOURCE = db.Connection("p1", "o1", "v1", "source", "beta", "v2", "source", port=7700)
DESTINATION = db.Connection("p1", "o1", "v1", "destination", "beta", "v2", "source", port=7700)
ATTACHED = db.Volume("v1", "u1", 1 << 20, 65536, "/dev/sdx", False, "ready", attached=True)


@pytest.mark.parametrize(
    ("volume", "row", "role"),
    [
        (VOLUME, None, None),
        (ATTACHED, None, "host"),
        (VOLUME, SOURCE, "host"),
        (ATTACHED, SOURCE, "host"),
        (VOLUME, DESTINATION, "peer"),
    ],
)
def test_only_attached_and_paired_volumes_have_a_process_and_each_one_role(volume, row, role):
    wanted = nbdkitcmd.plane(CFG, HOST, volume, row)
    assert (wanted.role if wanted else None) == role


def test_the_host_is_served_on_a_unix_socket_without_tls():
    wanted = nbdkitcmd.plane(CFG, HOST, VOLUME, SOURCE)
    assert wanted is not None
    assert (wanted.unix, wanted.address, wanted.port, wanted.psk_file) == ("/r/run/pathctl/v1.sock", None, None, None)
    assert not [word for word in nbdkitcmd.argv(wanted, "nbdkit", "p.py", None, settings.Settings()) if "tls" in word]


def test_the_peer_is_served_on_the_rows_port_and_only_with_tls_and_the_pairs_key():
    wanted = nbdkitcmd.plane(CFG, HOST, VOLUME, DESTINATION)
    assert wanted is not None
    assert (wanted.unix, wanted.address, wanted.port) == (None, "10.0.0.1", 7700)
    words = nbdkitcmd.argv(wanted, "nbdkit", "p.py", None, settings.Settings())
    assert "--tls=require" in words
    assert "--tls-psk=/r/var/lib/pathctl/keys/psk/p1.psk" in words


def test_the_command_names_the_volume_and_passes_the_settings_of_the_data_plane():
    wanted = nbdkitcmd.plane(CFG, HOST, VOLUME, SOURCE)
    assert wanted is not None
    found = settings.Settings(data=settings.Data(link_timeout_s=7))
    words = nbdkitcmd.argv(wanted, "/bin/nbdkit", "/p/plugin.py", None, found)
    start = words.index("/bin/nbdkit")
    assert words[start:] == [
        "/bin/nbdkit",
        "--foreground",
        "-t",
        "288",
        "python",
        "/p/plugin.py",
        "role=host",
        "volume=v1",
        "uuid=u1",
        "meta=/r/var/lib/pathctl/volumes/v1.meta",
        "backing=/dev/sdx",
        "control=/r/run/pathctl/v1.ctl",
        "fetch_timeout_s=600",
        "link_timeout_s=7",
        "flush_timeout_s=30",
        "command_timeout_s=30",
        "max_waiters=256",
        "log_level=info",
        "log_lines_per_minute=60",
    ]


def test_all_that_the_kernel_sends_at_once_may_wait_and_others_are_still_received():
    allowed = settings.table()["data.max_waiters"].key
    assert fusefile.MAX_BACKGROUND <= allowed.low <= settings.Data().max_waiters
    assert allowed.high < nbdkitcmd.THREADS["host"]


def test_the_settings_have_the_data_planes_own_defaults():
    own = {field.name: field.default for field in dataclasses.fields(params.Params)}
    for name in (*nbdkitcmd.LIMITS, "max_waiters"):
        assert getattr(settings.Data(), name) == own[name]


def test_the_environment_is_made_and_not_inherited():
    own = {"PATH": "/x", "PYTHONPATH": "/m", "SECRET": "s", "LISTEN_PID": "1"}
    found = nbdkitcmd.environment(own, Path("/prio"))
    assert found["PATH"] == f"{Path(sys.executable).parent}:/x"
    assert (found["LISTEN_FDS"], found["PYTHONPATH"]) == ("1", "/m")
    assert found["GNUTLS_SYSTEM_PRIORITY_FILE"] == "/prio"
    assert not {"SECRET", "LISTEN_PID"} & set(found)
