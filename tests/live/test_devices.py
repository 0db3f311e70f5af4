"""Block devices made of real nbdkit, FUSE and loop.  Needs root."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import WAIT_S, wait_until

from pathctl import devices

SIZE = 64 << 20


class Served:
    """One volume served by nbdkit's file plugin, and the places of its device."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backing = folder / "backing"
        self.socket = folder / "v.sock"
        self.fuse = folder / "v.fuse"
        self.link = folder / "dev" / "v"
        self.log = folder / "v.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._listener: socket.socket | None = None
        with self.backing.open("wb") as file:
            file.truncate(SIZE)

    def listen(self) -> socket.socket:
        """The listening socket outlives nbdkit, as pathctld's do: a client waits in its backlog."""
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self.socket))
            self._listener.listen()
        return self._listener

    def start(self) -> None:
        fd = self.listen().fileno()
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec env LISTEN_FDS=1 LISTEN_PID=$$ nbdkit -f file {self.backing} 3<&{fd}"], pass_fds=[fd]
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(WAIT_S)

    def close(self) -> None:
        self.kill()
        if self._listener is not None:
            self._listener.close()

    def attach(self, limit_s: float = WAIT_S) -> devices.Device:
        return asyncio.run(devices.attach(self.socket, self.fuse, self.link, self.log, limit_s=limit_s))

    def detach(self) -> None:
        asyncio.run(devices.detach(self.fuse, self.link))

    def litter(self) -> list[str]:
        """What is still there of a device: processes, loop devices, mounts, files."""
        loops = subprocess.run(["losetup", "--list", "--noheadings"], capture_output=True, text=True, check=True).stdout
        processes = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
        mounts = Path("/proc/self/mountinfo").read_text()
        lines = [line for line in [*loops.splitlines(), *processes, *mounts.splitlines()] if str(self.fuse) in line]
        return lines + [str(path) for path in (self.fuse, self.link) if os.path.lexists(path)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    served.start()
    yield served
    asyncio.run(devices._clear_away(served.fuse))
    served.close()


def write(path: str | Path, offset: int, data: bytes) -> None:
    with open(path, "r+b", buffering=0) as device:
        assert os.pwrite(device.fileno(), data, offset) == len(data)
        os.fsync(device.fileno())


def read(path: str | Path, offset: int, length: int) -> bytes:
    with open(path, "rb", buffering=0) as device:
        return os.pread(device.fileno(), length, offset)


def test_a_device_has_the_volumes_size_and_content(served: Served) -> None:
    write(served.backing, 8192, b"before" * 100)
    device = served.attach()
    assert Path("/sys/block", Path(device.path).name, "size").read_text() == f"{SIZE // 512}\n"
    assert read(served.link, 8192, 600) == b"before" * 100
    write(served.link, 1 << 20, b"through the device")
    assert read(served.backing, 1 << 20, 18) == b"through the device"
    assert served.link.resolve() == Path(device.path)
    assert devices.is_alive(device)


def test_detach_leaves_nothing_and_can_be_repeated(served: Served) -> None:
    device = served.attach()
    served.detach()
    assert served.litter() == []
    assert not devices.is_alive(device)
    served.detach()


def test_what_was_written_to_the_page_cache_is_in_the_store_after_detach(served: Served) -> None:
    device = served.attach()
    with open(device.path, "r+b") as file:
        file.write(b"unsynced" * 512)
    served.detach()
    assert read(served.backing, 0, 4096) == b"unsynced" * 512


def test_attach_again_gives_the_same_device(served: Served) -> None:
    device = served.attach()
    served.link.unlink()
    assert served.attach() == device
    assert served.link.resolve() == Path(device.path)


def test_the_device_does_not_end_with_the_process_that_made_it(served: Served) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            served.attach()
        finally:
            os.killpg(0, signal.SIGKILL)
    os.waitpid(pid, 0)
    write(served.link, 0, b"still here")
    assert read(served.backing, 0, 10) == b"still here"


def test_the_device_lives_through_a_kill_of_nbdkit(served: Served) -> None:
    device = served.attach()
    served.kill()
    writer = subprocess.Popen(
        ["dd", "if=/dev/zero", f"of={device.path}", "bs=64K", "count=16", "oflag=direct", "status=none"]
    )
    with pytest.raises(subprocess.TimeoutExpired):  # held, not failed
        writer.wait(0.3)
    served.start()
    assert writer.wait(WAIT_S) == 0


MANY = ["--rw=randwrite", "--bsrange=4k-4M", "--iodepth=16", "--size=64M", "--ioengine=libaio", "--direct=1"]
VERIFIED = ["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]


def test_many_writes_at_once_reach_the_store_as_they_were_written(served: Served) -> None:
    device = served.attach()
    job = ["fio", "--name=many", f"--filename={device.path}", *MANY, *VERIFIED, "--loops=8", "--minimal"]
    subprocess.run(job, stdout=subprocess.DEVNULL, cwd=served.folder, check=True, timeout=100)


def wait_written(served: Served, times: int) -> None:
    """The store has been written to so many times, and more."""
    for _ in range(times):
        last = served.backing.stat().st_mtime_ns
        wait_until(lambda last=last: served.backing.stat().st_mtime_ns != last, "the store is written to")  # type: ignore[misc]


def test_many_writes_at_once_reach_the_store_although_nbdkit_is_killed(served: Served) -> None:
    device = served.attach()
    until_told = ["--verify_backlog=16", "--time_based", "--runtime=600", "--output-format=json"]
    fio = subprocess.Popen(
        ["fio", "--name=many", f"--filename={device.path}", *MANY, *VERIFIED, *until_told],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=served.folder,
        text=True,
    )
    try:
        for _ in range(3):
            wait_written(served, 10)
            served.kill()
            served.start()
        wait_written(served, 40)
        fio.send_signal(signal.SIGINT)
        told, _ = fio.communicate(timeout=WAIT_S)
    finally:
        fio.kill()
        fio.wait(WAIT_S)
    (job,) = json.loads(told[told.index("{") : told.rindex("}") + 1])["jobs"]
    assert (job["error"], "verify:" in told) == (0, False), told
    assert min(job["write"]["total_ios"], job["read"]["total_ios"]) > 0, "what was read back is what was verified"


def test_detach_is_refused_while_the_device_is_mounted(served: Served) -> None:
    device = served.attach()
    subprocess.run(["mkfs.ext4", "-q", device.path], check=True)
    place = served.folder / "mnt"
    place.mkdir()
    subprocess.run(["mount", device.path, place], check=True)
    try:
        with pytest.raises(devices.DeviceError, match=f"{device.path} is mounted at {place}"):
            served.detach()
        (place / "file").write_text("works on")
        assert devices.is_alive(device)
    finally:
        subprocess.run(["umount", place], check=True)
    served.detach()
    assert served.litter() == []


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_EXCL], ids=["shared", "exclusive"])
def test_detach_is_refused_while_somebody_has_the_device_open(served: Served, flags: int) -> None:
    device = served.attach()
    code = f"import os; os.open('{device.path}', {flags}); print(flush=True); input()"
    holder = subprocess.Popen(["python3", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(devices.DeviceError, match=rf"python3\S* \(pid {holder.pid}\)"):
        served.detach()
    assert devices.is_alive(device)
    holder.communicate(b"\n", timeout=WAIT_S)
    served.detach()
    assert served.litter() == []


def test_attach_after_the_server_was_killed_makes_a_new_device(served: Served) -> None:
    dead = served.attach()
    os.kill(dead.pid, signal.SIGKILL)
    wait_until_ended(dead.pid)
    assert not devices.is_alive(dead)
    device = served.attach()
    assert device.pid != dead.pid
    assert read(served.link, 0, 4) == bytes(4)
    served.detach()
    assert served.litter() == []


def wait_until_ended(pid: int) -> None:
    def has_ended() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    wait_until(has_ended, f"process {pid} has ended")


def test_a_loop_device_left_over_a_plain_file_is_replaced(served: Served) -> None:
    served.fuse.touch()
    subprocess.run(["losetup", "--find", served.fuse], check=True)
    served.attach()
    write(served.link, 0, b"the real one")
    assert read(served.backing, 0, 12) == b"the real one"
    served.detach()
    assert served.litter() == []


def test_a_failed_attach_says_why_and_leaves_nothing(served: Served) -> None:
    served.close()
    served.socket.unlink()
    with pytest.raises(devices.DeviceError, match=r"could not be made the file.*No such file"):
        served.attach()
    assert served.litter() == []


def test_attach_to_a_volume_that_does_not_answer_ends_at_its_limit(served: Served) -> None:
    served.kill()
    with pytest.raises(devices.DeviceError, match=r"took more than 0\.3 s"):
        served.attach(limit_s=0.3)
    assert served.litter() == []


def test_a_command_that_is_not_installed_is_named(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = served.folder / "bin"
    programs.mkdir()
    for name in ("stat", "umount"):
        (programs / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(devices.DeviceError, match="losetup is not installed; run scripts/setup"):
        served.attach()
    monkeypatch.undo()
    assert served.litter() == []


def test_a_dead_device_that_is_mounted_says_where_and_goes_after_the_umount(served: Served) -> None:
    dead = served.attach()
    subprocess.run(["mkfs.ext4", "-q", dead.path], check=True)
    place = served.folder / "mnt"
    place.mkdir()
    subprocess.run(["mount", dead.path, place], check=True)
    try:
        (place / "file").write_text("in the cache only")
        os.kill(dead.pid, signal.SIGKILL)
        wait_until_ended(dead.pid)
        for verb in (served.detach, served.attach):
            with pytest.raises(devices.InUse, match=f"{dead.path} is mounted at {place}"):
                verb()
    finally:
        subprocess.run(["umount", place], check=True)
    served.detach()
    assert served.litter() == []


def test_a_device_whose_server_has_gone_for_good_is_removed_without_writing_it_out(served: Served) -> None:
    device = served.attach()
    served.kill()
    asyncio.run(devices.detach(served.fuse, served.link, is_served=False))
    assert served.litter() == []
    assert not devices.is_alive(device)
