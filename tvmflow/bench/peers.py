"""Other runtimes to measure against, each with the best settings that its own documentation names.

A peer takes the user's float inputs and gives float outputs, quantizing and dequantizing included, like ours.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tvmflow.bench.peer_quantize import Samples, quantize_dynamic, quantize_static
from tvmflow.bench.peer_torch import SUFFIX, TorchProgram
from tvmflow.errors import ConfigError, DataError, MissingTool, ModelError, UsageError, nearest

NAMES: dict[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime-fp32", "onnxruntime-int8"),
    "onnxruntime-fp32": ("onnxruntime-fp32",),
    "onnxruntime-int8": ("onnxruntime-int8",),
    "onnxruntime-dynamic": ("onnxruntime-dynamic",),
    "torch": ("torch",),
}
"""What ``--against`` takes, and the peers that it means."""
RANDOM_SAMPLES = 8

_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


def import_onnxruntime() -> ModuleType:
    """The package. Raises MissingTool."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingTool("onnxruntime is not installed", where="bench", remedy="pip install onnxruntime") from error
    return onnxruntime


def runtime_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises; its exceptions have no base class of their own."""
    state = import_onnxruntime().capi.onnxruntime_pybind11_state
    kinds = [item for item in vars(state).values() if isinstance(item, type) and issubclass(item, Exception)]
    return (ValueError, *kinds)


class OnnxRuntime:
    """A model in onnxruntime's CPU provider: all graph optimizations, ``threads`` threads inside an operator, one between.

    Raises MissingTool without onnxruntime, ModelError when it can't load the model.
    """

    name = "onnxruntime"

    def __init__(self, model: Path, threads: int = 1, precision: str = "fp32") -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except runtime_errors() as error:
            raise ModelError(f"onnxruntime can't load it: {first_line(error)}", where=str(model)) from error
        self.version: str = ort.__version__
        self.precision = precision
        self.threads = threads

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name. Raises DataError when the model can't take ``inputs``."""
        try:
            values = self._session.run(None, dict(inputs))
        except runtime_errors() as error:
            raise DataError(f"onnxruntime refuses the inputs: {first_line(error)}", where="onnxruntime") from error
        return {item.name: value for item, value in zip(self._session.get_outputs(), values, strict=True)}

    def benchmark(self, inputs: Mapping[str, np.ndarray], repeat: int, number: int) -> list[float]:
        """``repeat`` times in seconds, each the mean of ``number`` runs; inputs are bound beforehand, as ours are."""
        self.run(inputs)
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for item in self._session.get_outputs():
            binding.bind_output(item.name, "cpu")
        times = []
        for _ in range(repeat):
            start = time.perf_counter()
            for _ in range(number):
                self._session.run_with_iobinding(binding)
            times.append((time.perf_counter() - start) / number)
        return times

    def random_inputs(self, generator: np.random.Generator) -> dict[str, np.ndarray]:
        """Normal floats, and integers that are 0 or 1, valid as indices and as masks; dynamic dimensions are 1."""
        inputs = {}
        for item in self._session.get_inputs():
            shape = [size if isinstance(size, int) else 1 for size in item.shape]
            if item.type not in _DTYPES:
                raise DataError(f"no random data of type {item.type}", where=item.name, remedy="give calibration data")
            dtype = np.dtype(_DTYPES[item.type])
            value = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
            inputs[item.name] = value.astype(dtype)
        return inputs


def first_line(error: Exception) -> str:
    """An error's first line: onnxruntime appends the whole operator to some."""
    return (str(error) or type(error).__name__).splitlines()[0]


def peers(
    names: Iterable[str],
    model: Path,
    *,
    threads: int = 1,
    calibration: Samples | None = None,
    work_dir: Path = Path(".tvmflow"),
) -> tuple[OnnxRuntime | TorchProgram, ...]:
    """The peers that ``names`` mean, loaded, in order, each once.

    Parameters
    ----------
    model : the float ``.onnx`` file; a ``.pt2`` file for torch
    calibration : samples for a peer's static quantization; seeded random data when None, which changes nothing about latency
    work_dir : quantized peer models are kept there, by content

    Raises ConfigError for an unknown name, UsageError for a model of another kind than the peer's, MissingTool when the peer is
    not installed, ModelError when it can't load the model, DataError when it can't take the calibration data.
    """
    wanted: list[str] = []
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"unknown peer {name!r}", where="--against", remedy=nearest(name, NAMES))
        wanted += [item for item in NAMES[name] if item not in wanted]
    return tuple(_peer(name, model, threads, calibration, work_dir) for name in wanted)


def _peer(name: str, model: Path, threads: int, calibration: Samples | None, work_dir: Path) -> OnnxRuntime | TorchProgram:
    if (name == "torch") != (model.suffix == SUFFIX):
        takes = f"{SUFFIX} programs" if name == "torch" else "ONNX files"
        raise UsageError(f"the peer {name} runs {takes}", where=str(model), remedy="choose another peer, or give that model")
    if name == "torch":
        return TorchProgram(model, threads)
    reference = OnnxRuntime(model, threads, "fp32")
    if name == "onnxruntime-fp32":
        return reference
    if name == "onnxruntime-dynamic":
        return OnnxRuntime(quantize_dynamic(model, work_dir, reference.version), threads, "int8-dynamic")
    if calibration is None:
        generator = np.random.default_rng(0)
        calibration = [reference.random_inputs(generator) for _ in range(RANDOM_SAMPLES)]
    try:
        quantized = quantize_static(model, calibration, work_dir, reference.version)
    except runtime_errors() as error:
        raise DataError(f"onnxruntime's quantizer can't use the data: {first_line(error)}", where=str(model)) from error
    return OnnxRuntime(quantized, threads, "int8")
