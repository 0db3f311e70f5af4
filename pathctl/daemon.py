"""daemon - pathctld: one per root, owner of all tasks.

Starts with what is there: adopts the nbdkit processes of an earlier pathctld, ends those that no row wants, opens the
API, brings the rest up, and goes on with unfinished operations.  SIGTERM ends pathctld only: volumes and devices keep
working and are adopted by the next one; so a restart, which is what reads the settings anew, costs them nothing.
`--stop-all` (or the verb host.shutdown) ends them too.
"""

import argparse
import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Awaitable
from typing import NoReturn

import aiohttp
from aiohttp import web

from pathctl import (
    api,
    backup,
    config,
    db,
    errors,
    logs,
    metrics,
    observe,
    pairrecover,
    peers,
    pki,
    planes,
    process,
    rootlock,
    signals,
    supervise,
    volumes,
)
from pathctl.errors import ErrorCode, ExitCode, PathctlError
from pathctl.node import Node

log = logging.getLogger(__name__)

STOP_ALL_LIMIT_S = 120.0
ENDING_LIMIT_S = 10.0  # of a pathctld that is being stopped already
LOOK_S = 0.1
CLOSE_LIMIT_S = 5.0
CANCEL_AGAIN_S = 15.0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.USAGE, f"pathctld: {' '.join(message.split())}; see `pathctld --help`\n")


def parser() -> argparse.ArgumentParser:
    found = _Parser(prog="pathctld", description="The daemon of pathctl on this host.")
    version = f"pathctld, version {importlib.metadata.version('pathctl')}"
    found.add_argument("--version", action="version", version=version, help="show the version and exit")
    found.add_argument("--root", help="folder that takes the place of / (default: $PATHCTL_ROOT, else /)")
    found.add_argument("--stop-all", action="store_true", help="end pathctld, all volumes' processes and devices")
    return found


def main() -> None:
    """The program pathctld."""
    arguments = parser().parse_args()
    try:
        _refuse_stranger(config.at(arguments.root))
        cfg = _load(arguments.root, is_ending=arguments.stop_all)
        logs.set_up(cfg.settings.log)
        config.check_socket_path(cfg.api_socket)
        cfg.make_folders()
        asyncio.run(_to_the_end(_stop_all(cfg) if arguments.stop_all else _serve_alone(cfg)))
    except PathctlError as error:
        print(f"pathctld: {error.message}", file=sys.stderr)
        sys.exit(ExitCode.of(error.code))
    except OSError as error:
        if isinstance(error, PermissionError) and os.geteuid() != 0:
            print(f"pathctld: you may not use {error.filename}, so nothing was done: run it as root", file=sys.stderr)
            sys.exit(ExitCode.REFUSED)
        print(f"pathctld: {error}", file=sys.stderr)
        sys.exit(ExitCode.INTERNAL)


async def _to_the_end(work: Awaitable[None]) -> None:
    """A loop that is closed puts Python's own handler back, and Ctrl-C would be a traceback again."""
    try:
        await work
    finally:
        signals.hold()


def _refuse_stranger(cfg: config.Config) -> None:
    """Raises PermissionError for a user who may not read the settings: to be told that, not all that it leads to."""
    if os.geteuid() != 0:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), (cfg.etc / "pathctl.toml").open():
            pass


def _load(root: str | None, *, is_ending: bool) -> config.Config:
    """The settings are read here, once.  To end everything, wrong ones are no obstacle."""
    try:
        return config.load(root)
    except PathctlError as error:
        if not is_ending:
            raise
        print(f"pathctld: {error.message}; everything is ended with the default settings", file=sys.stderr)
        return config.at(root)


async def _serve_alone(cfg: config.Config) -> None:
    with rootlock.alone(cfg):
        backup.finish(cfg)
        await _until_stopped(cfg, serving=True)


async def _stop_all(cfg: config.Config) -> None:
    """Through the running pathctld if there is one, else in its place."""
    gives_up = asyncio.get_running_loop().time() + ENDING_LIMIT_S
    while True:
        try:
            with rootlock.alone(cfg):
                backup.finish(cfg)
                await _until_stopped(cfg, serving=False)
            return
        except rootlock.Taken:
            pass
        try:
            await _ask_to_stop(cfg)
            return
        except PathctlError as error:  # it may be ending, and leave the rest to us
            if error.code != ErrorCode.UNREACHABLE or asyncio.get_running_loop().time() > gives_up:
                raise
        await asyncio.sleep(LOOK_S)


async def _ask_to_stop(cfg: config.Config) -> None:
    _end_at_once("interrupted; the running pathctld may go on with it: see `pathctl status`")
    limits = aiohttp.ClientTimeout(total=STOP_ALL_LIMIT_S)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(cfg.api_socket)), timeout=limits) as session,
            session.post("http://pathctld/v1/host.shutdown", json={}) as response,
        ):
            if response.status != 200:
                found = (await response.json())["error"]
                raise PathctlError(ErrorCode(found["code"]), found["message"])
    except (aiohttp.ClientError, TimeoutError) as error:
        pid = cfg.pid_file.read_text().strip()
        raise PathctlError(
            ErrorCode.UNREACHABLE,
            f"the running pathctld {pid} does not answer; end it with `kill -9 {pid}`, then repeat",
        ) from error


def _end_at_once(sentence: str) -> None:
    """At Ctrl-C while everything is being ended: not with exit code 0, because it is not."""
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, signals.end, "pathctld", sentence)


async def _until_stopped(cfg: config.Config, *, serving: bool) -> None:
    """Run a node until SIGTERM, SIGINT or host.shutdown; without `serving`, only to end everything."""
    database = db.Database(cfg.database)
    database.keep_events = cfg.settings.events.keep
    database.on_event = logs.write_event
    if serving:
        _check_own_port(cfg, database)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    if not serving:
        _end_at_once("interrupted; what is not ended yet goes on: repeat `pathctld --stop-all`")
    loop.add_signal_handler(
        signal.SIGHUP, log.warning, "SIGHUP changes nothing: to read the settings anew, restart pathctld"
    )
    running = asyncio.create_task(_run(cfg, database, stopping, serving=serving))
    stopped = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
        if serving:
            database.record("daemon.stopped", f"pathctld {os.getpid()} ends; volumes and devices go on without it")
        while not running.done():  # Python 3.11's wait_for loses a cancel that comes as it ends
            running.cancel()
            await asyncio.wait([running], timeout=CANCEL_AGAIN_S)
        failure = None if running.cancelled() else running.result()
        if failure is not None:
            raise failure
    finally:
        stopped.cancel()
        database.close()


def _check_own_port(cfg: config.Config, database: db.Database) -> None:
    """The data ports are settings, the control port is a row: only here do they meet."""
    host, ports = database.host(), cfg.settings.data.ports
    if host is not None and host.port in ports:
        database.close()
        raise errors.usage(
            f"{cfg.settings_file}: the data ports {ports.start} to {ports.stop - 1} include {host.port}, on which this "
            "host listens for its peers; choose data.port_first and data.port_last so that it is outside"
        )


async def _run(
    cfg: config.Config, database: db.Database, stopping: asyncio.Event, *, serving: bool
) -> PathctlError | None:
    """Until cancelled; without `serving`, until all is ended, and then why it could not be, if so."""
    async with asyncio.TaskGroup() as tasks:
        supervisor = supervise.Supervisor(cfg, tasks)
        node = Node(cfg, database, supervisor, tasks, stopping=stopping)
        supervisor.started = functools.partial(planes.bring_started, node)
        supervisor.tell = functools.partial(_record_process, database)
        pki.ensure_priority(cfg)
        await _adopt(node)
        if not serving:
            return await _shut_down(node)
        if database.host() is not None:
            node.named.set()
        database.on_event = functools.partial(observe.on_event, node)
        database.record("daemon.started", f"pathctld {os.getpid()} was started")
        for name, work in (
            ("api", _serve_users(node)),
            ("peers", _serve_peers(node)),
            ("start", _bring_up(node)),
            ("recover", pairrecover.run(node)),
            ("metrics", metrics.serve(node)),
            ("observe", observe.run(node)),
            ("logs", logs.keep_bounded(cfg.state / "log", cfg.settings.log.volume_bytes)),
        ):
            tasks.create_task(_root(node, name, work), name=name)
    return None


def _record_process(database: db.Database, kind: str, volume: str, message: str) -> None:
    database.record(kind, message, volume=volume)


async def _shut_down(node: Node) -> PathctlError | None:
    try:
        await api.shutdown(node, peers.Nothing())
    except PathctlError as error:
        for name in node.supervisor.volumes():
            node.supervisor.abandon(name)
        return error
    return None


async def _root(node: Node, name: str, work: Awaitable[None]) -> None:
    """A task that fails takes pathctld down; what it serves goes on, and a new pathctld adopts it."""
    try:
        await work
    except Exception:
        log.exception("task %s failed; pathctld ends", name)
        node.stopping.set()


async def _adopt(node: Node) -> None:
    """Take over the processes of an earlier pathctld; end those that no row wants."""
    found = process.find(node.cfg.run)
    for row in node.db.volumes():
        wanted = planes.plane(node, row.name)
        if wanted is not None:
            await node.supervisor.adopt(wanted, found.pop(row.name, []))
    for volume, pids in found.items():
        log.warning("volume %s needs no process: ending %s", volume, pids, extra=logs.of(volume=volume))
        await supervise.kill_strays(pids)


async def _bring_up(node: Node) -> None:
    """Start what the rows want and is not there, each volume for itself."""
    await asyncio.gather(*(_bring_up_one(node, row.name) for row in node.db.volumes()))


async def _bring_up_one(node: Node, name: str) -> None:
    async with node.locks[name]:
        row = node.db.volume(name)
        try:
            if row is not None and row.state == "ready":
                await planes.settle(node, name)
                if row.attached:
                    await volumes.ensure_device(node, row)
        except PathctlError as error:
            log.warning("volume %s is not up: %s", name, error.message, extra=logs.of(volume=name))


async def _serve_users(node: Node) -> None:
    runner = web.AppRunner(api.user_app(node), access_log=None, shutdown_timeout=CLOSE_LIMIT_S)
    await runner.setup()
    try:
        await web.SockSite(runner, supervise.listen_unix(node.cfg.api_socket)).start()
        log.info("serving on %s", node.cfg.api_socket)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


async def _serve_peers(node: Node) -> None:
    """Listen on the network, once this host has a name and a key."""
    await node.named.wait()
    host = node.host()
    pki.ensure_identity(node.cfg, host.name)
    node.server_context = pki.server_context(node.cfg, [peer.certificate for peer in node.db.peers()])
    runner = web.AppRunner(api.peer_app(node), access_log=None, shutdown_timeout=CLOSE_LIMIT_S)
    await runner.setup()
    assert runner.server is not None
    try:
        while True:
            node.moved.clear()
            server = await _listen_for_peers(node, runner.server)
            async with server:
                node.listen_error = None
                node.listening.set()
                log.info("serving peers on %s:%s", *server.sockets[0].getsockname()[:2])
                await node.moved.wait()
    finally:
        await runner.cleanup()


async def _listen_for_peers(node: Node, protocol: web.Server) -> asyncio.Server:
    """Try until the address is there: at boot, it may come later than we do."""
    while True:
        host = node.host()
        try:
            return await asyncio.get_running_loop().create_server(
                protocol,
                host.address,
                host.port,
                ssl=node.server_context,
                ssl_handshake_timeout=node.cfg.timeouts.handshake_s,
                reuse_address=True,
            )
        except OSError as error:
            if node.listen_error is None:
                log.warning("%s:%s cannot be listened on: %s; trying on", host.address, host.port, error)
            node.listen_error = os.strerror(error.errno) if error.errno else str(error)  # strerror is asyncio's own
            await asyncio.sleep(node.cfg.timeouts.retry_s)
