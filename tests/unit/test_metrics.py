"""From what is known to Prometheus' text."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nbdplugin.stats import Stats
from pathctl import controlclient, db, metrics, pairstate, shapes
from pathctl.node import Reach, Sample

REPO = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((REPO / "scripts/grafana-pathctl.json").read_text())
PAIR = "1156d1aa-0c0e-4a4e-9a39-0d8f0a1c5b7e"
LABELS = {"pair": PAIR, "volume": "home", "side": "source"}

PROGRESS = shapes.Progress(
    copy="c",
    started_at=1.0,
    start_tracks=10,
    added_tracks=0,
    done_tracks=4,
    left_tracks=6,
    percent=40.0,
    rate_bytes_s=1000,
    eta_s=12.5,
    converging=True,
)
COUNTERS = dict.fromkeys(
    (
        "read_bytes",
        "write_bytes",
        "copied_bytes",
        "copied_tracks",
        "zeroed_bytes",
        "fetched_bytes",
        "fetched_tracks",
        "mirrored_bytes",
        "sessions",
    ),
    7,
)


def latency():
    stats = Stats()
    for elapsed in (0.00001, 0.0004, 0.0005, 100.0):
        stats.read.note(elapsed)
    stats.read.errors = 1
    return msgspec.convert(stats.describe(), controlclient.Latency)


def status(**fields):
    return controlclient.Status(session=3, counters=COUNTERS, copy_rate_bytes_s=500, latency=latency(), **fields)


def sample(**fields):
    values = {
        "pair": PAIR,
        "state": "SyncInProg",
        "since": 1.0,
        "direction": "to_destination",
        "reason": None,
        "side": "source",
        "source": shapes.End("alpha", "home"),
        "destination": shapes.End("beta", "home"),
        "invalidated": "destination",
        "ready": True,
        "committed": True,
        "size": 1 << 20,
        "track_size": 65536,
        "tracks": 16,
        "invalid": 0,
        "owed": 6,
        "waiting": 2,
        "copy_rate_bytes_s": 1000,
        "copied_bytes": 7,
        "fetched_tracks": 7,
        "copied_tracks": 7,
        "session": 3,
        "progress": PROGRESS,
    } | fields
    return Sample(time.time(), shapes.Pair(**values), status(), None, is_heard=True)


def volume(name="home", **fields):
    row = db.Volume(name, f"u-{name}", 1 << 20, 65536, "/b", False, "ready", attached=True)
    return metrics.VolumeFacts(row, is_wanted=True, status=status(), **fields)


def facts(**fields):
    found = {
        "samples": [sample()],
        "volumes": [volume()],
        "reach": {"beta": Reach(True, 1.0, None, -0.25)},
        "processes": [metrics.ProcessFacts("pathctld", "", 1 << 20, 1.5, 12, 5.0)],
        "state_free_bytes": 3 << 20,
    } | fields
    return metrics.Facts(**found)


def read(text):
    """(name, labels) -> value of every series."""
    return {
        (item.name, frozenset(item.labels.items())): item.value
        for family in text_string_to_metric_families(text.decode())
        for item in family.samples
    }


def value(found, name, **labels):
    return found[name, frozenset(labels.items())]


def check(text):
    """promtool's opinion."""
    tool = Path(sys.executable).parent / "promtool"
    ran = subprocess.run([tool, "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, b"", b"")


def test_promtool_finds_nothing_to_say():
    check(metrics.render(facts()))


def test_promtool_finds_nothing_to_say_of_a_host_with_nothing():
    check(metrics.render(facts(samples=[], volumes=[], reach={}, processes=[])))


def test_a_pair_is_in_one_state_and_all_of_them_are_told():
    found = read(metrics.render(facts()))
    states = {state: value(found, "pathctl_pair_state", **LABELS, state=state) for state in pairstate.State}
    assert states == {state: float(state == "SyncInProg") for state in pairstate.State}


def test_of_a_pair_all_that_is_known_is_told_in_base_units():
    found = read(metrics.render(facts()))
    told = {
        "left_bytes": 6 * 65536,
        "owed_tracks": 6,
        "invalid_tracks": 0,
        "waiting_requests": 2,
        "link_up": 1,
        "session": 3,
        "copy_progress_ratio": 0.4,
        "copy_eta_seconds": 12.5,
        "copy_limit_bytes_per_second": 1000,
        "copy_share_bytes_per_second": 500,
        "copied_bytes_total": 7,
        "fetched_tracks_total": 7,
        "mirrored_bytes_total": 7,
    }
    assert {name: value(found, f"pathctl_pair_{name}", **LABELS) for name in told} == told


def test_what_is_not_known_has_no_series():
    unknown = dict.fromkeys(("invalid", "owed", "waiting", "session", "since", "copy_rate_bytes_s", "progress"))
    found = read(metrics.render(facts(samples=[sample(**unknown)])))
    names = {name for name, _ in found}
    assert not names & {"pathctl_pair_left_bytes", "pathctl_pair_copy_eta_seconds", "pathctl_pair_copy_progress_ratio"}
    assert value(found, "pathctl_pair_link_up", **LABELS) == 0


def test_a_histogram_is_cumulative_and_its_last_bucket_is_its_count():
    found = read(metrics.render(facts()))
    name = "pathctl_volume_request_duration_seconds"
    of_reads = {"volume": "home", "kind": "read"}
    buckets = [
        (bound, value(found, f"{name}_bucket", **of_reads, le=le))
        for bound, le in ((2e-05, "2e-05"), (0.0002, "0.0002"), (0.0005, "0.0005"), (50.0, "50.0"))
    ]
    assert [count for _, count in buckets] == [1, 1, 3, 3]
    assert value(found, f"{name}_bucket", **of_reads, le="+Inf") == 4 == value(found, f"{name}_count", **of_reads)
    assert value(found, f"{name}_sum", **of_reads) == pytest.approx(100.00091)
    assert value(found, "pathctl_volume_request_errors_total", **of_reads) == 1


def test_a_data_plane_that_does_not_answer_is_down_and_says_nothing_else():
    dead = msgspec.structs.replace(volume(), status=None)
    found = read(metrics.render(facts(volumes=[dead])))
    assert value(found, "pathctl_volume_up", volume="home") == 0
    assert not [name for name, _ in found if name.startswith(("pathctl_volume_request", "pathctl_volume_clients"))]


def test_a_volume_that_needs_no_process_is_neither_up_nor_down():
    idle = msgspec.structs.replace(volume(), status=None, is_wanted=False)
    found = read(metrics.render(facts(volumes=[idle])))
    assert "pathctl_volume_up" not in {name for name, _ in found}
    assert value(found, "pathctl_volume_size_bytes", volume="home") == 1 << 20


def test_no_name_breaks_the_format():
    odd = sample(source=shapes.End('al"pha', "a\nb\\"))
    check(metrics.render(facts(samples=[odd])))


def expressions(node):
    """Every PromQL text of the dashboard: of its panels and of its variables."""
    if isinstance(node, dict):
        own = [node[key] for key in ("expr", "definition") if isinstance(node.get(key), str)]
        return own + [text for item in node.values() for text in expressions(item)]
    return [text for item in node for text in expressions(item)] if isinstance(node, list) else []


def test_every_metric_of_the_dashboard_is_exported():
    exported = {name for name, _ in read(metrics.render(facts()))}
    used = {name for text in expressions(DASHBOARD) for name in re.findall(r"\bpathctl_\w+", text)}
    assert len(used) > 25
    assert used - exported == set()


def test_every_label_that_the_dashboard_selects_by_is_there():
    labels = {}
    for name, found in read(metrics.render(facts())):
        labels.setdefault(name, set()).update(dict(found))
    for text in expressions(DASHBOARD):
        for name, selected in re.findall(r"\b(pathctl_\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)=", selected)) - {"instance"} <= labels[name], text


def test_the_dashboard_asks_the_data_source_that_is_chosen():
    variables = {item["name"] for item in DASHBOARD["templating"]["list"]}
    assert {"datasource", "instance", "volume"} == variables
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used - variables <= {"__rate_interval", "__all"}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]


def test_no_two_panels_lie_on_each_other():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
