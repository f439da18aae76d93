"""Importing the stage costs nothing that a run does not need."""

from __future__ import annotations

import subprocess
import sys

MODULES = ("compare", "evaluate", "layers", "measure", "peak", "peer_quantize", "peer_torch", "peers", "stats")
HEAVY = ("tvm", "onnx", "onnxruntime", "torch", "matplotlib", "jinja2", "rich")


def test_heavy_packages_are_imported_when_used() -> None:
    wanted = [f"tvmflow.bench.{name}" for name in MODULES]
    wanted += [f"tvmflow.report.{name}" for name in ("data", "gather", "html", "plots", "tables")]
    code = f"import sys, {', '.join(wanted)}; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
