"""tracks - which tracks of this volume may be trusted, in memory and on disk.  Pure.

Owns the *invalid* and *owed* bits and the header.  A bit may be set too long, never too short: a crash can cost
an extra copy, it cannot lose a write.  Memory changes at once; the disk follows by Changes, which the caller
writes and then reports with `note_written`.  Until then the shadow holds what the disk says of each page that
differs from memory.  On disk as in memory no track is both invalid and owed: invalid wins.

A *claimed* page says on disk that each of its tracks is owed, or invalid: a write that owes its tracks in memory needs
nothing more there.  Memory stays exact, and when the claim ends the disk becomes so again.

The caller holds the core's lock in every call.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable
from typing import Any, NamedTuple

from nbdplugin import layout
from nbdplugin.bitmap import Bitmap
from nbdplugin.errors import TableDamaged
from nbdplugin.geometry import EXTENT_SIZE, Geometry, Span
from nbdplugin.lineage import ANCESTORS

ACTIVE_MOST = 256
CONTINUE, STOP = "continue", "stop"  # on_path_loss: go on here and owe, or let host writes wait and then fail


@dataclasses.dataclass(slots=True)
class Fill:
    """What every page of a plane says that was not written after change number `since`."""

    value: bool = False
    since: int = 0


@dataclasses.dataclass(slots=True)
class Header:
    """What is so about one volume; one format for both sides of a pair.

    `session` is the last number used (source) or accepted (destination), `accepted` the last one that both know
    was accepted.  `epoch` is our own (destination) or the peer's last seen (source).  `peer_generation` is the last
    generation the peer may have.  `active` are the extents that may have unrecorded differences.  `doubtful`: the
    peer alone has the data of some invalid tracks, and it may not be durable there.  `on_path_loss`: what becomes of
    host writes while a path that is to be ready is not.  `last_write`: Unix seconds of the last write that this side
    took, at most a minute old.  `pages` bit pages were written after change number `pages_since`: where the file has
    fewer, some were lost, and are not to be taken for pages that were never written.
    """

    volume: str
    size: int
    track_size: int
    generation: str
    ancestors: list[str] = dataclasses.field(default_factory=list)
    incomplete: bool = False
    side: str | None = None
    pair: str | None = None
    peer: str | None = None
    operation: str | None = None
    invalidate: str | None = None
    committed: bool = False
    ready: bool = False
    peer_generation: str | None = None
    doubtful: bool = False
    session: int = 0
    accepted: int = 0
    epoch: str | None = None
    on_path_loss: str = CONTINUE
    last_write: int | None = None
    pages: int = 0
    pages_since: int = 0
    planes: dict[str, Fill] = dataclasses.field(default_factory=lambda: {name: Fill() for name in layout.PLANES})
    active: list[int] = dataclasses.field(default_factory=list)

    def encode(self) -> bytes:
        fields = {name: getattr(self, name) for name in _FIELDS}  # dataclasses.asdict copies deeply, and slowly
        fields["planes"] = {name: {"value": fill.value, "since": fill.since} for name, fill in self.planes.items()}
        return json.dumps(fields, separators=(",", ":")).encode()

    def leave_pair(self) -> None:
        """What belongs to the pair goes; what belongs to the volume, its lineage and `incomplete`, stays."""
        self.side = self.pair = self.peer = self.operation = self.invalidate = None
        self.committed = self.ready = self.doubtful = False
        self.peer_generation = self.epoch = None
        self.session = self.accepted = 0
        self.on_path_loss = CONTINUE

    def take_generation(self, name: str, *also: str) -> None:
        """A new lineage that descends from the present one and from `also`."""
        line = dict.fromkeys([self.generation, *also, *self.ancestors])
        self.ancestors = [item for item in line if item != name][:ANCESTORS]
        self.generation = name


_FIELDS = tuple(field.name for field in dataclasses.fields(Header))


def decode_header(payload: bytes) -> Header:
    """Raises TableDamaged unless the payload is a header of this format."""
    try:
        fields: dict[str, Any] = json.loads(payload)
        fields["planes"] = {name: Fill(bool(f["value"]), int(f["since"])) for name, f in fields["planes"].items()}
        header = Header(**fields)
        for field in dataclasses.fields(Header):
            _check_kind(field.name, getattr(header, field.name), str(field.type))
        uuid.UUID(header.volume)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TableDamaged(f"the metadata header cannot be read ({error})") from None
    if set(header.planes) != set(layout.PLANES):
        raise TableDamaged(f"the metadata holds the planes {sorted(header.planes)}, not {sorted(layout.PLANES)}")
    return header


def _check_kind(name: str, value: Any, kind: str) -> None:
    """Raises TypeError unless the value is of the kind that the field `name` of Header is annotated with."""
    is_list = kind.startswith("list[")
    kinds = kind.removeprefix("list[").rstrip("]").replace("None", "NoneType").split(" | ")
    items = value if is_list else [value]
    if name != "planes" and (type(items) is not list or not all(type(item).__name__ in kinds for item in items)):
        raise TypeError(f"{name} is {value!r}")


class Bits(NamedTuple):
    """Both planes of one page (or masks over them) as integers, bit 0 the page's first track."""

    invalid: int
    owed: int


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One durable change: the pages first, then the header; either may be missing."""

    pages: tuple[tuple[int, bytes, Bits], ...]
    header: bytes | None
    generation: str
    active: frozenset[int] | None = None
    fill: tuple[bool | None, bool | None] = (None, None)


class Table:
    """Lock-free; see the module's promise.  `sequence` numbers the changes, ever rising.

    `marked` counts the tracks that were neither invalid nor owed and became so since the table was loaded: with what
    is left it tells how many were brought over.

    `owed_pages_on_disk`: the claimed pages.  From the time that a page is in it until build_unclaim or build_fill, the
    disk says owed or invalid of each of its tracks, whatever else is written.
    """

    def __init__(self, header: Header, sequence: int = 0, extent_size: int = EXTENT_SIZE) -> None:
        self.header = header
        self.geometry = Geometry(header.size, header.track_size, extent_size)
        self.volume = uuid.UUID(header.volume)
        self.sequence = sequence
        self.invalid = Bitmap(self.geometry.tracks)
        self.owed = Bitmap(self.geometry.tracks)
        self.pages = layout.count_pages(self.geometry.tracks)
        self.active_on_disk = frozenset(header.active)
        self.generation_on_disk = header.generation
        self.owed_pages_on_disk: set[int] = set()
        self.marked = 0
        self._claimed: dict[int, int] = {}  # pages, and which owed bits memory had cleared ahead of the disk before
        self._written: set[int] = set()  # the pages that header.pages counts
        self._shadow: dict[int, Bits] = {}
        self._pending: dict[int, Bits] = {}  # pages of the change under way: the disk may hold them already
        for name, plane in (("invalid", self.invalid), ("owed", self.owed)):
            if header.planes[name].value:
                plane.fill(True)

    # --- what is so ---

    def is_settled(self, span: Span) -> bool:
        """Whether no valid track of the span is invalid on disk, or will be once the change under way is written."""
        for page, low, count in self._get_parts(span):
            known = [bits.invalid for bits in (self._shadow.get(page), self._pending.get(page)) if bits is not None]
            if known:
                memory = self.invalid.read_bits(page * layout.TRACKS_PER_PAGE + low, count)
                if any((bits >> low) & ((1 << count) - 1) & ~memory for bits in known):
                    return False
        return True

    def get_disk(self, page: int) -> Bits:
        """What the disk says of a page."""
        return self._shadow.get(page) or self._get_memory(page)

    def get_differing(self) -> set[int]:
        """The pages whose disk image differs from memory."""
        return set(self._shadow)

    def get_behind(self) -> set[int]:
        """The pages of which memory has marks that the disk has not."""
        behind = set()
        for page, disk in self._shadow.items():
            memory = self._get_memory(page)
            if memory.invalid & ~disk.invalid or memory.owed & ~disk.owed:
                behind.add(page)
        return behind

    def get_extent_pages(self, extent: int) -> range:
        """The pages that hold the extent's tracks."""
        span = self.geometry.get_extent_span(extent)
        return range(span.first // layout.TRACKS_PER_PAGE, (span.end - 1) // layout.TRACKS_PER_PAGE + 1)

    # --- memory ---

    def mark_invalid(self, span: Span) -> None:
        self._keep_disk(span)
        were_owed = self.owed.clear(span.first, span.count)
        self.marked += self.invalid.set(span.first, span.count) - were_owed

    def mark_valid(self, span: Span) -> None:
        if self.invalid.is_any(span.first, span.count):
            self._keep_disk(span)
            self.invalid.clear(span.first, span.count)

    def mark_owed(self, span: Span) -> None:
        """Marks the tracks of the span that are not invalid."""
        wanted = ~self.invalid.read_bits(span.first, span.count) & ((1 << span.count) - 1)
        before = self.owed.read_bits(span.first, span.count)
        if wanted & ~before:
            self._keep_disk(span)
            self.marked += (wanted & ~before).bit_count()
            self.owed.write_bits(span.first, span.count, before | wanted)

    def restore_invalid(self, page: int, bits: Bits) -> None:
        """The invalid bits that memory had cleared ahead of the disk are set again.

        Owed or not: no write to such a track was acknowledged, and beneath it lies what the track held before.
        """
        first, count = self._get_page_tracks(page)
        memory = self._get_memory(page)
        self.marked += (bits.invalid & ~memory.invalid & ~memory.owed).bit_count()
        self.invalid.write_bits(first, count, memory.invalid | bits.invalid)
        self.owed.write_bits(first, count, memory.owed & ~bits.invalid)

    def restore_owed(self) -> None:
        """The owed bits that memory had cleared ahead of the disk are set again where the data is valid."""
        for page, disk in self._shadow.items():
            first, count = self._get_page_tracks(page)
            memory = self._get_memory(page)
            self.marked += (disk.owed & ~memory.invalid & ~memory.owed).bit_count()
            self.owed.write_bits(first, count, memory.owed | disk.owed & ~memory.invalid)

    def clear_owed(self, span: Span) -> None:
        if self.owed.is_any(span.first, span.count):
            self._keep_disk(span)
            self.owed.clear(span.first, span.count)

    def restore_page(self, page: layout.Page) -> None:
        """Takes over a page read from disk; call before any marks are made."""
        first, count = self._get_page_tracks(page.index)
        raw = page.payload
        for name, plane, part in (
            ("invalid", self.invalid, raw[: layout.PLANE_BYTES]),
            ("owed", self.owed, raw[layout.PLANE_BYTES :]),
        ):
            if page.sequence > self.header.planes[name].since:
                plane.write_bits(first, count, int.from_bytes(part, "little") & ((1 << count) - 1))
        self.sequence = max(self.sequence, page.sequence)
        if page.sequence > self.header.pages_since:
            self._written.add(page.index)

    def count_lost_pages(self) -> int:
        """How many pages the header knows of that restore_page was not given; call after the last of them."""
        return max(0, self.header.pages - len(self._written))

    # --- changes for the disk ---

    def note_clearer(self) -> dict[int, Bits]:
        """Which bits the disk has and memory has not, by page; forgets shadows that equal memory."""
        self._shadow = {page: disk for page, disk in self._shadow.items() if disk != self._get_memory(page)}
        noted = {}
        for page, disk in self._shadow.items():
            memory = self._get_memory(page)
            bits = Bits(disk.invalid & ~memory.invalid, disk.owed & ~memory.owed)
            if bits.invalid or bits.owed:
                noted[page] = bits
        return noted

    def get_clear_mask(self, spans: Iterable[Span]) -> dict[int, Bits]:
        """Masks that allow the invalid bits of these spans' valid tracks to be cleared on disk, nothing else."""
        masks: dict[int, int] = {}
        for span in spans:
            for page, low, count in self._get_parts(span):
                masks[page] = masks.get(page, 0) | ((1 << count) - 1) << low
        return {page: Bits(mask & ~self._get_memory(page).invalid, 0) for page, mask in masks.items()}

    def get_pages(self, spans: Iterable[Span]) -> set[int]:
        return {page for span in spans for page, _, _ in self._get_parts(span)}

    def build_change(
        self, pages: Iterable[int], clear: dict[int, Bits], header: bool, active: frozenset[int] | None = None
    ) -> Change:
        """Pages as memory has them, but no bit cleared on disk that is not in `clear`.

        The header goes along with a page's first writing: it counts the pages, and counts it when it is durable.
        """
        self.sequence += 1
        written = tuple(self._build_page(page, clear.get(page, Bits(0, 0))) for page in sorted(pages))
        self._written.update(page for page, _, _ in written)
        if self.header.pages != len(self._written):
            self.header.pages, header = len(self._written), True
        if active is not None:
            self.header.active = sorted(active)
        raw = self._encode_header() if header or active is not None else None
        self._pending = {page: bits for page, _, bits in written}
        return Change(written, raw, self.header.generation, active)

    def build_claim(self, pages: Iterable[int], header: bool) -> Change:
        """Claims these pages, of which none is claimed."""
        for page in pages:
            self._claimed[page] = self.get_disk(page).owed & ~self._get_memory(page).owed
        return self.build_change(pages, {}, header)

    def build_unclaim(self) -> Change:
        """Ends every claim: the disk owes what memory owes, and what memory had cleared ahead of it before."""
        clear = {page: Bits(0, ~kept) for page, kept in self._claimed.items()}
        self._end_claims()
        return self.build_change(clear, clear, header=False)

    def _end_claims(self) -> None:
        self._claimed.clear()
        self.owed_pages_on_disk.clear()

    def build_fill(self, invalid: bool | None, owed: bool | None) -> Change:
        """Whole planes set or cleared (None: kept) by the header alone; ends every active extent."""
        self.sequence += 1
        self._end_claims()
        before = self.invalid.count + self.owed.count
        for name, plane, value in (("invalid", self.invalid, invalid), ("owed", self.owed, owed)):
            if value is not None:
                self.header.planes[name] = Fill(value, self.sequence)
                plane.fill(value)
        self.marked += max(0, self.invalid.count + self.owed.count - before)
        if invalid is not None and owed is not None:  # no page written so far says anything any more
            self._written.clear()
            self.header.pages, self.header.pages_since = 0, self.sequence
        self.header.active = []
        return Change((), self._encode_header(), self.header.generation, frozenset(), (invalid, owed))

    def note_written(self, change: Change) -> None:
        """The change is durable."""
        self._pending = {}
        for page, _, bits in change.pages:
            if bits == self._get_memory(page):
                self._shadow.pop(page, None)
            else:
                self._shadow[page] = bits
            if page in self._claimed:
                self.owed_pages_on_disk.add(page)
        if change.header is not None:
            self.generation_on_disk = change.generation
        if change.active is not None:
            self.active_on_disk = change.active
        if change.fill != (None, None):
            self._shadow = {page: self._fill(page, bits, change.fill) for page, bits in self._shadow.items()}

    def _fill(self, page: int, bits: Bits, fill: tuple[bool | None, bool | None]) -> Bits:
        full = (1 << self._get_page_tracks(page)[1]) - 1
        invalid, owed = (old if value is None else full * value for old, value in zip(bits, fill, strict=True))
        return Bits(invalid, owed)

    def _encode_header(self) -> bytes:
        return layout.encode(layout.KIND_HEADER, 0, self.sequence, self.volume, self.header.encode())

    def _build_page(self, page: int, clear: Bits) -> tuple[int, bytes, Bits]:
        disk, memory = self.get_disk(page), self._get_memory(page)
        invalid = disk.invalid & ~(clear.invalid & ~memory.invalid) | memory.invalid
        owed = (disk.owed & ~(clear.owed & ~memory.owed) | memory.owed) & ~invalid
        if page in self._claimed:
            owed = ((1 << self._get_page_tracks(page)[1]) - 1) & ~invalid
        size = layout.PLANE_BYTES
        payload = invalid.to_bytes(size, "little") + owed.to_bytes(size, "little")
        raw = layout.encode(layout.KIND_BITS, page, self.sequence, self.volume, payload)
        return page, raw, Bits(invalid, owed)

    def _get_memory(self, page: int) -> Bits:
        first, count = self._get_page_tracks(page)
        return Bits(self.invalid.read_bits(first, count), self.owed.read_bits(first, count))

    def _keep_disk(self, span: Span) -> None:
        for page, _, _ in self._get_parts(span):
            if page not in self._shadow:
                self._shadow[page] = self._get_memory(page)

    def _get_page_tracks(self, page: int) -> tuple[int, int]:
        first = page * layout.TRACKS_PER_PAGE
        return first, min(layout.TRACKS_PER_PAGE, self.geometry.tracks - first)

    def _get_parts(self, span: Span) -> Iterable[tuple[int, int, int]]:
        """(page, first track within it, count) for each page the span touches."""
        per, track = layout.TRACKS_PER_PAGE, span.first
        while track < span.end:
            page, low = divmod(track, per)
            count = min(per - low, span.end - track)
            yield page, low, count
            track += count
