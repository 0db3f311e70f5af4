"""main - the benchmark: this product and its peers, by turns, on one machine in one run.

    scripts/bench [--quick] [--group GROUP]... [--rounds N] [--seconds S] [--out FOLDER] [--work FOLDER]
                  [--strict]

Groups are throughput, copy, ondemand, scale and reconnects; without --group, all of them.  Needs what
`scripts/setup --bench` installs, root, and a machine that has nothing else to do.  The result is a table of ratios,
and JSON and a chart in the folder --out: without it tests/bench/results for a full run, /var/tmp/pathctl-bench else.
Exit code 1 if something could not be measured, and with --strict also if a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from bench import chart, facts, report
from bench.figures import Figure
from bench.options import Options
from rich import console

# Group -> the modules whose run(options) yields its figures.  Imported when asked for: they need different things.
GROUPS = {
    "throughput": ("throughput",),
    "copy": ("copying",),
    "ondemand": ("ondemand",),
    "scale": ("scale", "manypairs", "together"),
    "reconnects": ("reconnects",),
}
ROUNDS, QUICK_ROUNDS = 5, 1
SECONDS, QUICK_SECONDS = 2.0, 0.5
RESULTS = Path(__file__).parent / "results"
PIPE_WIDTH = 160
WORK = Path("/var/tmp")


def main(arguments: Sequence[str]) -> int:
    found = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="pathctl-bench-", dir=found.work))
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
    machine = facts.collect()
    try:
        figures, failed = measure(options, found.group or list(GROUPS))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    settings = {"rounds": options.rounds, "seconds": options.seconds, "quick": options.is_quick}
    machine = facts.add_end({**machine, "settings": settings}, time.monotonic() - begin)
    is_partial = found.quick or found.group is not None
    write(figures, machine, failed, found.out or (WORK / "pathctl-bench" if is_partial else RESULTS))
    is_short = any(figure.holds is False for figure in figures)
    return 1 if failed or (found.strict and is_short) else 0


def measure(options: Options, groups: Sequence[str]) -> tuple[list[Figure], dict[str, str]]:
    """All figures, and of each module that could not be measured to the end why."""
    figures: list[Figure] = []
    failed: dict[str, str] = {}
    for module in (module for group in groups for module in GROUPS[group]):
        options.say(f"{module} begins")
        try:
            for figure in importlib.import_module(f"bench.{module}").run(options):
                figures.append(figure)
                options.say(describe(figure))
        except Exception as error:  # noqa: BLE001 - the root: the other modules are measured nevertheless
            traceback.print_exc()
            failed[module] = f"{type(error).__name__}: {error}"
            options.say(f"{module} FAILED and has no more figures: {failed[module]}")
    return figures, failed


def describe(figure: Figure) -> str:
    """In one line, while the rest is measured."""
    least, most = figure.spread
    against = f" against {figure.peer}" if figure.peer else ""
    bar = f", bar {figure.bar}: {report.format_verdict(figure)}" if figure.bar else ""
    return f"{figure.group}: {figure.name}{against}: {figure.value:.3g} ({least:.3g} to {most:.3g}){bar}"


def write(figures: Sequence[Figure], machine: dict[str, object], failed: dict[str, str], folder: Path) -> None:
    """The table to stdout; JSON, Markdown and chart into the folder, named after the minute."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = str(machine["date"])[:16].replace(":", "")
    path = folder / f"{stem}.json"
    path.write_text(json.dumps(report.build_document(figures, machine, failed), indent=1) + "\n")
    path.with_suffix(".md").write_text(report.build_markdown(figures))
    subtitle = f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}; {stem}, {str(machine['commit'])[:10]}"
    chart.draw(figures, path.with_suffix(".png"), subtitle)
    console.Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(report.build_table(figures))
    print(report.summarize(figures))
    for module, why in failed.items():
        print(f"  {module} failed: {why}")
    print(f"{path}, and beside it the bars as .md and as .png")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="this product and its peers, by turns, on one machine")
    parser.add_argument("--quick", action="store_true", help="two minutes instead of twenty-five")
    parser.add_argument("--group", action="append", choices=GROUPS, help="only this; may be given several times")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--seconds", type=float, help=f"of one measurement; default {SECONDS}, quick {QUICK_SECONDS}")
    parser.add_argument("--out", type=Path, help="where JSON and chart go")
    parser.add_argument("--work", type=Path, default=WORK, help=f"on which disk; a short path; default {WORK}")
    parser.add_argument("--strict", action="store_true", help="a bar that is missed is an error")
    return parser.parse_args(arguments)
