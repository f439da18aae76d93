"""The one table: cells, plain text, rich."""

from __future__ import annotations

import io

import pytest

from tvmflow.report.data import Entry
from tvmflow.report.tables import DASH, cells, milliseconds, percent, rich_table, size, text

ENTRIES = (
    Entry("onnxruntime fp32", 0.9905, 0.9999, 8_900_000, {"1 thread": 0.2154}),
    Entry("tvmflow int8", 0.99, None, 2_530_000, {"1 thread": 0.115, "RPC": 12.3}, best=True),
)


def test_what_was_not_measured_is_a_dash() -> None:
    found = cells(ENTRIES)
    assert found.header == ("", "top-1", "top-5", "size", "1 thread", "RPC")
    assert found.rows[0] == ("onnxruntime fp32", "99.05 %", "99.99 %", "8.90 MB", "0.215 ms", DASH)
    assert found.rows[1] == ("tvmflow int8", "99.00 %", DASH, "2.53 MB", "0.115 ms", "12.3 ms")


def test_columns_without_any_value_are_left_out() -> None:
    assert cells([Entry("a", bytes=5), Entry("b")]).header == ("", "size")
    assert cells([Entry("a", latency_ms={"RPC": None})]).header == ("",)


def test_plain_text_is_aligned() -> None:
    lines = text(ENTRIES).splitlines()
    assert len(lines) == 4 and set(lines[1]) == {"-"}
    end = lines[0].index("top-1") + len("top-1")
    assert [line[end - 7 : end] for line in lines[2:]] == ["99.05 %", "99.00 %"]
    assert all(line == line.rstrip() for line in lines)


def test_rich_table_shows_the_same_cells() -> None:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(rich_table([*ENTRIES, Entry("[bold]x[/bold]")]))
    for value in (*cells(ENTRIES).rows[1], "[bold]x[/bold]"):
        assert value in out.getvalue()


def test_no_entries() -> None:
    assert cells([]).rows == ()


@pytest.mark.parametrize(
    ("value", "expected"), [(None, DASH), (0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (2_530_000, "2.53 MB"), (4e9, "4.00 GB")]
)
def test_size(value: int | None, expected: str) -> None:
    assert size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(None, DASH), (0.1234, "0.123 ms"), (4.567, "4.57 ms"), (45.67, "45.7 ms"), (456.7, "457 ms")]
)
def test_milliseconds(value: float | None, expected: str) -> None:
    assert milliseconds(value) == expected


def test_a_share_of_zero_is_not_unknown() -> None:
    assert percent(0.0) == "0.00 %" and percent(None) == DASH
