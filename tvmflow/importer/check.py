"""The numeric check of an import: the module, compiled with TVM's default pipeline, against the model's own framework."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tvmflow.errors import ImportMismatch, ModelError
from tvmflow.importer.source import Feeds, Loaded, Reference, Tolerance
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


def onnx_reference(model: onnx.ModelProto, path: Path | None) -> tuple[Reference, str, type[Exception] | tuple[type[Exception], ...]]:
    """Runs an ONNX model with onnxruntime, or with ONNX's reference implementation where onnxruntime lacks a kernel.

    Returns the runner, its name and version, and the exceptions by which it refuses inputs.
    """
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    outputs = [value.name for value in model.graph.output]
    refusals = (state.InvalidArgument, state.RuntimeException, state.Fail, state.EPFail, state.NotImplemented)
    try:
        source: Any = str(path) if path else model.SerializeToString()
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return (lambda feeds: session.run(outputs, dict(feeds))), f"onnxruntime {ort.__version__}", refusals
    except (*refusals, state.InvalidGraph, state.NoSuchFile, state.InvalidProtobuf) as e:
        reason = str(e).splitlines()[0]
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(model)
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as e:
        raise ModelError(f"onnxruntime can't run the model: {reason}", remedy="--no-import-check imports it unchecked") from e
    return (lambda feeds: evaluator.run(outputs, dict(feeds))), f"onnx.reference {onnx.__version__}", (Exception,)


def run_module(module: Any) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Compiles a Relax module for this machine with TVM's default pipeline and returns its ``main``."""
    import tvm
    from tvm import relax

    lowered = relax.transform.DecomposeOpsForInference()(module)
    machine = relax.VirtualMachine(tvm.compile(lowered, tvm.target.Target("llvm")), tvm.cpu())

    def run(values: Sequence[np.ndarray]) -> list[np.ndarray]:
        out = machine["main"](*[tvm.runtime.tensor(np.array(v, order="C", copy=True)) for v in values])
        return [out.numpy()] if isinstance(out, tvm.runtime.Tensor) else [item.numpy() for item in out]

    return run


def compare(got: Sequence[np.ndarray], want: Sequence[np.ndarray], outputs: Sequence[TensorInfo], tolerance: Tolerance, against: str) -> float:
    """Largest absolute error over all outputs.

    Raises
    ------
    ImportMismatch : another shape or type, or an error above ``tolerance``
    """
    worst = 0.0
    for g, w, info in zip(got, want, outputs):
        w = np.asarray(w)
        where = f"output {info.name!r}"
        if g.shape != w.shape or g.dtype != w.dtype:
            raise ImportMismatch(f"is {g.dtype} {list(g.shape)}, but {w.dtype} {list(w.shape)} with {against}", where=where, remedy=REMEDY)
        if not g.size:
            continue
        error, allowed = deviation(g, w, tolerance)
        worst = max(worst, float(error.max()))
        if not (error <= allowed).all():
            index = int(np.argmax(error - allowed))
            raise ImportMismatch(
                f"differs from {against} by {error.flat[index]:.4g} where {np.broadcast_to(allowed, error.shape).flat[index]:.4g} is allowed"
                f" (got {g.flat[index]}, expected {w.flat[index]}; {np.mean(error > allowed):.1%} of {g.size} elements)",
                where=where,
                remedy=REMEDY,
            )
    return worst


REMEDY = "TVM imports an operator of this model wrongly: please report it; --no-import-check goes on at your own risk"


def deviation(got: np.ndarray, want: np.ndarray, tolerance: Tolerance) -> tuple[np.ndarray, np.ndarray]:
    """Absolute error and allowed error per element; NaN and infinity must be where they are in ``want``."""
    g, w = np.asarray(got, np.float64), np.asarray(want, np.float64)
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


def verify(loaded: Loaded, samples: Sequence[Feeds]) -> tuple[float, str]:
    """Largest error over two seeded random inputs and the given samples, and what it was compared with.

    Raises
    ------
    ImportMismatch : an output is off
    ModelError : neither framework runs the model, or no random input suits it
    """
    reference, against, refusals = loaded.reference()
    trials = [(feeds, reference(feeds)) for feeds in samples]
    trials += [random_trial(loaded.inputs, reference, refusals, seed) for seed in (0, 1)]
    run = run_module(loaded.module)
    worst = [
        compare(run([feeds[i.name] for i in loaded.inputs]), want, loaded.outputs, loaded.tolerance, against) for feeds, want in trials
    ]
    return max(worst), against


def random_trial(inputs: Sequence[TensorInfo], reference: Reference, refusals: Any, seed: int) -> tuple[Feeds, Sequence[np.ndarray]]:
    """Random inputs that the reference takes, with its outputs."""
    for limit in LIMITS:
        feeds = random_feeds(inputs, seed, limit)
        try:
            return feeds, reference(feeds)
        except refusals as e:
            reason = e
    raise ModelError(
        f"the import can't be checked on random inputs: {str(reason).splitlines()[0]}",
        remedy="give real inputs with --calibrate, or --no-import-check",
    )
