"""requestfaults - one-line faults in what ends a host's request; see mutations.py."""

from __future__ import annotations

from tests.sim.mutation import Mutation

REQUESTS = (
    Mutation(
        "a FUA write is acknowledged although the pair that alone had its data has ended",
        "nbdplugin.requests._write_admitted",
        "(core.is_strict or _is_gone(core, item))",
        "core.is_strict",
        hint=12,
        faults=("sync A", "cut"),
        lazy="flush",
        steps=1_000,
    ),
)
