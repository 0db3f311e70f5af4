"""ext4 on the device of a pair whose hosts both lose power: every fsynced file is whole, whichever host is first back.

Two real pathctld, their volumes' files on recorded disks.  A program writes files, fsyncs them and notes each one; the
path is suspended and resumed meanwhile.  Then, for some instants of the record, both hosts get what their disks had
on them at that instant (what was synced, and of the rest a random part), and are started anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import heapq
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live.daemons import Daemon, enrol, nbdkits
from live.faultdisk import PUNCH, SIZE, SYNC, WRITE, Entry, FaultDisk
from waiting import WAIT_S, wait_until

VOLUME = 48 << 20
INSTANTS = 9
FILES = ("va.img", "va.meta", "vb.img", "vb.meta")
CASES = [
    *(("synchronized", "alpha"), ("synchronized", "beta"), ("suspended", "alpha")),
    *(("copying", "alpha"), ("copying", "beta")),
]  # when power is lost, and who is back first

WRITER = """
import hashlib, os, random, sys, time
folder, log, seed = sys.argv[1], open(sys.argv[2], "a"), int(sys.argv[3])
rng, number = random.Random(seed), 0
top = os.open(folder, os.O_RDONLY)
while True:
    number += 1
    name = f"{folder}/f{number % 60}-{number}"
    data = rng.randbytes(rng.choice([1, 4096, 30000, 200000]) + rng.randrange(4096))
    with open(name + ".new", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(name + ".new", name)
    os.fsync(top)
    done = time.monotonic_ns()
    gone = f"{folder}/f{number % 60}-{number - 60}"
    log.write(f"{done} {number} {len(data)} {hashlib.sha256(data).hexdigest()}\\n")
    log.flush()
    if number > 60:
        log.write(f"{time.monotonic_ns()} {number - 60} gone\\n")
        log.flush()
        os.unlink(gone)
"""


@dataclasses.dataclass
class Story:
    """What was done, and when: stamps of time.monotonic_ns."""

    alpha: Daemon
    beta: Daemon
    log: Path
    place: Path
    entries: list[Entry] = dataclasses.field(default_factory=list)
    begun: dict[str, int] = dataclasses.field(default_factory=dict)

    def read_promises(self, instant_ns: int) -> dict[str, tuple[int, str]]:
        """The files that must be whole at the instant: name -> (length, digest)."""
        found: dict[str, tuple[int, str]] = {}
        for line in self.log.read_text().splitlines():
            stamp, number, *rest = line.split()
            if int(stamp) < instant_ns:
                name = f"f{int(number) % 60}-{number}"
                if rest == ["gone"]:
                    found.pop(name, None)
                else:
                    found[name] = int(rest[0]), rest[1]
        return found

    def state(self) -> str:
        (pair,) = self.alpha.call("pair.list")["pairs"]
        return str(pair["state"])

    def device(self) -> str:
        return str(self.alpha.volume("va")["device"])

    def count(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def wait_more(self, count: int) -> None:
        goal = self.count() + count
        wait_until(lambda: self.count() >= goal, "the program goes on writing", 60)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("pe")
    alpha, beta = Daemon(folder, "alpha"), Daemon(folder, "beta")
    story = Story(alpha, beta, folder / "log", folder / "mnt")
    disks = []
    try:
        for daemon in (alpha, beta):
            volumes = daemon.root / "var/lib/pathctl/volumes"
            volumes.mkdir(parents=True, mode=0o700)
            disks.append(FaultDisk(volumes, folder / f"{daemon.name}.record"))
            daemon.start()
        enrol(alpha, beta)
        live(story)
        for daemon in (alpha, beta):
            daemon.stop_all()
        story.entries = list(heapq.merge(*(disk.read_entries() for disk in disks), key=lambda entry: entry.stamp_ns))
        for disk in disks:
            disk.close()
        yield story
    finally:
        subprocess.run(["umount", "--lazy", story.place], check=False, capture_output=True)
        for daemon in (alpha, beta):
            daemon.stop_all()
        for disk in disks:
            disk.close()
        assert not nbdkits(folder), "nothing is left behind"


def live(story: Story) -> None:
    """A pair, a file system, a program that writes; the path is away for a while."""
    alpha, place = story.alpha, story.place
    alpha.call("volume.create", name="va", size=VOLUME)
    story.beta.call("volume.create", name="vb", size=VOLUME)
    alpha.call("pair.create", source="va", destination="beta:vb", invalidate="destination")
    device = alpha.call("attach", volume="va")["device"]
    subprocess.run(["mkfs.ext4", "-q", device], check=True, timeout=60)
    place.mkdir()
    subprocess.run(["mount", device, place], check=True, timeout=60)
    wait_until(lambda: story.state() == "Synchronized", "it is Synchronized")
    seed = random.randrange(1 << 20)
    print("seed of the writer", seed)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, place, story.log, str(seed)])
    try:
        story.begun["synchronized"] = time.monotonic_ns()
        story.wait_more(120)
        alpha.call("pair.suspend", pair="va")
        story.begun["suspended"] = time.monotonic_ns()
        story.wait_more(120)
        alpha.call("pair.set", pair="va", copy_rate_bytes_s=1 << 20)
        alpha.call("pair.resume", pair="va")
        story.begun["copying"] = time.monotonic_ns()
        story.wait_more(80)
        story.begun["end"] = time.monotonic_ns()
    finally:
        writer.kill()
        writer.wait(WAIT_S)
        subprocess.run(["umount", place], check=True, timeout=60)


def build_images(entries: list[Entry], instant_ns: int, rng: random.Random) -> dict[str, bytearray]:
    """What is on the disks after a power loss: all that was synced, and each later write or not, or in part."""
    durable = {name: bytearray() for name in FILES}
    pending: dict[str, list[Entry]] = {name: [] for name in FILES}
    for entry in entries:
        name = entry.name.removesuffix(".new")  # a metadata file before it has its name
        if entry.stamp_ns >= instant_ns or name not in durable:
            continue
        if entry.kind == SYNC:
            for one in pending[name]:
                put(durable[name], one, 0, one.length)
            pending[name].clear()
        elif entry.kind in (WRITE, PUNCH, SIZE):
            pending[name].append(entry)
    for name, left in pending.items():
        for entry in left:
            unit = 1 if name.endswith(".meta") else 512
            cut = rng.randint(0, entry.length // unit) * unit
            low, high = rng.choice([(0, entry.length), (0, 0), (0, cut), (cut, entry.length)])
            put(durable[name], entry, low, high)
    return durable


def put(image: bytearray, entry: Entry, low: int, high: int) -> None:
    if entry.kind == SIZE:
        image.extend(bytes(max(0, entry.offset - len(image))))
        return
    data = entry.data[low:high] if entry.kind == WRITE else bytes(high - low)
    image.extend(bytes(max(0, entry.offset + high - len(image))))
    image[entry.offset + low : entry.offset + high] = data


def restore(story: Story, images: dict[str, bytearray]) -> None:
    for daemon, name in ((story.alpha, "va"), (story.beta, "vb")):
        for suffix in (".img", ".meta"):
            path, image = daemon.image(name).with_suffix(suffix), images[name + suffix]
            path.unlink()
            with path.open("wb") as file:
                file.truncate(len(image))
                for at in range(0, len(image), 4096):
                    if any(image[at : at + 4096]):
                        file.seek(at)
                        file.write(image[at : at + 4096])


def check_files(story: Story, promised: dict[str, tuple[int, str]], device: str) -> None:
    """Mounted, so that the journal is replayed; then whole, and clean.  `device`: or a file."""
    subprocess.run(["mount", device, story.place], check=True, timeout=60)
    try:
        for name, (length, digest) in promised.items():
            data = (story.place / name).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (length, digest), name
    finally:
        subprocess.run(["umount", story.place], check=True, timeout=60)
    checked = subprocess.run(["e2fsck", "-fn", device], capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout


def choose_instant(story: Story, phase: str, rng: random.Random) -> int:
    """Just before a sync in that phase."""
    following = {"synchronized": "suspended", "suspended": "copying", "copying": "end"}[phase]
    low, high = story.begun[phase], story.begun[following]
    stamps = [entry.stamp_ns for entry in story.entries if entry.kind == SYNC and low < entry.stamp_ns < high]
    return rng.choice(stamps[len(stamps) // 4 :])


def test_every_fsynced_file_is_whole_in_what_the_source_alone_has_at_many_instants(
    story: Story, tmp_path: Path
) -> None:
    """Its image is mounted as it is, without a process: the destination was the invalid one."""
    seed = int(os.environ.get("PATHCTL_SEED", random.randrange(1 << 20)))
    instants = int(os.environ.get("PATHCTL_INSTANTS", INSTANTS))
    print("seed", seed)
    rng, image = random.Random(seed), tmp_path / "image"
    for number in range(instants):
        instant_ns = choose_instant(story, ("synchronized", "suspended", "copying")[number % 3], rng)
        image.write_bytes(build_images(story.entries, instant_ns, rng)["va.img"])
        check_files(story, story.read_promises(instant_ns), str(image))


@pytest.mark.parametrize(("phase", "first"), CASES)
def test_every_fsynced_file_is_whole_after_both_hosts_lost_power(story: Story, phase: str, first: str) -> None:
    seed = int(os.environ.get("PATHCTL_SEED", random.randrange(1 << 20)))
    print("seed", seed)
    rng = random.Random(seed)
    instant_ns = choose_instant(story, phase, rng)
    promised = story.read_promises(instant_ns)
    assert len(promised) > 10
    restore(story, build_images(story.entries, instant_ns, rng))
    hosts = [story.alpha, story.beta] if first == "alpha" else [story.beta, story.alpha]
    try:
        hosts[0].start()
        if first == "alpha":
            wait_until(lambda: story.alpha.volume("va")["device"] and story.alpha.volume("va")["pid"], "attached again")
            check_files(story, promised, story.device())
        hosts[1].start()
        story.alpha.call("pair.set", pair="va", copy_rate_bytes_s=None)
        story.alpha.call("pair.resume", pair="va")
        wait_until(lambda: story.state() == "Synchronized", "the two find together again", 60)
        check_files(story, promised, story.device())
        wait_until(lambda: story.state() == "Synchronized", "it is Synchronized again", 60)
    finally:
        for daemon in hosts:
            daemon.stop_all()
    assert story.alpha.image("va").read_bytes() == story.beta.image("vb").read_bytes()
