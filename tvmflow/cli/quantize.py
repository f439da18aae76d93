"""``tvmflow quantize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmflow.cli.options import WORK_DIR, Model, Shapes, WorkDir, existing_data, existing_or_callable, parse_shapes
from tvmflow.cli.verb import Output
from tvmflow.errors import UsageError
from tvmflow.trace import Progress


def command(
    model: Model,
    calibrate: Annotated[
        str,
        typer.Option(
            "--calibrate", metavar="DATA", help="Calibration data: an .npz, a folder of images, or package.module:callable."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="PARAMS.json|QDQ.onnx", help="The file to write.")],
    recipe: Annotated[str, typer.Option("--recipe", metavar="RECIPE", help="A named recipe or a TOML file.")] = "int8",
    report: Annotated[Path | None, typer.Option("--report", metavar="OUT.html", help="Write a report per layer.")] = None,
    shape: Shapes = None,
    work_dir: WorkDir = WORK_DIR,
    *,
    progress: Progress,
) -> Output:
    """Calibrate a model and save its quantization parameters.

    The .json file can be read, edited, and given to `compile --params`; the .onnx file is the model with QDQ nodes.
    """
    from tvmflow import flow
    from tvmflow.cli.tables import quantize_report

    if out.suffix not in (".json", ".onnx"):
        raise UsageError(f"can't write a {out.suffix or 'nameless'} file", where="--out", remedy="end it in .json or .onnx")
    result = flow.quantize(
        existing_or_callable(model),
        existing_data(calibrate),
        recipe,
        out=out,
        report=report,
        shapes=parse_shapes(shape),
        work_dir=work_dir,
        progress=progress,
    )
    data = result.to_json()
    return Output(data, quantize_report(data))
