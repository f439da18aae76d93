"""The demo: a real network quantized, compiled for this machine, shipped as one ``.so``, and compared with onnxruntime.

MobileNetV2 on MNIST digits, both in tests/data. Calibration uses 512 digits that the network was trained on; accuracy is over
2,000 that it has never seen. Everything is measured here and now; latencies of a run are interleaved with onnxruntime's.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import msgspec
import onnxruntime
from rich.console import Console

import tvmflow
from tvmflow.bench.evaluate import EvalResult
from tvmflow.bench.evaluate import evaluate as evaluate_session
from tvmflow.bench.measure import BenchmarkResult
from tvmflow.bench.peer_quantize import quantize_static
from tvmflow.bench.peers import OnnxRuntime
from tvmflow.cli.screen import Screen
from tvmflow.data import load_data
from tvmflow.errors import TvmflowError
from tvmflow.flow import CompileResult
from tvmflow.report.data import Entry, ReportData
from tvmflow.report.gather import add_benchmark, add_compile, add_evaluation, add_manifest
from tvmflow.report.html import write_report
from tvmflow.report.tables import rich_table
from tvmflow.trace import Progress

DATA = Path(__file__).resolve().parents[1] / "tests" / "data"
MODEL, CALIBRATION, HELD_OUT = DATA / "mobilenetv2_mnist32.onnx", DATA / "mnist_calibration.npz", DATA / "mnist_heldout.npz"
PRECISIONS = ("fp32", "int8")
THREADS = (1, 2)
PLACES = ((None, ""), ("local", " RPC"))
"""Boards to measure on: this process, and a server on this machine over loopback; with what their columns are called."""


def compile_both(out: Path, progress: Progress) -> dict[str, CompileResult]:
    """The model in float32 and in int8, as ``mnist-fp32.so`` and ``mnist-int8.so``."""
    results = {}
    for precision in PRECISIONS:
        recipe = {"quantize": "int8", "calibration": CALIBRATION} if precision == "int8" else {}
        result = tvmflow.compile(MODEL, "native", **recipe, work_dir=out / "work", progress=progress)
        results[precision] = replace(result, artifact=result.save(out / f"mnist-{precision}.so"))
    return results


def quantized_by_onnxruntime(out: Path, result: CompileResult) -> Path:
    """onnxruntime's own int8 (QDQ, u8s8, per channel), calibrated on the same digits."""
    samples = load_data(CALIBRATION, result.artifact.manifest.inputs)
    return quantize_static(MODEL, samples, out / "work", onnxruntime.__version__)


def evaluate_all(compiled: dict[str, CompileResult], quantized: Path, progress: Progress) -> dict[str, EvalResult]:
    """Accuracy of the four contenders on the held-out digits."""
    results = {
        name: tvmflow.evaluate(c.artifact.path, HELD_OUT, model=MODEL, threads=1, progress=progress)
        for name, c in compiled.items()
    }
    samples = load_data(HELD_OUT, compiled["fp32"].artifact.manifest.inputs)
    for name, model in (("onnxruntime fp32", MODEL), ("onnxruntime int8", quantized)):
        results[name] = evaluate_session(OnnxRuntime(model), samples, progress=progress)
    return results


def bench_all(compiled: dict[str, CompileResult], out: Path, progress: Progress) -> dict[tuple[str, int, str], BenchmarkResult]:
    """Each artifact by each number of threads, here and over RPC. Our int8 runs here are interleaved with onnxruntime's."""
    results = {}
    for precision, result in compiled.items():
        for threads in THREADS:
            for board, place in PLACES:
                peers = (
                    {"against": ("onnxruntime",), "model": MODEL, "calibration": CALIBRATION}
                    if precision == "int8" and not board
                    else {}
                )
                results[precision, threads, place] = tvmflow.bench(
                    result.artifact.path,
                    board=board,
                    threads=threads,
                    per_layer=bool(peers) and threads == 1,
                    work_dir=out / "work",
                    progress=progress,
                    **peers,
                )
    return results


def table(
    compiled: dict[str, CompileResult],
    quantized: Path,
    accuracy: dict[str, EvalResult],
    benchmarks: dict[tuple[str, int, str], BenchmarkResult],
) -> tuple[Entry, ...]:
    """One row a contender: accuracy, size, median latency."""
    latency: dict[str, dict[str, float | None]] = {}
    for (precision, threads, place), result in benchmarks.items():
        column = f"{threads} thr{place}"
        latency.setdefault(precision, {})[column] = 1e3 * result.latency.median
        for peer in result.against:
            latency.setdefault(f"{peer.name} {peer.precision}", {})[column] = 1e3 * peer.latency.median
    sizes = {name: result.artifact.bytes for name, result in compiled.items()}
    sizes |= {"onnxruntime fp32": MODEL.stat().st_size, "onnxruntime int8": quantized.stat().st_size}
    return tuple(
        Entry(
            f"tvmflow {name}" if name in PRECISIONS else name,
            found.top1,
            found.top5,
            sizes[name],
            latency[name],
            best=name == "int8",
        )
        for name, found in accuracy.items()
    )


def write(
    path: Path,
    compiled: dict[str, CompileResult],
    accuracy: dict[str, EvalResult],
    benchmarks: dict[tuple[str, int, str], BenchmarkResult],
    rows: tuple[Entry, ...],
) -> None:
    """The HTML report, about the int8 artifact."""
    result = compiled["int8"]
    report = ReportData("MobileNetV2 on MNIST digits", created=datetime.now().isoformat(" ", "minutes"), summary=rows)
    report = add_manifest(report, msgspec.to_builtins(result.artifact.manifest))
    report = add_compile(report, result.report.to_json())
    for precision in PRECISIONS:
        report = add_evaluation(report, {**accuracy[precision].to_json(), "reference": None}, f"tvmflow {precision}")
    write_report(path, add_benchmark(report, benchmarks["int8", 1, ""].to_json(), "tvmflow"))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="tools/demo", description="Quantize, compile, ship, measure and compare a real network."
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("demo-out"), help="folder for the artifacts and the report")
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    out: Path = asked.out
    out.mkdir(parents=True, exist_ok=True)
    with Screen() as screen:
        compiled = compile_both(out, screen.report)
        quantized = quantized_by_onnxruntime(out, compiled["fp32"])
        accuracy = evaluate_all(compiled, quantized, screen.report)
        benchmarks = bench_all(compiled, out, screen.report)
    rows = table(compiled, quantized, accuracy, benchmarks)
    write(out / "report.html", compiled, accuracy, benchmarks, rows)

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    ours, report = benchmarks["int8", 1, ""], compiled["int8"].report
    operators, kernels = report.operators, report.kernels
    console.print(f"{ours.device.cpu}, target {report.target}, load average {', '.join(map(str, ours.load_average))}")
    console.print(rich_table(rows, "2,000 held-out digits; median latency of one picture"))
    console.print(
        f"int8: {operators['integer']} integer operators, {operators['float']} float; weights {report.weight_bytes / 1e6:.2f} MB"
    )
    console.print(f"kernels: {kernels['total']}, {kernels['specialised']} with a specialised schedule, {kernels['tuned']} tuned")
    for peer in ours.against:
        name = f"{peer.name} {peer.version} {peer.precision}"
        console.print(f"int8 against {name}, 1 thread: {peer.ratio_median:.2f}x by median (above 1: ours is faster)")
    console.print(f"artifacts and report: {out}/mnist-int8.so, {out}/mnist-fp32.so, {out}/report.html")
    console.print(f"{time.time() - asked.started:.0f} s from the start")


if __name__ == "__main__":
    try:
        main()
    except TvmflowError as error:
        sys.exit(f"error: {error}")
