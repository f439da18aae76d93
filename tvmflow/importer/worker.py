"""Import and check, in a child process by default: native code that crashes or hangs becomes an error message.

Samples lie in the job's directory as ``samples_K.npz``; the module comes back in it (see transfer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tvmflow import errors
from tvmflow.model import TensorInfo
from tvmflow.trace import Progress
from tvmflow.worker import in_child

if TYPE_CHECKING:
    from tvm import IRModule


class Job(msgspec.Struct, frozen=True):
    """What to import. ``kind`` is ``onnx`` or ``torch``; samples, if any, lie in ``samples_K.npz`` beside the job."""

    kind: str
    path: str
    shapes: dict[str, tuple[int, ...]]
    check: bool
    samples: int = 0


class Result(msgspec.Struct, frozen=True):
    """What the child found."""

    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    max_abs_error: float = 0.0
    against: str = ""
    notes: tuple[str, ...] = ()


def isolated(job: Job, directory: Path, samples: Sequence[dict[str, np.ndarray]], progress: Progress) -> Result:
    """Performs a job in a child process; the module lies in ``directory``. Raises what :func:`tvmflow.worker.in_child` raises."""
    for index, sample in enumerate(samples):
        np.savez(directory / f"samples_{index}.npz", allow_pickle=False, **sample)
    return in_child(work, job, directory, progress, what="the import")


def work(job: Job, directory: Path, progress: Progress) -> Result:
    """The child's side."""
    from tvmflow.importer import transfer

    samples = [dict(np.load(directory / f"samples_{index}.npz")) for index in range(job.samples)]
    module, result = perform(job, samples, lambda what: progress(f"import: {what}", 0, 0))
    transfer.save(module, directory)
    return result


def perform(job: Job, samples: Sequence[dict[str, np.ndarray]], say: Callable[[str], None]) -> tuple[IRModule, Result]:
    """The work itself, in this process. ``say`` hears of each step."""
    if job.kind == "torch":
        from tvmflow.importer import torch as source
    else:
        from tvmflow.importer import onnx as source  # type: ignore[no-redef]
    loaded = source.load(job, say)
    if not job.check:
        return loaded.module, Result(loaded.inputs, loaded.outputs, notes=loaded.notes)
    from tvmflow.importer.check import verify

    for sample in samples:
        check_sample(sample, loaded.inputs)
    say("numeric check")
    worst, against = verify(loaded, samples)
    return loaded.module, Result(loaded.inputs, loaded.outputs, worst, against, loaded.notes)


def check_sample(sample: dict[str, np.ndarray], inputs: Sequence[TensorInfo]) -> None:
    """Raises DataError when a sample does not fit the model's inputs."""
    for info in inputs:
        if info.name not in sample:
            raise errors.DataError(f"a sample lacks input {info.name!r}", remedy=errors.nearest(info.name, sample))
        given = sample[info.name]
        if given.shape != info.shape or str(given.dtype) != info.dtype:
            raise errors.DataError(
                f"a sample's {info.name!r} is {given.dtype} {list(given.shape)}, not {info.dtype} {list(info.shape)}"
            )
