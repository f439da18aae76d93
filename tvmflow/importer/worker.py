"""Import and check in a child process, so that native code that crashes or hangs becomes an error message.

The child writes three things into the job's directory: ``status`` (what it is working on, one line each), ``result.json``, and
the module (see transfer.py). It is started as ``python -m tvmflow.importer.worker JOB_DIRECTORY``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tvmflow import errors
from tvmflow.errors import ModelError, TvmflowError, WorkerCrashed
from tvmflow.model import TensorInfo
from tvmflow.trace import Progress

if TYPE_CHECKING:
    from tvm import IRModule

TIMEOUT = 900.0
"""Seconds for one import with its check; MiniLM needs 15 on a loaded core."""


class Job(msgspec.Struct, frozen=True):
    """What to import. ``kind`` is ``onnx`` or ``torch``; samples, if any, lie in ``samples_K.npz`` beside the job."""

    kind: str
    path: str
    shapes: dict[str, tuple[int, ...]]
    check: bool
    samples: int = 0


class Failure(msgspec.Struct, frozen=True):
    """An error of tvmflow's tree on its way to the parent."""

    error: str
    what: str
    where: str
    remedy: str


class Result(msgspec.Struct, frozen=True):
    """What the child found."""

    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    max_abs_error: float = 0.0
    against: str = ""
    notes: tuple[str, ...] = ()
    failure: Failure | None = None


def in_child(
    job: Job, directory: Path, samples: Sequence[dict[str, np.ndarray]], progress: Progress, timeout: float = TIMEOUT
) -> Result:
    """Runs a job in a child process and returns its result; the module lies in ``directory``.

    Raises
    ------
    TvmflowError : what the child raised
    WorkerCrashed : it died or hung; says on what it was working
    """
    for index, sample in enumerate(samples):
        np.savez(directory / f"samples_{index}.npz", allow_pickle=False, **sample)
    (directory / "job.json").write_bytes(msgspec.json.encode(job))
    log = directory / "log"
    root = Path(__file__).resolve().parents[2]
    search = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "tvmflow.importer.worker", str(directory)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": search},
        )
        code = wait(child, directory / "status", progress, timeout)
    doing = last_line(directory / "status")
    if code is None:
        raise WorkerCrashed(f"the import was still running after {timeout:g} s", where=doing, remedy=REPORT)
    found = directory / "result.json"
    if code != 0 or not found.exists():
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        tail = last_line(log)
        raise WorkerCrashed(f"the import died ({cause})" + (f": {tail}" if tail else ""), where=doing, remedy=REPORT)
    result = msgspec.json.decode(found.read_bytes(), type=Result)
    if result.failure is not None:
        raise as_error(result.failure)
    return result


REPORT = "native code failed on this model: please report it with the file, or export the named node differently"


def wait(child: subprocess.Popen[bytes], status: Path, progress: Progress, timeout: float) -> int | None:
    """Exit code of the child, None when it had to be killed."""
    deadline = time.monotonic() + timeout
    try:
        while time.monotonic() < deadline:
            try:
                return child.wait(timeout=0.25)
            except subprocess.TimeoutExpired:
                progress(f"import: {last_line(status)}", 0, 0)
        return None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def last_line(path: Path) -> str:
    """Last line of a text file, "" when there is none."""
    if not path.exists():
        return ""
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def as_error(failure: Failure) -> TvmflowError:
    """The error that the child raised."""
    kind: type[TvmflowError] = getattr(errors, failure.error)
    return kind(failure.what, where=failure.where, remedy=failure.remedy)


def perform(job: Job, samples: Sequence[dict[str, np.ndarray]], status: Path | None = None) -> tuple[IRModule, Result]:
    """The work itself, in this process."""

    def say(what: str) -> None:
        if status is not None:
            with status.open("a") as out:
                out.write(what + "\n")

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


def main(directory: Path) -> None:
    """The child's side."""
    from tvmflow.importer import transfer

    job = msgspec.json.decode((directory / "job.json").read_bytes(), type=Job)
    samples = [dict(np.load(directory / f"samples_{index}.npz")) for index in range(job.samples)]
    try:
        module, result = perform(job, samples, directory / "status")
        transfer.save(module, directory)
    except TvmflowError as e:
        result = Result(failure=Failure(type(e).__name__, e.what, e.where, e.remedy))
    except MemoryError:
        result = Result(
            failure=Failure(ModelError.__name__, "not enough memory to import it", job.path, "use a machine with more memory")
        )
    (directory / "result.json").write_bytes(msgspec.json.encode(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
