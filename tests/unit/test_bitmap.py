"""Bitmap against a plain list of booleans."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdplugin import bitmap
from nbdplugin.bitmap import Bitmap

SIZES = st.integers(1, 70)


def check(bits: Bitmap, model: list[bool], start: int, count: int) -> None:
    part = model[start : start + count]
    assert bits.count == sum(model)
    assert [bits.get(index) for index in range(len(model))] == model
    assert bits.is_any(start, count) == any(part)
    assert bits.is_all(start, count) == all(part)
    assert bits.read_bits(start, count) == sum(1 << index for index, value in enumerate(part) if value)
    found = next((index for index in range(start, len(model)) if model[index]), None)
    assert bits.find(start) == found
    stop = start + count
    assert bits.find_clear(start, stop) == next((index for index in range(start, stop) if not model[index]), None)
    if found is None:
        assert bits.find_run(start, 5) is None
    else:
        run = 1
        while run < 5 and found + run < len(model) and model[found + run]:
            run += 1
        assert bits.find_run(start, 5) == (found, run)


@pytest.mark.parametrize("large", [1 << 20, 0], ids=["bytearray", "mapping"])
@given(size=SIZES, seed=st.integers(0, 1 << 32))
def test_it_does_what_a_list_does(large: int, size: int, seed: int) -> None:
    rng, model = random.Random(seed), [False] * size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitmap, "_LARGE", large)
        bits = Bitmap(size)
        for _ in range(30):
            start = rng.randrange(size)
            count = rng.randrange(size - start + 1)
            before = sum(model[start : start + count])
            choice = rng.randrange(6)
            if choice < 2:
                assert bits.set(start, count) == count - before
                model[start : start + count] = [True] * count
            elif choice < 4:
                assert bits.clear(start, count) == before
                model[start : start + count] = [False] * count
            elif choice == 4:
                value = rng.getrandbits(count) if count else 0
                bits.write_bits(start, count, value)
                model[start : start + count] = [bool(value >> index & 1) for index in range(count)]
            else:
                full = rng.random() < 0.5
                bits.fill(full)
                model = [full] * size
            check(bits, model, start, count)


def test_long_even_stretches_are_crossed() -> None:
    bits = Bitmap(10_000_000)
    bits.fill(True)
    bits.clear(9_999_998)
    assert bits.find_clear(5, 10_000_000) == 9_999_998
    bits.fill(False)
    bits.set(9_999_999)
    assert bits.find(5) == 9_999_999
