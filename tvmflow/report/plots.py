"""Plots as inline SVG that takes its colours from the page, so that it is readable in light and in dark.

Matplotlib draws with placeholder colours; the SVG text then gets CSS variables in their stead.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tvmflow.bench.stats import percentile
from tvmflow.errors import MissingTool
from tvmflow.report.data import LayerCost, LayerError, Runs

if TYPE_CHECKING:
    from collections.abc import Iterator

_COLOURS = {
    "#010203": "var(--ink)",
    "#010204": "var(--faint)",
    "#010205": "var(--ours)",
    "#010206": "var(--peer)",
    "#010207": "var(--warn)",
}
INK, FAINT, OURS, PEER, WARN = _COLOURS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "ytick.left": False,
}
REMEDY = "pip install 'tvmflow[report]'"
WIDTH = 9.0
"""Inches, at 72 a unit; the page scales a plot to its column."""
MOST_DOTS = 400
"""Dots of one contender that are drawn; more would only be ink. The percentiles are those of all runs."""


def latency(series: Sequence[Runs]) -> str:
    """Distribution of each contender's runs: a dot a run, a box from the lower to the upper quartile, a line at the median."""
    ordered = sorted(series, key=lambda runs: percentile(runs.runs_ms, 0.5), reverse=True)
    with _figure("latency", 0.55 * len(ordered) + 0.75) as (axes, out):
        for place, runs in enumerate(ordered):
            values = runs.runs_ms[:: -(-len(runs.runs_ms) // MOST_DOTS)]
            colour = OURS if runs.ours else PEER
            # A fixed scatter instead of a random one: the same data gives the same file.
            heights = [place + 0.34 * ((i * 0.6180339887) % 1 - 0.5) for i in range(len(values))]
            axes.scatter(values, heights, s=7, color=colour, alpha=0.35, linewidths=0)
            low, middle, high = (percentile(runs.runs_ms, share) for share in (0.25, 0.5, 0.75))
            axes.barh(place, high - low, left=low, height=0.5, facecolor="none", edgecolor=colour, linewidth=1.4)
            axes.plot([middle, middle], [place - 0.32, place + 0.32], color=colour, linewidth=2.6, solid_capstyle="round")
        labels = [f"{runs.name} {runs.precision}".strip() for runs in ordered]
        axes.set_yticks(range(len(ordered)), labels)
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        # Runs in which the machine did something else would squeeze the rest into a corner; they are counted instead.
        shortest, longest = min(min(runs.runs_ms) for runs in ordered), max(_usual(runs) for runs in ordered)
        margin = 0.04 * (longest - shortest) or 0.04 * longest
        axes.set_xlim(shortest - margin, longest + margin)
        beyond = sum(value > longest + margin for runs in ordered for value in runs.runs_ms)
        axes.set_xlabel("milliseconds" + (f" ({beyond} slower runs are beyond the edge)" if beyond else ""))
        axes.grid(axis="x")
    return out.getvalue()


def _usual(runs: Runs) -> float:
    """Slowest run that is no outlier: within three times the box from its edge (Tukey's outer fence)."""
    low, high = (percentile(runs.runs_ms, share) for share in (0.25, 0.75))
    return max(value for value in runs.runs_ms if value <= high + 3 * (high - low))


def time_by_operator(layers: Sequence[LayerCost], most: int = 10) -> str:
    """Share of the time that each kind of operator takes; the smallest are summed up."""
    sums: dict[str, float] = {}
    for layer in layers:
        sums[layer.op] = sums.get(layer.op, 0.0) + layer.ms
    ranked = sorted(sums.items(), key=lambda item: item[1], reverse=True)
    if len(ranked) > most:
        ranked = [*ranked[: most - 1], (f"{len(ranked) - most + 1} others", sum(ms for _, ms in ranked[most - 1 :]))]
    total = sum(sums.values()) or 1.0
    ranked.reverse()
    with _figure("operators", 0.3 * len(ranked) + 0.75) as (axes, out):
        axes.barh([name for name, _ in ranked], [ms for _, ms in ranked], color=OURS, height=0.62)
        for place, (_, ms) in enumerate(ranked):
            axes.annotate(
                f"{ms:.3g} ms, {100 * ms / total:.0f} %", (ms, place), (5, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.set_xlim(0, 1.22 * ranked[-1][1] or 1.0)
        axes.set_xlabel("milliseconds")
        axes.grid(axis="x")
    return out.getvalue()


def layer_errors(errors: Sequence[LayerError], low_db: float = 20.0) -> str:
    """Signal to quantization noise of each layer in order; layers under ``low_db`` stand out."""
    measured = [
        (i, error.sqnr_db) for i, error in enumerate(errors) if error.sqnr_db is not None and math.isfinite(error.sqnr_db)
    ]
    with _figure("errors", 2.7) as (axes, out):
        places, values = [place for place, _ in measured], [value for _, value in measured]
        axes.plot(places, values, color=FAINT, linewidth=1)
        axes.scatter(places, values, s=16, color=[WARN if value < low_db else OURS for value in values], linewidths=0, zorder=3)
        axes.axhline(low_db, color=WARN, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xlabel("layer, in order of execution")
        axes.set_ylabel("SQNR (dB)")
        axes.set_xlim(-0.5, len(errors) - 0.5)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y")
    return out.getvalue()


def sparkline(counts: Sequence[int], inside: Sequence[bool], width: int = 120, height: int = 22) -> str:
    """Histogram of a tensor as small bars; heights are square roots, to show tails. Bins not ``inside`` are marked."""
    if not any(counts):
        return ""
    top = max(counts) ** 0.5
    step = width / len(counts)

    def bars(marked: bool) -> str:
        found = []
        for i, (count, kept) in enumerate(zip(counts, inside, strict=True)):
            if count and kept != marked:
                tall = max(1.0, height * count**0.5 / top)
                found.append(f"M{i * step:.1f} {height}v-{tall:.1f}h{step:.1f}v{tall:.1f}z")
        return "".join(found)

    marked = f'<path class="cut" d="{cut}"/>' if (cut := bars(True)) else ""
    return f'<svg class="spark" viewBox="0 0 {width} {height}" aria-hidden="true"><path d="{bars(False)}"/>{marked}</svg>'


@contextmanager
def _figure(name: str, height: float) -> Iterator[tuple[Any, io.StringIO]]:
    """Axes to draw on; afterwards the buffer holds the SVG."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingTool("matplotlib is not installed", where="report", remedy=REMEDY) from error
    out = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        yield axes, out
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    out.write(_inline(drawn.getvalue(), name))


def _inline(svg: str, name: str) -> str:
    """The element alone, with ids of its own, the page's font and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>', rf'<svg class="plot" viewBox="\1" role="img" aria-label="{name}">', svg, count=1
    )
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    for placeholder, colour in _COLOURS.items():
        svg = svg.replace(placeholder, colour)
    return svg
