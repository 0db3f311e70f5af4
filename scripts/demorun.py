"""demorun - a file system that lives on beta is used on alpha at once, while its data is still coming over.

    scripts/demo [IMAGE] [--copy-rate 20M] [--json FILE] [--keep]

Three acts on two lab hosts: a path that pulls (source invalid), a path that pushes, created under a running fio, and
a create that fails half way and leaves nothing behind.  Every claim is checked: files by checksum, fio by its own
verification, both stores byte for byte.  Exit code 1 and the reason if anything differed.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lablib

MIB = 1 << 20
LEAST_BYTES = 520 * MIB
LEAST_FILES = 5000
FIO_BYTES = 16 * MIB
SYNC_LIMIT_S = 600
FIO_LIMIT_S = 300


class DemoError(Exception):
    """Something is not as promised."""


class Timeline:
    """What happened, when, with its figures; printed as it happens and kept for --json."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.entries: list[dict[str, Any]] = []

    def act(self, title: str) -> None:
        print(f"\n{title}", flush=True)

    def note(self, text: str, **figures: Any) -> None:
        at_s = round(time.monotonic() - self.start, 3)
        self.entries.append({"at_s": at_s, "text": text, **figures})
        shown = "  ".join(f"{name}={value}" for name, value in figures.items())
        print(f"{at_s:9.3f} s  {text}{'   ' + shown if shown else ''}", flush=True)


def main() -> int:
    options = _parse(sys.argv[1:])
    os.environ.setdefault("PATHCTL_LAB", "demo")
    lab, line = lablib.Lab(), Timeline()
    failure: str | None = None
    try:
        lab.down()
        lab.up()
        line.note("two hosts, alpha and beta, each with its pathctld, enrolled with each other")
        _pull(lab, line, options)
        _push(lab, line)
        _fail(lab, line)
        line.act("Everything was as promised.")
    except (DemoError, lablib.LabError, subprocess.SubprocessError, OSError) as error:
        failure = str(error)
        print(f"\ndemo: {failure}", file=sys.stderr)
    finally:
        if not options.keep:
            lab.down()
    if options.json:
        options.json.write_text(
            json.dumps({"ok": failure is None, "failure": failure, "timeline": line.entries}, indent=1)
        )
    return 0 if failure is None else 1


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", nargs="?", type=Path, help="a file system image to use (a copy of it is)")
    parser.add_argument("--copy-rate", default="20M", help="background copy at first, bytes per second (default 20M)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the timeline as JSON")
    parser.add_argument("--keep", action="store_true", help="leave the lab up")
    return parser.parse_args(words)


# --- act one: the source is invalid, the data is pulled ---


def _pull(lab: lablib.Lab, line: Timeline, options: argparse.Namespace) -> None:
    alpha, beta = lab.host("alpha"), lab.host("beta")
    line.act("1. A file system that lives on beta is mounted on alpha while its data is still on beta")
    image = _make_image(lab, options.image)
    beta.pathctl("volume", "create", "home", "--size", str(image.stat().st_size), "--backing", image)
    sums = _checksum_image(lab, image)
    line.note("beta has it", mib=image.stat().st_size // MIB, files=len(sums))
    mountpoint = lab.folder / "mnt"
    mountpoint.mkdir()

    line.note("pair create typed")
    typed = time.monotonic()
    create = ("home", "beta:home", "--invalidate", "source", "--create", "--attach", "--copy-rate", options.copy_rate)
    device = alpha.pathctl("pair", "create", *create)["device"]
    line.note("path ready, device attached", ms_from_create=_ms_since(typed))
    with _mounted(device, mountpoint):
        name = min(sums)
        same = _checksum(mountpoint / name) == sums[name]
        first_ms = _ms_since(typed)
        pair = _get_pair(alpha, "home")
        if not same:
            raise DemoError(f"the first file read, {name}, is not what beta has")
        share = round(100 * pair["invalid"] / pair["tracks"], 1)
        line.note("mounted, first file read and right", ms_from_create=first_ms, tracks_invalid_percent=share)
        on_demand = _get_served(lab, "home")
        line.note("tracks fetched on demand, counted at beta", tracks=on_demand, of=pair["tracks"])
        if not on_demand:
            raise DemoError("no track was fetched on demand: the data cannot have come from beta")
        _use(lab, line, mountpoint, sums)
    _wait_synchronized(lab, line, "home")
    alpha.pathctl("detach", "home")
    _compare(line, alpha.image("home"), image)


def _use(lab: lablib.Lab, line: Timeline, mountpoint: Path, sums: dict[str, str]) -> None:
    """Everything read, compared and written over while the copy runs."""
    alpha = lab.host("alpha")
    with _fio(alpha, mountpoint / "fio.tmp", f"--size={FIO_BYTES}", "--runtime=20", "--direct=1") as fio:
        before, start = _get_pair(alpha, "home"), time.monotonic()
        alpha.pathctl("pair", "set", "home", "--copy-rate", "none")
        line.note("copy rate limit lifted", tracks_invalid=before["invalid"])
        is_shown = False
        for number, (name, wanted) in enumerate(sums.items()):
            if _checksum(mountpoint / name) != wanted:
                raise DemoError(f"{name} differs from beta's")
            if number % 200 == 0 and not is_shown:
                is_shown = _note_copied(lab, line, before, start)
        line.note("every file read on alpha and compared by checksum, under fio", files=len(sums), different=0)
        line.note("fio wrote and verified on top, no error", **_end_fio(fio))
    pair = _get_pair(alpha, "home")
    line.note("of these", fetched_on_demand=pair["fetched_tracks"], copied=pair["copied_tracks"], left=pair["invalid"])


def _note_copied(lab: lablib.Lab, line: Timeline, before: dict[str, Any], start: float) -> bool:
    """Once the last invalid track has come: how fast they came, the reads beside it included."""
    pair = _get_pair(lab.host("alpha"), "home")
    if pair["invalid"]:
        return False
    seconds = time.monotonic() - start
    moved = before["invalid"] * before["track_size"] / MIB
    line.note("all tracks are on alpha", mib=round(moved), seconds=round(seconds, 1), mib_per_s=round(moved / seconds))
    return True


def _make_image(lab: lablib.Lab, given: Path | None) -> Path:
    folder = lab.folder / "images"
    folder.mkdir()
    image = folder / "home.img"
    if given is not None:
        subprocess.run(["cp", "--sparse=always", str(given), str(image)], check=True)
        return image
    files = _choose_files()
    data = sum(path.stat().st_size for path in files)
    copies = max(-(-LEAST_BYTES // data), -(-LEAST_FILES // len(files)))  # a bare /usr has less: several of it then
    # Little more than they need: what stays empty is a hole, which the copy brings at once whatever its rate.
    size = copies * sum(-(-path.stat().st_size // 4096) * 4096 for path in files) * 104 // 100 + FIO_BYTES + 24 * MIB
    with image.open("wb") as file:
        file.truncate(-(-size // MIB) * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-J", "size=16", "-E", "lazy_itable_init=1", str(image)], check=True)
    mountpoint = lab.folder / "fill"
    mountpoint.mkdir()
    with _mounted(image, mountpoint, "-o", "loop"):
        names = b"\0".join(os.fsencode(path.relative_to("/")) for path in files)
        subprocess.run(
            ["tar", "-C", "/", "--null", "--no-recursion", "-T", "-", "-cf", str(lab.folder / "fill.tar")],
            input=names,
            check=True,
        )
        for target in (mountpoint, *(mountpoint / f"copy{number}" for number in range(2, copies + 1))):
            target.mkdir(exist_ok=True)
            subprocess.run(["tar", "-C", str(target), "-xf", str(lab.folder / "fill.tar")], check=True)
    (lab.folder / "fill.tar").unlink()
    return image


def _choose_files() -> list[Path]:
    """Real files of this machine: a little more than 500 MiB and thousands of them, or as many as there are."""
    chosen: list[Path] = []
    total = 0
    for folder, folders, names in os.walk("/usr"):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            chosen.append(path)
            total += path.stat().st_size
        if total >= LEAST_BYTES and len(chosen) >= LEAST_FILES:
            break
    if not total:
        raise DemoError("/usr has no files; give an image: scripts/demo IMAGE")
    return chosen


def _checksum_image(lab: lablib.Lab, image: Path) -> dict[str, str]:
    """SHA-256 of each regular file in the image, by name; read from a read-only mount, before the pair exists."""
    mountpoint = lab.folder / "look"
    mountpoint.mkdir()
    with _mounted(image, mountpoint, "-o", "loop,ro,noload"):
        paths = [Path(folder, name) for folder, _, names in os.walk(mountpoint) for name in names]
        return {
            str(path.relative_to(mountpoint)): _checksum(path)
            for path in paths
            if path.is_file() and not path.is_symlink()
        }


# --- act two: the destination is invalid, created under load ---


def _push(lab: lablib.Lab, line: Timeline) -> None:
    alpha = lab.host("alpha")
    line.act("2. The other direction, created under a running fio")
    alpha.pathctl("volume", "create", "work", "--size", "256M")
    device = alpha.pathctl("attach", "work")["device"]
    with _fio(alpha, Path(device), "--size=256m", "--runtime=15", "--direct=1") as fio:
        time.sleep(2)  # let it write something that must be brought over
        typed = time.monotonic()
        alpha.pathctl("pair", "create", "work", "beta:work", "--invalidate", "destination", "--create")
        line.note("pair created under fio", ms=_ms_since(typed))
        _wait_synchronized(lab, line, "work")
        line.note("fio ended, verified, no error", **_end_fio(fio))
    _wait_synchronized(lab, line, "work")
    alpha.pathctl("detach", "work")
    _compare(line, alpha.image("work"), lab.host("beta").image("work"))


# --- act three: a create that fails half way ---


def _fail(lab: lablib.Lab, line: Timeline) -> None:
    alpha, beta = lab.host("alpha"), lab.host("beta")
    line.act("3. A create that fails half way")
    alpha.pathctl("volume", "create", "third", "--size", "64M")
    beta.pathctl("volume", "create", "third", "--size", "64M")
    beta.pathctl("attach", "third")
    before = _get_tables(lab)
    create = ("third", "beta:third", "--invalidate", "destination", "--yes")
    result = alpha.run("pathctl", "pair", "create", *create, check=False)
    if result.returncode == 0:
        raise DemoError("a create onto a volume that beta uses itself was not refused")
    line.note("refused, as it must be", exit_code=result.returncode)
    print("\n".join(f"             {row}" for row in result.stderr.strip().splitlines()))
    if _get_tables(lab) != before:
        raise DemoError("the failed create changed a configuration table")
    line.note("both configuration tables are as they were", rows=sum(len(rows) for rows in before))


def _get_tables(lab: lablib.Lab) -> list[list[dict[str, Any]]]:
    return [host.pathctl("connection", "list")["connections"] for host in lab.hosts.values()]


# --- helpers ---


def _ms_since(start: float) -> int:
    return round((time.monotonic() - start) * 1000)


@contextlib.contextmanager
def _mounted(device: str | Path, mountpoint: Path, *options: str) -> Iterator[None]:
    subprocess.run(["mount", *options, str(device), str(mountpoint)], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True, timeout=120)


@contextlib.contextmanager
def _fio(host: lablib.Host, target: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """fio with verification, in the background; ended with the block."""
    command = ["fio", "--name=demo", f"--filename={target}", "--rw=randwrite", "--bs=4k", "--ioengine=libaio"]
    command += [
        "--iodepth=8",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_backlog=512",
        "--verify_state_save=0",
        "--time_based",
    ]
    process = host.popen(*command, "--output-format=json", *options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(30)


def _end_fio(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, _ = process.communicate(timeout=FIO_LIMIT_S)
    if process.returncode != 0:
        raise DemoError(f"fio ended with exit code {process.returncode}:\n{output[-2000:]}")
    job = json.loads(output[output.index("{") :])["jobs"][0]
    return {"written_mib": job["write"]["io_kbytes"] // 1024, "verified_mib": job["read"]["io_kbytes"] // 1024}


def _get_pair(host: lablib.Host, name: str) -> dict[str, Any]:
    pair: dict[str, Any] = host.pathctl("pair", "show", name)["pair"]
    return pair


def _get_served(lab: lablib.Lab, volume: str) -> int:
    """Tracks that beta's data plane gave out on demand, by its own count."""
    shown = lab.host("beta").pathctl("volume", "show", volume)["volume"]
    return int(shown["counters"]["fetched_tracks"])


def _wait_synchronized(lab: lablib.Lab, line: Timeline, name: str) -> None:
    alpha, start = lab.host("alpha"), time.monotonic()
    before = _get_pair(alpha, name)
    alpha.pathctl(
        "pair", "wait", name, "--for", "synchronized", "--timeout", str(SYNC_LIMIT_S), limit_s=SYNC_LIMIT_S + 10
    )
    took_s = max(time.monotonic() - start, 0.001)
    moved = (before["invalid"] + before["owed"]) * before["track_size"] // MIB
    line.note("Synchronized", mib=moved, seconds=round(took_s, 2), mib_per_s=round(moved / took_s))


def _compare(line: Timeline, first: Path, second: Path) -> None:
    if not filecmp.cmp(first, second, shallow=False):
        raise DemoError(f"{first} and {second} differ")
    line.note("both stores compared byte for byte: equal", mib=first.stat().st_size // MIB)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
