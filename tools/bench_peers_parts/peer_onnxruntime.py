"""ONNX Runtime: all graph optimizations; int8 as QDQ with u8 activations and s8 weights per channel, or dynamic."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime
from bench_peers_parts.worker import Run, samples


def version() -> str:
    return onnxruntime.__version__


def prepare(model: Path, precision: str, calibration: Path, folder: Path) -> None:
    from tvmflow.bench.peer_quantize import quantize_dynamic, quantize_static

    if precision == "fp32":
        shutil.copyfile(model, folder / "model.onnx")
        return
    if precision == "int8":
        made = quantize_static(model, samples(calibration), folder, version())
    else:
        made = quantize_dynamic(model, folder, version())
    made.replace(folder / "model.onnx")


def serve(folder: Path, precision: str, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]
