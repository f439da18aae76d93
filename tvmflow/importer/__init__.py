"""Import: an ONNX or PyTorch model to one Relax module under the user's layer names, checked against its own framework."""

from __future__ import annotations

import hashlib
import importlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.errors import MissingTool, ModelError, UsageError
from tvmflow.model import Model
from tvmflow.trace import Progress, silent


@dataclass(frozen=True)
class ImportCheck:
    """Result of the numeric check: largest absolute error over all outputs, and the framework that it was compared with."""

    max_abs_error: float
    against: str


@dataclass(frozen=True)
class Imported:
    """An imported model, its check (None when it was skipped), and what the import changed that the user should know."""

    model: Model
    check: ImportCheck | None
    notes: tuple[str, ...]


def import_model(
    source: Any,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    check: bool = True,
    samples: Sequence[dict[str, np.ndarray]] = (),
    progress: Progress = silent,
    isolated: bool = True,
) -> Imported:
    """Imports a model in a child process and checks it numerically.

    Parameters
    ----------
    source : path of an ``.onnx`` or ``.pt2`` file, ``onnx.ModelProto``, ``torch.export.ExportedProgram``, ``(nn.Module, example
        inputs)``, or ``"package.module:callable"`` that returns such a pair
    shapes : static shape of inputs with dynamic dimensions, by name (ONNX)
    check : compare with onnxruntime (ONNX) or torch on two seeded random inputs and on ``samples``
    samples : real inputs, input name -> array, for the check
    isolated : False imports in this process, for callers that are in a child process already

    Raises
    ------
    ModelError, UnsupportedOperator : the file, its shapes or an operator can't be imported
    ImportMismatch : the module computes other numbers than the original
    WorkerCrashed : native code crashed or hung
    """
    from tvmflow.importer import transfer, worker

    with tempfile.TemporaryDirectory(prefix="tvmflow-import-") as scratch:
        directory = Path(scratch)
        kind, path, name, digest = stage(source, directory)
        job = worker.Job(kind, str(path), {k: tuple(v) for k, v in (shapes or {}).items()}, check, len(samples))
        if isolated:
            result = worker.isolated(job, directory, samples, progress)
            module = transfer.load(directory)
        else:
            module, result = worker.perform(job, samples, lambda what: progress(f"import: {what}", 0, 0))
    model = Model(module, result.inputs, result.outputs, name, digest, ("import",))
    return Imported(model, ImportCheck(result.max_abs_error, result.against) if check else None, result.notes)


def stage(source: Any, directory: Path) -> tuple[str, Path, str, str]:
    """Puts any kind of source where the worker finds it: kind, path, model name, sha256."""
    if isinstance(source, str) and ":" in source and not Path(source).exists():
        return stage_pair(call(source), directory, source.rpartition(":")[2])
    if isinstance(source, str | Path):
        path = Path(source)
        if not path.is_file():
            raise ModelError("no such file", where=str(path))
        if path.suffix == ".pt2":
            return "torch", path.resolve(), path.stem, sha256(path)
        return "onnx", path.resolve(), path.stem, sha256(path, *external_files(path))
    if isinstance(source, tuple) and len(source) == 2:
        return stage_pair(source, directory, type(source[0]).__name__)
    if type(source).__name__ == "ExportedProgram":
        return stage_program(source, directory, "program")
    if type(source).__name__ == "ModelProto":
        path = directory / "model.onnx"
        write_proto(source, path)
        return "onnx", path, source.graph.name or "model", sha256(path, *external_files(path))
    raise UsageError(
        f"can't import a {type(source).__name__}",
        remedy="give a path, an onnx.ModelProto, an ExportedProgram, (nn.Module, example inputs), or 'package.module:callable'",
    )


def stage_pair(pair: Any, directory: Path, name: str) -> tuple[str, Path, str, str]:
    """Exports ``(nn.Module, example inputs)``."""
    from tvmflow.importer import torch as front

    if not (isinstance(pair, tuple) and len(pair) == 2):
        raise UsageError(f"{name} must return (module, example inputs), not a {type(pair).__name__}")
    return stage_program(front.export(*pair), directory, name)


def stage_program(program: Any, directory: Path, name: str) -> tuple[str, Path, str, str]:
    import torch

    path = directory / "program.pt2"
    torch.export.save(program, path)
    from tvmflow.importer import torch as front

    return "torch", path, name, front.content_hash(program)


def call(source: str) -> Any:
    """Result of ``package.module:callable``; the working directory is searched too."""
    module_name, _, function = source.rpartition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        if e.name and module_name.startswith(e.name):
            raise ModelError(f"no file and no Python module {module_name!r}", where=source) from e
        raise MissingTool(f"its module needs {e.name!r}", where=source, remedy=f"pip install {e.name}") from e
    if not hasattr(module, function):
        raise ModelError(f"module {module_name!r} has no {function!r}", where=source)
    return getattr(module, function)()


def write_proto(model: Any, path: Path) -> None:
    """Writes a ModelProto, its large tensors beside it when it is above protobuf's 2 GB."""
    import onnx

    big = model.ByteSize() > 1 << 30
    onnx.save(model, path, save_as_external_data=big, location="weights.bin" if big else None)


def external_files(path: Path) -> list[Path]:
    """Files of external data that an ONNX file names, in order; none when it can't be parsed (the worker says why)."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, OSError):
        return []
    names = dict.fromkeys(
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    )
    return [path.parent / name for name in names if (path.parent / name).is_file()]


def sha256(*paths: Path) -> str:
    """Hash of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
