"""progress - a pair's copy as a bar on a terminal; imported only for that, rich is slow to import."""

from collections.abc import Iterable
from typing import Any

from rich import progress

from pathctl import show, units


def follow(samples: Iterable[tuple[dict[str, Any], int | None]]) -> None:
    """Draw each sample until they end.  The bar is full only when the pair is Synchronized."""
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[done]}  {task.fields[left]} left  {task.fields[rate]}"),
        progress.TimeElapsedColumn(),
    )
    with progress.Progress(*columns) as bar:
        task = bar.add_task("", total=None, done="", left="", rate="")
        for sample, rate_bytes_s in samples:
            left = show.left(sample)
            if left is not None:  # else the bar stays where it was
                is_over = sample["state"] == show.DONE_STATE
                bar.update(task, total=sample["tracks"], completed=sample["tracks"] - max(left, 0 if is_over else 1))
            bar.update(
                task,
                description=f"{show.short(sample['pair'])} {sample['state']}",
                done=show.done(sample),
                left="-" if left is None else units.format_size(left * sample["track_size"]),
                rate="" if rate_bytes_s is None else f"{units.format_size(rate_bytes_s)}/s",
            )
