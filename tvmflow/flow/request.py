"""What a journey is asked to lower, as it crosses into the worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from tvmflow.flow.lower import Lowered, Shapes, lower
from tvmflow.quantize.recipe import load_recipe
from tvmflow.target import Target
from tvmflow.trace import Trace


class Request(msgspec.Struct, frozen=True):
    """The arguments of :func:`tvmflow.flow.lower.lower`, as plain data."""

    source: str
    """Path, or ``package.module:callable``."""
    target: Target
    quantize: str | None = None
    calibration: str | None = None
    params: str | None = None
    shapes: dict[str, tuple[int, ...]] = {}
    check_import: bool = True
    work_dir: str = ".tvmflow"
    identity: tuple[str, str] | None = None
    """Name and sha256 of a model that was an object in memory; files have their own."""

    def lower(self, trace: Trace) -> Lowered:
        """Import, optimize, quantize, all in this process, which is a child already."""
        return lower(
            self.source,
            self.target,
            trace,
            quantize=self.quantize,
            calibration=self.calibration,
            params=self.params,
            shapes=self.shapes,
            check_import=self.check_import,
            work_dir=self.work_dir,
            identity=self.identity,
            isolated=False,
        )


def request(
    source: Any,
    target: Target,
    directory: Path,
    *,
    quantize: str | Path | None = None,
    calibration: str | Path | None = None,
    params: str | Path | None = None,
    shapes: Shapes | None = None,
    check_import: bool = True,
    work_dir: str | Path = ".tvmflow",
) -> Request:
    """The request for any kind of model; one that is an object in memory is written to ``directory``.

    Raises ConfigError for a recipe that can't be read, and what the importer raises for a model that it can't take.
    """
    from tvmflow.importer import stage

    if quantize is not None:
        load_recipe(str(quantize))  # a mistyped name is told before minutes of work
    identity = None
    if not isinstance(source, str | Path):
        _, path, name, sha256 = stage(source, directory)
        source, identity = path, (name, sha256)
    text = lambda value: None if value is None else str(value)
    fixed = {name: tuple(shape) for name, shape in (shapes or {}).items()}
    return Request(
        str(source), target, text(quantize), text(calibration), text(params), fixed, check_import, str(work_dir), identity
    )
