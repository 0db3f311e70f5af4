"""The gate against a list that is looked through anew each time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nbdplugin.gate import Gate, Ticket

RANGES = st.tuples(st.integers(0, 12), st.integers(1, 6))
STEPS = st.lists(st.tuples(st.sampled_from(["enter", "try", "leave"]), RANGES, st.integers(0, 20)), max_size=60)


class Naive:
    """In order of arrival; one is in if nothing that came before it overlaps it."""

    def __init__(self) -> None:
        self.line: list[tuple[int, int, int]] = []

    def get_in(self) -> set[int]:
        return {
            number
            for place, (number, start, end) in enumerate(self.line)
            if not any(start < other_end and other_start < end for _, other_start, other_end in self.line[:place])
        }


@given(STEPS)
def test_it_admits_as_a_line_would(steps: list[tuple[str, tuple[int, int], int]]) -> None:
    gate, naive, tickets = Gate(), Naive(), dict[int, Ticket]()
    for number, (what, (offset, length), choice) in enumerate(steps):
        before = naive.get_in()
        if what == "leave":
            inside = sorted(before)
            if not inside:
                continue
            leaver = inside[choice % len(inside)]
            admitted = gate.leave(tickets.pop(leaver))
            naive.line = [item for item in naive.line if item[0] != leaver]
            new = naive.get_in() - before
            assert [ticket.owner for ticket in admitted] == sorted(new)
        elif what == "enter":
            tickets[number] = gate.enter(offset, length, number)
            naive.line.append((number, offset, offset + length))
        else:
            probe = gate.try_enter(offset, length)
            is_free = not any(offset < end and start < offset + length for _, start, end in naive.line)
            assert (probe is not None) == is_free
            if probe is not None:
                probe.owner = number
                tickets[number] = probe
                naive.line.append((number, offset, offset + length))
        assert {owner for owner, ticket in tickets.items() if ticket.is_in} == naive.get_in()
        assert len(gate) == len(naive.line)


@given(STEPS)
def test_no_two_that_are_in_overlap(steps: list[tuple[str, tuple[int, int], int]]) -> None:
    gate = Gate()
    tickets = [gate.enter(offset, length) for _, (offset, length), _ in steps]
    while tickets:
        inside = [ticket for ticket in tickets if ticket.is_in]
        assert inside
        assert not any(one is not other and one.overlaps(other) for one in inside for other in inside)
        gate.leave(inside[0])
        tickets.remove(inside[0])


def test_one_that_waits_holds_back_who_comes_later_and_overlaps_only_it() -> None:
    gate = Gate()
    first, second, third = gate.enter(0, 2), gate.enter(1, 2), gate.enter(2, 2)
    assert (first.is_in, second.is_in, third.is_in) == (True, False, False)
    assert gate.leave(first) == [second]
    assert gate.leave(second) == [third]
