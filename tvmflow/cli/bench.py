"""``tvmflow bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmflow.cli.options import WORK_DIR, Artifact, BoardName, Calibrate, WorkDir, existing, existing_data
from tvmflow.cli.verb import Output
from tvmflow.errors import UsageError
from tvmflow.trace import Progress


def command(
    artifact: Artifact,
    board: BoardName = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads to run with.")] = 1,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Time each layer.")] = False,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="onnxruntime[,NAME]", help="Measure these too, interleaved; needs --model."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL.onnx", help="The model the artifact was made from.")
    ] = None,
    calibrate: Calibrate = None,
    runs: Annotated[int | None, typer.Option("--runs", min=1, help="Timed runs.")] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="OUT.html", help="Write an HTML report.")] = None,
    work_dir: WorkDir = WORK_DIR,
    *,
    progress: Progress,
) -> Output:
    """Measure the latency of an artifact.

    Here or on a board, beside the machine's peak and, interleaved, other runtimes.
    """
    from tvmflow import flow
    from tvmflow.cli.tables import bench_report

    names = tuple(name for item in against or () for name in item.split(",") if name)
    if names and model is None:
        raise UsageError("--against needs the model to run", where="--model", remedy="add --model MODEL.onnx")
    result = flow.bench(
        existing(artifact),
        board=board,
        threads=threads,
        per_layer=per_layer,
        against=names,
        model=None if model is None else existing(model),
        calibration=None if calibrate is None else existing_data(calibrate),
        runs=runs,
        report=report,
        work_dir=work_dir,
        progress=progress,
    )
    data = result.to_json()
    return Output(data, bench_report(data))
