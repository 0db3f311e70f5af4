"""claimfaults - one-line faults in the claims of whole pages of the table; see mutations.py.

Left out, because a second line of defence holds the promise alone:

* the end of a claim does not keep the owed bits that memory had cleared ahead of the disk: what was pushed in a session
  and not flushed in it is owed again when it ends, and a flush of the peer comes after a sync here;
* `_build_claim` writes no header: the write that needs a new lineage asks for it again.

Seen by test_claim.py instead: that what is claimed is not sent (`note_accepted`, `keep`, `drain`), which breaks no rule
and costs a longer copy; how many pages may be claimed; that claims end only when nothing is in flight, and that no
extent in claimed pages becomes active, for which seeds would need many writes that are slow.
"""

from __future__ import annotations

from tests.sim.mutation import Mutation

CLAIMS = (
    Mutation(
        "claims: a page counts as claimed before that is on disk",
        "nbdplugin.tracks.Table.build_claim",
        "    for page in pages:\n",
        "    for page in pages:\n        self.owed_pages_on_disk.add(page)\n",
        hint=0,
    ),
    Mutation(
        "claims: a claim takes invalid tracks for owed ones",
        "nbdplugin.tracks.Table._build_page",
        "owed = ((1 << self._get_page_tracks(page)[1]) - 1) & ~invalid",
        "owed = (1 << self._get_page_tracks(page)[1]) - 1",
        hint=7,
    ),
    Mutation(
        "claims: a claimed page that is written again owes what memory does",
        "nbdplugin.tracks.Table._build_page",
        "if page in self._claimed:",
        "if page in self._claimed and page not in self.owed_pages_on_disk:",
    ),
    Mutation(
        "claims: a session begins with pages claimed",
        "nbdplugin.modes.session_up",
        "yield from checkpoint.unclaim(core)",
        "yield from ()",
        hint=16,
    ),
    Mutation(
        "claims: a page is claimed while a session is up",
        "nbdplugin.checkpoint._activate",
        "if core.session is None:",
        "if True:",
        hint=0,
    ),
    Mutation(
        "claims: a fill leaves them",
        "nbdplugin.tracks.Table.build_fill",
        "    self._end_claims()\n",
        "    pass\n",
        hint=13,
    ),
    Mutation(
        "claims: a write in claimed pages is not owed before it begins",
        "nbdplugin.requests._carry_out",
        "        core.table.mark_owed(span)",
        "        pass",
        hint=1,
    ),
    Mutation(
        "claims: an extent is retired whose owed tracks the disk does not know",
        "nbdplugin.tracks.Table.get_behind",
        " or memory.owed & ~disk.owed:",
        ":",
        hint=0,
    ),
)
