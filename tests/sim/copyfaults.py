"""copyfaults - faults of the copy and of what it believes about holes; see mutations.py."""

from __future__ import annotations

from tests.sim.mutation import Mutation

COPY = (
    Mutation(
        "a hole is pushed that was one before the gate",
        "nbdplugin.transfer._push",
        "    if is_hole:  # as of",
        "    if False:  # as of",
        hint="destination invalid, holes | newest here lazy: 0 push, 1 write A",
    ),
    Mutation(
        "a hole that has become shorter is pushed whole",
        "nbdplugin.transfer._push",
        "run = Span(run.first, min(run.count, count))",
        "pass",
    ),
    Mutation(
        "what the peer told of its holes is believed in another turn",
        "nbdplugin.transfer.find_even",
        " or view.turn != core.turn",
        "",
    ),
    Mutation(
        "what the peer told of its holes is believed in another session",
        "nbdplugin.transfer.find_even",
        " or view.session != core.session or view.turn != core.turn",
        "",
    ),
)
