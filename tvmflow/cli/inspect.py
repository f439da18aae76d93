"""``tvmflow inspect``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from tvmflow.cli.options import Shapes, existing_or_callable, parse_shapes
from tvmflow.cli.verb import Output
from tvmflow.errors import UsageError
from tvmflow.trace import Progress


def command(
    file: Annotated[str, typer.Argument(metavar="ARTIFACT|MODEL", help="A compiled .so file, or a model.")],
    shape: Shapes = None,
    *,
    progress: Progress,
) -> Output:
    """Show what an artifact or a model consists of.

    Nothing of an artifact is executed. A model is imported, so what can't be imported is refused here already.
    """
    from tvmflow.cli.tables import inspect_report

    name = existing_or_callable(file)
    if not name.endswith(".so"):
        return Output(*_model(name, parse_shapes(shape), progress))
    if shape:
        raise UsageError("an artifact's shapes are fixed", where="--shape", remedy="leave it out")
    import msgspec

    from tvmflow import flow

    data = msgspec.to_builtins(flow.inspect(Path(name)))
    return Output(data, inspect_report(data))


def _model(name: str, shapes: dict[str, tuple[int, ...]] | None, progress: Progress) -> tuple[dict[str, Any], tuple[str, ...]]:
    import msgspec

    from tvmflow.cli.tables import inspect_report
    from tvmflow.importer import import_model

    imported = import_model(name, shapes=shapes, check=False, progress=progress)
    model = imported.model
    calls = (binding.value for block in model.module["main"].body.blocks for binding in block.bindings)
    operators = Counter(
        str(call.op.name).removeprefix("relax.") for call in calls if hasattr(call, "op") and hasattr(call.op, "name")
    )
    data = {
        "name": model.name,
        "inputs": msgspec.to_builtins(model.inputs),
        "outputs": msgspec.to_builtins(model.outputs),
        "operators": dict(operators.most_common()),
        "model_sha256": model.sha256,
        "notes": list(imported.notes),
    }
    return data, inspect_report(data)
