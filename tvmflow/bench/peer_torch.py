"""PyTorch as a peer: an exported program, run eagerly, as most of its users run it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tvmflow.errors import DataError, MissingTool, ModelError

SUFFIX = ".pt2"


class TorchProgram:
    """A ``.pt2`` file with ``threads`` threads. Raises MissingTool without torch, ModelError when it can't load the file."""

    name = "torch"
    precision = "fp32"

    def __init__(self, model: Path, threads: int = 1) -> None:
        self._torch = _import_torch()
        try:
            program = self._torch.export.load(model)
        except Exception as error:  # torch.export.load lets through whatever unpacking and unpickling raise
            raise ModelError(f"torch can't load it: {str(error).splitlines()[0]}", where=str(model)) from error
        self.version: str = self._torch.__version__
        self.threads = threads
        self._module = program.module()
        self._inputs = tuple(program.graph_signature.user_inputs)
        self._outputs = tuple(str(name) for name in program.graph_signature.user_outputs)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises DataError when an input is missing or does not fit."""
        arguments = self._arguments(inputs)
        try:
            with self._torch.inference_mode():
                result = self._module(*arguments)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise DataError(f"torch refuses the inputs: {str(error).splitlines()[0]}", where="torch") from error
        values = result if isinstance(result, (tuple, list)) else (result,)
        return {name: value.numpy() for name, value in zip(self._outputs, values, strict=True)}

    def benchmark(self, inputs: Mapping[str, np.ndarray], repeat: int, number: int) -> list[float]:
        """``repeat`` times in seconds, each the mean of ``number`` runs; inputs are tensors beforehand, as ours are."""
        self.run(inputs)
        arguments = self._arguments(inputs)
        times = []
        with self._torch.inference_mode():
            for _ in range(repeat):
                start = time.perf_counter()
                for _ in range(number):
                    self._module(*arguments)
                times.append((time.perf_counter() - start) / number)
        return times

    def _arguments(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        absent = [name for name in self._inputs if name not in inputs]
        if absent:
            raise DataError(f"missing inputs: {', '.join(absent)}", where="torch")
        # The number of threads belongs to the process: whoever measured before may have set another one.
        self._torch.set_num_threads(self.threads)
        return [self._torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._inputs]


def _import_torch() -> ModuleType:
    try:
        import torch
    except ImportError as error:
        raise MissingTool("torch is not installed", where="bench", remedy="pip install 'tvmflow[torch]'") from error
    return torch
