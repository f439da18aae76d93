"""One honest table: every contender with its accuracy, its size and its latencies, in one row; what wasn't measured is a dash.

The same cells serve the terminal (plain or rich) and the HTML report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmflow.report.data import Entry

if TYPE_CHECKING:
    from rich.table import Table

DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Cells:
    """A table as text: the first column is left-aligned, the others are numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: tuple[bool, ...]


def percent(share: float | None, digits: int = 2) -> str:
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def size(count: int | None) -> str:
    """Bytes in decimal units, as file managers show them."""
    if count is None:
        return DASH
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count} B"


def milliseconds(value: float | None) -> str:
    """Three significant digits or the digits before the point, whichever are more."""
    if value is None:
        return DASH
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{digits}f} ms"


def cells(entries: Sequence[Entry]) -> Cells:
    """Columns that no entry has a value for are left out; latency columns come in the order of their first appearance."""
    labels = list(dict.fromkeys(label for entry in entries for label in entry.latency_ms))
    columns: list[tuple[str, list[str]]] = [
        ("top-1", [percent(entry.top1) for entry in entries]),
        ("top-5", [percent(entry.top5) for entry in entries]),
        ("size", [size(entry.bytes) for entry in entries]),
        *((label, [milliseconds(entry.latency_ms.get(label)) for entry in entries]) for label in labels),
    ]
    shown = [(header, values) for header, values in columns if any(value != DASH for value in values)]
    names = [entry.name for entry in entries]
    rows = tuple((name, *(values[i] for _, values in shown)) for i, name in enumerate(names))
    return Cells(("", *(header for header, _ in shown)), rows, tuple(entry.best for entry in entries))


def text(entries: Sequence[Entry]) -> str:
    """Aligned plain text, a rule under the header, no trailing blanks."""
    table = cells(entries)
    widths = [max(len(row[i]) for row in (table.header, *table.rows)) for i in range(len(table.header))]

    def line(row: Sequence[str]) -> str:
        first, *rest = (
            value.ljust(width) if i == 0 else value.rjust(width) for i, (value, width) in enumerate(zip(row, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(table.header), rule, *(line(row) for row in table.rows)])


def rich_table(entries: Sequence[Entry], title: str = "") -> Table:
    """The same for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    found = cells(entries)
    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for i, header in enumerate(found.header):
        table.add_column(header, justify="left" if i == 0 else "right", no_wrap=i > 0)
    for row, bold in zip(found.rows, found.bold, strict=True):
        table.add_row(*(Text(value) for value in row), style="bold" if bold else None)
    return table
