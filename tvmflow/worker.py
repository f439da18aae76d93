"""Native work in a child process, so that a crash or a hang of it becomes an error message and never takes the caller down.

The child is started as ``python -m tvmflow.worker DIRECTORY MODULE:FUNCTION``. It reads the job there, appends what it is
working on to ``status`` (one line a step), and leaves a result or a failure. Large values go through files that the
two sides agree on.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec

from tvmflow import errors
from tvmflow.errors import EnvironmentProblem, InternalError, TvmflowError, WorkerCrashed
from tvmflow.trace import Progress

SILENCE = 900.0
"""Seconds without a new step after which a child is taken to hang; code generation of a whole network is one step."""
REPORT = "native code failed on this model: please report it with the file, or leave the named layer out"
NO_MEMORY = "use a machine with more memory, or fewer inputs at once"
_POLL = 0.1
_TAIL = 4096
_PR_SET_PDEATHSIG = 1

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[Job, Path, Progress], Result]
"""A function at the top level of a module, ``work(job, directory, progress) -> result``; MessagePack carries both values."""


class Failure(msgspec.Struct, frozen=True):
    """An error of tvmflow's tree on its way to the parent."""

    error: str
    what: str
    where: str = ""
    remedy: str = ""
    traceback: str = ""
    """Of an error that is our bug."""


class ChildTraceback(Exception):
    """Where in the child an InternalError comes from: its cause, for ``--debug``."""


def in_child(
    work: Work[Job, Result], job: Job, directory: Path, progress: Progress, *, what: str, silence: float = SILENCE
) -> Result:
    """Runs ``work(job, directory, progress)`` in a child process and returns its result.

    Parameters
    ----------
    directory : scratch folder of this job
    what : name of the work in messages, for example ``the import``
    silence : seconds that a single step may take

    Raises
    ------
    TvmflowError : what the child raised
    WorkerCrashed : it died or hung; ``where`` says at which step
    """
    (directory / "job").write_bytes(msgspec.msgpack.encode(job))
    log, status = directory / "log", directory / "status"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", __name__, str(directory), f"{work.__module__}:{work.__qualname__}"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": _search_path()},
        )
        code = wait(child, status, progress, silence)
    doing = read_step(status)[0]
    if code is None:
        raise WorkerCrashed(f"{what} was still running after {silence:g} s at one step", where=doing, remedy=REPORT)
    if (directory / "failure").exists():
        raise as_error(msgspec.msgpack.decode((directory / "failure").read_bytes(), type=Failure))
    found = directory / "result"
    if code != 0 or not found.exists():
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = last_line(log)
        remedy = f"the system ended it, as a rule for lack of memory: {NO_MEMORY}" if code == -signal.SIGKILL else REPORT
        raise WorkerCrashed(f"{what} died ({cause})" + (f": {said}" if said else ""), where=doing, remedy=remedy)
    return msgspec.msgpack.decode(found.read_bytes(), type=get_type_hints(work)["return"])


def _search_path() -> str:
    """The child finds what this process finds: tvmflow itself, and the user's modules."""
    root = str(Path(__file__).resolve().parents[1])
    return os.pathsep.join(dict.fromkeys([*filter(None, sys.path), root]))


def wait(child: subprocess.Popen[bytes], status: Path, progress: Progress, silence: float) -> int | None:
    """Exit code of the child, None when it had to be killed because no new step came for ``silence`` seconds."""
    size, since = 0, time.monotonic()
    try:
        while True:
            try:
                return child.wait(timeout=_POLL)
            except subprocess.TimeoutExpired:
                now = status.stat().st_size if status.exists() else 0
                if now != size:
                    size, since = now, time.monotonic()
                    if size:
                        progress(*read_step(status))
                elif time.monotonic() - since > silence:
                    return None
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def read_step(status: Path) -> tuple[str, int, int]:
    """What the child said last: the step, and how many of how many are done."""
    line = last_line(status)
    what, *counts = line.rsplit("\t", 2)
    return (what, int(counts[0]), int(counts[1])) if len(counts) == 2 else (line, 0, 0)


def last_line(path: Path) -> str:
    """Last line of a text file, "" when there is none."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def as_error(failure: Failure) -> TvmflowError:
    """The error that the child raised."""
    kind: type[TvmflowError] = getattr(errors, failure.error)
    error = kind(failure.what, where=failure.where, remedy=failure.remedy)
    if failure.traceback:
        error.__cause__ = ChildTraceback("\n" + failure.traceback)
    return error


def as_failure(error: Exception, doing: str) -> Failure:
    """What the parent is told of an exception in the child, which was at step ``doing``."""
    if isinstance(error, TvmflowError):
        return Failure(type(error).__name__, error.what, error.where, error.remedy)
    if isinstance(error, MemoryError):
        return Failure(EnvironmentProblem.__name__, "not enough memory", doing, NO_MEMORY)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
        return Failure(EnvironmentProblem.__name__, error.strerror or str(error), str(error.filename or doing))
    what = f"this is a bug in tvmflow: {type(error).__name__}: {error}"
    remedy = "run it again with --debug and report what it prints"
    return Failure(InternalError.__name__, what, doing, remedy, "".join(traceback.format_exception(error)))


def main(directory: Path, name: str) -> None:
    """The child's side."""
    if sys.platform == "linux":  # a killed parent leaves no child behind
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    module, _, function = name.partition(":")
    doing = ""
    with (directory / "status").open("a", buffering=1) as status:

        def say(what: str, done: int, total: int) -> None:
            nonlocal doing
            doing = what.replace("\n", " ")
            status.write(f"{doing}\t{done}\t{total}\n")

        try:
            work: Work[Any, Any] = getattr(importlib.import_module(module), function)
            job = msgspec.msgpack.decode((directory / "job").read_bytes(), type=get_type_hints(work)["job"])
            result = msgspec.msgpack.encode(work(job, directory, say))
        except Exception as error:  # the process boundary: what is not sent to the parent would be lost
            (directory / "failure").write_bytes(msgspec.msgpack.encode(as_failure(error, doing)))
            return
    (directory / "result").write_bytes(result)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
