"""``tvmflow tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmflow.cli.options import (
    WORK_DIR,
    Calibrate,
    Quantize,
    Shapes,
    TargetName,
    WorkDir,
    existing,
    existing_data,
    existing_or_callable,
    parse_budget,
    parse_shapes,
)
from tvmflow.cli.verb import Output
from tvmflow.errors import UsageError
from tvmflow.trace import Progress


def command(
    model: Annotated[
        list[str], typer.Argument(metavar="MODEL", help="An .onnx or .pt2 file, package.module:callable; with --merge, logs.")
    ],
    target: TargetName = "native",
    quantize: Quantize = None,
    calibrate: Calibrate = None,
    board: Annotated[
        list[str] | None,
        typer.Option(
            "--board",
            metavar="BOARD",
            help="Measure on this board; several share the work. tracker://HOST:PORT/KEY: all of a tracker's.",
        ),
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="20m", help="Stop after this time.")] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Stop after this many measurements.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Search kernels too whose search has ended before.")] = False,
    shape: Shapes = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the kernels, their candidates and the time to expect; measure nothing.")
    ] = False,
    tuning_log: Annotated[
        Path | None, typer.Option("--tuning-log", metavar="FILE", help="The log to write; by default one in the work directory.")
    ] = None,
    merge: Annotated[
        Path | None,
        typer.Option(
            "--merge", metavar="OUT.jsonl", help="Write the fastest records of the logs given as arguments; tune nothing."
        ),
    ] = None,
    work_dir: WorkDir = WORK_DIR,
    *,
    progress: Progress,
) -> Output:
    """Search for the fastest schedule of each kernel.

    What was measured is kept in a log that `compile` uses; an interrupted search goes on where it stopped.
    """
    from tvmflow import flow
    from tvmflow.cli.tables import tune_report

    if merge is not None:
        data = flow.merge_logs([existing(path) for path in model], merge)
        return Output(data, (f"{data['kept']} of {data['read']} records, {data['kernels']} kernels, in {data['log']}",))
    if len(model) > 1:
        raise UsageError("give one model", where=" ".join(model), remedy="to merge logs: tvmflow tune --merge OUT.jsonl LOG...")
    if budget is not None and trials is not None:
        raise UsageError("give --budget or --trials, not both")
    result = flow.tune(
        existing_or_callable(model[0]),
        target,
        quantize=quantize,
        calibration=None if calibrate is None else existing_data(calibrate),
        boards=tuple(board or ()),
        budget=parse_budget(budget),
        trials=trials,
        again=again,
        dry_run=dry_run,
        shapes=parse_shapes(shape),
        tuning_log=tuning_log,
        work_dir=work_dir,
        progress=progress,
    )
    data = result.to_json()
    return Output(data, tune_report(data))
