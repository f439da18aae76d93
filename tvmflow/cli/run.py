"""``tvmflow run``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tvmflow.cli.options import Artifact, BoardName, Threads, existing
from tvmflow.cli.verb import Output
from tvmflow.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from tvmflow.build.manifest import Manifest


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

    The arrays may hold several samples along their first axis; the outputs then do too.
    """
    path = existing(artifact)
    import numpy as np

    from tvmflow.build.manifest import read_manifest
    from tvmflow.cli.tables import run_report
    from tvmflow.flow.measure import open_session, sample_inputs

    manifest = read_manifest(path)
    samples = [sample_inputs(path, manifest)] if input is None else _samples(existing(input), manifest)
    with open_session(path, board, threads) as (session, _):
        results = [session.run(sample) for sample in samples]
    outputs: dict[str, Any] = {
        name: y if len(results) == 1 else np.concatenate([np.atleast_1d(result[name]) for result in results])
        for name, y in results[0].items()
    }
    if output is not None:
        with output.open("wb") as file:
            np.savez(file, **outputs)
    found = [
        {"name": name, "shape": list(y.shape), "dtype": str(y.dtype), "min": float(y.min()), "max": float(y.max())}
        for name, y in outputs.items()
    ]
    written = None if output is None else str(output)
    data = {"artifact": str(path), "board": board, "samples": len(results), "output": written, "outputs": found}
    return Output(data, run_report(data))


def _samples(path: Path, manifest: Manifest) -> list[Mapping[str, np.ndarray]]:
    """What to run on: the arrays of the file as they are, or where their first axis is longer, one sample after the other."""
    import msgspec
    import numpy as np

    from tvmflow.data import Preprocess, load_data

    try:
        with np.load(path, allow_pickle=False) as arrays:
            whole = {info.name: arrays[info.name] for info in manifest.inputs if info.name in arrays.files}
    except (OSError, ValueError) as error:
        raise DataError("not an .npz file of arrays", where=str(path), remedy="write one with numpy.savez") from error
    if all(info.name in whole and whole[info.name].shape == info.shape for info in manifest.inputs):
        return [whole]
    steps = msgspec.convert(manifest.preprocess, Preprocess) if manifest.preprocess else None
    return list(load_data(path, manifest.inputs, steps))
