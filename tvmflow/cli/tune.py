"""``tvmflow tune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmflow.cli.options import (
    WORK_DIR,
    Calibrate,
    Model,
    Quantize,
    Shapes,
    TargetName,
    WorkDir,
    existing_data,
    existing_or_callable,
    parse_budget,
    parse_shapes,
)
from tvmflow.cli.verb import Output
from tvmflow.errors import UsageError
from tvmflow.trace import Progress


def command(
    model: Model,
    target: TargetName = "native",
    quantize: Quantize = None,
    calibrate: Calibrate = None,
    board: Annotated[
        list[str] | None, typer.Option("--board", metavar="BOARD", help="Measure on this board; give several to share the work.")
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="20m", help="Stop after this time.")] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Stop after this many measurements.")] = None,
    shape: Shapes = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the kernels and the size of their spaces; measure nothing.")
    ] = False,
    tuning_log: Annotated[
        Path | None, typer.Option("--tuning-log", metavar="FILE", help="The log to write; by default one in the work directory.")
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

    if budget is not None and trials is not None:
        raise UsageError("give --budget or --trials, not both")
    result = flow.tune(
        existing_or_callable(model),
        target,
        quantize=quantize,
        calibration=None if calibrate is None else existing_data(calibrate),
        boards=tuple(board or ()),
        budget=parse_budget(budget),
        trials=trials,
        dry_run=dry_run,
        shapes=parse_shapes(shape),
        tuning_log=tuning_log,
        work_dir=work_dir,
        progress=progress,
    )
    data = result.to_json()
    return Output(data, tune_report(data))
