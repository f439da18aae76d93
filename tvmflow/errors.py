"""Every error that tvmflow raises on purpose, as one tree.

::

    TvmflowError                 what went wrong, where, and what to do      exit code
    |- UserError                 the input is wrong                          1
    |  |- ModelError             the model can't be read, imported or lowered
    |  |  |- UnsupportedOperator an operator of the model has no correct lowering
    |  |  '- ImportMismatch      the imported model computes other numbers than the original
    |  |- DataError              calibration, evaluation or input data
    |  |- ConfigError            a recipe, target or preprocess file, or a name of one
    |  '- ArtifactError          a compiled file is damaged, too new, or for another machine
    |- UsageError                the command line or call is malformed       2
    |- EnvironmentProblem        this machine or a device                    3
    |  |- MissingTool            a linker, emulator or optional package is absent
    |  |- BoardError             a board can't be reached, or failed in mid-run
    |  '- WorkerCrashed          native code crashed or hung in a worker process
    '- InternalError             our bug                                     4
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TvmflowError(Exception):
    """Base of the tree.

    Parameters
    ----------
    what : one sentence that says what went wrong
    where : file, layer, key or device that it is about
    remedy : what the reader can do
    """

    exit_code = 4

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.remedy}" if self.remedy else text


class UserError(TvmflowError):
    exit_code = 1


class ModelError(UserError):
    pass


class UnsupportedOperator(ModelError):
    pass


class ImportMismatch(ModelError):
    pass


class DataError(UserError):
    pass


class ConfigError(UserError):
    pass


class ArtifactError(UserError):
    pass


class UsageError(TvmflowError):
    exit_code = 2


class EnvironmentProblem(TvmflowError):
    exit_code = 3


class MissingTool(EnvironmentProblem):
    pass


class BoardError(EnvironmentProblem):
    pass


class WorkerCrashed(EnvironmentProblem):
    pass


class InternalError(TvmflowError):
    pass


def nearest(name: str, valid: Iterable[str]) -> str:
    """Remedy text for a mistyped name: the nearest valid one first, then all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"
