"""lanefaults - one-line faults in the lane of plain writes; see mutations.py.

Left out, because a second line of defence holds the promise alone:

* what begin_write asks of unsettled and owed tracks, end_write asks again, and a write for which the answer is another
  then is concluded by the flows; and what holds at the beginning still holds at the end unless a sync failed, since the
  gate keeps fetches, pushes and overlapping writes out.  So each is planted at both ends at once; so is what they ask
  of invalid tracks (a write beside it that failed can make a track invalid meanwhile: see test_doubt.py);
* a write to owed tracks goes to the peer too: the push that follows brings the same;
* `conclude_plain` leaves the gate first: no seed shows that anybody who comes between does harm;
* `conclude_plain` does not write again what the peer lacks: under policy stop the lane begins nothing, and a change of
  the policy waits for what is in flight.
"""

from __future__ import annotations

from tests.sim.mutation import Mutation

LANE = (
    Mutation(
        "lane: a write begins while a command changes the volume",
        "nbdplugin.lane.begin_write",
        "core.is_quiesced or ",
        "",
        hint=2,
    ),
    Mutation(
        "lane: a write begins although the table could not be written",
        "nbdplugin.lane.begin_write",
        "or core.is_read_only or",
        "or",
        hint=42,
    ),
    Mutation(
        "lane: policy stop is not looked at",
        "nbdplugin.lane.begin_write",
        "or header.on_path_loss == tracks.STOP:",
        "or False:",
        hint=0,
    ),
    Mutation(
        "lane: a write over invalid tracks leaves them so",
        "nbdplugin.lane.begin_write",
        "table.invalid.is_any(span.first, span.count) or ",
        "",
        hint=3,
        also=(
            "nbdplugin.lane.end_write",
            "if table.invalid.is_any(span.first, span.count) or not table.is_settled(span):",
            "if False:",
        ),
    ),
    Mutation(
        "lane: a write to tracks that are not settled is acknowledged",
        "nbdplugin.lane.begin_write",
        " or not table.is_settled(span):",
        ":",
        hint="source invalid | newest here: 0 push | newest here: 0 push | newest here: 0 push | newest here: 0 trim"
        " | newest here: 0 write A | newest here: 0 disconnect | newest here: 0 trim | newest here: 0 write A",
        also=(
            "nbdplugin.lane.end_write",
            "if table.invalid.is_any(span.first, span.count) or not table.is_settled(span):",
            "if False:",
        ),
    ),
    Mutation(
        "lane: a write to tracks of which some are owed is local",
        "nbdplugin.lane.begin_write",
        "is_owed = table.owed.is_all(span.first, span.count)",
        "is_owed = table.owed.is_any(span.first, span.count)",
        hint=2,
        also=(
            "nbdplugin.lane.end_write",
            "if not plain.is_mirrored and table.header.pair is not None and",
            "if False and",
        ),
    ),
    Mutation(
        "lane: a write without a path owes nothing",
        "nbdplugin.lane.begin_write",
        "if header.pair is not None and core.session is None and not is_owed:",
        "if False:",
        hint=2,
        also=(
            "nbdplugin.lane.end_write",
            "if not plain.is_mirrored and table.header.pair is not None and",
            "if False and",
        ),
    ),
    Mutation(
        "lane: a write begins that is not prepared",
        "nbdplugin.lane.begin_write",
        "if not is_prepared(core, extents):",
        "if False:",
        hint=1,
    ),
    Mutation(
        "lane: a write does not hold its range",
        "nbdplugin.lane.begin_write",
        "core.gate.try_enter(offset, length)",
        "core.gate.try_enter(table.geometry.size, 0)",
        hint=7,
    ),
    Mutation(
        "lane: a write is not in flight on its extents",
        "nbdplugin.lane.begin_write",
        "    use_extents(core, extents)\n",
        "",
        hint=10,
    ),
    Mutation(
        "lane: a write is not in flight",
        "nbdplugin.lane.begin_write",
        "    core.in_flight += 1\n",
        "",
        hint=3,
    ),
    Mutation(
        "lane: a session that ended meanwhile is not noticed",
        "nbdplugin.lane.end_write",
        "core.session != plain.session or ",
        "",
        hint=None,  # found by older flows; by no quick one now
    ),
    Mutation(
        "lane: a sync that failed meanwhile is not noticed",
        "nbdplugin.lane.end_write",
        " or core.distrusts != plain.distrusts:",
        ":",
        hint=19,
        faults=("sync A",),
        aim=("sync A", "synchronized"),
        lazy="write",
    ),
    Mutation(
        "lane: a mirrored write is not known to be unflushed",
        "nbdplugin.lane.end_write",
        "        core.note_sent(span)\n",
        "",
        hint=1608,
        faults=("cut", "write A"),
        lazy="write",
        steps=1_000,
    ),
    Mutation(
        "lane: an extent stays in use",
        "nbdplugin.lane.end_write",
        "    release_extents(core, table.geometry.get_extents(span))\n",
        "",
        hint=1,
    ),
    Mutation(
        "lane: the gate is not left",
        "nbdplugin.lane.end_write",
        "    core.leave_gate(ticket)\n",
        "",
        hint=0,
    ),
    Mutation(
        "lane: a write stays in flight",
        "nbdplugin.lane.end_write",
        "    core.leave()\n",
        "",
        hint=0,
    ),
    Mutation(
        "lane: a write whose peer leg failed leaves its session open",
        "nbdplugin.requests.conclude_plain",
        "outcome = yield from _note_mirrored(core, item, plain.span, plain.session, outcome)",
        "pass",
        hint=41,
    ),
    Mutation(
        "lane: a write that the peer did not take is acknowledged",
        "nbdplugin.requests._write_plainly",
        " or (plain.is_mirrored and outcome.peer is not None)",
        "",
        hint=41,
    ),
    Mutation(
        "lane: a write that failed here is acknowledged",
        "nbdplugin.requests._write_plainly",
        "outcome.local is not None or ",
        "",
        hint=3,
        faults=("cut", "write A"),
        lazy="write",
        steps=1_000,
    ),
    Mutation(
        "lane: a write that is concluded keeps its gate and extents",
        "nbdplugin.requests._leave_plain",
        "    checkpoint.release_extents(core, core.table.geometry.get_extents(plain.span))\n"
        "    core.leave_gate(plain.ticket)",
        "    pass",
        hint=9,
    ),
    Mutation(
        "lane: a write that is concluded stays in flight",
        "nbdplugin.requests.conclude_plain",
        "    request.is_in = True\n",
        "",
        hint=9,
    ),
    Mutation(
        "lane: a write is concluded as of the session and syncs of now",
        "nbdplugin.requests.conclude_plain",
        "plain.span, plain.session, plain.distrusts, outcome)",
        "plain.span, core.session, core.distrusts, outcome)",
        hint=10,
        faults=("sync A",),
        aim=("sync A", "unpaired"),
    ),
)
