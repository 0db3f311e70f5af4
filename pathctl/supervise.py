"""supervise - one nbdkit per volume, kept running.

A keeper owns a volume's listening socket and its process.  The socket stays open while the process is replaced, so a
client that connects meanwhile waits in the backlog.  A process that dies is started again at once; one that dies
again soon, after a growing pause.  Processes outlive pathctld: `adopt` takes the process and its socket back.
Stopping is drain, SIGKILL, wait: nbdkit's own SIGTERM waits for clients and never calls the plugin's close().
"""

import asyncio
import contextlib
import contextvars
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from pathctl import backings, config, controlclient, errors, lanefile, logs, nbdkitcmd, process
from pathctl.errors import ErrorCode

log = logging.getLogger(__name__)

BACKLOG = 128
LIVED_WELL_S = 10.0  # a process that ran this long is started again at once
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
KILL_LIMIT_S = 10.0
LOOK_S = 0.005  # a start takes a twentieth of a second: a longer look would be felt

# Must not be waited for by anybody who holds the volume's lock, which it takes: `running` waits for the process only.
Started = Callable[[str], Awaitable[None]]
Tell = Callable[[str, str, str], None]  # kind of event, volume, sentence


class Keeper:
    """One volume's listening socket and process.  While `is_ready`, the process answers and holds that socket."""

    def __init__(self, cfg: config.Config, plane: nbdkitcmd.Plane, started: Started, tell: Tell) -> None:
        self.plane = plane
        self.failure: str | None = None
        self.is_ready = False
        self._failure_code = ErrorCode.INTERNAL
        self._cfg = cfg
        self._started = started
        self._tell = tell
        self._is_cut = False  # its end was asked for
        self._listener: socket.socket | None = None
        self._process: process.Process | None = None
        self._changed = asyncio.Condition()
        self._is_stale = asyncio.Event()
        self._about = logs.of(volume=plane.volume)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def adopt(self, running: process.Process, listener: socket.socket) -> None:
        self._process, self._listener, self.is_ready = running, listener, True

    async def run(self) -> None:
        """Keep the process running until cancelled; the process itself is left alone then."""
        pause = 0.0
        while True:
            since = asyncio.get_running_loop().time()
            try:
                await self._run_once()
            except errors.PathctlError as error:
                if error.message != self.failure:
                    self._tell("process.failed", self.plane.volume, error.message)
                self._failure_code = error.code
                await self._say(ready=False, failure=error.message)
                log.warning("nbdkit of volume %s does not run: %s", self.plane.volume, error.message, extra=self._about)
            lived_well = asyncio.get_running_loop().time() - since > LIVED_WELL_S
            if pause and not lived_well:
                await asyncio.sleep(pause)
            pause = FIRST_PAUSE_S if lived_well or not pause else min(pause * 2, LONGEST_PAUSE_S)

    async def _run_once(self) -> None:
        """Start the process unless it runs, and wait until it has ended."""
        if self._process is None:
            await self._start()
            self._tell_own("process.started", f"was started as {self.pid}")
        assert self._process is not None
        await self._say(ready=True, failure=None)
        async with asyncio.TaskGroup() as both:
            bring = both.create_task(self._bring())
            await self._process.ended()
            bring.cancel()
        if not self._is_cut:
            self._tell_own("process.ended", f"{self.pid} has ended and is started again; see {self.plane.log}")
        self._is_cut = False
        self._process.close()
        self._process = None
        await self._say(ready=False, failure=None)
        log.warning(
            "nbdkit of volume %s ended and is started again; see %s",
            self.plane.volume,
            self.plane.log,
            extra=self._about,
        )

    def _tell_own(self, kind: str, what: str) -> None:
        self._tell(kind, self.plane.volume, f"the nbdkit of volume {self.plane.volume} {what}")

    async def _bring(self) -> None:
        """Until cancelled, which the process's end does: tell it what its rows want, again until that succeeds."""
        pause, said = FIRST_PAUSE_S, ""
        while True:
            self._is_stale.clear()
            try:
                await self._started(self.plane.volume)
            except errors.PathctlError as error:
                if error.message != said:
                    log.warning("volume %s, trying on: %s", self.plane.volume, error.message, extra=self._about)
                said = error.message
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE_S)
            else:
                pause, said = FIRST_PAUSE_S, ""
                await self._is_stale.wait()

    def bring_again(self) -> None:
        """The process may not have been told all that its rows want."""
        self._is_stale.set()

    async def _start(self) -> None:
        # Somebody may have taken it while nobody had it, if it was only for the moment between two processes.
        await asyncio.to_thread(backings.refuse_in_use, self.plane.backing, managed=self.plane.managed)
        if self._listener is None:
            self._listener = listen(self.plane)
        nbdkit, plugin = lanefile.find_nbdkit(), lanefile.find_plugin()
        lane = await asyncio.to_thread(lanefile.find, nbdkit, plugin)
        argv = nbdkitcmd.argv(self.plane, nbdkit, plugin, lane.file, self._cfg.settings)
        environment = nbdkitcmd.environment(os.environ, self._cfg.priority)
        _remove(self.plane.control)  # a dead process's
        log_file = Path(self.plane.log)
        try:
            pid = process.spawn(argv, environment, self._listener, log_file)
        except OSError as error:  # posix_spawn tells of both in one
            raise errors.not_written(log_file, error) from error
        self._process = process.Process(pid)
        try:
            await self._answering(self._process)
            process.check_listener(pid, self._listener)
        except errors.PathctlError:
            await self._kill()
            raise

    async def _answering(self, child: process.Process) -> None:
        """Wait until the new process answers on its control socket."""
        over = asyncio.ensure_future(child.ended())
        try:
            async with asyncio.timeout(self._cfg.timeouts.start_s):
                while not await self._answers(child.pid):
                    await asyncio.wait([over], timeout=LOOK_S)
                    if over.done():
                        raise errors.internal(
                            f"the nbdkit of volume {self.plane.volume} ended at its start: "
                            f"{process.last_line(Path(self.plane.log)) or 'it said nothing'}"
                        )
        except TimeoutError as error:
            raise errors.internal(
                f"the nbdkit of volume {self.plane.volume} did not answer within {self._cfg.timeouts.start_s:g} s "
                f"and was killed; see {self.plane.log}"
            ) from error
        finally:
            over.cancel()

    async def _answers(self, pid: int) -> bool:
        try:
            found = await controlclient.status(self.plane.control, self._cfg.timeouts.status_s)
        except errors.NoAnswer:
            return False
        return found.pid == pid

    async def _say(self, *, ready: bool, failure: str | None) -> None:
        async with self._changed:
            self.is_ready, self.failure = ready, failure
            self._changed.notify_all()

    async def running(self) -> None:
        """Wait until the process answers; raises what the start failed with."""
        try:
            async with asyncio.timeout(self._cfg.timeouts.start_s + KILL_LIMIT_S), self._changed:
                await self._changed.wait_for(lambda: self._is_well() or self.failure is not None)
        except TimeoutError as error:
            raise errors.internal(f"the nbdkit of volume {self.plane.volume} did not start in time") from error
        if not self.is_ready:
            raise errors.PathctlError(self._failure_code, self.failure or "")

    def _is_well(self) -> bool:
        """Ready, and not ended since, which `run` has still to be told."""
        return self.is_ready and self._process is not None and not self._process.has_ended()

    async def stop(self, *, drain: bool) -> None:
        """End the process and close the socket.  Call it after `run` has been cancelled."""
        self.is_ready = False
        if drain and self._process is not None:
            with contextlib.suppress(errors.PathctlError):  # it is killed next, and acknowledged writes survive that
                await controlclient.call(self.plane.control, "drain", self._cfg.timeouts.drain_s)
        await self._kill()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        _remove(self.plane.control)
        if self.plane.unix is not None:
            _remove(self.plane.unix)

    async def _kill(self) -> None:
        if self._process is not None:
            await self._process.kill_and_wait(KILL_LIMIT_S)
            self._process.close()
            self._process = None

    def kill(self) -> None:
        """Let it be started anew: whatever it was doing is cut off."""
        if self._process is not None:
            self.is_ready, self.failure, self._is_cut = False, None, True
            self._process.kill()


class Supervisor:
    """The keepers of this host, by volume.  Changes to one volume must not be made at once: callers hold its lock."""

    def __init__(self, cfg: config.Config, tasks: asyncio.TaskGroup) -> None:
        self._cfg = cfg
        self._tasks = tasks
        self._keepers: dict[str, Keeper] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self.started: Started = _nothing  # called, until it succeeds, for each process started or adopted
        self.tell: Tell = _tell_nobody
        self.is_closing = False  # nothing is started any more

    def get(self, volume: str) -> Keeper | None:
        return self._keepers.get(volume)

    def volumes(self) -> list[str]:
        return list(self._keepers)

    async def ensure(self, plane: nbdkitcmd.Plane) -> None:
        """Have exactly this process running; raises why it does not start, and goes on trying meanwhile."""
        if self.is_closing:
            raise errors.refused("pathctld is being shut down with all its processes; start it again first")
        keeper = self._keepers.get(plane.volume)
        if keeper is not None and keeper.plane != plane:
            await self.stop(plane.volume)
            keeper = None
        if keeper is None:
            keeper = self._keep(Keeper(self._cfg, plane, self._call_started, self._call_tell))
        await keeper.running()

    def _keep(self, keeper: Keeper) -> Keeper:
        name = keeper.plane.volume
        self._keepers[name] = keeper
        self._running[name] = self._tasks.create_task(
            _root(keeper),
            name=f"keeper {name}",
            context=contextvars.Context(),  # what it does is not on behalf of whose command made it
        )
        return keeper

    async def _call_started(self, volume: str) -> None:
        await self.started(volume)

    def _call_tell(self, kind: str, volume: str, message: str) -> None:
        self.tell(kind, volume, message)

    async def adopt(self, plane: nbdkitcmd.Plane, pids: list[int]) -> None:
        """Take back the process that an earlier pathctld started; what cannot be taken back is killed."""
        for pid in pids:
            try:
                running = process.Process(pid)
            except ProcessLookupError:
                continue
            listener = await self._take_back(plane, running) if plane.volume not in self._keepers else None
            if listener is None:
                await running.kill_and_wait(KILL_LIMIT_S)
                running.close()
                continue
            keeper = Keeper(self._cfg, plane, self._call_started, self._call_tell)
            keeper.adopt(running, listener)
            self._keep(keeper)

    async def _take_back(self, plane: nbdkitcmd.Plane, running: process.Process) -> socket.socket | None:
        limit_s = self._cfg.timeouts.status_s
        sockets: list[socket.socket] = []
        try:
            found = await controlclient.status(plane.control, limit_s)
            if (found.pid, found.role, found.uuid) != (running.pid, plane.role, plane.uuid):
                return None
            sockets = await controlclient.take_sockets(plane.control, limit_s)
            if len(sockets) == 1 and _address(sockets[0]) == _wanted(plane):
                process.check_listener(running.pid, sockets[0])
                return sockets.pop()
        except errors.PathctlError as error:
            about = logs.of(volume=plane.volume)
            log.warning(
                "nbdkit %s of volume %s is not adopted: %s", running.pid, plane.volume, error.message, extra=about
            )
        finally:
            for left in sockets:
                left.close()
        return None

    async def stop(self, volume: str, *, drain: bool = True) -> None:
        """End a volume's process, if there is one."""
        keeper = self._keepers.get(volume)
        if keeper is None:
            return
        task = self._running[volume]
        task.cancel()
        await asyncio.wait([task], timeout=KILL_LIMIT_S)
        await keeper.stop(drain=drain)
        del self._keepers[volume], self._running[volume]

    def bring_again(self, volume: str) -> None:
        """A command to the volume's process failed: what it is may not be what its rows want."""
        keeper = self._keepers.get(volume)
        if keeper is not None:
            keeper.bring_again()

    def abandon(self, volume: str) -> None:
        """Leave a volume's process to the next pathctld."""
        self._running[volume].cancel()

    async def restart(self, volume: str) -> None:
        """Cut off whatever the process is doing and start it anew on the same socket.

        After this, no command sent before can still take effect: its state on disk is final.
        """
        keeper = self._keepers.get(volume)
        if keeper is None:
            return
        keeper.kill()
        await keeper.running()


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)


async def _nothing(volume: str) -> None:
    pass


def _tell_nobody(kind: str, volume: str, message: str) -> None:
    pass


async def _root(keeper: Keeper) -> None:
    try:
        await keeper.run()
    except Exception:
        keeper.failure = "its keeper failed; see the log of pathctld and restart it"
        log.exception("keeper of volume %s", keeper.plane.volume, extra=logs.of(volume=keeper.plane.volume))


async def kill_strays(pids: list[int]) -> None:
    """End processes of volumes that should have none."""
    for pid in pids:
        try:
            stray = process.Process(pid)
        except ProcessLookupError:
            continue
        await stray.kill_and_wait(KILL_LIMIT_S)
        stray.close()


def listen(plane: nbdkitcmd.Plane) -> socket.socket:
    """The listening socket of a new process."""
    if plane.unix is not None:
        return listen_unix(config.check_socket_path(Path(plane.unix)))
    assert plane.address is not None
    family = socket.AF_INET6 if ":" in plane.address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((plane.address, plane.port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise errors.internal(
            f"data port {plane.port} of {plane.address} cannot be listened on: {error.strerror or error}"
        ) from error
    return listener


def listen_unix(path: Path) -> socket.socket:
    """For this user only."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    os.fchmod(listener.fileno(), 0o600)  # before bind: the file is made with the socket's mode
    listener.bind(str(path))
    listener.listen(BACKLOG)
    return listener


def is_free(address: str, port: int) -> bool:
    """Whether a port could be listened on right now."""
    return why_not_free(address, port) is None


def why_not_free(address: str, port: int) -> str | None:
    """Why a port could not be listened on right now; None if it could."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError as error:
            return error.strerror or str(error)
    return None


def _address(listener: socket.socket) -> object:
    name = listener.getsockname()
    return name if listener.family == socket.AF_UNIX else (name[0], name[1])


def _wanted(plane: nbdkitcmd.Plane) -> object:
    return plane.unix if plane.unix is not None else (plane.address, plane.port)
