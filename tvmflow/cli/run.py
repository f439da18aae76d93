"""``tvmflow run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmflow.cli.options import Artifact, BoardName, Threads, existing
from tvmflow.cli.verb import Output


def command(
    artifact: Artifact,
    input: Annotated[
        Path | None,
        typer.Option("--input", metavar="X.npz", help="Arrays named after the inputs; without it, the self-test's first."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", metavar="Y.npz", help="Write the outputs there, by name.")] = None,
    board: BoardName = None,
    threads: Threads = None,
) -> Output:
    """Run an artifact on data of yours.

    An array may hold several samples along its first axis; the outputs then do too.
    """
    from tvmflow import flow
    from tvmflow.cli.tables import run_report

    outputs = flow.run(existing(artifact), None if input is None else existing(input), board=board, threads=threads)
    if output is not None:
        import numpy as np

        np.savez(output, **outputs)
    found = [
        {"name": name, "shape": list(y.shape), "dtype": str(y.dtype), "min": float(y.min()), "max": float(y.max())}
        for name, y in outputs.items()
    ]
    data = {"artifact": str(artifact), "board": board, "output": None if output is None else str(output), "outputs": found}
    return Output(data, run_report(data))
