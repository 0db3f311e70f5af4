"""progress - the copies of pairs as bars on a terminal; imported only for that, rich is slow to import.

Drawn by the caller's thread, once for each sample.  A line is the volume's name, the state, the bar, figures, and as
much of a reason as there is room for: the reason gives way first, then the bar, then the name; the state and the
figures never.  Full and empty are different letters, so a bar can be read without colours.
"""

from collections.abc import Iterable
from typing import Any

from rich import console, live, text

from pathctl import show

NAME = 20  # columns of a name that has more
NAME_LEAST = 8
BAR_MOST = 30  # columns with both brackets
BAR_LEAST = 10
STATE = len(show.DONE_STATE)
FULL, EMPTY = "#", "."

Pair = dict[str, Any]


def follow(samples: Iterable[list[Pair]]) -> None:
    """Draw each sample until they end.  A bar is full only where nothing is left to be copied."""
    on = console.Console()
    seen: dict[str, float] = {}
    with live.Live(console=on, auto_refresh=False) as picture:
        for pairs in samples:
            for pair in pairs:
                seen[pair["pair"]] = _or(show.percent(pair), seen.get(pair["pair"], 0.0))
            lines = draw(pairs, seen, on.width)
            picture.update(console.Group(*(lines or [text.Text("no pairs")])), refresh=True)


def _or(known: float | None, before: float) -> float:
    return before if known is None else known


def draw(pairs: list[Pair], percents: dict[str, float], width: int) -> list[text.Text]:
    """A line for each pair; where nothing is known of one's copy, its bar stays where it was."""
    words = [show.progress_words(pair, True) for pair in pairs]
    if max(map(len, words), default=0) > width - len("   ") - STATE - NAME_LEAST:
        words = [show.progress_words(pair, False) for pair in pairs]
    figures = max(map(len, words), default=0)
    reasons = max((len("  " + pair["reason"]) for pair in pairs if pair["reason"]), default=0)
    name = min(NAME, max((len(show.handle(pair)) for pair in pairs), default=0))
    spare = width - len("   ") - STATE - figures
    if spare < name + BAR_LEAST:
        name = min(name, max(NAME_LEAST, spare - BAR_LEAST))
    bar = min(BAR_MOST, max(BAR_LEAST, spare - name - reasons))
    if spare < name + bar:
        bar = 0
    return [
        _line(pair, said, name, _bar(percents[pair["pair"]], bar), width)
        for pair, said in zip(pairs, words, strict=True)
    ]


def _line(pair: Pair, said: str, name: int, bar: str, width: int) -> text.Text:
    line = text.Text(no_wrap=True, overflow="crop")
    line.append(f"{_cut(show.clean(show.handle(pair)), name):<{name}} ")
    line.append(f"{pair['state']:<{STATE}} ", style=show.COLOURS.get(pair["state"], ""))
    line.append(f"{bar} " if bar else "")
    line.append(said)
    room = width - len(line) - 2
    if pair["reason"] and room >= NAME_LEAST:
        line.append(f"  {_cut(show.clean(pair['reason']), room)}")
    return line


def _bar(percent: float, columns: int) -> str:
    """Rounded down."""
    inner = columns - len("[]")
    full = int(inner * percent / 100)
    return f"[{FULL * full}{EMPTY * (inner - full)}]" if columns else ""


def _cut(said: str, columns: int) -> str:
    return said if len(said) <= columns else f"{said[: columns - 1]}…"
