"""progress - the copies of pairs as bars on a terminal; imported only for that, rich is slow to import.

Drawn by the caller's thread, once for each sample.
"""

from collections.abc import Iterable
from typing import Any

from rich import progress

from pathctl import show


def follow(samples: Iterable[list[dict[str, Any]]]) -> None:
    """Draw each sample until they end.  A bar is full only when its pair is Synchronized."""
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=20),
        progress.TextColumn("{task.fields[said]}", markup=False),
    )
    with progress.Progress(*columns, auto_refresh=False) as bars:
        tasks: dict[str, progress.TaskID] = {}
        for pairs in samples:
            if not pairs and not tasks:
                bars.console.print("no pairs")
            for pair in pairs:
                name = pair["pair"]
                if name not in tasks:
                    tasks[name] = bars.add_task("", total=100.0, said="")
                completed = show.percent(pair)
                if completed is not None:  # else the bar stays where it was
                    bars.update(tasks[name], completed=completed)
                bars.update(tasks[name], description=_description(pair), said=show.progress_words(pair))
            for name in set(tasks) - {pair["pair"] for pair in pairs}:
                bars.remove_task(tasks.pop(name))
            bars.refresh()


def _description(pair: dict[str, Any]) -> str:
    return f"{show.handle(pair):<8} {pair['state']:<12}"
