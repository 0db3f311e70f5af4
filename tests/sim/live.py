"""live - one thing stays broken and all else is healed: what can go on must go on.

After TigerBeetle's simulator in its liveness mode.  Reads and writes of valid tracks are begun one after the other;
each must end well within LIMIT events, whatever the peer does.  Nobody may wait for longer than that but for the path
or for a command, whose waits have limits of their own.
"""

from __future__ import annotations

from typing import Any

from nbdplugin.actions import Patience
from nbdplugin.decide import Path
from tests.sim.client import Client
from tests.sim.disk import PER_TRACK, A, B
from tests.sim.faults import Faults
from tests.sim.machine import Killed
from tests.sim.model import Violation

LIMIT = 2_000
EVENTS = 3_000
PROBES = 4
BROKEN = (
    "B is dead",
    "B is frozen",
    "no way to A",
    "no way to B",
    "no way",
    "table B",
    "sync B",
    "write B",
    "read B",
    "read A",
)


class Liveness(Client, Faults):
    """`broken` is what stays so, None in the other mode."""

    broken: str | None = None
    probes = 0
    probed = 0

    def begin_part(self, broken: str) -> None:
        machine = self.machine
        self.heal_all()
        self.broken = broken
        machine.note(f"--- only this stays: {broken}")
        machine.aim = None
        machine.muted = ()
        machine.rates = {broken: 1.0} if broken[-2:] in (" A", " B") and not broken.startswith("no") else {}
        machine.ways[A] = broken not in ("no way to A", "no way")
        machine.ways[B] = broken not in ("no way to B", "no way")
        if broken == "B is frozen":
            machine.stopped[B] = machine.now + 1_000_000
        self.since = {id(task): machine.now for task in machine.tasks}
        self.client_weight = self.p_freeze = 0.0
        self.work_weight = 0.2
        self.most_clients = 0

    def end_part(self) -> None:
        self.check_waiting(0)
        is_done = self.probed or self.core is None or self.core.is_strict
        if not is_done and self._find_valid() is not None:
            raise Violation(f"liveness: {self.broken}: not one request to a valid track was done")
        self.broken = None
        self.machine.stopped[:] = [0, 0]

    def keep_part(self) -> None:
        """Instead of faults; may begin a probe."""
        machine, rng = self.machine, self.rng
        if self.broken == "B is dead" and self.target is not None:
            self.kill(B)
        if self.target is None and self.broken != "B is dead" and rng.random() < 0.1:
            self.start(B)
        if self.core is None:
            self.start(A)
        elif self.core.failed is not None and rng.random() < 0.05:
            self.kill(A)
        if self.target is not None and self.target.failed is not None and rng.random() < 0.05:
            self.kill(B)
        conn = self.find_waiting()
        if conn is not None and (conn.is_deaf or machine.is_hindered) and rng.random() < 0.02:
            self.time_link_out(conn)
        if rng.random() < 0.05:
            machine.reset_deaf()
        if self.probes < PROBES and rng.random() < 0.05:
            self._probe()
        if machine.now % 200 == 0:
            self.check_waiting(LIMIT)

    def _find_valid(self) -> int | None:
        """A track that the host may use, whatever becomes of the path."""
        core = self.core
        if core is None or core.is_read_only:
            return None
        tracks = core.table.geometry.tracks
        valid = [track for track in range(tracks) if not core.table.invalid.get(track)]
        return self.rng.choice(valid) if valid else None

    def _probe(self) -> None:
        track, core = self._find_valid(), self.core
        if track is None or core is None:
            return
        first = track * PER_TRACK + self.rng.randrange(PER_TRACK)
        cells = range(min(first, self.count - 1), min(first + 2, (track + 1) * PER_TRACK, self.count))
        begun, distrusts = self.machine.now, core.distrusts
        self.probes += 1

        def then(error: Exception | None) -> None:
            self.probes -= 1
            if self.broken is None or isinstance(error, Killed) or core.table.invalid.get(track):
                return  # invalid: by a commit or resolve since
            if error is not None and self.core is core and core.distrusts == distrusts and core.failed is None:
                raise Violation(f"liveness: {self.broken}: a request to valid cells {cells} ended with {error!r}")
            if self.machine.now - begun > LIMIT:
                raise Violation(f"liveness: {self.broken}: a request to {cells} took {self.machine.now - begun} events")
            self.probed += 1

        is_reading = self.broken != "read A" and (core.path is Path.HALTED or self.rng.random() < 0.5)
        if is_reading:
            self._spawn_read(core, cells, then)
        elif not core.is_strict:
            self._spawn_write(core, cells, then, is_fua=False)  # FUA may wait for a path in doubt, or tell of its loss
        else:
            self.probes -= 1

    def check_waiting(self, least: int) -> None:
        """Nobody has waited for long, but with a limit of its own."""
        now, known = self.machine.now, self.since
        self.since = {id(task): known.get(id(task), now) for task in self.machine.tasks}
        for task in self.machine.tasks:
            is_limited = task.waiter is not None and task.patience is not Patience.SHORT
            # Policy stop: tried anew in each session, which a peer that cannot write ends; one patience for all tries.
            is_limited |= self.core is not None and self.core.is_strict and task.name.startswith(("write", "trim"))
            is_cut_off = task.side == B
            if not is_limited and not is_cut_off and now - self.since[id(task)] > max(least, LIMIT):
                raise Violation(f"liveness: {self.broken}: {task.name} has waited since {self.since[id(task)]}")


def choose_broken(rng: Any) -> str:
    return str(rng.choice(BROKEN))
