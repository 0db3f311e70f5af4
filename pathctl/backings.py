"""backings - files and block devices that are given to a volume: can they be had, and does anybody else use them?

A backing that is written from two sides is lost, so it is refused while it is mounted, swapped to, part of another
device, under another loop device, or open for writing in another process.  For a block device the kernel's exclusive
open says so; a file has nothing like it, so the loop devices and all open files of all processes are looked through.
What is seen is of one moment: the look is repeated whenever a volume's process is started.

Leaves to others: which backings the volumes of this host have.  Blocks for some milliseconds; call it in a thread.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from pathctl import config, devices, errors

Identity = tuple[str, int, int]

# fcntl.h: O_ACCMODE, of which O_WRONLY (1) and O_RDWR (2) write.
_ACCESS = 3


def real(path: str) -> str:
    """The path without links, as it is recorded; what cannot be a path is refused."""
    try:
        return os.path.realpath(path)
    except ValueError as error:
        raise errors.usage(f"{path!r} is no path; give the path of a file or block device") from error


def check(path: str, wanted: int | None, own: Sequence[Path]) -> int:
    """The size of a volume over the backing: all of it, unless less is asked for.  `own`: pathctl's own folders."""
    if not Path(path).is_absolute():
        raise errors.usage(f"{path} is no absolute path; pathctld has a working folder of its own")
    target = real(path)
    _refuse_own(path, target, own)
    found = _read_size(path, target)
    if wanted is not None and wanted > found:
        longer = "" if Path(target).is_block_device() else f", or lengthen it with `truncate --size {wanted} {path}`"
        raise errors.refused(
            f"{path} has only {found} bytes, {wanted} are asked for; nothing was changed: give a smaller --size{longer}"
        )
    if wanted is None and found % config.SECTOR:
        _refuse_uneven(path, found)
    refuse_in_use(path)
    return found if wanted is None else wanted


def _refuse_own(path: str, target: str, own: Sequence[Path]) -> None:
    """A volume over pathctl's own files, or over the device of another volume, would be written from two sides."""
    for under in (target, devices.backing_file(target) if Path(target).is_block_device() else None):
        if under is not None and any(Path(under).is_relative_to(os.path.realpath(folder)) for folder in own):
            raise errors.refused(f"{path} belongs to pathctl itself and cannot back a volume; give another one")


def _read_size(path: str, target: str) -> int:
    try:
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.not_found(
            f"{path} does not exist; give an existing file or block device, or only --size"
        ) from error
    except OSError as error:
        raise errors.refused(f"{path} cannot be looked at: {error.strerror}; give another one") from error
    if stat.S_ISDIR(mode):
        raise errors.usage(f"{path} is a folder and cannot back a volume; give a file or block device")
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise errors.usage(f"{path} is neither a file nor a block device and cannot back a volume; give another one")
    if stat.S_ISBLK(mode) and _is_read_only(os.stat(target).st_rdev):  # the kernel lets it be opened all the same
        raise _not_writable(path, "the device is read-only")
    try:
        handle = os.open(target, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise _in_use(path, users(target) or ["the kernel"]) from error
        raise _not_writable(path, str(error.strerror)) from error
    try:
        size = os.lseek(handle, 0, os.SEEK_END)
    finally:
        os.close(handle)
    if size == 0:
        raise errors.refused(f"{path} is empty; fill it, or let pathctl make the volume's file with only --size")
    return size


def _is_read_only(device: int) -> bool:
    try:
        return (_sys(device) / "ro").read_text().strip() == "1"
    except OSError:
        return False


def _not_writable(path: str, why: str) -> errors.PathctlError:
    return errors.refused(f"{path} cannot be opened for writing: {why}; make it writable, or give another one")


def _refuse_uneven(path: str, found: int) -> None:
    less = found - found % config.SECTOR
    more = f"lengthen it with `truncate --size {less + config.SECTOR} {path}`"
    raise errors.refused(
        f"{path} has {found} bytes, no multiple of {config.SECTOR}; nothing was changed: {more}"
        + (f", or leave its end unused with --size {less}" if less else "")
    )


def fault(path: str, size: int) -> str | None:
    """Why a volume of this size cannot be read from its backing, if it cannot: `its backing ...`."""
    try:
        with open(path, "rb") as file:
            found = file.seek(0, os.SEEK_END)
    except OSError as error:
        return f"its backing {path} cannot be opened ({error.strerror})"
    return f"its backing {path} has {found} bytes, less than its {size}" if found < size else None


def refuse_in_use(path: str, *, managed: bool = False) -> None:
    """Refused while anybody else uses the backing; one that is not there is no reason.

    `managed`: pathctl's own file, which other processes have no business with; they are not looked through.
    """
    found = users(real(path), only_kernel=managed)
    if found:
        raise _in_use(path, found)


def _in_use(path: str, found: Sequence[str]) -> errors.PathctlError:
    return errors.refused(f"{path} is in use: {', '.join(found)}; end that, then try again")


def users(path: str, *, only_kernel: bool = False) -> list[str]:
    """Who else uses the file or block device, in words."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    if stat.S_ISBLK(found.st_mode):
        return _users_of_device(path, found)
    kernel = [*_loops_over(found), *_swaps(path, found)]
    return kernel if only_kernel else [*kernel, *_writers(path, found)]


def _users_of_device(path: str, found: os.stat_result) -> list[str]:
    words = [*_loops_over(found), *_writers(path, found)]
    try:
        os.close(os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBUSY:
            return [*words, error.strerror or "it cannot be opened"]
        known = [*_mounts_of(found.st_rdev), *_swaps(path, found), *_holders_of(found.st_rdev)]
        return [*words, *(known or ["mounted elsewhere or part of another device"])]
    return words


def _sys(device: int) -> Path:
    return Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")


def _with_partitions(device: int) -> Iterator[Path]:
    folder = _sys(device)
    yield folder
    with contextlib.suppress(OSError):
        yield from (entry.parent for entry in folder.resolve().glob("*/partition"))


def _mounts_of(device: int) -> Iterator[str]:
    """Where the device or a partition of it is mounted, as far as this process can see."""
    numbers = set()
    for folder in _with_partitions(device):
        with contextlib.suppress(OSError):
            numbers.add((folder / "dev").read_text().strip())
    for number, mountpoint in devices.mounts():
        if number in numbers:
            yield f"mounted at {mountpoint}"


def _holders_of(device: int) -> Iterator[str]:
    for folder in _with_partitions(device):
        with contextlib.suppress(OSError):
            for holder in (folder / "holders").iterdir():
                yield f"part of /dev/{holder.name}"


def _loops_over(found: os.stat_result) -> Iterator[str]:
    """Loop devices whose backing is this file or device, whatever path they know it by."""
    # A file that is a mount without a device is a FUSE server's, as below our own devices: a look at it may hang.
    served = {mountpoint for number, mountpoint in devices.mounts() if number.startswith("0:")}
    for entry in Path("/sys/block").glob("loop*"):
        backing = devices.backing_file(f"/dev/{entry.name}")
        with contextlib.suppress(OSError):
            if backing is not None and backing not in served and is_same(os.stat(backing), found):
                mounted = list(_mounts_of(os.stat(f"/dev/{entry.name}").st_rdev))
                yield " ".join([f"/dev/{entry.name} is a loop device over it", *(f"({words})" for words in mounted)])


def _swaps(path: str, found: os.stat_result) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/swaps").read_text().splitlines()[1:]:
            name = devices.unescape(line.split()[0])
            if name == path or (os.path.exists(name) and is_same(os.stat(name), found)):
                yield "the kernel swaps to it"


def _writers(path: str, found: os.stat_result) -> Iterator[str]:
    """Each other process that has it open for writing."""
    for process in Path("/proc").glob("[0-9]*"):
        if process.name != str(os.getpid()) and _has_for_writing(process, found):
            name = "a process"
            with contextlib.suppress(OSError):
                name = (process / "comm").read_text().strip()
            yield f"{name} (pid {process.name}) has it open for writing"


def _has_for_writing(process: Path, found: os.stat_result) -> bool:
    is_device = stat.S_ISBLK(found.st_mode)
    with contextlib.suppress(OSError):
        for entry in (process / "fdinfo").iterdir():
            with contextlib.suppress(OSError, ValueError):
                fields = dict(line.split(":", 1) for line in entry.read_text().splitlines() if ":" in line)
                inode = int(fields.get("ino", found.st_ino))  # Linux 5.14 and later tell it
                if not int(fields.get("flags", "0"), 8) & _ACCESS or not (is_device or inode == found.st_ino):
                    continue
                file = process / "fd" / entry.name
                # Only of what may be it: to look at a file of a dead server would hang.
                if (not is_device or os.readlink(file).startswith("/dev/")) and is_same(os.stat(file), found):
                    return True
    return False


def is_same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two names lead to the same storage."""
    if stat.S_ISBLK(one.st_mode) and stat.S_ISBLK(other.st_mode):
        return one.st_rdev == other.st_rdev
    return os.path.samestat(one, other)


def overlap(one: str, other: str) -> bool:
    """Whether two backings share bytes: the same one, a disk and its partition, a loop device and its file."""
    try:
        first, second = list(_lineage(one)), list(_lineage(other))
    except OSError:
        return False
    return first[0] in second or second[0] in first


def _lineage(path: str) -> Iterator[Identity]:
    """The storage itself, then what it lies in."""
    found = os.stat(path)
    if not stat.S_ISBLK(found.st_mode):
        yield "file", found.st_dev, found.st_ino
        return
    yield "device", os.major(found.st_rdev), os.minor(found.st_rdev)
    folder = _sys(found.st_rdev).resolve()
    if (folder / "partition").exists():
        major, minor = (folder.parent / "dev").read_text().split(":")
        yield "device", int(major), int(minor)
        folder = folder.parent
    with contextlib.suppress(OSError):
        yield from _lineage((folder / "loop/backing_file").read_text().rstrip("\n"))
