"""``tvmflow eval``."""

from __future__ import annotations

from typing import Annotated

import typer

from tvmflow.cli.options import Artifact, BoardName, Threads, existing, existing_data
from tvmflow.cli.verb import Output
from tvmflow.trace import Progress


def command(
    artifact: Artifact,
    data: Annotated[
        str,
        typer.Option(
            "--data", metavar="DATA", help="An .npz (with `label` for accuracy), a folder of images, or package.module:callable."
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL.onnx", help="Compare with this model in float32.")
    ] = None,
    board: BoardName = None,
    threads: Threads = None,
    *,
    progress: Progress,
) -> Output:
    """Measure accuracy over data.

    Top-1 and top-5 where there are labels; with --model also agreement with the original and the error.
    """
    from tvmflow import flow
    from tvmflow.cli.tables import evaluate_report

    result = flow.evaluate(
        existing(artifact),
        existing_data(data),
        model=None if model is None else existing(model),
        board=board,
        threads=threads,
        progress=progress,
    )
    found = result.to_json()
    return Output(found, evaluate_report(found))
