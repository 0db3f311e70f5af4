"""Pages: sealed, recognised, and never taken for another's."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdplugin import layout
from nbdplugin.errors import TableDamaged
from nbdplugin.layout import Page

VOLUME = uuid.UUID(int=7)
PAYLOAD = bytes(range(256)) * 15
RAW = layout.encode(layout.KIND_BITS, 3, 9, VOLUME, PAYLOAD)


def test_a_page_comes_back_as_it_was() -> None:
    assert layout.decode(RAW, layout.KIND_BITS, 3, VOLUME) == Page(3, 9, PAYLOAD)


@settings(max_examples=300)
@given(bit=st.integers(0, len(RAW) * 8 - 1))
def test_every_flipped_bit_is_noticed(bit: int) -> None:
    spoiled = bytearray(RAW)
    spoiled[bit // 8] ^= 1 << bit % 8
    assert layout.decode(bytes(spoiled), layout.KIND_BITS, 3, VOLUME) is None


@given(cut=st.integers(1, layout.PAGE_SIZE - 1))
def test_a_half_written_page_is_noticed(cut: int) -> None:
    newer = layout.encode(layout.KIND_BITS, 3, 10, VOLUME, PAYLOAD[::-1])
    torn = newer[:cut] + RAW[cut:]
    assert torn in (RAW, newer) or layout.decode(torn, layout.KIND_BITS, 3, VOLUME) is None


def test_a_page_of_another_place_kind_or_volume_is_not_taken() -> None:
    assert layout.decode(RAW, layout.KIND_BITS, 4, VOLUME) is None
    assert layout.decode(RAW, layout.KIND_HEADER, 3, VOLUME) is None
    assert layout.decode(RAW, layout.KIND_BITS, 3, uuid.UUID(int=8)) is None


def test_zeroes_were_never_written() -> None:
    assert layout.decode(bytes(layout.PAGE_SIZE), layout.KIND_BITS, 3, VOLUME) == Page(3, 0, b"")


def test_another_version_is_refused_with_its_number() -> None:
    front = bytearray(RAW)
    front[8] = 2
    sealed = bytes(front[:48]) + layout._seal(bytes(front[:48]), bytes(front[64:])) + bytes(front[64:])
    with pytest.raises(TableDamaged, match="format 2"):
        layout.decode(sealed, layout.KIND_BITS, 3, VOLUME)


def test_the_younger_good_copy_is_chosen() -> None:
    old, young = Page(0, 1, b"a"), Page(0, 2, b"b")
    assert layout.choose(old, young) is young
    assert layout.choose(young, old) is young
    assert layout.choose(None, old) is old
    assert layout.choose(old, None) is old
    assert layout.choose(None, None) is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(TableDamaged):
        layout.encode(layout.KIND_BITS, 0, 1, VOLUME, bytes(layout.PAGE_SIZE))
