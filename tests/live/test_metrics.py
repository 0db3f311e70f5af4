"""Metrics of two real daemons with a pair: what promtool, Prometheus' own parser and the dashboard make of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.daemons import Daemon, enrol, free_port
from prometheus_client.parser import text_string_to_metric_families
from waiting import WAIT_S, wait_until

from pathctl import client

REPO = Path(__file__).resolve().parents[2]
SIZE = 8 << 20
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Measured(Daemon):
    """A pathctld that serves its metrics on a loopback port too."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name)
        self.metrics_port = free_port()
        self.settings = self.root / "etc/pathctl/pathctl.toml"
        self.settings.write_text(f'{self.settings.read_text()}[metrics]\nlisten = "127.0.0.1:{self.metrics_port}"\n')


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Measured, Measured]]:
    alpha, beta = Measured(tmp_path, "alpha"), Measured(tmp_path, "beta")
    try:
        for daemon in (alpha, beta):
            daemon.start()
        enrol(alpha, beta)
        yield alpha, beta
    finally:
        alpha.stop_all()
        beta.stop_all()


def make_pair(alpha: Daemon, beta: Daemon, **fields: object) -> str:
    beta.call("volume.create", name="vb", size=SIZE)
    beta.image("vb").write_bytes(os.urandom(SIZE))
    wanted = {"source": "va", "destination": "beta:vb", "invalidate": "source", "create": True, **fields}
    pair: str = alpha.call("pair.create", **wanted)["pair"]["pair"]
    return pair


def scrape(daemon: Daemon) -> str:
    return client.metrics(daemon.root)


def scrape_port(daemon: Measured, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.metrics_port}{path}", timeout=WAIT_S) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        text: str = answer.read().decode()
        return text


def read(text: str) -> Series:
    return {
        (item.name, frozenset(item.labels.items())): item.value
        for family in text_string_to_metric_families(text)
        for item in family.samples
    }


def value(found: Series, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def check(text: str) -> None:
    tool = Path(sys.executable).parent / "promtool"
    ran = subprocess.run([tool, "check", "metrics"], input=text.encode(), capture_output=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b""), text


def test_a_copy_is_seen_from_both_hosts_and_promtool_and_the_dashboard_agree(hosts: tuple[Measured, Measured]) -> None:
    alpha, beta = hosts
    pair = make_pair(alpha, beta, copy_rate_bytes_s=256 << 10)  # it is under way until it is told to be quick
    at_source = {"pair": pair, "volume": "va", "side": "source"}
    at_destination = {"pair": pair, "volume": "vb", "side": "destination"}

    def is_copying() -> Series | None:
        found = read(scrape(alpha))
        return found if value(found, "pathctl_pair_copied_bytes_total", **at_source) else None

    found = wait_until(is_copying, "the copy is seen")
    assert value(found, "pathctl_pair_state", **at_source, state="SyncInProg") == 1
    assert value(found, "pathctl_pair_copy_limit_bytes_per_second", **at_source) == 256 << 10
    wait_until(
        lambda: value(read(scrape(beta)), "pathctl_pair_state", **at_destination, state="SyncInProg") == 1,
        "the destination's host tells the state too",
    )
    used = set(re.findall(r"\bpathctl_\w+", (REPO / "scripts/grafana-pathctl.json").read_text()))
    missing: set[str] = set()

    def is_all_exported() -> bool:
        nonlocal missing
        missing = used - {name for name, _ in read(scrape(alpha))}
        return not missing

    try:
        wait_until(is_all_exported, "each metric of the dashboard is exported during a copy")
    except AssertionError:
        raise AssertionError(f"not exported: {missing}") from None
    check(scrape(alpha))
    check(scrape(beta))
    alpha.call("pair.set", pair="va", copy_rate_bytes_s=None)
    wait_until(
        lambda: value(read(scrape(alpha)), "pathctl_pair_state", **at_source, state="Synchronized") == 1, "synchronized"
    )
    found = read(scrape(alpha))
    assert value(found, "pathctl_pair_left_bytes", **at_source) == 0
    assert value(found, "pathctl_pair_copied_tracks_total", **at_source) == SIZE // 65536
    assert value(found, "pathctl_process_resident_memory_bytes", program="nbdkit", volume="va")
    assert value(found, "pathctl_process_open_fds", program="pathctld", volume="")


def test_the_loopback_port_tells_the_same_and_nothing_else(hosts: tuple[Measured, Measured]) -> None:
    alpha, _ = hosts

    def names(text: str) -> set[str]:
        """Of the series: a family without one has its HELP line all the same."""
        return {name for name, _ in read(text)}

    def same() -> set[str] | None:
        before, over_port, after = names(scrape(alpha)), names(scrape_port(alpha)), names(scrape(alpha))
        return over_port if before == over_port == after else None  # beta, and its clock, are known a moment later

    assert "pathctl_build_info" in wait_until(same, "the port tells what the socket tells")
    for path in ("/", "/v1/status"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            scrape_port(alpha, path)
        assert caught.value.code == 404
        caught.value.close()


def test_a_port_that_is_taken_is_told_and_taken_as_soon_as_it_is_free(tmp_path: Path) -> None:
    alpha = Measured(tmp_path, "alpha")
    try:
        with socket.create_server(("127.0.0.1", alpha.metrics_port)):
            alpha.start()
            wait_until(lambda: "metrics cannot be served" in alpha.log.read_text(), "it is said")
            assert "pathctl_build_info" in scrape(alpha)
        wait_until(lambda: "metrics are served" in alpha.log.read_text(), "it is served")
        assert "pathctl_build_info" in scrape_port(alpha)
    finally:
        alpha.stop_all()


def test_a_stopped_data_plane_is_down_and_the_rest_is_told(hosts: tuple[Measured, Measured]) -> None:
    alpha, beta = hosts
    make_pair(alpha, beta)
    pid = alpha.volume("va")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        found = wait_until(
            lambda: value(read(found := scrape(alpha)), "pathctl_volume_up", volume="va") == 0 and found, "it is down"
        )
        assert 'pathctl_process_resident_memory_bytes{program="nbdkit",volume="va"}' in found
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: value(read(scrape(alpha)), "pathctl_volume_up", volume="va") == 1, "it is up again")


def test_the_settings_that_hold_are_told_with_their_lines(hosts: tuple[Measured, Measured]) -> None:
    alpha, _ = hosts
    answer = alpha.call("config.show")
    found = {item["key"]: item for item in answer["settings"]}
    assert answer["file"] == str(alpha.settings)
    assert found["timeouts.retry_s"]["value"] == 0.2
    assert found["timeouts.retry_s"]["source"] == f"{answer['file']}:2"
    assert found["data.link_timeout_s"]["source"] == "default"
    assert json.dumps(answer)
