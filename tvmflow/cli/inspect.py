"""``tvmflow inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tvmflow.cli.options import Shapes, existing_or_callable, parse_shapes
from tvmflow.cli.verb import Output


def command(
    file: Annotated[str, typer.Argument(metavar="ARTIFACT|MODEL", help="A compiled .so file, or a model.")],
    shape: Shapes = None,
) -> Output:
    """Show what an artifact or a model consists of.

    Nothing of an artifact is executed.
    """
    from tvmflow import flow
    from tvmflow.cli.tables import inspect_report

    name = existing_or_callable(file)
    data = flow.inspect(Path(name) if Path(name).exists() else name, shapes=parse_shapes(shape))
    return Output(data, inspect_report(data))
