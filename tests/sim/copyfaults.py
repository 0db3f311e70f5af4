"""copyfaults - faults of the copy and of what it believes about holes; see mutations.py.

Left out, since 600 seeds find nothing: `_hold` does not ask whether a run is still owed (the gate keeps writes out, and
what is not owed the peer has), `_push_held` not whether a sync failed meanwhile.
"""

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
        hint="destination invalid, holes | newest here: 0 write A, 0 push",
    ),
    Mutation(
        "what the peer told of its holes is believed in another turn",
        "nbdplugin.transfer.find_even",
        " or view.turn != core.turn",
        "",
        hint=21,
    ),
    Mutation(
        "what the peer told of its holes is believed in another session",
        "nbdplugin.transfer.find_even",
        " or view.session != core.session or view.turn != core.turn",
        "",
    ),
    Mutation(
        "of several runs one does not hold its tracks",
        "nbdplugin.scatter._hold",
        "core.gate.try_enter(*core.table.geometry.get_range(run))",
        "core.gate.try_enter(core.table.geometry.size, 0)",
        hint=0,
    ),
    Mutation(
        "several runs that were pushed are not known to be unflushed",
        "nbdplugin.scatter._push_held",
        "        core.note_sent(run)\n",
        "",
        hint=40,
    ),
    Mutation(
        "several runs stop being owed before they are sent",
        "nbdplugin.scatter._push_held",
        "    yield actions.PeerWrites(",
        "    [core.table.clear_owed(run) for run in runs]\n    yield actions.PeerWrites(",
        hint=0,
    ),
)
