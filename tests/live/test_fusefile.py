"""The file that stands for a volume, used directly: order, errors, reconnects, many requests at once.  Needs root."""

import concurrent.futures
import errno
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import WAIT_S, wait_until

SIZE = 16 << 20

# Reads below 1 MiB wait until the file `go` is there.
SLOW_PLUGIN = """
import os, time, nbdkit
API_VERSION = 2
def thread_model(): return nbdkit.THREAD_MODEL_PARALLEL
def config(key, value): globals()[key] = value
def open(readonly): return 1
def get_size(h): return 16 << 20
def pread(h, buf, offset, flags):
    while offset < 1 << 20 and not os.path.exists(go):
        time.sleep(0.01)
    buf[:] = offset.to_bytes(8, "little") * (len(buf) // 8)
"""


class Volume:
    """nbdkit with some plugin, and the file made of its socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "v.sock"
        self.file = folder / "v"
        self.log = folder / "log"
        self.store = folder / "store"
        self.nbdkit: subprocess.Popen[bytes] | None = None
        self.file.touch()
        with self.store.open("wb") as store:
            store.truncate(SIZE)

    def serve(self, *arguments: str) -> None:
        self.socket.unlink(missing_ok=True)
        argv = ["nbdkit", "-f", "-U", str(self.socket), *(arguments or ("file", str(self.store)))]
        self.nbdkit = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        wait_until(self._listens, "nbdkit listens")  # its socket is there before that

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        if self.nbdkit is not None:
            self.nbdkit.kill()
            self.nbdkit.wait(WAIT_S)

    def mount(self, hold_s: float = 60.0) -> "subprocess.CompletedProcess[str]":
        argv = [sys.executable, "-m", "pathctl.fusefile", self.socket, self.file, self.log, str(hold_s)]
        return subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=WAIT_S, check=False)

    def open(self) -> int:
        return os.open(self.file, os.O_RDWR)


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    volume = Volume(tmp_path)
    yield volume
    subprocess.run(["umount", "--lazy", volume.file], check=False, capture_output=True)
    volume.kill()


def test_random_requests_from_many_threads_are_what_a_bytearray_says(volume: Volume) -> None:
    volume.serve()
    assert volume.mount().returncode == 0
    file, seed = volume.open(), random.randrange(1 << 32)
    print("seed", seed)
    part = SIZE // 8

    def use(number: int) -> bytes:
        """Each thread has its own part of the file."""
        rng, model = random.Random(seed + number), bytearray(part)
        for _ in range(60):
            offset = rng.randrange(part)
            length = rng.randint(1, min(part - offset, 1 << rng.randint(0, 21)))
            data = rng.randbytes(length)
            assert os.pwrite(file, data, number * part + offset) == length
            model[offset : offset + length] = data
            offset = rng.randrange(part)
            length = rng.randint(1, part - offset)
            assert os.pread(file, length, number * part + offset) == model[offset : offset + length]
        return bytes(model)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        models = list(pool.map(use, range(8)))
    os.fsync(file)
    os.close(file)
    assert volume.store.read_bytes() == b"".join(models)


@pytest.mark.parametrize("mode", ["--punch-hole", "--zero-range"])
def test_zeroes_reach_the_store_and_nothing_beside_them(volume: Volume, mode: str) -> None:
    volume.store.write_bytes(b"\xff" * SIZE)
    volume.serve()
    volume.mount()
    subprocess.run(
        ["fallocate", mode, "--keep-size", "--offset", "65536", "--length", str(8 << 20), volume.file], check=True
    )
    assert volume.store.read_bytes() == b"\xff" * 65536 + bytes(8 << 20) + b"\xff" * (SIZE - 65536 - (8 << 20))
    assert (volume.store.stat().st_blocks * 512 < SIZE) == (mode == "--punch-hole")


def test_requests_that_wait_hold_up_no_others(volume: Volume) -> None:
    plugin, go = volume.folder / "slow.py", volume.folder / "go"
    plugin.write_text(SLOW_PLUGIN)
    volume.serve("-t", "128", "python", str(plugin), f"go={go}")
    volume.mount()
    file = volume.open()
    with concurrent.futures.ThreadPoolExecutor(101) as pool:
        waiting = [pool.submit(os.pread, file, 4096, number * 4096) for number in range(100)]
        quick = pool.submit(os.pread, file, 4096, 2 << 20)
        assert quick.result(WAIT_S)[:8] == (2 << 20).to_bytes(8, "little")
        assert not any(read.done() for read in waiting)
        go.touch()
        for number, read in enumerate(waiting):
            assert read.result(WAIT_S)[:8] == (number * 4096).to_bytes(8, "little")
    os.close(file)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EPERM])
def test_an_error_of_the_volume_is_the_writers_error(volume: Volume, number: int) -> None:
    name = errno.errorcode[number]
    volume.serve("--filter=error", "file", str(volume.store), f"error={name}", "error-pwrite-rate=1")
    volume.mount()
    file = volume.open()
    with pytest.raises(OSError, match=os.strerror(number)):
        os.pwrite(file, b"x" * 4096, 0)
    assert os.pread(file, 4, 0) == bytes(4)
    os.close(file)


def test_what_was_not_answered_is_sent_again_after_a_restart(volume: Volume) -> None:
    delay = ["--filter=delay", "file", str(volume.store), "wdelay=60"]
    volume.serve(*delay)
    volume.mount()
    file = volume.open()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        writes = [pool.submit(os.pwrite, file, bytes([number + 1]) * 4096, number * 4096) for number in range(8)]
        assert not concurrent.futures.wait(writes, timeout=0.2).done
        volume.kill()
        volume.serve()
        assert [write.result(WAIT_S) for write in writes] == [4096] * 8
    os.close(file)
    assert volume.store.read_bytes()[: 8 * 4096] == b"".join(bytes([number + 1]) * 4096 for number in range(8))


def test_what_waits_longer_than_the_limit_fails_and_later_requests_succeed(volume: Volume) -> None:
    volume.serve()
    volume.mount(hold_s=0.3)
    file = volume.open()
    volume.kill()
    volume.socket.unlink()
    with pytest.raises(OSError, match="Input/output error"):
        os.pwrite(file, b"x" * 4096, 0)
    volume.serve()
    wait_until(lambda: try_write(file, b"y" * 4096), "it is reached again")  # one try lasts 0.3 s
    assert os.pread(file, 4096, 0) == b"y" * 4096
    os.close(file)


def try_write(file: int, data: bytes) -> bool:
    try:
        return os.pwrite(file, data, 0) == len(data)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False


def test_a_volume_of_another_size_on_the_same_socket_is_not_written_to(volume: Volume) -> None:
    volume.serve()
    volume.mount(hold_s=0.3)
    file = volume.open()
    volume.kill()
    volume.serve("memory", str(SIZE * 2))
    with pytest.raises(OSError, match="Input/output error"):
        os.pwrite(file, b"x" * 4096, 0)
    os.close(file)


def test_the_process_ends_when_the_file_is_unmounted(volume: Volume) -> None:
    volume.serve()
    volume.mount()
    subprocess.run(["umount", volume.file], check=True)
    wait_until(lambda: not processes(volume), "it has ended")


def processes(volume: Volume) -> list[str]:
    # A zombie has no command line.
    found = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in found if f"pathctl.fusefile {volume.socket}" in line]


def test_a_start_that_fails_says_why(volume: Volume) -> None:
    volume.socket.write_text("no socket")
    failed = volume.mount()
    assert failed.returncode == 1
    assert failed.stderr == f"fusefile: {volume.socket}: [Errno 111] Connection refused\n"
    assert processes(volume) == []
