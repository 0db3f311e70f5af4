"""geometry - pure arithmetic of tracks and extents.

Offsets and lengths are bytes, tracks and extents are counted from 0.  The last track may be short.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from nbdplugin.errors import BadRequest

SECTOR = 512
TRACK_MIN = 4 << 10
TRACK_MAX = 4 << 20
EXTENT_SIZE = 16 << 20
SIZE_MAX = 1 << 60


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """`count` tracks from `first` on."""

    first: int
    count: int

    @property
    def end(self) -> int:
        return self.first + self.count


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """Size and track size of one volume, both bytes; extent_size is a multiple of track_size."""

    size: int
    track_size: int
    extent_size: int = EXTENT_SIZE

    @property
    def tracks(self) -> int:
        return -(-self.size // self.track_size)

    @property
    def extents(self) -> int:
        return -(-self.size // self.extent_size)

    @property
    def tracks_per_extent(self) -> int:
        return self.extent_size // self.track_size

    def get_span(self, offset: int, length: int) -> Span:
        """The tracks touched by a range; an empty range touches none."""
        first = offset // self.track_size
        return Span(first, 0 if length == 0 else (offset + length - 1) // self.track_size - first + 1)

    def get_range(self, span: Span) -> tuple[int, int]:
        """(offset, length) of whole tracks, cut at the end of the volume."""
        offset = span.first * self.track_size
        return offset, min(span.end * self.track_size, self.size) - offset

    def is_covered(self, track: int, offset: int, length: int) -> bool:
        """Whether the range covers the whole track, short last track included."""
        start, count = self.get_range(Span(track, 1))
        return offset <= start and start + count <= offset + length

    def get_edges(self, offset: int, length: int) -> tuple[int, ...]:
        """The tracks, none to two, that the range covers only in part."""
        span = self.get_span(offset, length)
        ends = {span.first, span.end - 1} if span.count else set()
        return tuple(track for track in sorted(ends) if not self.is_covered(track, offset, length))

    def get_extents(self, span: Span) -> range:
        """The extents that hold these tracks."""
        if not span.count:
            return range(0)
        per = self.tracks_per_extent
        return range(span.first // per, (span.end - 1) // per + 1)

    def get_extent_span(self, extent: int) -> Span:
        """The tracks of one extent, cut at the end of the volume."""
        first = extent * self.tracks_per_extent
        return Span(first, min(self.tracks_per_extent, self.tracks - first))

    def cut(self, offset: int, length: int, piece: int) -> Iterator[tuple[int, int]]:
        """The range in pieces that end at multiples of `piece` bytes."""
        end = offset + length
        while offset < end:
            stop = min(end, (offset // piece + 1) * piece)
            yield offset, stop - offset
            offset = stop


def check(size: int, track_size: int) -> None:
    """Raises BadRequest unless size and track_size, both bytes, can make a volume."""
    if not (0 < size <= SIZE_MAX) or size % SECTOR:
        raise BadRequest(f"size {size} is not a positive multiple of {SECTOR} up to {SIZE_MAX} bytes")
    if not (TRACK_MIN <= track_size <= TRACK_MAX) or track_size & (track_size - 1):
        raise BadRequest(f"track size {track_size} is not a power of two from {TRACK_MIN} to {TRACK_MAX} bytes")
