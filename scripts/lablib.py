"""lablib - two hosts on one machine, for demo, tests and benchmarks.

Each host is a network namespace with a root folder (database, volumes, sockets) and a pathctld of its own;
a third namespace holds the bridge between them, and there they are cut, in one direction or both, and healed.

    LAB-alpha eth0 10.77.0.1 --- LAB-net: bridge br0 --- eth0 10.77.0.2 LAB-beta

Everything carries the lab's name, so several labs live side by side.  Nothing is remembered in a file: what
belongs to a lab is found by its namespaces and its folder, so that a lab can be taken up or taken away after
any crash.  Only the network is separate; mounts and processes are the machine's (`ip netns exec` would make
a mount namespace of its own, in which a device made elsewhere cannot be seen).  Needs root.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import psutil

from pathctl import client, errors

REPO = Path(__file__).resolve().parent.parent
BIN = REPO / ".venv/bin"
HOSTS = ("alpha", "beta")
NETWORK = "10.77.0"
SERVERS = ("nbdkit", "pathctl.fusefile")
START_LIMIT_S = 60.0  # these three are patience only: a busy machine is no failure
END_LIMIT_S = 60.0
COMMAND_LIMIT_S = 60.0


class LabError(Exception):
    """The lab could not be brought to the state asked for; the text says what is in the way."""


class Host:
    """One host of a lab: how to run commands on it, and its pathctld."""

    def __init__(self, lab: "Lab", name: str, number: int) -> None:
        self.lab = lab
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self.root = lab.folder / name
        self.netns = f"{lab.name}-{name}"

    # -- where things are

    @property
    def log(self) -> Path:
        return self.root / "var/lib/pathctl/log/pathctld.log"

    def run_file(self, name: str) -> Path:
        """A path in the host's run folder: VOLUME.sock, VOLUME.ctl, dev/VOLUME."""
        return self.root / "run/pathctl" / name

    def image(self, volume: str) -> Path:
        return self.root / f"var/lib/pathctl/volumes/{volume}.img"

    # -- commands

    def argv(self, *command: str | Path) -> list[str]:
        """The command line that runs `command` on this host; needs `environment` too."""
        return ["nsenter", f"--net=/run/netns/{self.netns}", "--", *map(str, command)]

    def environment(self) -> dict[str, str]:
        return os.environ | {"PATHCTL_ROOT": str(self.root), "PATH": f"{BIN}:{os.environ.get('PATH', os.defpath)}"}

    def run(
        self, *command: str | Path, check: bool = True, limit_s: float = COMMAND_LIMIT_S
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command on the host; its output is in the result, and in the LabError if `check` and it failed."""
        result = subprocess.run(
            self.argv(*command), env=self.environment(), capture_output=True, text=True, timeout=limit_s, check=False
        )
        if check and result.returncode != 0:
            text = f"{result.stdout}{result.stderr}".strip()
            raise LabError(f"{self.name}: {' '.join(map(str, command))}: exit code {result.returncode}: {text}")
        return result

    def popen(self, *command: str | Path, **options: Any) -> "subprocess.Popen[str]":
        return subprocess.Popen(self.argv(*command), env=self.environment(), text=True, **options)

    def pathctl(self, *arguments: str | Path, limit_s: float = COMMAND_LIMIT_S) -> dict[str, Any]:
        """The JSON answer of a pathctl command; LabError if it fails."""
        answer: dict[str, Any] = json.loads(self.run("pathctl", *arguments, "--json", limit_s=limit_s).stdout)
        return answer

    def call(self, verb: str, **fields: Any) -> dict[str, Any]:
        """The same without starting a process: one verb of pathctld's API; raises PathctlError."""
        return client.call(self.root, verb, limit_s=COMMAND_LIMIT_S, **fields)

    # -- its pathctld

    def pids(self) -> list[int]:
        """The pathctld processes of this host: one, or none."""
        return [
            process.pid for process in _processes() if _is_named(process, "pathctld") and _root_of(process) == self.root
        ]

    def start(self) -> None:
        """Start pathctld unless it runs, and wait until it answers."""
        if not self.pids():
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                # setsid --fork: nobody's child, as under an init system; and not to be waited for.
                subprocess.run(
                    ["setsid", "--fork", *self.argv(BIN / "pathctld")],
                    env=self.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    check=True,
                    cwd="/",
                )
        if not _wait_until(self.answers, START_LIMIT_S):
            raise LabError(f"{self.name}: pathctld does not answer; the end of {self.log}:\n{_tail(self.log)}")

    def answers(self) -> bool:
        try:
            client.call(self.root, "status", limit_s=START_LIMIT_S)
        except errors.PathctlError as error:
            return error.code is not errors.ErrorCode.UNREACHABLE
        return True

    def stop(self) -> None:
        """End pathctld as an init system does; its volumes go on."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def nbdkit_pids(self, volume: str) -> list[int]:
        """The process that serves the volume: one, or none."""
        control = f"control={self.run_file(f'{volume}.ctl')}"
        return [process.pid for process in _processes() if control in _cmdline(process)]

    def device_pids(self, volume: str) -> list[int]:
        """The process behind the volume's block device: one, or none."""
        return [
            process.pid
            for process in _processes()
            if _is_named(process, "pathctl.fusefile") and str(self.run_file(f"{volume}.sock")) in _cmdline(process)
        ]

    def find(self, what: str) -> list[int]:
        """Process ids of `pathctld`, `nbdkit:VOLUME` or `device:VOLUME`."""
        kind, _, volume = what.partition(":")
        if kind == "pathctld" and not volume:
            return self.pids()
        if kind in ("nbdkit", "device") and volume:
            return self.nbdkit_pids(volume) if kind == "nbdkit" else self.device_pids(volume)
        raise LabError(f"{what!r} is no process of a host; give pathctld, nbdkit:VOLUME or device:VOLUME")

    def _end(self, number: signal.Signals) -> None:
        end(self.pids(), number)


class Lab:
    """The hosts and the network between them."""

    def __init__(self, name: str | None = None, hosts: Sequence[str] = HOSTS) -> None:
        self.name = name or os.environ.get("PATHCTL_LAB") or "lab"
        if not re.fullmatch(r"[a-z0-9]{1,12}", self.name):
            raise LabError(f"{self.name!r} is no name for a lab: use 1 to 12 of a-z and 0-9")
        self.folder = Path("/var/tmp") / f"pathctl-{self.name}"
        self.net = f"{self.name}-net"
        self.hosts = {host: Host(self, host, number) for number, host in enumerate(hosts, 1)}

    def host(self, name: str) -> Host:
        if name not in self.hosts:
            raise LabError(f"this lab has no host {name!r}; it has {' and '.join(self.hosts)}")
        return self.hosts[name]

    # -- up

    def up(self) -> None:
        """Make what is missing: network, daemons, enrolment.  What is there and works is left alone."""
        self._make_network()
        self.heal()
        for host in self.hosts.values():
            host.root.mkdir(parents=True, exist_ok=True)
        _at_once([host.start for host in self.hosts.values()])
        for host in self.hosts.values():
            host.call("host.init", name=host.name, address=host.address, port=7630)
        self._enrol()

    def _make_network(self) -> None:
        existing = _namespaces()
        for name in (self.net, *(host.netns for host in self.hosts.values())):
            if name not in existing:
                _ip("netns", "add", name)
        if not _has_link(self.net, "br0"):
            _ip_in(self.net, "link", "add", "br0", "up", "type", "bridge")
        for host in self.hosts.values():
            if not _has_link(self.net, host.name):
                self._plug_in(host)

    def _plug_in(self, host: Host) -> None:
        _ip_in(host.netns, "link", "set", "lo", "up")
        _ip("link", "add", "eth0", "netns", host.netns, "type", "veth", "peer", "name", host.name, "netns", self.net)
        _ip_in(self.net, "link", "set", host.name, "master", "br0", "up")
        _ip_in(host.netns, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip_in(host.netns, "link", "set", "eth0", "up")

    def _enrol(self) -> None:
        first, *others = self.hosts.values()
        known = {peer["name"] for peer in first.call("peer.list")["peers"]}
        for host in others:
            back = {peer["name"] for peer in host.call("peer.list")["peers"]}
            if host.name not in known or first.name not in back:
                host.call("peer.join", token=first.call("peer.invite")["token"])

    # -- the network between the hosts

    def cut(self, sender: str | None = None) -> None:
        """Drop, from now on and without a word to either side, everything between the hosts, or what `sender` sends."""
        chain = "add chain bridge cut f { type filter hook forward priority 0; }"
        match = "" if sender is None else f"iifname {self.host(sender).name} "
        self._nft(self.net, f"add table bridge cut; delete table bridge cut; add table bridge cut; {chain}")
        self._nft(self.net, f"add rule bridge cut f {match}drop")

    def cut_port(self, port: int) -> None:
        """Drop what has this TCP port at either end, in both directions."""
        self._nft(self.net, "add table bridge cut; add chain bridge cut f { type filter hook forward priority 0; }")
        self._nft(self.net, f"add rule bridge cut f tcp sport {port} drop; add rule bridge cut f tcp dport {port} drop")

    def reset(self) -> None:
        """Answer, from now on, whatever either host sends to the other over TCP with a reset."""
        rules = ["add table inet resets"]
        for hook, device in (("input", "iifname"), ("output", "oifname")):
            rules.append(f"add chain inet resets {hook} {{ type filter hook {hook} priority 0; }}")
            rules.append(f"add rule inet resets {hook} {device} eth0 meta l4proto tcp reject with tcp reset")
        self._nft(self._first.netns, "; ".join(rules))

    def slow_down(self, rate: str) -> None:
        """Let no more through than this in either direction, `8mbit` as in tc(8); what does not fit is dropped."""
        limits = ("tbf", "rate", rate, "burst", "64kb", "latency", "400ms")
        for host in self.hosts.values():
            _run(*self._in(self.net), "tc", "qdisc", "replace", "dev", host.name, "root", *limits)

    def heal(self) -> None:
        """The network is as `up` made it."""
        self._nft(self.net, "add table bridge cut; delete table bridge cut")
        self._nft(self._first.netns, "add table inet resets; delete table inet resets")
        for host in self.hosts.values():
            if self._is_slow(host):
                _run(*self._in(self.net), "tc", "qdisc", "delete", "dev", host.name, "root")

    def is_cut(self) -> bool:
        """Whether anything is wrong with the network, in one direction or both."""
        is_dropped = "table bridge cut" in self._nft(self.net, "list tables")
        is_reset = "table inet resets" in self._nft(self._first.netns, "list tables")
        return is_dropped or is_reset or any(self._is_slow(host) for host in self.hosts.values())

    @property
    def _first(self) -> Host:
        return next(iter(self.hosts.values()))

    def _is_slow(self, host: Host) -> bool:
        return "tbf" in _run(*self._in(self.net), "tc", "qdisc", "show", "dev", host.name)

    def _nft(self, netns: str, rules: str) -> str:
        return _run(*self._in(netns), "nft", rules)

    @staticmethod
    def _in(netns: str) -> tuple[str, ...]:
        return ("nsenter", f"--net=/run/netns/{netns}")

    # -- down

    def down(self) -> None:
        """Leave nothing: processes, mounts, loop devices, namespaces, folder.  From the top: users before servers."""
        _kill(process.pid for process in self._processes() if _is_named(process, "pathctld"))  # it restarts the rest
        _kill(process.pid for process in self._processes() if not _is_named(process, *SERVERS))
        self._unmount(self._device_mounts())
        for device in self._loops():
            _try("losetup", "--detach", device)
        _kill(process.pid for process in self._processes())
        self._unmount(self._device_mounts())  # what could not be written out before: its server is gone now
        for device in self._loops():
            _try("losetup", "--detach", device)
        self._unmount(self._folder_mounts())
        for name in _namespaces() & {self.net, *(host.netns for host in self.hosts.values())}:
            _ip("netns", "delete", name)
        shutil.rmtree(self.folder, ignore_errors=True)
        left = self.litter()
        if left:
            raise LabError(f"lab {self.name} is not gone: {'; '.join(left)}")

    def litter(self) -> list[str]:
        """What is still there of this lab, in words; empty after `down`."""
        names = {self.net, *(host.netns for host in self.hosts.values())}
        return [
            *(f"process {process.pid}: {' '.join(_cmdline(process))}" for process in self._processes()),
            *(f"loop device {device}" for device in self._loops()),
            *(f"mount {place}" for place in sorted({*self._folder_mounts(), *self._device_mounts()})),
            *(f"namespace {name}" for name in sorted(_namespaces() & names)),
            *([f"folder {self.folder}"] if self.folder.exists() else []),
        ]

    def _processes(self) -> list[psutil.Process]:
        """Those in one of the namespaces, with one of the roots in their environment, or naming the folder.

        Not this process and its ancestors: the shell that asks may well have the root set.
        """
        ours = {os.getpid(), *(process.pid for process in psutil.Process().parents())}
        inodes = {_inode(f"/run/netns/{host.netns}") for host in self.hosts.values()} - {None}
        return [
            process
            for process in _processes()
            if process.pid not in ours and process.pid != 1 and self._owns(process, inodes)
        ]

    def _owns(self, process: psutil.Process, inodes: set[int | None]) -> bool:
        if _inode(f"/proc/{process.pid}/ns/net") in inodes:
            return True
        root = _root_of(process)
        return (root is not None and self.folder in root.parents) or self._serves_from_folder(process)

    def _serves_from_folder(self, process: psutil.Process) -> bool:
        return _is_named(process, *SERVERS) and f"{self.folder}/" in " ".join(_cmdline(process))

    def _loops(self) -> list[str]:
        backing = Path("/sys/block").glob("loop*/loop/backing_file")
        return [f"/dev/{file.parts[3]}" for file in backing if _read(file).startswith(f"{self.folder}/")]

    def _folder_mounts(self) -> list[str]:
        return [place for _device, place in _mounts() if place.startswith(f"{self.folder}/")]

    def _device_mounts(self) -> list[str]:
        numbers = {_read(Path("/sys/block", Path(path).name, "dev")) for path in self._loops()}
        return [place for device, place in _mounts() if device in numbers]

    def _unmount(self, places: Sequence[str]) -> None:
        for place in reversed(places):
            if not _try("umount", place):
                _try("umount", "--lazy", place)


# -- processes --------------------------------------------------------------------------------------------


def _processes() -> Iterator[psutil.Process]:
    """The live processes; a zombie has no command line."""
    return (process for process in psutil.process_iter() if _cmdline(process))


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_named(process: psutil.Process, *names: str) -> bool:
    """Whether it runs one of these programs; a script's or module's name stands among its interpreter's arguments."""
    return any(Path(word).name in names for word in _cmdline(process)[:3])


def _root_of(process: psutil.Process) -> Path | None:
    try:
        root = process.environ().get("PATHCTL_ROOT")
    except (psutil.Error, OSError):
        return None
    return Path(root) if root else None


@contextlib.contextmanager
def frozen(pids: Sequence[int]) -> Iterator[None]:
    """These processes stand still as long as the context lasts."""
    send(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        send(pids, signal.SIGCONT)


def end(pids: Sequence[int], number: signal.Signals = signal.SIGKILL) -> None:
    """Waits until they are gone; LabError if they do not go."""
    send(pids, number)
    if not _wait_until(lambda: not _alive(pids), END_LIMIT_S):
        raise LabError(f"process {pids} has not ended {END_LIMIT_S:g} s after {number.name}")


def send(pids: Sequence[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill(pids: Iterable[int]) -> None:
    found = list(pids)
    send(found, signal.SIGKILL)
    _wait_until(lambda: not _alive(found), END_LIMIT_S)


def _alive(pids: Sequence[int]) -> list[int]:
    """Those that still run; a zombie that nobody has reaped yet does not."""
    return [
        pid
        for pid in pids
        if (state := _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()) and state[0] not in "ZX"
    ]


# -- helpers ----------------------------------------------------------------------------------------------


def _at_once(jobs: Sequence[Callable[[], None]]) -> None:
    with futures.ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(job) for job in jobs]:
            future.result()


def _wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _run(*command: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
    except FileNotFoundError:
        raise LabError(f"{command[0]} is not installed; run scripts/setup") from None
    if result.returncode != 0:
        raise LabError(f"{' '.join(command)}: {result.stderr.strip() or f'exit code {result.returncode}'}")
    return result.stdout


def _try(*command: str, limit_s: float = 3.0) -> bool:
    """Whether the command succeeded in time; one that hangs on a dead server is left to end when that is gone."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return _wait_until(lambda: process.poll() is not None, limit_s) and process.returncode == 0


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _ip_in(netns: str, *arguments: str) -> str:
    """The same in a namespace; `ip -n` would make a mount namespace too, which fails in a plain chroot."""
    return _run("nsenter", f"--net=/run/netns/{netns}", "ip", *arguments)


def _namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


def _has_link(netns: str, name: str) -> bool:
    return any(link.get("ifname") == name for link in json.loads(_ip_in(netns, "-json", "link", "show") or "[]"))


def _mounts() -> list[tuple[str, str]]:
    """(major:minor, mount point) of each mount, in the order they were made; octal escapes undone, as in proc(5)."""
    fields = [line.split(" ") for line in _read(Path("/proc/self/mountinfo")).splitlines()]
    return [(words[2], re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])) for words in fields]


def _inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").rstrip("\n")
    except OSError:
        return ""


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(_read(path).splitlines()[-lines:])
