"""chart - how far each figure is from its bar, as a picture; only where matplotlib is (scripts/setup --bench)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.figures import Figure

ROW_INCHES = 0.3
MOST = 100.0
MET, MISSED = "#2a7f62", "#b8352a"


def scale(figure: Figure, value: float) -> float:
    """How often the bar is reached: 1 is just met, more is better; for an upper limit too.  At most 100.

    An upper limit may be met by nothing, or less.
    """
    assert figure.bar is not None
    limit = figure.bar.limit
    return limit / max(value, limit / MOST) if figure.bar.at_most else min(value / limit, MOST)


def build_label(figure: Figure) -> str:
    against = f" / {figure.peer}" if figure.peer else ""
    return f"{figure.name}{against}  ({figure.bar})"


def draw(figures: Sequence[Figure], path: Path, subtitle: str) -> bool:
    """Whether there was anything with a bar above 0 to draw."""
    barred = [figure for figure in figures if figure.bar is not None and figure.bar.limit > 0]
    if not barred:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, axes = pyplot.subplots(figsize=(12, 1.5 + ROW_INCHES * len(barred)), layout="constrained")
    for row, figure in enumerate(barred):
        colour = MET if figure.holds else MISSED
        least, most = sorted(scale(figure, value) for value in figure.spread)
        middle = scale(figure, figure.value)
        axes.barh(row, middle - 1, left=1, color=colour, height=0.6, alpha=0.75)
        axes.plot([least, most], [row, row], color="black", linewidth=1.5)
        axes.annotate(f" {figure.value:.3g}", (max(most, 1), row), verticalalignment="center", fontsize=8, color=colour)
    axes.axvline(1.0, color="black", linestyle="--", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(barred)), [build_label(figure) for figure in barred], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("the figure over its bar (1: just met; more is better); line: spread of the rounds")
    axes.set_title(subtitle, fontsize=9)
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return True
