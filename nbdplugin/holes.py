"""holes - which tracks of a range are holes, as the side that has the data told.  Pure.

A view tells of whole tracks: a track that is a hole in part counts as data.  It is as old as the look that made it;
what must still be so is for its user to know.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Iterable

from nbdplugin.geometry import Geometry


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """Even pieces from track `first` on: the i-th ends before track `ends[i]` and is a hole or not.

    `session` and `turn` are the core's when the look began.
    """

    first: int
    ends: tuple[int, ...]
    are_holes: tuple[bool, ...]
    session: int
    turn: int

    def find(self, track: int) -> tuple[int, bool] | None:
        """(tracks, are they a hole) of the even piece from this track on; None beyond what was looked at."""
        if track < self.first or track >= self.ends[-1]:
            return None
        at = bisect.bisect_right(self.ends, track)
        return self.ends[at] - track, self.are_holes[at]


def build_view(
    geometry: Geometry, first: int, pieces: Iterable[tuple[int, bool]], session: int = 0, turn: int = 0
) -> View:
    """From (length, is_hole) of what follows from track `first` on; tells of that track at least."""
    ends, are_holes = [first], [False]
    offset = first * geometry.track_size

    def add(end: int, is_hole: bool) -> None:
        if end <= ends[-1]:
            return
        if len(ends) > 1 and are_holes[-1] is is_hole:
            ends[-1] = end
        else:
            ends.append(end)
            are_holes.append(is_hole)

    end = first
    for is_hole, group in itertools.groupby(pieces, lambda piece: piece[1]):
        begin = -(-offset // geometry.track_size)
        offset += sum(length for length, _ in group)
        end = geometry.tracks if offset >= geometry.size else offset // geometry.track_size
        if is_hole and end > begin:
            add(begin, False)  # a track that is a hole in part
            add(end, True)
    add(end, False)
    if len(ends) == 1:
        add(first + 1, False)
    return View(first, tuple(ends[1:]), tuple(are_holes[1:]), session, turn)
