"""Ours."""

from __future__ import annotations

from pathlib import Path

from bench_peers_parts.worker import Run


def version() -> str:
    import tvmflow

    return tvmflow.__version__


def prepare(model: Path, precision: str, calibration: Path, folder: Path) -> None:
    import tvmflow

    recipe = {"quantize": "int8", "calibration": str(calibration)} if precision == "int8" else {}
    tvmflow.compile(str(model), "native", **recipe, work_dir=folder / "work").save(folder / "model.so")


def serve(folder: Path, precision: str, threads: int) -> Run:
    import tvmflow

    session = tvmflow.load(folder / "model.so", threads=threads)
    (output,) = (info.name for info in session.manifest.outputs)
    return lambda inputs: session.run(inputs)[output]
