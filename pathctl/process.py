"""process - one child process by its pidfd, whether we started it or found it.

A pid may be used again, a pidfd never is.  A killed child that was adopted by somebody else stays a zombie for a
while: its pidfd says at once that it has ended.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
from pathlib import Path

import psutil

from pathctl import errors, nbdkitcmd

LOG_TAIL = 4096
TCP_LISTEN = "0A"  # in /proc/net/tcp: include/net/tcp_states.h


class Process:
    """A running process; `handle` stays open until `close`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def kill(self) -> None:
        if self._handle >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    def has_ended(self) -> bool:
        return bool(select.select([self._handle], [], [], 0)[0])

    async def ended(self) -> None:
        """Wait until the process has ended, and reap it if it is our child."""
        loop = asyncio.get_running_loop()
        # A handle of its own: several may wait, and the loop knows one reader per descriptor.
        handle = os.dup(self._handle)
        over = asyncio.Event()
        loop.add_reader(handle, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
        _reap(self.pid)

    async def kill_and_wait(self, limit_s: float) -> None:
        self.kill()
        try:
            await asyncio.wait_for(self.ended(), limit_s)
        except TimeoutError as error:
            raise errors.internal(
                f"process {self.pid} is still there {limit_s:g} s after SIGKILL, probably stuck in I/O; "
                "look at its backing device"
            ) from error


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # an adopted one is reaped by init
        os.waitpid(pid, os.WNOHANG)


def spawn(argv: list[str], environment: dict[str, str], listener: socket.socket, log: Path) -> int:
    """Start nbdkit in a session of its own, the listening socket as descriptor 3; -> its pid.

    posix_spawn and no preexec_fn: this process has threads, and Python code between fork and exec could hang there.

    SIGTERM stays blocked in the child: nbdkit 1.32 asks for it at its parent's death (prctl PR_SET_PDEATHSIG, with or
    without --exit-with-parent), and would then answer its clients ESHUTDOWN.  It is to outlive us.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
        (os.POSIX_SPAWN_DUP2, listener.fileno(), nbdkitcmd.LISTEN_FD),
    ]
    return os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsid=True, setsigmask=[signal.SIGTERM])


def last_line(log: Path) -> str:
    """What the process said last, to tell the user why it does not run."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - LOG_TAIL))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip().removeprefix("nbdkit: error: ") if lines else ""


def check_listener(pid: int, listener: socket.socket) -> None:
    """Refuse a process that does not listen on exactly the socket it was given.

    nbdkit that finds no socket for it (LISTEN_PID) listens in clear on every address instead.
    """
    inode = os.fstat(listener.fileno()).st_ino
    try:
        held = os.readlink(f"/proc/{pid}/fd/{nbdkitcmd.LISTEN_FD}")
        ports = [port for number, port in _find_listeners(pid).items() if number != inode]
    except OSError as error:
        raise errors.internal(f"the sockets of process {pid} cannot be looked at: {error}") from error
    if held != f"socket:[{inode}]" or ports:
        extra = f"TCP port {', '.join(map(str, sorted(ports)))}" if ports else "nothing else"
        raise errors.internal(
            f"nbdkit {pid} listens on what it was not given (it holds {held}, and {extra}) and was killed; report this"
        )


def _find_listeners(pid: int) -> dict[int, int]:
    """The TCP sockets on which a process listens: their inodes, with the port.

    Not psutil, which takes apart each connection of the machine: with hundreds of pairs there are thousands.
    """
    folder = Path(f"/proc/{pid}")
    held = set()
    for entry in os.listdir(folder / "fd"):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            held.add(os.readlink(folder / "fd" / entry))
    found = {}
    for table in (folder / "net/tcp", folder / "net/tcp6"):
        lines = table.read_text().splitlines()[1:] if table.exists() else []  # a kernel may have no IPv6
        for line in lines:
            if line.split(maxsplit=4)[3] == TCP_LISTEN:
                words = line.split()
                found[int(words[9])] = int(words[1].rpartition(":")[2], 16)
    return {inode: port for inode, port in found.items() if f"socket:[{inode}]" in held}


def find(control_folder: Path) -> dict[str, list[int]]:
    """The nbdkit processes whose control sockets lie in this folder, by volume."""
    found: dict[str, list[int]] = {}
    prefix = f"control={control_folder}/"
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        control = next((word for word in words if word.startswith(prefix)), None)
        if control and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.setdefault(control.removeprefix(prefix).removesuffix(".ctl"), []).append(process.pid)
    return found
