"""The numeric check of an import: the module, compiled with TVM's default pipeline, against the model's own framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tvmflow.errors import ImportMismatch, ModelError
from tvmflow.importer.source import Feeds, Framework, Loaded, Tolerance
from tvmflow.model import TensorInfo

LIMITS = (100, 10, 2, 1)
"""Upper ends of random integers, tried in order: indices that are too large make the reference fail."""


def random_feeds(inputs: Sequence[TensorInfo], seed: int, limit: int) -> dict[str, np.ndarray]:
    """Seeded random inputs: floats are normal for even seeds and in [0, 1) for odd ones, integers in [0, limit)."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for info in inputs:
        if info.dtype == "bool":
            value = rng.integers(0, 2, info.shape).astype(bool)
        elif "int" in info.dtype:
            value = rng.integers(0, limit, info.shape)
        else:
            value = rng.standard_normal(info.shape) if seed % 2 == 0 else rng.random(info.shape)
        feeds[info.name] = np.asarray(value, info.dtype)
    return feeds


def onnx_references(model: onnx.ModelProto, path: Path | None) -> Iterator[Framework]:
    """onnxruntime, then ONNX's reference implementation for models that onnxruntime has no kernels for."""
    import onnxruntime as ort
    from onnx.reference import ReferenceEvaluator
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    outputs = [value.name for value in model.graph.output]
    refusals = (state.InvalidArgument, state.RuntimeException, state.Fail, state.EPFail, state.NotImplemented, ValueError)
    try:
        source: Any = str(path) if path else model.SerializeToString()
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except (*refusals, state.InvalidGraph, state.NoSuchFile, state.InvalidProtobuf):
        session = None  # the second one has its say, and verify reports when both refuse
    if session is not None:
        yield Framework(lambda feeds: session.run(outputs, dict(feeds)), f"onnxruntime {ort.__version__}", refusals)
    try:
        evaluator = ReferenceEvaluator(model)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return
    yield Framework(lambda feeds: list(evaluator.run(outputs, dict(feeds))), f"onnx.reference {onnx.__version__}", (Exception,))


def run_module(module: Any) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Compiles a Relax module for this machine with TVM's default pipeline and returns its ``main``."""
    import tvm
    from tvm import relax

    try:
        lowered = relax.transform.DecomposeOpsForInference()(module)
        machine = relax.VirtualMachine(tvm.compile(lowered, tvm.target.Target("llvm")), tvm.cpu())
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError, AssertionError) as e:
        raise ModelError(f"TVM can't compile the imported model: {last_line(e)}", remedy=NO_KERNEL) from e

    def run(values: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            out = machine["main"](*[tvm.runtime.tensor(np.array(v, order="C", copy=True)) for v in values])
        except (RuntimeError, ValueError, TypeError) as e:
            raise ModelError(f"TVM can't run the imported model: {last_line(e)}", remedy=NO_KERNEL) from e
        return [out.numpy()] if isinstance(out, tvm.runtime.Tensor) else [item.numpy() for item in out]

    return run


NO_KERNEL = "an operator of it has no kernel for its shapes and types: export the model with other operators"


def last_line(error: BaseException) -> str:
    """The last line of an exception's text, where TVM puts the message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def compare(
    got: Sequence[np.ndarray], want: Sequence[np.ndarray], outputs: Sequence[TensorInfo], tolerance: Tolerance, against: str
) -> float:
    """Largest absolute error over all outputs.

    Raises
    ------
    ImportMismatch : another shape or type, or an error above ``tolerance``
    """
    worst = 0.0
    for g, w, info in zip(got, want, outputs, strict=True):
        w = np.asarray(w)
        where = f"output {info.name!r}"
        if g.shape != w.shape or g.dtype != w.dtype:
            raise ImportMismatch(
                f"is {g.dtype} {list(g.shape)}, but {w.dtype} {list(w.shape)} with {against}", where=where, remedy=REMEDY
            )
        if not g.size:
            continue
        error, allowed = deviation(g, w, tolerance)
        worst = max(worst, float(error.max()))
        if not (error <= allowed).all():
            index = int(np.argmax(error - allowed))
            raise ImportMismatch(
                f"differs from {against} by {error.flat[index]:.4g} where {allowed.flat[index]:.4g} is allowed"
                f" (got {g.flat[index]}, expected {w.flat[index]}; {np.mean(error > allowed):.1%} of {g.size} elements)",
                where=where,
                remedy=REMEDY,
            )
    return worst


REMEDY = "TVM imports an operator of this model wrongly: please report it; --no-import-check goes on at your own risk"


def deviation(got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> tuple[np.ndarray, np.ndarray]:
    """Absolute error and allowed error per element; NaN and infinity must be where they are in ``want``."""
    g, w = unbounded(got), unbounded(want)
    with np.errstate(invalid="ignore"):
        error = np.where((g == w) | (np.isnan(g) & np.isnan(w)), 0.0, np.abs(g - w))
    error = np.where(np.isnan(error), np.inf, error)
    finite = np.abs(w[np.isfinite(w)])
    peak = float(finite.max()) if finite.size else 0.0
    if got.dtype.kind in "iub":
        allowed = np.full(w.shape, float(tolerance.steps))
    elif tolerance.noise:
        power = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
        rms = float(np.sqrt(np.mean(error**2)))
        allowed = np.full(w.shape, np.inf if rms <= tolerance.noise * power else 0.0)
    else:
        magnitude = np.where(np.isfinite(w), np.abs(w), 0.0)
        allowed = tolerance.relative * magnitude + tolerance.scaled * max(peak, 1e-30)
    return error, allowed


def unbounded(values: np.ndarray) -> np.ndarray:
    """float64, with the largest finite number as infinity: onnxruntime masks attention with it where ONNX has infinity."""
    wide = np.asarray(values, np.float64)
    if values.dtype.kind != "f":
        return wide
    return np.where(np.abs(wide) >= np.finfo(values.dtype).max, np.copysign(np.inf, wide), wide)


def verify(loaded: Loaded, samples: Sequence[Feeds]) -> tuple[float, str]:
    """Largest error over two seeded random inputs and the given samples, and what it was compared with.

    Raises
    ------
    ImportMismatch : an output is off
    ModelError : no framework runs the model on random inputs
    """
    reason = "no framework can run the model"
    for framework in loaded.references():
        try:
            trials = [(feeds, framework.run(feeds)) for feeds in samples]
            trials += [random_trial(loaded.inputs, framework, seed) for seed in (0, 1)]
        except framework.refusals as e:
            reason = f"{framework.name} says: {next(iter(str(e).splitlines()), type(e).__name__)}"
            continue
        run = run_module(loaded.module)
        return max(
            compare(run([feeds[i.name] for i in loaded.inputs]), want, loaded.outputs, loaded.tolerance, framework.name)
            for feeds, want in trials
        ), framework.name
    raise ModelError(
        f"the import can't be checked: {reason}",
        remedy="give real inputs with --calibrate, or import it unchecked with --no-import-check",
    )


def random_trial(inputs: Sequence[TensorInfo], framework: Framework, seed: int) -> tuple[Feeds, Sequence[np.ndarray]]:
    """Random inputs that the framework takes, with its outputs."""
    *first, last = LIMITS
    for limit in first:
        feeds = random_feeds(inputs, seed, limit)
        try:
            return feeds, framework.run(feeds)
        except framework.refusals:
            continue  # most often an index out of range: smaller integers
    feeds = random_feeds(inputs, seed, last)
    return feeds, framework.run(feeds)
