"""The disk that fails on request: what passes through it is what a file does, and what it records is what was done."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live import faultdisk
from live.faultdisk import FaultDisk
from waiting import WAIT_S, wait_until

PUNCH_HOLE, KEEP_SIZE = 2, 1
MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FaultDisk]:
    with FaultDisk(tmp_path / "disk", tmp_path / "record") as disk:
        yield disk


def punch(fd: int, offset: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    if libc.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def make(disk: FaultDisk, name: str, data: bytes) -> int:
    disk.path(name).write_bytes(data)
    return os.open(disk.path(name), os.O_RDWR)


def test_a_file_behaves_as_one(disk: FaultDisk) -> None:
    fd = make(disk, "a", b"\xff" * MIB)
    os.posix_fallocate(fd, 0, 4 * MIB)
    assert os.fstat(fd).st_size == 4 * MIB
    os.pwrite(fd, b"x" * 5000, 2 * MIB + 7)
    punch(fd, 4096, 8192)
    expected = bytearray(b"\xff" * MIB + bytes(3 * MIB))
    expected[2 * MIB + 7 : 2 * MIB + 5007] = b"x" * 5000
    expected[4096 : 4096 + 8192] = bytes(8192)
    assert disk.path("a").read_bytes() == expected
    assert os.lseek(fd, 4096, os.SEEK_DATA) == 12288
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 4096
    os.fdatasync(fd)
    os.ftruncate(fd, 100)
    assert disk.path("a").stat().st_size == 100
    os.close(fd)


def test_a_lock_keeps_another_out(disk: FaultDisk) -> None:
    first = make(disk, "a", b"")
    second = os.open(disk.path("a"), os.O_RDWR)
    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(BlockingIOError):
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(first)
    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(second)


def test_names_come_go_and_change(disk: FaultDisk) -> None:
    disk.path("a").write_bytes(b"1")
    with pytest.raises(FileExistsError):
        os.open(disk.path("a"), os.O_CREAT | os.O_EXCL | os.O_RDWR)
    os.rename(disk.path("a"), disk.path("b"))
    os.link(disk.path("b"), disk.path("c"))
    assert sorted(path.name for path in disk.folder.iterdir()) == ["b", "c"]
    os.unlink(disk.path("b"))
    assert disk.path("c").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError):
        disk.path("b").read_bytes()
    disk.close()
    assert disk.path("c").read_bytes() == b"1"


@pytest.mark.parametrize("op", faultdisk.OPS)
def test_what_shall_fail_fails_there_only_and_so_often_only(disk: FaultDisk, op: str) -> None:
    fd, other = make(disk, "a", bytes(MIB)), make(disk, "b", bytes(MIB))
    calls: dict[str, Callable[[int, int], object]] = {
        "read": lambda fd, offset: os.pread(fd, 4096, offset),
        "write": lambda fd, offset: os.pwrite(fd, b"y" * 4096, offset),
        "sync": lambda fd, _: os.fdatasync(fd),
        "fallocate": lambda fd, offset: punch(fd, offset, 4096),
    }
    call = calls[op]
    disk.fail("a", op, offset=8192, length=1, errno=errno.ENOSPC, count=2)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            call(fd, 8192)
    assert disk.path("a").read_bytes() == bytes(MIB)
    call(fd, 8192)
    disk.fail("a", op, offset=0, length=4096)
    call(other, 0)
    if op != "sync":
        call(fd, 4096)
    with pytest.raises(OSError, match="Input/output"):
        call(fd, 0)
    assert disk.heal() == 3
    call(fd, 0)
    os.close(fd)
    os.close(other)


def test_the_record_gives_the_file_again(disk: FaultDisk) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng = random.Random(seed)
    files = [make(disk, name, b"") for name in "ab"]
    for _ in range(200):
        fd, offset = rng.choice(files), rng.randrange(MIB)
        length = rng.randint(1, rng.choice([600, 70000, 3 * MIB]))
        choice = rng.choice("wwwps")
        if choice == "w":
            os.pwrite(fd, rng.randbytes(length), offset)
        elif choice == "p":
            punch(fd, offset, length)
        else:
            os.fdatasync(fd)
    images = {"a": bytearray(), "b": bytearray()}
    last = 0
    for entry in disk.read_entries():
        assert entry.stamp_ns >= last
        last, image = entry.stamp_ns, images[entry.name]
        end = entry.offset + entry.length
        if entry.kind == faultdisk.WRITE:
            image.extend(bytes(max(0, end - len(image))))
            image[entry.offset : end] = entry.data
        elif entry.kind == faultdisk.PUNCH and entry.offset < len(image):
            end = min(end, len(image))
            image[entry.offset : end] = bytes(end - entry.offset)
    assert {name: disk.path(name).read_bytes() for name in images} == images
    for fd in files:
        os.close(fd)


def test_a_test_that_is_killed_leaves_no_mount(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    code = (
        "import os, signal, sys; from pathlib import Path; from live.faultdisk import FaultDisk; "
        "disk = FaultDisk(Path(sys.argv[1])); disk.path('a').write_bytes(b'1'); file = open(disk.path('a')); "
        "print(disk._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, folder], env=environment, stdout=subprocess.PIPE, timeout=WAIT_S, check=False
    )
    assert done.returncode == -signal.SIGKILL
    server = int(done.stdout)
    wait_until(lambda: not Path(f"/proc/{server}/fd").exists(), "the program has ended")
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert (folder / "a").read_bytes() == b"1"


def test_a_program_that_is_killed_leaves_no_mount(tmp_path: Path) -> None:
    disk = FaultDisk(tmp_path / "disk")
    disk._process.kill()
    disk.close()
    assert str(disk.folder) not in Path("/proc/self/mountinfo").read_text()
