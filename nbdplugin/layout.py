"""layout - the metadata file's bytes: how a page is drawn, sealed and recognised.  Pure.

    0            8 KiB        16 KiB              + pages * 4 KiB
    | header A   | header B   | bit pages, copy A | bit pages, copy B |

    every page:  0 magic "PATHCTL\\0"   8 version u16   10 kind u16 (1 header, 2 bits)   12 length u32
                16 index u64          24 sequence u64 32 volume uuid  48 BLAKE2b-128 of all but itself   64 payload
    header payload: JSON, see tracks.Header.   bits payload: 2016 bytes `invalid`, 2016 bytes `owed`.

All integers are little-endian.  Both planes of a track stand in one page, so that a change from invalid to owed
is one page write; pages are never half old: the digest seals each.  A page of zeroes was never written.
At 64 KiB tracks the file is 2 * 4096 / (16128 * 65536) = 1/129,000 of the volume.
"""

from __future__ import annotations

import dataclasses
import struct
import uuid
from _blake2 import blake2b  # hashlib maps OpenSSL too: 4 MiB more in each process

from nbdplugin.errors import TableDamaged

MAGIC = b"PATHCTL\0"
VERSION = 2
OLDEST = 1  # its header has fewer fields; what is read of it is written as VERSION
KIND_HEADER = 1
KIND_BITS = 2
HEADER_SIZE = 8192
PAGE_SIZE = 4096
PLANE_BYTES = 2016
TRACKS_PER_PAGE = PLANE_BYTES * 8
PLANES = ("invalid", "owed")
BITS_START = 2 * HEADER_SIZE
_FRONT = struct.Struct("<8sHHIQQ16s")
_PAYLOAD = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One page as found on disk; a page never written has sequence 0 and no payload."""

    index: int
    sequence: int
    payload: bytes


def count_pages(tracks: int) -> int:
    """How many bit pages a volume of so many tracks has."""
    return -(-tracks // TRACKS_PER_PAGE)


def get_file_size(tracks: int) -> int:
    """Bytes of the whole metadata file."""
    return BITS_START + 2 * PAGE_SIZE * count_pages(tracks)


def get_header_offset(copy: int) -> int:
    return copy * HEADER_SIZE


def get_page_offset(index: int, copy: int, pages: int) -> int:
    return BITS_START + (copy * pages + index) * PAGE_SIZE


def encode(kind: int, index: int, sequence: int, volume: uuid.UUID, payload: bytes) -> bytes:
    """One sealed page; raises TableDamaged if the payload does not fit."""
    size = HEADER_SIZE if kind == KIND_HEADER else PAGE_SIZE
    if len(payload) > size - _PAYLOAD:
        raise TableDamaged(f"{len(payload)} bytes do not fit into a page of {size}")
    front = _FRONT.pack(MAGIC, VERSION, kind, len(payload), index, sequence, volume.bytes)
    body = payload + bytes(size - _PAYLOAD - len(payload))
    return front + _seal(front, body) + body


def decode(raw: bytes, kind: int, index: int, volume: uuid.UUID | None) -> Page | None:
    """The page, or None if these bytes are not it; `volume` None accepts any (the first look at a header)."""
    if not any(raw):
        return Page(index, 0, b"")
    magic, version, found_kind, length, found_index, sequence, owner = _FRONT.unpack_from(raw)
    if magic != MAGIC or found_kind != kind or found_index != index:
        return None
    if raw[48:_PAYLOAD] != _seal(raw[:48], raw[_PAYLOAD:]):
        return None
    if not OLDEST <= version <= VERSION:
        raise TableDamaged(
            f"the metadata has format {version}, this one reads formats {OLDEST} to {VERSION}; start the pathctl that "
            "wrote it"
        )
    if volume is not None and owner != volume.bytes:
        return None
    return Page(index, sequence, raw[_PAYLOAD : _PAYLOAD + length])


def choose(first: Page | None, second: Page | None) -> Page | None:
    """The copy to trust: the only good one, or the younger of two; None if both are bad."""
    if first is None or second is None:
        return first or second
    return first if first.sequence >= second.sequence else second


def _seal(front: bytes, body: bytes) -> bytes:
    digest: bytes = blake2b(front + body, digest_size=16).digest()
    return digest
