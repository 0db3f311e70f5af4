"""Folders, settings and the checks of what users type."""

from pathlib import Path

import pytest

from pathctl import config, settings
from pathctl.errors import ErrorCode, PathctlError


def test_one_root_moves_everything(tmp_path, monkeypatch):
    monkeypatch.setenv("PATHCTL_ROOT", str(tmp_path / "env"))
    assert config.load().root == tmp_path / "env"
    cfg = config.load(tmp_path / "given")
    paths = [cfg.etc, cfg.database, cfg.host_key, cfg.priority, cfg.api_socket, cfg.psk("p"), cfg.image("v")]
    paths += [cfg.meta("v"), cfg.log("v"), cfg.nbd_socket("v"), cfg.control_socket("v"), cfg.device_link("v")]
    assert all(path.is_relative_to(tmp_path / "given") for path in paths)
    assert len(set(paths)) == len(paths)


def test_keys_and_state_are_closed_to_others(tmp_path):
    cfg = config.load(tmp_path)
    cfg.make_folders()
    cfg.make_folders()
    assert {path.stat().st_mode & 0o777 for path in (cfg.state, cfg.run, cfg.state / "keys")} == {0o700}


def test_the_settings_below_the_root_are_read(tmp_path):
    cfg = config.load(tmp_path)
    cfg.etc.mkdir(parents=True)
    cfg.settings_file.write_text("[timeouts]\nstart_s = 40\n[data]\nmax_waiters = 260\n")
    found = config.load(tmp_path)
    assert (found.timeouts.start_s, found.settings.data.max_waiters) == (40.0, 260)
    assert found.lines["data.max_waiters"] == 4
    cfg.settings_file.write_text("[timeouts]\nstrat_s = 90.0\n")
    with pytest.raises(PathctlError, match="strat_s"):
        config.load(tmp_path)
    assert config.at(tmp_path).settings == cfg.settings


@pytest.mark.parametrize("name", ["a", "0", "vol-1", "a.b_c", "x" * 63])
def test_good_names_are_taken(name):
    assert config.check_name(name, "volume") == name


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a/b", "a b", "a\n", "ä", "x" * 64, "\u0661", "..", "pathctld"])
def test_bad_names_are_refused(name):
    with pytest.raises(PathctlError) as caught:
        config.check_name(name, "volume")
    assert caught.value.code == ErrorCode.USAGE


@pytest.mark.parametrize("size", [0, -512, 511, 513, (1 << 60) + 512])
def test_bad_sizes_are_refused(size):
    with pytest.raises(PathctlError, match="multiple of 512"):
        config.check_size(size)


def test_sizes_up_to_the_bounds_are_taken():
    assert [config.check_size(size) for size in (512, 1 << 60)] == [512, 1 << 60]
    assert [config.check_track_size(size) for size in (4096, 65536, 4 << 20)] == [4096, 65536, 4 << 20]


@pytest.mark.parametrize("size", [0, 512, 2048, 5000, 65537, 8 << 20])
def test_bad_track_sizes_are_refused(size):
    with pytest.raises(PathctlError, match="power of two"):
        config.check_track_size(size)


@pytest.mark.parametrize("address", ["", "host", "0.0.0.0", "::", "224.0.0.1", "10.0.0.1:7630", "10.0.0.300"])
def test_what_is_no_address_of_one_host_is_refused(address):
    with pytest.raises(PathctlError):
        config.check_address(address)


def test_ports_of_the_data_path_are_not_for_control():
    ports = settings.Data(port_first=8000, port_last=8009).ports
    assert [config.check_port(port, ports) for port in (7630, 7700, 7999, 8010)] == [7630, 7700, 7999, 8010]
    for port in (0, 65536, 8000, 8009):
        with pytest.raises(PathctlError, match=f"port {port} cannot be used"):
            config.check_port(port, ports)


def test_a_volume_may_carry_its_host():
    assert config.split_volume("beta:vol") == ("beta", "vol")
    assert config.split_volume("vol") == (None, "vol")
    for text in (":vol", "beta:", "a:b:c", ""):
        with pytest.raises(PathctlError):
            config.split_volume(text)


def test_a_socket_path_that_the_kernel_cannot_hold_is_refused():
    config.check_socket_path(Path("/" + "x" * 106))
    with pytest.raises(PathctlError, match="too long"):
        config.check_socket_path(Path("/" + "x" * 107))
