"""main - the benchmark: this product and its peers, by turns, on one machine in one run.

    scripts/bench [--quick] [--group GROUP]... [--rounds N] [--seconds S] [--out FOLDER]

Groups are throughput, copy, ondemand, scale and reconnects; without --group, all of them.  Needs what
`scripts/setup --bench` installs.  The result is a table of ratios, and JSON and a chart in the folder --out.
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.figures import Figure
from bench.options import Options

# Group -> the modules whose run(options) yields its figures.  Imported when asked for: they need different things.
GROUPS = {
    "throughput": ("throughput",),
    "copy": ("copying",),
    "ondemand": ("ondemand",),
    "scale": ("scale", "manypairs"),
    "reconnects": ("reconnects",),
}
ROUNDS, QUICK_ROUNDS = 5, 2
SECONDS, QUICK_SECONDS = 3.0, 1.0


def run(options: Options, groups: Sequence[str]) -> Iterator[Figure]:
    for group in groups:
        for name in GROUPS[group]:
            options.say(f"{group}: {name}")
            yield from importlib.import_module(f"bench.{name}").run(options)


def main(arguments: Sequence[str]) -> int:
    found = _parse(arguments)
    folder = Path(tempfile.mkdtemp(prefix="pathctl-bench-", dir="/var/tmp"))
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:6.0f} s  {text}", file=sys.stderr, flush=True)

    options = Options(
        rounds=found.rounds or (QUICK_ROUNDS if found.quick else ROUNDS),
        seconds=found.seconds or (QUICK_SECONDS if found.quick else SECONDS),
        is_quick=found.quick,
        folder=folder,
        say=say,
    )
    try:
        for figure in run(options, found.group or list(GROUPS)):
            least, most = figure.spread
            bar = "" if figure.bar is None else f"  bar {figure.bar}: {'met' if figure.holds else 'MISSED'}"
            say(f"{figure.group}: {figure.name}: {figure.value:.3g} ({least:.3g} to {most:.3g}){bar}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="this product and its peers, by turns, on one machine")
    parser.add_argument("--quick", action="store_true", help="two minutes instead of twenty-five")
    parser.add_argument("--group", action="append", choices=GROUPS, help="only this; may be given several times")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--seconds", type=float, help=f"of one measurement; default {SECONDS}, quick {QUICK_SECONDS}")
    parser.add_argument("--out", type=Path, help="where JSON and chart go")
    return parser.parse_args(arguments)
