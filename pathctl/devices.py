"""devices - a real Linux block device for a volume that is served on a Unix socket.

Where the kernel has no nbd: a process of our own (fusefile) connects to the volume's socket and offers it as a FUSE
file, and a loop device with direct I/O is made from that file.

    /dev/loopN --direct I/O--> NAME.fuse --FUSE--> fusefile --Unix socket--> nbdkit

The process outlives pathctld, and reconnects when nbdkit is restarted.  Each part can be found again from the FUSE
file's name alone: the process by its command line, the loop device by its backing file, the mount in mountinfo.  So
nothing depends on what was remembered: `attach` first takes up or clears away what an earlier run left, `detach`
removes whatever is there.  Every wait has a limit.

Not qemu-storage-daemon's FUSE export: up to QEMU 10.1 (Debian 12 has 7.2) it receives all requests into one buffer.
What of a write has not been sent to nbdkit when the next one comes, because the socket is full or is being
reconnected, is overwritten and reaches the volume as the other's data (upstream: "fuse: Copy write buffer content
before polling").  mkfs.ext4 was enough.  A loop device without direct I/O avoids it, at the price of one request at
a time: a read that waits for the peer would then hold up all others.

Leaves to others: who may attach what, and remembering the Device.
"""

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
import psutil

COMMAND_LIMIT_S = 10.0
SYNC_LIMIT_S = 30.0
END_LIMIT_S = 5.0
TERM_LIMIT_S = 2.0
PROGRAM = "pathctl.fusefile"
SECTOR = 512
_POLL_S = 0.005
_UNSEEN_USE = "in use (mounted elsewhere, or part of another device)"


class DeviceError(Exception):
    """The device could not be made or removed; what was begun has been undone.  Show it to the user."""


class InUse(DeviceError):
    """Somebody uses the device, and it was left as it is.  Nothing is wrong with it: the user is to end that first."""


class Device(msgspec.Struct, frozen=True):
    """A block device and the process behind it; valid as long as `is_alive` says so."""

    path: str
    pid: int
    pid_started: float


async def attach(
    nbd_socket: Path, fuse_file: Path, link: Path, log: Path, *, limit_s: float = COMMAND_LIMIT_S
) -> Device:
    """Make a block device of what `nbd_socket` serves, and `link` point to it.

    The same call again returns the same device.  Raises DeviceError, with nothing left behind.
    """
    fuse_file = _real(fuse_file)
    device = await _find_attached(nbd_socket, fuse_file, log)
    if device is None:
        await _clear_away(fuse_file)
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(_clear_away, fuse_file)
            pid = await _start_export(nbd_socket, fuse_file, log, limit_s)
            path = await _make_loop(fuse_file)
            device = Device(path, pid, psutil.Process(pid).create_time())
            undo.pop_all()
    _set_link(link, device.path)
    return device


async def detach(fuse_file: Path, link: Path, *, is_served: bool = True) -> None:
    """Write out and remove the FUSE file's device, its process, itself and `link`; what is gone already is no error.

    `is_served`: there is somebody behind the process to write out to.
    Raises DeviceError, and leaves the device as it was, while anybody has it mounted or open.
    """
    fuse_file = _real(fuse_file)
    is_alive = is_served and any(_exporters(fuse_file))
    for path in _loops_of(fuse_file):
        _refuse_mounted(path)
        if is_alive:
            await _sync(path)
    if not is_alive:  # what the cache holds goes nowhere, and closing the device must not wait for that
        await _end_processes(fuse_file)
    await _clear_away(fuse_file)
    _remove(link)


def _refuse_mounted(path: str) -> None:
    """Told at once: to write a mounted device out takes its time, or never ends."""
    mountpoints = _mountpoints(path)
    if mountpoints:
        raise InUse(f"{path} is mounted at {', '.join(mountpoints)}: end that, then repeat")


def is_alive(device: Device) -> bool:
    """Whether the loop device is still there and the process behind it is still the same one."""
    backing = backing_file(device.path)
    if backing is None:
        return False
    try:
        process = psutil.Process(device.pid)
        # The clock may have been set since: a start is the same if it is within two seconds.
        is_same = abs(process.create_time() - device.pid_started) < 2.0
        return is_same and _serves(process.cmdline(), Path(backing))
    except psutil.Error:
        return False


# -- the whole chain --------------------------------------------------------------------------------------


async def _find_attached(nbd_socket: Path, fuse_file: Path, log: Path) -> Device | None:
    """The complete and working chain that an earlier attach made, if there is one."""
    exporters, loops = list(_exporters(fuse_file)), _loops_of(fuse_file)
    if len(exporters) != 1 or len(loops) != 1 or not _is_mounted(fuse_file):
        return None
    pid, started, argv = exporters[0]
    if argv != _export_command(nbd_socket, fuse_file, log):
        return None
    try:
        _check_loop(loops[0], fuse_file, await _export_size(fuse_file))
    except DeviceError:
        return None
    return Device(loops[0], pid, started)


async def _clear_away(fuse_file: Path) -> None:
    """Remove all that exists for the FUSE file, from the top: a lower part may go only when nothing uses it."""
    for path in _loops_of(fuse_file):
        await _drop_loop(path, fuse_file)
    await _end_processes(fuse_file)
    while _is_mounted(fuse_file):
        await _run("umount", "--lazy", str(fuse_file), failure=f"{fuse_file} could not be unmounted")
    _remove(fuse_file)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def _set_link(link: Path, target: str) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    fresh = link.with_name(f".{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


# -- the process and its FUSE file ------------------------------------------------------------------------


def _export_command(nbd_socket: Path, fuse_file: Path, log: Path) -> list[str]:
    return [sys.executable, "-m", PROGRAM, str(nbd_socket), str(fuse_file), str(log)]


async def _start_export(nbd_socket: Path, fuse_file: Path, log: Path, limit_s: float) -> int:
    """Start the process; returns its id once the FUSE file can be used."""
    _make_mountpoint(fuse_file)
    failure = f"the volume's socket {nbd_socket} could not be made the file {fuse_file}"
    # It puts itself into the background when the file is there, tells what was wrong if not: no child of ours is left.
    await _run(*_export_command(nbd_socket, fuse_file, log), failure=failure, limit_s=limit_s)
    pids = [pid for pid, _started, _argv in _exporters(fuse_file)]
    if len(pids) != 1 or not _is_mounted(fuse_file):
        raise DeviceError(f"{failure}: its process ended or its mount cannot be seen from here")
    return pids[0]


def _make_mountpoint(fuse_file: Path) -> None:
    """FUSE mounts a file over a file."""
    fuse_file.touch()


def _exporters(fuse_file: Path) -> Iterator[tuple[int, float, list[str]]]:
    """(pid, start time, command line) of each live process that serves the file."""
    for process in psutil.process_iter():
        try:
            argv = process.cmdline()
            if _serves(argv, fuse_file):
                yield process.pid, process.create_time(), argv
        except psutil.Error:
            continue  # it ended meanwhile


def _serves(argv: list[str], fuse_file: Path) -> bool:
    """By a live process's command line; a zombie's is empty."""
    return argv[1:3] == ["-m", PROGRAM] and argv[4:5] == [str(fuse_file)]


async def _end_processes(fuse_file: Path) -> None:
    for pid, _started, _argv in list(_exporters(fuse_file)):
        await _end_process(pid, fuse_file)


async def _end_process(pid: int, fuse_file: Path) -> None:
    """SIGTERM, then SIGKILL; through a pidfd, since a dead process may stay as a zombie that nobody reaps."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if pid not in {pid for pid, _started, _argv in _exporters(fuse_file)}:
            return  # ended before the pidfd was opened, and the number may be another's
        for number, limit_s in ((signal.SIGTERM, TERM_LIMIT_S), (signal.SIGKILL, END_LIMIT_S)):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if await _is_readable(pidfd, limit_s):
                return
        raise DeviceError(f"the process behind {fuse_file} (pid {pid}) does not end; look at its kernel stack")
    finally:
        os.close(pidfd)


async def _is_readable(fd: int, limit_s: float) -> bool:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(fd, readable.set)
    try:
        await asyncio.wait_for(readable.wait(), limit_s)
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


async def _export_size(fuse_file: Path) -> int:
    # A process, not os.stat: its process has to answer, and our event loop must not wait for it.
    return int(await _run("stat", "--format=%s", str(fuse_file), failure=f"{fuse_file} does not answer"))


def _is_mounted(path: Path) -> bool:
    return str(path) in {mountpoint for _device, mountpoint in mounts()}


def mounts() -> Iterator[tuple[str, str]]:
    """(major:minor, mount point) of each mount.  Fields: proc(5), /proc/pid/mountinfo."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        yield fields[2], unescape(fields[4])


def unescape(text: str) -> str:
    """A path as the kernel lists it in /proc, its octal escapes undone."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


# -- the loop device --------------------------------------------------------------------------------------


async def _make_loop(fuse_file: Path) -> str:
    size = await _export_size(fuse_file)
    failure = f"no loop device could be made of {fuse_file}"
    path = await _run("losetup", "--direct-io=on", "--find", "--show", str(fuse_file), failure=failure)
    _check_loop(path, fuse_file, size)
    return path


def _check_loop(path: str, fuse_file: Path, size: int) -> None:
    """losetup makes, without a word, an empty device of a FUSE file whose mount it cannot see."""
    sectors = int(_sysfs(path, "size") or 0)
    if backing_file(path) != str(fuse_file) or sectors != size // SECTOR or sectors == 0:
        raise DeviceError(
            f"{path} has {sectors * SECTOR} bytes of {backing_file(path)} instead of {size} bytes of {fuse_file}"
        )


def _loops_of(fuse_file: Path) -> list[str]:
    paths = (f"/dev/{entry.name}" for entry in Path("/sys/block").glob("loop*"))
    return sorted(path for path in paths if backing_file(path) == str(fuse_file))


def backing_file(path: str) -> str | None:
    """The file behind a loop device; None of anything else."""
    return _sysfs(path, "loop/backing_file")


def _sysfs(path: str, attribute: str) -> str | None:
    try:
        return Path("/sys/block", Path(path).name, attribute).read_text().rstrip("\n")
    except OSError:
        return None


async def _sync(path: str) -> None:
    failure = f"{path} could not be written out and stays attached; see whether its path and its process are well"
    await _run("sync", path, failure=failure, limit_s=SYNC_LIMIT_S)


async def _drop_loop(path: str, fuse_file: Path) -> None:
    """Remove the loop device, unless somebody uses it.

    The exclusive open stands against a mount in between.  The kernel removes the device when the last who has
    it open closes it: that is us, unless somebody opened it after the look at who has.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        raise InUse(f"{path} is {use(path) or _UNSEEN_USE}: end that, then repeat") from error
    try:
        holders = _holders(path)
        if holders:
            raise InUse(f"{path} is open in {', '.join(holders)}: end that, then repeat")
        await _run("losetup", "--detach", path, failure=f"{path} could not be detached")
    finally:
        os.close(fd)
    for _ in range(round(END_LIMIT_S / _POLL_S)):
        if backing_file(path) != str(fuse_file):
            return
        await asyncio.sleep(_POLL_S)
    raise InUse(f"{path} was opened meanwhile and goes when it is closed: end that, then repeat")


def use(path: str) -> str | None:
    """Who uses a device, as far as it can be seen from here: `mounted at ...`."""
    mountpoints = _mountpoints(path)
    if mountpoints:
        return f"mounted at {', '.join(mountpoints)}"
    holders = _holders(path)
    return f"in use by {', '.join(holders)}" if holders else None


def _mountpoints(path: str) -> list[str]:
    number = _sysfs(path, "dev")
    return [mountpoint for device, mountpoint in mounts() if device == number]


def _holders(path: str) -> list[str]:
    """Name and pid of each other process that has the device open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name != str(os.getpid()) and path in _open_files(process):
            with contextlib.suppress(OSError):
                found.append(f"{(process / 'comm').read_text().strip()} (pid {process.name})")
    return found


def _open_files(process: Path) -> set[str]:
    files = set()
    with contextlib.suppress(OSError):
        for fd in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                files.add(os.readlink(fd))
    return files


# -- helpers ----------------------------------------------------------------------------------------------


def _real(path: Path) -> Path:
    """As the kernel names it in sysfs and mountinfo; the last part itself is not looked at, it may hang."""
    return path.parent.resolve() / path.name


async def _run(*argv: str, failure: str, limit_s: float = COMMAND_LIMIT_S) -> str:
    """What the command printed; DeviceError with `failure` and its last line if it fails or takes too long."""
    with tempfile.TemporaryFile() as output:  # a pipe would be held open by what the command leaves behind
        code = await _wait_for_command(argv, output, failure, limit_s)
        output.seek(0)
        text = output.read().decode(errors="replace").strip()
    if code != 0:
        last = text.rpartition("\n")[2] or f"exit code {code}"
        raise DeviceError(f"{failure}: {last.removeprefix(f'{argv[0]}: ')}")
    return text


async def _wait_for_command(argv: tuple[str, ...], output: IO[bytes], failure: str, limit_s: float) -> int:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    except FileNotFoundError as error:
        raise DeviceError(f"{failure}: {argv[0]} is not installed; run scripts/setup") from error
    try:
        async with asyncio.timeout(limit_s):
            return await process.wait()
    except TimeoutError:
        raise DeviceError(f"{failure}: {argv[0]} took more than {limit_s:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
