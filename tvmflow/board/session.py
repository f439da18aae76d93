"""A compiled model on a board, with the same methods as a session here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tvmflow.build.manifest import Manifest
from tvmflow.errors import ArtifactError, DataError
from tvmflow.runtime import library
from tvmflow.runtime.inputs import as_input, ordered
from tvmflow.runtime.profile import RUNS, Profile

if TYPE_CHECKING:
    from tvmflow.board.rpc import RemoteBoard

RUN_SECONDS = 120.0
"""Longest silence of a board during one call of the model."""


class RemoteSession:
    """A compiled model on a board; the same methods as the local ``Session``."""

    def __init__(self, board: RemoteBoard, module: Any, path: Path, manifest: Manifest, threads: int) -> None:
        from tvm.runtime.vm import VirtualMachine

        self.path, self.manifest, self.threads = path, manifest, threads
        self._board = board
        board.use_threads(threads)
        self._device = board.device(manifest.device)
        with board.call("open the model", RUN_SECONDS):
            self._vm: Any = VirtualMachine(module, self._device)

    def __enter__(self) -> RemoteSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model on the board; the board stays connected."""
        self._vm = None

    def __call__(self, *arrays: Any) -> Any:
        """Runs on arrays in the order of the inputs; one numpy array, or a list when the model has several outputs."""
        names = [info.name for info in self.manifest.inputs]
        if len(arrays) != len(names):
            raise DataError(f"{len(arrays)} inputs given, the model takes {len(names)}: {', '.join(names)}", where=self.path.name)
        outputs = list(self.run(dict(zip(names, arrays, strict=True))).values())
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises DataError for wrong names, shapes or dtypes, BoardError when the board fails."""
        arrays = self._ordered(inputs)
        with self._board.call("run the model", RUN_SECONDS):
            self._vm.set_input("main", *[self._board.tensor(a, self._device) for a in arrays])
            self._vm.invoke_stateful("main")
            results = self._vm.get_outputs("main")
            tensors = list(results) if isinstance(results, list | tuple) else [results]
            return {info.name: tensor.numpy() for info, tensor in zip(self.manifest.outputs, tensors, strict=True)}

    def benchmark(self, inputs: Mapping[str, Any], repeat: int = 10, number: int = 1) -> list[float]:
        """Seconds per call, measured on the board: ``repeat`` times the mean of ``number`` calls. Some calls go ahead untimed."""
        (main,) = self._bind(inputs, "main")
        return timed(self._board, self._vm.module, main, self._device, [], repeat, number)

    def profile(self, inputs: Mapping[str, Any], runs: int = RUNS) -> Profile:
        """Time of each kernel and of whole runs on the board, in turns."""
        main, layers = self._bind(inputs, "main", self.manifest.layered)
        with self._board.call("profile the model", RUN_SECONDS):
            measure = self._board.rpc.get_function("tvmflow.board.profile")
            found = json.loads(str(measure(self._vm.module, main, layers, self.manifest.device, runs)))
        return Profile(tuple((name, ms) for name, ms in found["kernels"]), found["whole"])

    def _bind(self, inputs: Mapping[str, Any], *functions: str) -> list[str]:
        """Names of functions with the inputs bound that return nothing: outputs would cross the network in the measured time."""
        arrays = self._ordered(inputs)
        with self._board.call("take the inputs", RUN_SECONDS):
            tensors = [self._board.tensor(a, self._device) for a in arrays]
            return [library.bind(self._vm.module, function, tensors) for function in functions]

    def _ordered(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        if self._vm is None:
            raise DataError("the session is closed", where=self.path.name)
        infos = self.manifest.inputs
        values = ordered(inputs, [info.name for info in infos], self.path.name)
        return [as_input(value, info, self.path.name) for value, info in zip(values, infos, strict=True)]


def check_board(manifest: Manifest, facts: Mapping[str, Any], path: Path, name: str) -> None:
    """Raises ArtifactError in plain words when a board with these ``facts`` can't run an artifact."""
    remedy = "compile for that board's target; `tvmflow targets` lists them"
    if manifest.arch != facts["arch"]:
        raise ArtifactError(f"it was compiled for {manifest.arch}, {name} is {facts['arch']}", where=str(path), remedy=remedy)
    missing = sorted(set(manifest.isa_required) - set(facts["features"]))
    if missing:
        what = f"it needs CPU features that {name} ({facts['cpu']}) lacks: {', '.join(missing)}"
        raise ArtifactError(what, where=str(path), remedy=remedy)
    needed = [int(part) for part in manifest.glibc.split(".")] if manifest.glibc else []
    if facts["glibc"] and facts["glibc"] < needed:
        found = ".".join(map(str, facts["glibc"]))
        raise ArtifactError(
            f"it needs glibc {manifest.glibc}, {name} has {found}", where=str(path), remedy="upgrade the board's system"
        )


def timed(
    board: RemoteBoard, module: Any, function: str, device: Any, arguments: Sequence[Any], repeat: int, number: int
) -> list[float]:
    """Seconds per call by TVM's evaluator on the board; the allowed silence grows with what one call was seen to take."""

    def evaluate(number: int, repeat: int) -> list[float]:
        return list(module.time_evaluator(function, device, number=number, repeat=repeat)(*arguments).results)

    with board.call(f"time {function}", RUN_SECONDS):
        once = evaluate(1, 1)[0]
    with board.call(f"time {function}", RUN_SECONDS + 5 * once * repeat * number):
        return evaluate(number, repeat)
