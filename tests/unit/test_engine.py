"""How long the waits of a flow may last."""

import threading

from nbdplugin.actions import Patience, Wait, Waiter
from nbdplugin.engine import Engine


class Owner:
    def __init__(self):
        self.woken = []


def wake(owner, waiter):
    waiter.is_done = True
    owner.woken.append(waiter)
    return
    yield


def test_a_short_wait_after_a_long_one_has_all_its_time():
    owner, path, gate = Owner(), Waiter(), Waiter()
    engine = Engine(owner, {}, {Patience.FETCH: 60.0, Patience.SHORT: 3.0})

    def request():
        yield Wait(path, Patience.FETCH)
        threading.Timer(0.1, lambda: engine.run(wake(owner, gate))).start()
        yield Wait(gate)
        return "done"

    threading.Timer(3.2, lambda: engine.run(wake(owner, path))).start()
    assert engine.run(request()) == "done"
