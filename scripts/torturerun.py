"""torturerun - two lab hosts, verifying writers on one pair, and faults at random; at the end every byte is looked at.

    scripts/torture [--minutes N] [--seed S] [--size 128M] [--folder FOLDER]

Rounds of a minute.  In each, one side is made invalid (and filled with rubbish), the pair is created, four writers
use the block device and four nbdkit's socket, and two demons do faults from the first moment on: in one round those
of the link and of the control planes only, in the next also killed data planes and failing disks.  Then all is healed,
the pair has to become Synchronized, and both sides are compared with each other and with what was acknowledged.

Exit code 1 and a sentence for each thing that is not as promised (see torturejudge for the bounds).  The logs of
writers, faults and processes stay in the folder that the last line names; of the lab nothing stays.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lablib
import nbd
import torturedata
import torturefaults
import torturejudge
from torturedata import MIB
from torturefaults import CRASH, LINK, Demon, Table, TortureError
from torturejudge import Judge, Resent, Sample, Stalls

from pathctl import errors, units

sys.path.append(str(lablib.REPO / "tests"))
from live import faultdisk

VOLUME = "torture"
TRACK = 64 << 10
WRITERS = 8
DEVICE_WRITERS = 4
ROUND_S = 60.0
SAMPLE_S = 0.1
SAMPLED = ("pid", "session", "owed", "invalid", "doubtful")
SYNC_LIMIT_S = 120.0
END_LIMIT_S = 60.0
ROUNDS = (("destination", LINK), ("source", CRASH), ("source", LINK), ("destination", CRASH))
RATES = (8 * MIB, 32 * MIB, None)


@dataclasses.dataclass
class Result:
    """What a round, or all of them, came to."""

    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    requests: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    written: int = 0
    read: int = 0
    stalls: Stalls = dataclasses.field(default_factory=Stalls)
    resent: dict[str, list[Resent]] = dataclasses.field(default_factory=lambda: {LINK: [], CRASH: []})
    link_timeout_s: float = 0.0  # the product's default
    wrong: list[str] = dataclasses.field(default_factory=list)


def main() -> int:
    options = _parse(sys.argv[1:])
    folder = options.folder or Path(tempfile.mkdtemp(prefix="pathctl-torture-", dir="/var/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"torture: {folder} is not empty, and logs of another run would be taken for this one's", file=sys.stderr)
        return 1
    lab = lablib.Lab(os.environ.get("PATHCTL_LAB") or f"t{os.getpid()}")
    torture = Torture(lab, folder, options)
    disks = contextlib.ExitStack()
    try:
        lab.down()
        lab.up()
        torture.open_disks(disks)
        torture.run()
    except (TortureError, lablib.LabError, errors.PathctlError, subprocess.SubprocessError, OSError) as error:
        torture.result.wrong.append(str(error))
    finally:
        with contextlib.suppress(OSError):
            torture.keep_logs()
        with disks:
            lab.down()
    _report(torture.result, options)
    print(f"the logs are in {folder}")
    return 1 if torture.result.wrong else 0


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/torture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long faults are done (default 5)")
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: a random one"
    )
    parser.add_argument("--size", type=units.parse_size, default=128 * MIB, help="of the volumes (default 128M)")
    parser.add_argument("--tell-times", action="store_true", help="how long requests took is told, but not judged")
    parser.add_argument("--folder", type=Path, help="for the logs (default: a new one in /var/tmp)")
    return parser.parse_args(words)


class Torture:
    """The rounds, and what they came to so far."""

    def __init__(self, lab: lablib.Lab, folder: Path, options: argparse.Namespace) -> None:
        self.lab, self.folder, self.options = lab, folder, options
        self.alpha, self.beta = lab.host("alpha"), lab.host("beta")
        self.result = Result()
        self._disks: dict[str, faultdisk.FaultDisk] = {}
        self._start = time.monotonic()
        self._seen = 0

    def run(self) -> None:
        """Raises TortureError, LabError and the like when it cannot go on."""
        for host in (self.alpha, self.beta):
            image = self._image(host)
            image.touch()
            os.truncate(image, self.options.size)
            host.call("volume.create", name=VOLUME, backing=str(image), track_size=TRACK)
        seconds = self.options.minutes * 60
        count = max(1, round(seconds / ROUND_S))
        self._say(f"seed {self.options.seed}: {count} rounds of {seconds / count:.0f} s, lab {self.lab.name}")
        for number in range(count):
            invalid, phase = ROUNDS[number % len(ROUNDS)]
            self._do_round(number, invalid, phase, seconds / count)
            if self.result.wrong:
                return

    def open_disks(self, stack: contextlib.ExitStack) -> None:
        """The volumes lie on disks that can be told to fail."""
        for host in (self.alpha, self.beta):
            self._disks[host.name] = stack.enter_context(faultdisk.FaultDisk(self.lab.folder / f"{host.name}-disk"))

    def _image(self, host: lablib.Host) -> Path:
        return Path(self._disks[host.name].path(torturefaults.IMAGE))

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._start:8.1f} s  {text}", flush=True)

    # -- one round

    def _do_round(self, number: int, invalid: str, phase: str, seconds: float) -> None:
        rng = random.Random(f"{self.options.seed}-{number}")
        rate = rng.choice(RATES)
        self._say(f"round {number + 1}: {phase} faults, {invalid} invalid, copy rate {rate or 'not limited'}")
        spoiled = self.alpha if invalid == "source" else self.beta
        spoil(self._image(spoiled), self.options.size, rng)
        more = {"copy_rate_bytes_s": rate} if rate else {}
        device = self.alpha.call(
            "pair.create", source=VOLUME, destination=f"beta:{VOLUME}", invalidate=invalid, attach=True, **more
        )["device"]
        assert device
        self.result.link_timeout_s = self._read_limit("link_timeout_s")
        table = Table(self.lab, VOLUME, phase, self._read_status, self._disks)
        sampler = Sampler(self._read_status)
        with sampler.running(self.folder / "samples.log"), self._writers(number) as writers:
            self._torment(table, number, seconds, writers)
            self.lab.heal()
            self._wait_synchronized(sampler)
        self.alpha.call("detach", volume=VOLUME)
        self._flush()
        self._wait_synchronized(sampler)
        self._judge(table, sampler, invalid, phase)
        self._compare()
        self.alpha.call("pair.delete", pair=VOLUME)

    def _torment(self, table: Table, number: int, seconds: float, writers: list[subprocess.Popen[str]]) -> None:
        seed = f"{self.options.seed}-{number}"
        demons = [Demon(table, f"{seed}-0", (0.5, 4.0)), Demon(table, f"{seed}-1", (3.0, 12.0))]
        for demon in demons:
            demon.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not table.stop.wait(0.5):
            if (self.folder / "wrong.log").exists():
                break
            ended = [writer.args for writer in writers if writer.poll() is not None]
            if ended:
                table.problem = f"writers ended by themselves: {ended}"
                break
        table.stop.set()
        for demon in demons:
            demon.join(torturefaults.BACK_S + 30)
        with (self.folder / "faults.log").open("a") as log:
            log.writelines(json.dumps(dataclasses.asdict(fault), default=sorted) + "\n" for fault in table.faults)
        if any(demon.is_alive() for demon in demons):
            raise TortureError("a fault could not be undone in time")
        if table.problem:
            raise TortureError(table.problem)

    def _flush(self) -> None:
        """Asks the peer for an answer: a loss under the last write may not have been noticed yet."""
        handle = nbd.NBD()
        handle.connect_unix(str(self.alpha.run_file(f"{VOLUME}.sock")))
        with contextlib.suppress(nbd.Error):  # what is lost for certain is told once
            handle.flush()
        handle.shutdown()

    def _wait_synchronized(self, sampler: Sampler) -> None:
        start = time.monotonic()
        last: dict[str, Any] = {}
        while time.monotonic() < start + SYNC_LIMIT_S:
            if (self.folder / "wrong.log").exists():
                return
            last = self.alpha.call("pair.show", pair=VOLUME)["pair"]
            if last["state"] == "Synchronized":
                self._say(f"healed, Synchronized after {time.monotonic() - start:.1f} s")
                return
            time.sleep(0.2)
        reason = f"{last['state']}, invalid {last['invalid']}, owed {last['owed']}: {last.get('reason')}"
        raise TortureError(f"the pair is not Synchronized {SYNC_LIMIT_S:g} s after everything was healed: {reason}")

    @contextlib.contextmanager
    def _writers(self, number: int) -> Iterator[list[subprocess.Popen[str]]]:
        """The writers' processes, at work; they have ended when the context has, without an error."""
        program = [str(lablib.BIN / "python"), str(Path(__file__).with_name("torturewrite.py"))]
        share = [str(WRITERS), str(self.options.size), f"{self.options.seed}-{number}"]
        socket_writers = WRITERS - DEVICE_WRITERS
        device, socket = (str(self.alpha.run_file(name)) for name in (f"dev/{VOLUME}", f"{VOLUME}.sock"))
        commands = [
            ["device", device, str(self.folder), "0", str(DEVICE_WRITERS), *share],
            ["socket", socket, str(self.folder), str(DEVICE_WRITERS), str(socket_writers), *share],
            ["control", str(self.lab.folder / "control"), str(self.folder)],
        ]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context((self.folder / "writers.log").open("a"))
            running: list[subprocess.Popen[str]] = []
            for words in commands:
                process = subprocess.Popen(
                    [*program, *words], stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, cwd="/"
                )
                running.append(process)
                stack.callback(end_writer, process)
            yield running
            for process in running:
                assert process.stdin is not None
                process.stdin.close()
            codes = [process.wait(END_LIMIT_S) for process in running]
            if any(codes):
                raise TortureError(f"writers ended with exit codes {codes}; see {self.folder}/writers.log")

    def _read_status(self, name: str) -> dict[str, Any] | None:
        return torturefaults.read_status(self.lab.host(name).run_file(f"{VOLUME}.ctl"), 0.5)

    def _read_limit(self, name: str) -> float:
        status = self._read_status("alpha")
        if status is None:
            raise TortureError("the source's data plane does not answer")
        return float(status["limits"][name])

    # -- judging

    def _judge(self, table: Table, sampler: Sampler, invalid: str, phase: str) -> None:
        result = self.result
        logs = [torturedata.read_log(self.folder / f"writer-{number}.log") for number in range(WRITERS)]
        everything = sorted((record for log in logs for record in log), key=lambda record: record.end)
        records, self._seen = everything[self._seen :], len(everything)
        control = [r for r in torturedata.read_log(self.folder / "control.log") if r.end > sampler.samples[0].at]
        torturejudge.prolong(table.faults, sampler.samples)
        doubts = torturejudge.find_doubts(sampler.samples)
        judge = Judge(records, control, table.faults, DEVICE_WRITERS, TRACK, result.link_timeout_s, doubts)
        stalls = judge.find_stalls(invalid == "source")
        is_push = invalid == "destination"
        samples, first = torturejudge.skip_first_copy(sampler.samples) if is_push else (sampler.samples, 0)
        resent = torturejudge.count_resent(records, samples, table.faults, first, TRACK)
        self._say(
            f"{len(records)} requests, {len(table.faults)} faults; longest {stalls.valid_s:.2f} s, mirrored in flight "
            f"{stalls.mirrored_s:.2f} s; sent again {resent.resent / MIB:.1f} MiB, needed {resent.needed / MIB:.1f} MiB"
        )
        for record in records:
            result.requests[f"{torturedata.KINDS[record.kind]} {record.outcome}"] += 1
            result.written += record.length if record.is_change else 0
            result.read += record.length if record.kind == "r" else 0
        result.faults.update(fault.kind for fault in table.faults)
        result.stalls.merge(stalls)
        result.resent[phase].append(resent)
        wrong = self.folder / "wrong.log"
        result.wrong += wrong.read_text().splitlines() if wrong.exists() else []
        result.wrong += judge.find_unexcused()
        if not self.options.tell_times:
            result.wrong += [f"a request took too long: {text}" for text in stalls.over]
        if phase == CRASH and resent.is_too_much:
            result.wrong.append(describe_resent([resent], "sent again in this round: too much"))

    def _compare(self) -> None:
        """Both stores byte for byte, and against what was acknowledged."""
        paths = [self._image(host) for host in (self.alpha, self.beta)]
        differing = find_differing(*paths)
        if differing:
            for path, host in zip(paths, ("alpha", "beta"), strict=True):
                shutil.copyfile(path, self.folder / f"{host}.img")
            self.result.wrong.append(
                f"the two sides differ in {len(differing)} tracks, the first at {differing[0] * TRACK}"
            )
        lost = find_lost(paths[0], self.folder, self.options.size)
        self.result.wrong += [f"lost: {text}" for text in lost[:20]]
        self._say("both sides equal, every acknowledged write is there" if not differing and not lost else "NOT equal")

    def keep_logs(self) -> None:
        for host in (self.alpha, self.beta):
            if host.log.parent.exists():
                shutil.copytree(host.log.parent, self.folder / f"{host.name}-log", dirs_exist_ok=True)


class Sampler:
    """Asks both data planes ten times a second, each by a thread of its own: one may be frozen."""

    def __init__(self, read: Callable[[str], dict[str, Any] | None]) -> None:
        self._read = read
        self._stop = threading.Event()
        self._last: dict[str, int | None] | None = None
        self.samples: list[Sample] = []

    @contextlib.contextmanager
    def running(self, path: Path) -> Iterator[None]:
        """As long as the context lasts; what was seen is added to the file then."""
        threads = [threading.Thread(target=work) for work in (self._watch_source, self._watch_destination)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            with path.open("a") as log:
                log.writelines(json.dumps(dataclasses.asdict(sample)) + "\n" for sample in self.samples)

    def _watch_source(self) -> None:
        while True:
            status, last = self._read("alpha"), self._last
            source = None if status is None else {name: status[name] for name in SAMPLED}
            self.samples.append(Sample(time.monotonic(), source, last))
            if self._stop.wait(SAMPLE_S):
                return

    def _watch_destination(self) -> None:
        while True:
            status = self._read("beta")
            if status is not None:
                counted = status["counters"]
                self._last = {"pid": status["pid"], "copied_bytes": counted["copied_bytes"]}
            if self._stop.wait(SAMPLE_S):
                return


def end_writer(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)


def spoil(image: Path, size: int, rng: random.Random) -> None:
    """Rubbish everywhere: whatever is read from here before it was brought over is wrong."""
    with image.open("r+b") as file:
        for _ in range(0, size, MIB):
            file.write(rng.randbytes(4096) * (MIB // 4096))


def find_differing(one: Path, other: Path) -> list[int]:
    """Tracks."""
    with one.open("rb") as first, other.open("rb") as second:
        found, track = [], 0
        while data := first.read(TRACK):
            if data != second.read(TRACK):
                found.append(track)
            track += 1
        return found


def find_lost(image: Path, folder: Path, size: int) -> list[str]:
    """Cells that do not hold what their writers' logs say, in words."""
    models = {}
    for writer in range(WRITERS):
        models[writer] = torturedata.replay(writer, torturedata.read_log(folder / f"writer-{writer}.log"))
    data = memoryview(image.read_bytes())
    faults = (
        models[writer].find_fault(cell * torturedata.CELL, data[cell * torturedata.CELL :][: torturedata.CELL])
        for cell, writer in torturedata.walk(WRITERS, size)
    )
    return [fault for fault in faults if fault is not None]


# -- the report


def describe_resent(found: list[Resent], what: str) -> str:
    resent, needed, allowed = (sum(getattr(r, name) for r in found) / MIB for name in ("resent", "needed", "allowance"))
    ratio = f", {resent / needed:.2f} times" if needed else ""
    more = f", {allowed:.0f} MiB allowed for crashes" if allowed else ""
    return f"{what}: {resent:.1f} MiB, lower bound {needed:.1f} MiB{ratio}{more}"


def _report(result: Result, options: argparse.Namespace) -> None:
    print(f"\nseed {options.seed}, {options.minutes:g} minutes, volumes of {options.size // MIB} MiB")
    print(f"faults survived: {sum(result.faults.values())}")
    for kind, count in sorted(result.faults.items()):
        print(f"{count:6}  {kind}")
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(result.requests.items()))
    print(f"requests: {counts}; {result.written / MIB:.0f} MiB written, {result.read / MIB:.0f} MiB read and checked")
    stalls = result.stalls
    print(f"longest request to valid tracks: {stalls.valid_s:.2f} s (bound {torturejudge.STALL_S:g} s)")
    print(
        f"longest mirrored write that a fault caught in flight, from the fault on: {stalls.mirrored_s:.2f} s "
        f"(bound {result.link_timeout_s + torturejudge.SPARE_S:g} s)"
    )
    print(
        f"not counted: {stalls.own_s:.2f} s while the source's nbdkit or device process stood still or its disk failed"
    )
    print(f"not counted: {stalls.invalid_s:.2f} s for a track that was invalid while the path was not ready")
    print(f"not counted: {stalls.doubt_s:.2f} s of a write while the peer alone had something, perhaps not durably")
    print(f"not counted: {stalls.behind_s:.2f} s behind a flush in the kernel's loop driver")
    print(
        f"the machine: a plain file's writer was late by up to {stalls.machine_s:.2f} s; "
        f"{stalls.machines} requests were over a bound by no more than that"
    )
    for phase, what in ((LINK, "sent again after link faults"), (CRASH, "sent again in rounds with crashes")):
        if result.resent[phase]:
            print(describe_resent(result.resent[phase], what))
    if sum(r.resent for r in result.resent[LINK]) > torturejudge.FACTOR * sum(r.needed for r in result.resent[LINK]):
        result.wrong.append(describe_resent(result.resent[LINK], "sent again after link faults: too much"))
    for text in result.wrong[:30]:
        print(f"WRONG: {text}")
    print("everything as promised" if not result.wrong else f"{len(result.wrong)} things are not as promised")


if __name__ == "__main__":
    sys.exit(main())
