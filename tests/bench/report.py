"""report - all figures of a run: as a table to look at, as JSON to keep, as Markdown to quote.  Pure."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from bench.figures import Figure
from rich.table import Table


def format_number(value: float) -> str:
    """Three digits that count."""
    if value >= 1000:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def format_verdict(figure: Figure) -> str:
    return {None: "", True: "met", False: "MISSED"}[figure.holds]


def _build_cells(figure: Figure) -> list[str]:
    least, most = figure.spread
    return [
        figure.name,
        f"{format_number(statistics.median(figure.ours))} {figure.unit}",
        figure.peer,
        f"{format_number(statistics.median(figure.theirs))} {figure.unit}" if figure.theirs else "",
        format_number(figure.value),
        f"{format_number(least)} - {format_number(most)}" if len(figure.values) > 1 else "",
        "" if figure.bar is None else str(figure.bar),
        format_verdict(figure),
    ]


HEADINGS = ("what", "pathctl", "against", "reaches", "ratio", "spread", "bar", "")


def build_table(figures: Sequence[Figure]) -> Table:
    """Those with a bar first in each group; `ratio` is the figure itself where there is no peer."""
    table = Table(*HEADINGS, title="medians; ratio = pathctl over the other, round by round")
    for column in (1, 3, 4, 6):
        table.columns[column].justify = "right"
    for group in dict.fromkeys(figure.group for figure in figures):
        table.add_section()
        table.add_row(f"[bold]{group}[/bold]")
        of_group = [figure for figure in figures if figure.group == group]
        for figure in sorted(of_group, key=lambda one: one.bar is None):
            table.add_row(*_build_cells(figure), style="red" if figure.holds is False else None)
    return table


def build_markdown(figures: Sequence[Figure]) -> str:
    """What has a bar."""
    lines = ["| " + " | ".join(HEADINGS[:-1]) + " | met |", "|---|--:|---|--:|--:|---|--:|---|"]
    lines += ["| " + " | ".join(_build_cells(figure)) + " |" for figure in figures if figure.bar is not None]
    return "\n".join(lines) + "\n"


def build_document(figures: Sequence[Figure], facts: dict[str, object], failed: dict[str, str]) -> dict[str, object]:
    """`failed`: group -> why it could not be measured to the end."""
    return {"facts": facts, "failed": failed, "figures": [_describe(figure) for figure in figures]}


def _describe(figure: Figure) -> dict[str, object]:
    least, most = figure.spread
    fields = dataclasses.asdict(figure)
    return {**fields, "value": figure.value, "least": least, "most": most, "holds": figure.holds}


def summarize(figures: Sequence[Figure]) -> str:
    barred = [figure for figure in figures if figure.bar is not None]
    met = sum(figure.holds is True for figure in barred)
    missed = [f"{one.name}, against {one.peer}" if one.peer else one.name for one in barred if not one.holds]
    words = f"{len(figures)} figures; {met} of {len(barred)} bars met"
    return words + "".join(f"\n  missed: {name}" for name in missed)
