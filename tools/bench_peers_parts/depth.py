"""What compiling costs, and how it grows with a network's depth: ours only, each in a process of its own."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_peers_parts.environments import OURS, Unavailable, folder
from bench_peers_parts.models import get
from bench_peers_parts.process import prepare

NETWORKS = ("resnet18", "resnet50", "resnet101", "resnet152")
Record = dict[str, Any]


def measure() -> list[Record]:
    """Seconds, peak memory and size of each network's artifacts, or the reason why there is none."""
    found: list[Record] = []
    for name in NETWORKS:
        for precision in OURS.precisions:
            print(f"compiling {name} {precision}", file=sys.stderr, flush=True)
            try:
                report = compiled(name, precision)
            except Unavailable as problem:
                report = {"reason": str(problem)}
            found.append({"model": name, "precision": precision, **report})
    return found


def compiled(name: str, precision: str) -> Record:
    """The report of one compilation."""
    model, calibration = get(name, 1, folder() / "models", None)
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(sys.executable), (OURS.name, model, precision, calibration, place))
        report: Record = json.loads((Path(place) / "report.json").read_text())
    return report


def table(records: Sequence[Record]) -> str:
    lines = ["model       precision  seconds  peak MB   .so MB  kernels  longest stages"]
    for r in records:
        head = f"{r['model']:11} {r['precision']:9}"
        if "reason" in r:
            lines.append(f"{head}  {r['reason']}")
            continue
        stages = sorted(r["stages"], key=lambda s: -s["seconds"])[:3]
        longest = ", ".join(f"{s['name']} {s['seconds']:.1f}" for s in stages)
        sizes = f"{r['seconds']:8.1f} {r['peak_rss_bytes'] / 1e6:8.0f} {r['bytes'] / 1e6:8.1f} {r['kernels']['total']:8}"
        lines.append(f"{head} {sizes}  {longest}")
    return "\n".join(lines)
