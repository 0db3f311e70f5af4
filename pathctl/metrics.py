"""metrics - what pathctld tells Prometheus: pairs, volumes, peers, processes.

`gather` collects the facts: of the pairs, what the last look has found; of the volumes that are in none, a look of
its own with a short limit, so that a dead data plane costs a scrape no more than that.  `render` is pure: facts ->
text.  Names follow Prometheus' conventions; everything counted since a process started begins anew with the process.
"""

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec
import psutil
from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from pathctl import controlclient, db, errors, pairstate, problems, settings, shapes
from pathctl.node import Node, Reach, Sample

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LOOK_LIMIT_S = 0.1
FRESH_LOOKS = 3  # a sample older than so many looks says nothing about now
FRESH_LEAST_S = 10.0
CLOSE_LIMIT_S = 1.0

PAIR = ("pair", "volume", "side")

log = logging.getLogger(__name__)


class VolumeFacts(msgspec.Struct, frozen=True):
    """A volume; `status` is None when its data plane did not answer, or it needs none."""

    row: db.Volume
    is_wanted: bool  # it should have a data plane
    status: controlclient.Status | None


class ProcessFacts(msgspec.Struct, frozen=True):
    """One process of this host's pathctl."""

    program: str  # pathctld, nbdkit, fusefile
    volume: str  # empty for pathctld
    rss_bytes: int
    cpu_s: float
    open_fds: int
    started_at: float


class Facts(msgspec.Struct, frozen=True):
    """All that a scrape shows."""

    samples: list[Sample]
    volumes: list[VolumeFacts]
    reach: dict[str, Reach]
    processes: list[ProcessFacts]
    state_free_bytes: int


# -- gathering --------------------------------------------------------------------------------------------


async def gather(node: Node) -> Facts:
    rows = node.db.volumes()
    samples = _fresh(node)
    known = {_volume_of(sample): sample.status for sample in samples if sample.status is not None}
    unknown = [row.name for row in rows if row.name not in known and node.supervisor.get(row.name) is not None]
    looked = await asyncio.gather(*(_look(node, name) for name in unknown))
    known |= {name: status for name, status in zip(unknown, looked, strict=True) if status is not None}
    volumes = [VolumeFacts(row, node.supervisor.get(row.name) is not None, known.get(row.name)) for row in rows]
    processes = await asyncio.to_thread(_look_at, _pids(node, rows))
    return Facts(samples, volumes, dict(node.reach), processes, problems.free_bytes(node.cfg.state))


def _fresh(node: Node) -> list[Sample]:
    limit = time.time() - max(FRESH_LEAST_S, FRESH_LOOKS * node.cfg.settings.observe.every_s)
    return [sample for _, sample in sorted(node.samples.items()) if sample.at >= limit]


def _volume_of(sample: Sample) -> str:
    """The one of this host."""
    return (sample.pair.source if sample.pair.side == "source" else sample.pair.destination).volume


async def _look(node: Node, volume: str) -> controlclient.Status | None:
    try:
        return await controlclient.status(node.cfg.control_socket(volume), LOOK_LIMIT_S)
    except errors.PathctlError:
        return None


def _pids(node: Node, rows: list[db.Volume]) -> list[tuple[str, str, int]]:
    """(program, volume, pid) of what runs for this pathctld."""
    found = [("pathctld", "", os.getpid())]
    for row in rows:
        keeper = node.supervisor.get(row.name)
        if keeper is not None and keeper.pid is not None:
            found.append(("nbdkit", row.name, keeper.pid))
        if row.device_pid is not None:
            found.append(("fusefile", row.name, row.device_pid))
    return found


def _look_at(pids: list[tuple[str, str, int]]) -> list[ProcessFacts]:
    found = []
    for program, volume, pid in pids:
        with contextlib.suppress(psutil.Error):  # it has just ended
            process = psutil.Process(pid)
            with process.oneshot():
                cpu = process.cpu_times()
                rss, started = process.memory_info().rss, process.create_time()
                found.append(ProcessFacts(program, volume, rss, cpu.user + cpu.system, process.num_fds(), started))
    return found


# -- rendering --------------------------------------------------------------------------------------------


def render(facts: Facts) -> bytes:
    """In Prometheus' text format, of which every line ends."""
    return generate_latest(_Families(facts))


class _Families(Collector):
    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Metric]:
        yield _build_info()
        text = "Room left in the file system of pathctld's state folder."
        yield _gauge("pathctl_state_free_bytes", text, (), [((), self._facts.state_free_bytes)])
        yield from _pair_families(self._facts.samples)
        yield from _volume_families(self._facts.volumes)
        yield from _latency_families(self._facts.volumes)
        yield from _peer_families(self._facts.reach)
        yield from _process_families(self._facts.processes)


def _build_info() -> Metric:
    family = GaugeMetricFamily("pathctl_build_info", "What runs; always 1.", labels=("version", "python"))
    family.add_metric((importlib.metadata.version("pathctl"), platform.python_version()), 1)
    return family


Row = tuple[tuple[str, ...], float | None]  # labels and value; a value that is not known has no series


def _gauge(name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Metric:
    return _fill(GaugeMetricFamily(name, text, labels=labels), rows)


def _counter(name: str, text: str, labels: tuple[str, ...], rows: Iterable[Row]) -> Metric:
    """Its series are called `name` and _total."""
    return _fill(CounterMetricFamily(name, text, labels=labels), rows)


def _fill(family: GaugeMetricFamily | CounterMetricFamily, rows: Iterable[Row]) -> Metric:
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


PairValue = Callable[[shapes.Pair], float | None]

PAIR_GAUGES: tuple[tuple[str, str, PairValue], ...] = (
    ("invalid_tracks", "Tracks of the source whose data only the destination has.", lambda p: p.invalid),
    ("owed_tracks", "Tracks that the destination lacks.", lambda p: p.owed),
    ("left_bytes", "What is still to be copied, in either direction.", lambda p: _left_bytes(p)),
    ("size_bytes", "Size of either volume of the pair.", lambda p: p.size),
    ("waiting_requests", "Requests of the host that wait for the path.", lambda p: p.waiting),
    ("link_up", "1 while the two data planes have a session.", lambda p: p.session is not None),
    ("session", "Number of the session; it grows with each one.", lambda p: p.session),
    ("state_since_timestamp_seconds", "When the pair came into its state.", lambda p: p.since),
    ("stops_on_path_loss", "1 if host writes wait and then fail without the path.", lambda p: _stops(p)),
    ("copy_limit_bytes_per_second", "Limit set for the pair; 0 is paused.", lambda p: p.copy_rate_bytes_s),
)

PROGRESS_GAUGES: tuple[tuple[str, str, Callable[[shapes.Progress], float | None]], ...] = (
    ("copy_bytes_per_second", "How fast the copy goes.", lambda p: p.rate_bytes_s),
    ("copy_progress_ratio", "How much of the copy is done.", lambda p: p.percent / 100),
    ("copy_eta_seconds", "How long the copy will take, where that is known.", lambda p: p.eta_s),
    ("copy_converging", "0 while what is left does not get less.", lambda p: p.converging),
)

PAIR_COUNTERS = (
    ("copied_bytes", "Brought over by the background copy, holes included.", "copied_bytes"),
    ("copied_tracks", "Brought over by the background copy.", "copied_tracks"),
    ("copied_hole_bytes", "Of the copied bytes, those that were holes and not sent.", "zeroed_bytes"),
    ("fetched_bytes", "Fetched because the host wanted them.", "fetched_bytes"),
    ("fetched_tracks", "Fetched because the host wanted them.", "fetched_tracks"),
    ("mirrored_bytes", "Written by the host and sent to the destination at once.", "mirrored_bytes"),
    ("sessions", "Sessions of the data planes.", "sessions"),
)


def _stops(pair: shapes.Pair) -> float | None:
    return None if pair.on_path_loss is None else pair.on_path_loss == "stop"


def _left_bytes(pair: shapes.Pair) -> float | None:
    if pair.invalid is None or pair.owed is None:
        return None
    return min((pair.invalid + pair.owed) * pair.track_size, pair.size)  # the last track may be short


def _pair_labels(sample: Sample) -> tuple[str, ...]:
    return sample.pair.pair, _volume_of(sample), sample.pair.side


def _pair_families(samples: list[Sample]) -> Iterator[Metric]:
    yield _gauge(
        "pathctl_pair_info",
        "The volumes of a pair; always 1.",
        (*PAIR, "source", "destination"),
        (((*_pair_labels(s), _end(s.pair.source), _end(s.pair.destination)), 1) for s in samples),
    )
    yield _gauge(
        "pathctl_pair_state",
        "1 for the state that the pair is in, 0 for the others.",
        (*PAIR, "state"),
        (((*_pair_labels(s), state), state == s.pair.state) for s in samples for state in pairstate.State),
    )
    for name, text, read in PAIR_GAUGES:
        yield _gauge(f"pathctl_pair_{name}", text, PAIR, ((_pair_labels(s), read(s.pair)) for s in samples))
    copies = [(_pair_labels(s), s.pair.progress) for s in samples if s.pair.progress is not None]
    for name, text, tell in PROGRESS_GAUGES:
        yield _gauge(f"pathctl_pair_{name}", text, PAIR, ((labels, tell(progress)) for labels, progress in copies))
    yield from _source_families(samples)


def _source_families(samples: list[Sample]) -> Iterator[Metric]:
    """What only the source's data plane knows, told where it runs."""
    ours = [(_pair_labels(s), s.status) for s in samples if s.pair.side == "source" and s.status is not None]
    yield _gauge(
        "pathctl_pair_copy_share_bytes_per_second",
        "What the copy may take now, of the pair's limit and the host's.",
        PAIR,
        ((labels, status.copy_rate_bytes_s) for labels, status in ours),
    )
    for name, text, counter in PAIR_COUNTERS:
        rows = [(labels, status.counters.get(counter)) for labels, status in ours]
        yield _counter(f"pathctl_pair_{name}", text, PAIR, rows)


def _end(end: shapes.End) -> str:
    return f"{end.host}:{end.volume}"


STATUS_GAUGES: tuple[tuple[str, str, Callable[[controlclient.Status], float]], ...] = (
    ("clients", "Connections of this host's to the volume.", lambda s: s.clients),
    ("incomplete", "1 if some of its data is only on another host.", lambda s: s.incomplete),
    ("failed", "1 if it refuses some requests because of an earlier failure.", lambda s: s.failed is not None),
)
STATUS_COUNTERS = (
    ("read_bytes", "Read by the host, or by the source of the pair.", "read_bytes"),
    ("written_bytes", "Written by the host, or by the source of the pair.", "write_bytes"),
    ("read_errors", "Reads that the volume's own disk failed.", "read_errors"),
    ("peer_reads", "Of the read errors, those that were answered with the other side's data.", "peer_reads"),
    ("repaired_tracks", "Tracks written anew with the other side's data after a read error.", "repaired_tracks"),
    ("refused_requests", "Requests of a session that was over, refused by the destination.", "refused_requests"),
)


def _volume_families(volumes: list[VolumeFacts]) -> Iterator[Metric]:
    label = ("volume",)
    all_of_them = [((v.row.name,), v) for v in volumes]
    running = [((v.row.name,), v.status) for v in volumes if v.status is not None]
    yield _gauge("pathctl_volume_size_bytes", "Size of the volume.", label, ((at, v.row.size) for at, v in all_of_them))
    text = "1 if it is wanted as a device of this host."
    yield _gauge("pathctl_volume_attached", text, label, ((at, v.row.attached) for at, v in all_of_them))
    text = "1 if its data plane answers, 0 if it should."
    rows = [(at, v.status is not None) for at, v in all_of_them if v.is_wanted]
    yield _gauge("pathctl_volume_up", text, label, rows)
    for name, text, read in STATUS_GAUGES:
        yield _gauge(f"pathctl_volume_{name}", text, label, ((at, read(status)) for at, status in running))
    for name, text, counter in STATUS_COUNTERS:
        counts = [(at, status.counters.get(counter)) for at, status in running]
        yield _counter(f"pathctl_volume_{name}", text, label, counts)


def _latency_families(volumes: list[VolumeFacts]) -> Iterator[Metric]:
    labels = ("volume", "kind")
    times = HistogramMetricFamily(
        "pathctl_volume_request_duration_seconds",
        "How long requests to the data plane took, failed ones too; fetch: those to the peer for a waiting host.",
        labels=labels,
    )
    failed = CounterMetricFamily("pathctl_volume_request_errors", "Requests that failed.", labels=labels)
    for volume in volumes:
        latency = volume.status.latency if volume.status is not None else None
        for kind, found in latency.kinds.items() if latency is not None else ():
            assert latency is not None
            times.add_metric((volume.row.name, kind), _buckets(latency.bounds_s, found.counts), found.sum_s)
            failed.add_metric((volume.row.name, kind), found.errors)
    yield times
    yield failed


def _buckets(bounds_s: list[float], counts: list[int]) -> list[tuple[str, float]]:
    """Each with the ones below it, as Prometheus wants them."""
    found, so_far = [], 0
    for bound, count in zip((*bounds_s, float("inf")), counts, strict=True):
        so_far += count
        found.append(("+Inf" if bound == float("inf") else repr(bound), float(so_far)))
    return found


def _peer_families(reach: dict[str, Reach]) -> Iterator[Metric]:
    label = ("peer",)
    found = sorted(reach.items())
    text = "1 if the peer's pathctld answered when it was last asked."
    yield _gauge("pathctl_peer_reachable", text, label, (((name,), known.is_reachable) for name, known in found))
    text = "The peer's clock less ours."
    yield _gauge(
        "pathctl_peer_clock_skew_seconds", text, label, (((name,), known.clock_skew_s) for name, known in found)
    )


def _process_families(processes: list[ProcessFacts]) -> Iterator[Metric]:
    labels = ("program", "volume")

    def rows(field: str) -> Iterator[Row]:
        return (((p.program, p.volume), getattr(p, field)) for p in processes)

    yield _gauge("pathctl_process_resident_memory_bytes", "Memory in use.", labels, rows("rss_bytes"))
    yield _counter("pathctl_process_cpu_seconds", "Processor time used.", labels, rows("cpu_s"))
    yield _gauge("pathctl_process_open_fds", "Open file descriptors.", labels, rows("open_fds"))
    yield _gauge("pathctl_process_start_time_seconds", "When it was started.", labels, rows("started_at"))


# -- serving ----------------------------------------------------------------------------------------------


def add_route(app: web.Application, node: Node) -> None:
    """GET /metrics."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=render(await gather(node)), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/metrics", answer)


async def serve(node: Node) -> None:
    """On `metrics.listen`, if that is set; tries on while the port is taken."""
    listen = node.cfg.settings.metrics.listen
    if not listen:
        return
    address, port = settings.split_listen(listen)
    app = web.Application()
    add_route(app, node)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_LIMIT_S)
    await runner.setup()
    try:
        await _listen(node, runner, address, port)
        log.info("metrics are served on http://%s/metrics", listen)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _listen(node: Node, runner: web.AppRunner, address: str, port: int) -> None:
    said = False
    while True:
        try:
            await web.TCPSite(runner, address, port, reuse_address=True).start()
            return
        except OSError as error:
            if not said:
                log.warning("metrics cannot be served on %s:%s: %s; trying on", address, port, error.strerror)
            said = True
            await asyncio.sleep(node.cfg.timeouts.retry_s)
