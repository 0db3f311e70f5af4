"""progress - the copies of pairs as bars on a terminal; imported only for that, rich is slow to import.

Drawn by the caller's thread, once for each sample.
"""

from collections.abc import Iterable
from typing import Any

from rich import console, progress, table

from pathctl import show

NAME = 20  # columns of a name that has more
WORDS = 68  # columns that names, states and figures take


def follow(samples: Iterable[list[dict[str, Any]]]) -> None:
    """Draw each sample until they end.  A bar is full only when its pair is Synchronized."""
    on = console.Console()
    one_line = table.Column(no_wrap=True, overflow="ellipsis")
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=max(8, min(30, on.width - WORDS))),
        progress.TextColumn("{task.fields[said]}", markup=False, table_column=one_line),
    )
    with progress.Progress(*columns, console=on, auto_refresh=False) as bars:
        tasks: dict[str, progress.TaskID] = {}
        for pairs in samples:
            if not pairs and not tasks:
                bars.console.print("no pairs")
            for pair in pairs:
                name = pair["pair"]
                if name not in tasks:
                    tasks[name] = bars.add_task(_description(pair), total=100.0, said=show.progress_words(pair))
                completed = show.percent(pair)
                if completed is not None:  # else the bar stays where it was
                    bars.update(tasks[name], completed=completed)
                bars.update(tasks[name], description=_description(pair), said=show.progress_words(pair))
            for name in set(tasks) - {pair["pair"] for pair in pairs}:
                bars.remove_task(tasks.pop(name))
            bars.refresh()


def _description(pair: dict[str, Any]) -> str:
    name = show.handle(pair)
    return f"{name if len(name) <= NAME else name[: NAME - 1] + '…':<8} {pair['state']:<12}"
