"""scale - does a large volume take longer to be paired than a small one?

`pair create --create`, `pair show` and the first read after it, at three sizes in turns.  The files are sparse; ext4
has none of 16 TiB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from bench import scene
from bench.figures import Bar, Figure
from bench.options import Options
from live.daemons import Daemon

SIZES = {"64 MiB": 64 << 20, "64 GiB": 64 << 30, "15 TiB": 15 << 40}
SMALL, *LARGER = SIZES
BAR = Bar(1.5, at_most=True)
SIDES = ("destination", "source")


@dataclasses.dataclass(slots=True)
class Times:
    """Seconds, a value a round."""

    create: list[float] = dataclasses.field(default_factory=list)
    read: list[float] = dataclasses.field(default_factory=list)
    show: list[float] = dataclasses.field(default_factory=list)

    @property
    def until_read(self) -> tuple[float, ...]:
        return tuple(create + read for create, read in zip(self.create, self.read, strict=True))


def run(options: Options) -> Iterator[Figure]:
    folder = options.folder / "scale"
    folder.mkdir()
    with scene.two_hosts(folder) as (alpha, beta):
        for side in SIDES:
            times = {name: Times() for name in SIZES}
            for number in range(options.rounds):
                options.say(f"pairs of three sizes, {side} invalid, round {number + 1} of {options.rounds}")
                for name in SIZES:
                    _measure(alpha, beta, SIZES[name], side, times[name])
            yield from _figures(times, side)


def _measure(alpha: Daemon, beta: Daemon, size: int, side: str, times: Times) -> None:
    times.create.append(scene.create_pair(alpha, beta, "v", size, side))
    times.read.append(scene.read_first(alpha, "v", size // 2))
    times.show.append(scene.run_command(alpha, "pair", "show", "v"))
    alpha.call("pair.delete", pair="v", force=True)
    for daemon in (alpha, beta):
        daemon.call("volume.delete", name="v")


def _figures(times: dict[str, Times], side: str) -> Iterator[Figure]:
    small, about = times[SMALL], f"{side} invalid"
    for name in LARGER:
        found, what = times[name], f"create + first read, {name}, {about}"
        yield Figure("scale", what, "s", found.until_read, SMALL, small.until_read, BAR)
    for name, found in times.items():
        yield Figure("scale", f"pair create, {name}, {about}", "s", tuple(found.create))
        yield Figure("scale", f"first read, {name}, {about}", "s", tuple(found.read))
        yield Figure("scale", f"pair show, {name}, {about}", "s", tuple(found.show))
