"""The lane's two decisions in C are those in Python: under the simulator, the same seeds give the same traces."""

from __future__ import annotations

import multiprocessing
import types
from collections import Counter
from typing import Any

import pytest

from nbdplugin import lane, stats
from nbdplugin.core import Core
from tests.sim import run, world

SEEDS = 330
STEPS = 800
WAYS = ("python", "compiled", "filter")


class _Flies:
    """The lane as the filter takes it: C decides by what it was told when the lock was last given back."""

    def __init__(self, asked: Counter[str]) -> None:
        self._lanes: dict[Core, Any] = {}
        self._asked = asked

    def _get(self, core: Core) -> Any:
        if core not in self._lanes:
            engine = types.SimpleNamespace(release_woken=lambda: None)  # the simulator wakes who is in core.woken
            border = (engine, -1, stats.Histogram(), stats.Histogram(), None, None)
            self._lanes[core] = lane.compiled.Lane(border, core, None, None)
        return self._lanes[core]

    def begin(self, core: Core, offset: int, length: int) -> lane.Pass | None:
        plain: lane.Pass | None = self._get(core).begin_step(offset, length)
        return plain

    def end(self, core: Core, plain: lane.Pass) -> bool:
        found = self._get(core)
        before = found.flown
        is_done = found.end_step(plain)
        if is_done is None:  # it began under Python's lock, and ends so
            return bool(lane.compiled.end_write(core, plain))
        self._asked["flown"] += found.flown - before
        self._asked["handed over"] += found.flown == before
        return bool(is_done)


def _trace(seed: int, way: str) -> tuple[str | None, list[str], Counter[str]]:
    world.shrink()
    assert lane.set_up_compiled(), "scripts/setup builds it"
    lane.use_compiled(way == "compiled")
    asked: Counter[str] = Counter()
    if way == "filter":
        flies = _Flies(asked)
        lane.begin, lane.end = flies.begin, flies.end
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
        found = pool.starmap(_trace, [(seed, way) for seed in range(SEEDS) for way in WAYS])
    asked: Counter[str] = Counter()
    for seed in range(SEEDS):
        python, compiled, flown = found[seed * 3 : seed * 3 + 3]
        assert python == compiled
        assert python[:2] == flown[:2]
        assert python[0] is None
        asked += flown[2]
    assert min(asked[word] for word in ("refused", "mirrored", "local", "ended", "flown", "handed over")) > 100, asked
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
