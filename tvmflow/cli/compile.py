"""``tvmflow compile``."""

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
    existing,
    existing_data,
    existing_or_callable,
    parse_shapes,
)
from tvmflow.cli.verb import Output
from tvmflow.trace import Progress


def command(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT.so", help="The file to write.")],
    target: TargetName = "native",
    quantize: Quantize = None,
    calibrate: Calibrate = None,
    params: Annotated[
        Path | None, typer.Option("--params", metavar="PARAMS.json", help="Quantize with parameters that `quantize` saved.")
    ] = None,
    shape: Shapes = None,
    tuning_log: Annotated[
        str, typer.Option("--tuning-log", metavar="FILE|none", help="Tuning log to use; none: the register model's tiles.")
    ] = "default",
    dump: Annotated[Path | None, typer.Option("--dump", metavar="DIR", help="Write the module after every stage there.")] = None,
    import_check: Annotated[
        bool,
        typer.Option("--import-check/--no-import-check", help="Compare the imported model with the original on random inputs."),
    ] = True,
    work_dir: WorkDir = WORK_DIR,
    *,
    progress: Progress,
) -> Output:
    """Compile a model to one .so file for a named target.

    In float32, or with --quantize to integer operators.
    """
    from tvmflow import flow
    from tvmflow.cli.tables import compile_report

    model = existing_or_callable(model)
    result = flow.compile(
        model,
        target,
        quantize=quantize,
        calibration=None if calibrate is None else existing_data(calibrate),
        shapes=parse_shapes(shape),
        tuning_log=tuning_log if tuning_log in ("default", "none") else existing(tuning_log),
        dump=dump,
        check_import=import_check,
        params=None if params is None else existing(params),
        work_dir=work_dir,
        progress=progress,
    )
    result.artifact.save(out)
    data = {**result.report.to_json(), "artifact": str(out), "bytes": out.stat().st_size}
    return Output(data, compile_report(data))
