"""The cells as text and as Markdown, from their JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

OURS = "tvmflow"
FAMILIES = ("int8", "fp32")
DASH = "–"
LEAST_CPUS = 0.85
"""Of those that were asked for: below, the figures of several threads mean little."""
Record = dict[str, Any]


def ms(row: Record) -> str:
    return f"{row['latency_ms']['min']:.3f} / {row['latency_ms']['median']:.3f}" if believed(row) else DASH


def believed(row: Record) -> bool:
    return "latency_ms" in row and not row["reason"]


def family(row: Record) -> str:
    return str(row["precision"].split("-")[0])


def ratio(cell: Record, of: str) -> tuple[float, Record] | None:
    """Best peer's minimum over our minimum, and that peer."""
    rows = [r for r in cell["rows"] if family(r) == of and believed(r)]
    ours = [r for r in rows if r["name"] == OURS]
    others = [r for r in rows if r["name"] != OURS]
    if not ours or not others:
        return None
    best = min(others, key=lambda r: r["latency_ms"]["min"])
    return best["latency_ms"]["min"] / ours[0]["latency_ms"]["min"], best


def percent(row: Record) -> str:
    share = row.get("peak_fraction")
    return DASH if share is None else f"{100 * share:.0f} %"


def title(cell: Record) -> str:
    batch = f", batch {cell['batch']}" if cell["batch"] > 1 else ""
    return f"{cell['model']}{batch}, {cell['threads']} thread{'s' * (cell['threads'] > 1)}"


def disturbed(cell: Record) -> str:
    """A warning when other programs took the cores."""
    if cell["peak_cpus"] > LEAST_CPUS * cell["threads"]:
        return ""
    return f"; DISTURBED: {cell['peak_cpus']:.1f} of {cell['threads']} CPUs were to be had, measure again when it is quiet"


def table(cells: Sequence[Record]) -> str:
    """One block a cell: every contender with min / median, share of peak, speed against ours, or the reason why not."""
    lines = []
    for cell in cells:
        peak = cell["machine_peak"]
        measured = f"; peak {peak['int8_gops']:.0f} int8 Gop/s, {peak['fp32_gflops']:.0f} fp32 GFLOP/s" if peak else ""
        lines.append(f"{title(cell)}{measured}{disturbed(cell)}")
        for of in ("int8", "fp32", "bf16"):
            rows = [r for r in cell["rows"] if family(r) == of]
            ours = next((r["latency_ms"]["min"] for r in rows if r["name"] == OURS and believed(r)), None)
            order: Callable[[Record], tuple[bool, float]] = lambda r: (
                not believed(r),
                r["latency_ms"]["min"] if believed(r) else 0.0,
            )
            for row in sorted(rows, key=order):
                label = f"  {row['name']} {row.get('version', '')} {row['precision']}"
                if not believed(row):
                    lines.append(f"{label:40} {row['reason']}")
                    continue
                against = f"{row['latency_ms']['min'] / ours:5.2f}x" if ours and row["name"] != OURS else " " * 6
                lines.append(f"{label:40} {ms(row):>18} ms  {percent(row):>5} of peak  {against}")
        lines.append("")
    lines += ["best peer / ours by minimum (above 1: ours is faster)"]
    for cell in cells:
        for of in FAMILIES:
            found = ratio(cell, of)
            what = f"{found[0]:.2f}x of {found[1]['name']} {found[1]['precision']}" if found else DASH
            lines.append(f"  {title(cell):36} {of:5} {what}")
    return "\n".join(lines)


def costs(cells: Sequence[Record]) -> str:
    """What it takes to begin: loading the model into the runtime, the first run, and the memory of the process after it."""
    lines = [f"{'':72} load ms  first run ms  resident MB"]
    for cell in cells:
        for row in cell["rows"]:
            if "load_seconds" in row:
                label = f"{title(cell):36} {row['name']} {row['precision']}"
                figures = f"{1e3 * row['load_seconds']:8.0f} {1e3 * row['first_run_seconds']:13.1f}"
                lines.append(f"{label:71} {figures} {row['resident_bytes'] / 1e6:12.0f}")
    return "\n".join(lines)


def markdown(report: Record) -> str:
    """The README's section."""
    cells = report["cells"]
    names = list(dict.fromkeys(r["name"] for c in cells for r in c["rows"] if r["name"] != OURS))
    versions = dict.fromkeys(f"{r['name']} {r['version']}" for c in cells for r in c["rows"] if "version" in r)
    header = ["model", "precision", "threads", "tvmflow", "of peak", *names, "best peer / tvmflow"]
    lines = [
        f"Measured on {report['date']} on {report['cores']} cores of {report['cpu']} with `{report['command']}`:"
        f" {', '.join(versions)}. Milliseconds, minimum / median of equal interleaved rounds; float input and output are inside"
        " the clock.",
        "",
        "| " + " | ".join(header) + " |",
        "|---" * len(header) + "|",
    ]
    notes: dict[str, int] = {}
    for cell in cells:
        for of in FAMILIES:
            rows = [r for r in cell["rows"] if family(r) == of]
            if not rows:
                continue
            ours = next((r for r in rows if r["name"] == OURS), None)
            found = ratio(cell, of)
            batch = f", batch {cell['batch']}" if cell["batch"] > 1 else ""
            columns = [
                f"{cell['model']}{batch}",
                of,
                str(cell["threads"]),
                ms(ours) if ours else DASH,
                percent(ours) if ours else DASH,
            ]
            for name in names:
                theirs = [r for r in rows if r["name"] == name]
                good = [r for r in theirs if believed(r)]
                if good:
                    columns.append(ms(min(good, key=lambda r: r["latency_ms"]["min"])))
                else:
                    reason = f"{name}: {theirs[0]['reason']}" if theirs else f"{name}: not asked for"
                    columns.append(f"{DASH} ({notes.setdefault(reason, len(notes) + 1)})")
            columns.append(f"**{found[0]:.2f}**" if found else DASH)
            lines.append("| " + " | ".join(columns) + " |")
    lines += [""] + [f"{title(cell)}{disturbed(cell)}" for cell in cells if disturbed(cell)]
    lines += [f"({number}) {reason}" for reason, number in notes.items()]
    return "\n".join(lines)
