"""The gate against a naive model: who entered first goes first, and nothing that overlaps is in together."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from nbdplugin.gate import Gate, Ticket


def get_admitted(order: list[Ticket]) -> set[Ticket]:
    """Those that nothing before them, in or waiting, overlaps."""
    return {
        ticket for index, ticket in enumerate(order) if not any(ticket.overlaps(before) for before in order[:index])
    }


@given(seed=st.integers(0, 1 << 32))
def test_first_come_first_served(seed: int) -> None:
    rng, gate, order = random.Random(seed), Gate(), list[Ticket]()
    for _ in range(60):
        if order and rng.random() < 0.45:
            leaving = rng.choice([ticket for ticket in order if ticket.is_in])
            before = {ticket for ticket in order if ticket.is_in}
            admitted = gate.leave(leaving)
            order.remove(leaving)
            assert set(admitted) == get_admitted(order) - before
        elif rng.random() < 0.3:
            offset, length = rng.randrange(100), rng.randrange(1, 30)
            probe = Ticket(offset, length, None)
            is_free = not any(probe.overlaps(other) for other in order)
            ticket = gate.try_enter(offset, length)
            assert (ticket is not None) == is_free
            if ticket is not None:
                order.append(ticket)
        else:
            order.append(gate.enter(rng.randrange(100), rng.randrange(1, 30)))
        assert {ticket for ticket in order if ticket.is_in} == get_admitted(order)
        assert len(gate) == len(order)


def test_a_run_is_taken_whole_or_not_at_all() -> None:
    gate = Gate()
    gate.enter(10, 1)
    assert gate.try_enter(0, 11) is None
    assert gate.try_enter(0, 10) is not None
    assert len(gate) == 2


def test_a_later_request_does_not_overtake_one_that_waits() -> None:
    gate = Gate()
    first = gate.enter(0, 10)
    waiting = gate.enter(5, 10)
    late = gate.enter(12, 4)
    assert (waiting.is_in, late.is_in) == (False, False)
    assert gate.leave(first) == [waiting]
    assert gate.leave(waiting) == [late]
