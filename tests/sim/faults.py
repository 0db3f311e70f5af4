"""faults - what breaks, when, and for how long: processes, hosts, the link, patience.

Faults of disks answer an action and are the machine's.
Each seed, and each phase of it, has its own mix of rates (swarm testing: Groce et al., ISSTA 2012).
"""

from __future__ import annotations

from nbdplugin.actions import Patience
from tests.sim import coverage
from tests.sim.base import Base
from tests.sim.disk import A, B, Image
from tests.sim.machine import FAULTS, Conn

POWER = {"power A": (A,), "power B": (B,), "power both": (A, B)}
WAYS = {"cut to A": (A,), "cut to B": (B,), "stall": (A, B)}
FREEZES = {"freeze A": A, "freeze B": B}
MAX_CLIENTS = 6
ROLLS = {"roll back A": A, "roll back B": B}
_TAKEN_UP_AGAIN = 60
RATES = {
    "cut": 0.005,
    "cut to A": 0.005,
    "cut to B": 0.005,
    "stall": 0.005,
    "flap": 0.002,
    "delay": 0.05,
    "duplicate": 0.2,
    "link time-out": 0.004,
    "lease": 0.004,
    "freeze A": 0.004,
    "freeze B": 0.004,
    "kill A": 0.006,
    "kill B": 0.006,
    "power A": 0.004,
    "power B": 0.004,
    "power both": 0.004,
    "sync A": 0.06,
    "read A": 0.02,
    "write A": 0.03,
    "table A": 0.008,
    "sync B": 0.06,
    "read B": 0.03,
    "write B": 0.03,
    "table B": 0.03,
    "roll back A": 0.004,
    "roll back B": 0.004,
    "refusal": 0.01,
    "command time-out": 0.03,
    "fetch time-out": 0.03,
}


class Faults(Base):
    """`loop_until`: A is killed again and again; `flap_until`: the link breaks again and again."""

    loop_until = 0
    flap_until = 0
    faults_until = 0

    def choose_profile(self) -> None:
        rng = self.rng
        kind = rng.random()
        fault, state = self.aim
        self.is_aiming = rng.random() < (0.9 if self.is_sharp else 0.6)
        self.machine.aim = fault if self.is_aiming else None
        self.machine.aimed_rate = 0.5 if self.is_sharp else 0.25
        if self.is_aiming:
            self.machine.rates = coverage.LEADS.get(state, {}) | coverage.LEADS.get(fault, {})
        elif kind < 0.35:
            self.machine.rates = {}
        elif kind < 0.6:  # one fault, often: it meets states that pass quickly
            name = rng.choice(FAULTS)
            self.machine.rates = {name: min(0.3, RATES[name] * 8)}
        else:
            names = rng.sample(FAULTS, rng.choice((2, 4, 10)))
            self.machine.rates = {name: RATES[name] * rng.choice((0.3, 1, 2)) for name in names}
        self.machine.p_immediate = rng.choice((0.5, 0.8, 0.95))
        self.most_clients = rng.choice((1, 3, MAX_CLIENTS))
        self.client_weight = rng.choice((0.05, 0.15, 0.4))
        self.work_weight = rng.choice((0.05, 0.15, 0.4))
        self.order_weight = rng.choice((0.02, 0.04, 0.1))
        self.p_freeze = rng.choice((0.0, 0.0, 0.02))
        self.p_heal = rng.choice((0.01, 0.05, 0.3))
        self.late_weight = rng.choice((0.003, 0.03, 0.1))
        self.delete_share = rng.choice((0.1, 0.3, 0.8))
        self.p_order = rng.choice((0.02, 0.05, 0.05, 0.3))
        if self.is_aiming and state in ("push", "pull", "synchronized"):  # the copy is to get somewhere
            self.work_weight, self.client_weight, self.p_order = 0.4, rng.choice((0.05, 0.15)), 0.005
            self.order_weight, self.delete_share = 0.1, 0.1
        self.faults_until = self.machine.now + rng.randint(100, 500)

    def break_something(self) -> None:
        """Faults that are not the answer to an action; and their ends."""
        machine, rng = self.machine, self.rng
        if machine.now >= self.faults_until:
            self.choose_profile()
        for side in (A, B):
            if machine.owners[side] is None and rng.random() < 0.1:
                self.start(side)
        # Of what a side that was put back has forgotten, the other one's copy is the only one: no second failure then.
        machine.muted = ("sync A", "write A") if self.rules.is_split() else ()
        self._break_link()
        self._break_processes()
        for name, sides in POWER.items():
            if machine.fault(name):
                self.lose_power(sides)
        self._roll_back()
        self._lose_patience()

    # --- the link ---

    def _break_link(self) -> None:
        machine, rng = self.machine, self.rng
        if not all(machine.ways) and rng.random() < self.p_heal:
            self.heal_link()
        if machine.fault("cut") or (machine.now < self.flap_until and rng.random() < 0.1):
            machine.ways[:] = [rng.random() < 0.5] * 2
            machine.end_conns()
        for name, sides in WAYS.items():
            if machine.fault(name):
                for side in sides:
                    machine.ways[side] = False
        if machine.fault("flap"):
            self.flap_until = machine.now + 60
            self.p_heal = 0.3
        conn = self.find_waiting()
        if conn is not None and not machine.is_stopped(A):
            is_late = conn.is_deaf or machine.is_hindered
            if machine.fault("link time-out") or (is_late and rng.random() < 0.02):
                self.time_link_out(conn)
        if rng.random() < 0.05:
            machine.reset_deaf()
        target = self.target
        if target is not None and target.is_open and not machine.is_stopped(B):
            is_silent = not machine.ways[B] or machine.is_stopped(A) or self.core is None
            if machine.fault("lease") or (is_silent and rng.random() < 0.01):
                machine.note("B gives the session up: nothing was heard of A")
                target.expire()

    def heal_link(self) -> None:
        self.machine.ways[:] = [True, True]
        self.machine.note("the link heals")

    def find_waiting(self) -> Conn | None:
        """The connection on which A has waited for an answer."""
        return next((conn for conn in self.machine.conns.values() if conn.is_alive and conn.calls), None)

    def time_link_out(self, conn: Conn) -> None:
        """A ends the connection; B may still work on what it was asked."""
        self.machine.note(f"A gives up waiting for B in session {conn.session}")
        self.machine.end_conn(conn)

    # --- processes and hosts ---

    def _break_processes(self) -> None:
        machine, rng = self.machine, self.rng
        for name, side in FREEZES.items():
            if machine.owners[side] is not None and not machine.is_stopped(side) and machine.fault(name):
                machine.stopped[side] = machine.now + rng.choice((20, 100, 400))
        if self.core is not None and (machine.fault("kill A") or rng.random() < self._get_loop_rate()):
            self.kill(A)
            if rng.random() < 0.3:  # and again soon, while the traces of this one are fresh
                self.loop_until = machine.now + _TAKEN_UP_AGAIN
        if self.target is not None and machine.fault("kill B"):
            self.kill(B)
        if self.core is not None and self.core.failed is not None and rng.random() < 0.02:
            self.kill(A)  # the operator's decision
        if self.target is not None and self.target.failed is not None and rng.random() < 0.02:
            self.kill(B)

    def _get_loop_rate(self) -> float:
        return 0.05 if self.machine.now < self.loop_until else 0.0

    def _roll_back(self) -> None:
        """A side is put back to what it was before the last session of both: that is for the greeting to notice."""
        machine, rng = self.machine, self.rng
        views = [machine.metas[side].durable for side in (A, B)]
        if machine.metas[A].unsynced:
            return
        if views[A].header.pair is None:
            self.images = [None, None]
        for name, side in ROLLS.items():
            header, other = views[side].header, views[1 - side].header
            image = self.images[side]
            if image is None:
                if views[A].header.committed and header.pair is not None and rng.random() < 0.02:
                    self.images[side] = machine.metas[side].take_image(self.stores.get_durable(side))
                continue
            is_same = image.view.header.pair == views[A].header.pair == views[B].header.pair
            if not is_same or get_last(image, side) >= other.accepted or self.rules.is_split():
                continue
            if machine.fault(name):
                if machine.owners[side] is not None:
                    self.kill(side)
                machine.late = []  # no connection outlives a host that is put back
                machine.note(f"{'AB'[side]} is put back to session {image.view.header.session}")
                self.stores.roll_back(side, image.cells)
                machine.metas[side].roll_back(image)
                self.rules.note_rolled_back(side, machine.now)
                self.images[side] = None

    def lose_power(self, sides: tuple[int, ...]) -> None:
        """The hosts are dark: what no good sync covered is gone, or not, or in part."""
        for side in sides:
            self.machine.note(f"! {'AB'[side]} loses power")
            if self.machine.owners[side] is not None:
                self.kill(side, is_silent=True)
        losses = {}
        for side in sides:
            losses[side] = self.stores.lose_power(side, self.rng)
            self.machine.metas[side].lose_power(self.rng)
        self.rules.note_power_loss(losses, self.machine.now)

    # --- patience ---

    def _lose_patience(self) -> None:
        machine = self.machine
        waiting = [t for t in machine.tasks if t.waiter is not None and t.patience is not Patience.SHORT]
        if not waiting:
            return
        task = self.rng.choice(waiting)
        if machine.is_stopped(task.side):
            return
        if machine.fault("fetch time-out" if task.patience is Patience.FETCH else "command time-out"):
            task.waiter.event = None
            machine.resume(task, False, None)

    def heal_all(self) -> None:
        """Nothing breaks any more."""
        machine = self.machine
        machine.rates = {}
        machine.stopped[:] = [0, 0]
        self.flap_until = self.loop_until = 0
        self.heal_link()


def get_last(image: Image, side: int) -> int:
    """The last session of which the side knew then that it was accepted."""
    return image.view.header.accepted if side == A else image.view.header.session
