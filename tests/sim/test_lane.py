"""The lane's two decisions in C are those in Python: under the simulator, the same seeds give the same traces."""

from __future__ import annotations

import multiprocessing
from collections import Counter

import pytest

from nbdplugin import lane
from tests.sim import run, world

SEEDS = 120
STEPS = 800


def _trace(seed: int, is_compiled: bool) -> tuple[str | None, list[str], Counter[str]]:
    world.shrink()
    assert lane.set_up_compiled(), "scripts/setup builds it"
    lane.use_compiled(is_compiled)
    asked: Counter[str] = Counter()
    begin, end = lane.begin, lane.end

    def count_begin(*arguments):  # type: ignore[no-untyped-def]
        plain = begin(*arguments)
        asked["refused" if plain is None else "mirrored" if plain.is_mirrored else "local"] += 1
        return plain

    def count_end(*arguments):  # type: ignore[no-untyped-def]
        is_done = end(*arguments)
        asked["ended" if is_done else "to be concluded"] += 1
        return is_done

    lane.begin, lane.end = count_begin, count_end
    trace: list[str] = []
    return run.run_seed(seed, STEPS, trace).violation, trace, asked


@pytest.mark.timeout(300)
def test_c_and_python_decide_alike_at_every_step() -> None:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(_trace, [(seed, is_compiled) for seed in range(SEEDS) for is_compiled in (False, True)])
    asked: Counter[str] = Counter()
    for python, compiled in zip(found[::2], found[1::2], strict=True):
        assert python == compiled
        assert python[0] is None
        asked += compiled[2]
    assert min(asked[word] for word in ("refused", "mirrored", "local", "ended")) > 100, asked
    assert asked["to be concluded"], asked


def test_without_the_module_the_log_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(lane, "compiled", None)
    assert not lane.set_up_compiled()
    assert "requests take the slower way through Python: run scripts/setup" in caplog.text


def test_a_module_of_another_version_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lane, "_VERSION", lane._VERSION + 1)
    assert not lane.set_up_compiled()
    assert "is of version" in caplog.text
