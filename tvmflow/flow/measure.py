"""What is done with an artifact: bench, evaluate, verify, inspect. Each works here or on a board."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tvmflow.errors import UsageError
from tvmflow.target import get_target
from tvmflow.trace import Progress, silent

if TYPE_CHECKING:
    from tvmflow.bench.evaluate import EvalResult
    from tvmflow.bench.measure import BenchmarkResult, Device, Work
    from tvmflow.bench.peak import PeakMeter
    from tvmflow.board.rpc import RemoteBoard, RemoteSession
    from tvmflow.build.manifest import Manifest
    from tvmflow.runtime.session import Session
    from tvmflow.runtime.verify import VerifyResult

ROUNDS = 20
WORK_DIR = Path(".tvmflow")


@contextmanager
def open_session(
    artifact: str | Path, board: str | None, threads: int | None
) -> Iterator[tuple[Session | RemoteSession, RemoteBoard | None]]:
    """The artifact loaded here, or on a board (registered name, ``host:port``, or ``local``). ``threads`` None: all cores."""
    if board is None:
        from tvmflow.runtime.session import load

        with load(artifact, threads=threads) as session:
            yield session, None
        return
    from tvmflow.board.rpc import connect

    with connect(board) as remote, remote.session(artifact, threads or 0) as session:
        yield session, remote


def bench(
    artifact: str | Path,
    *,
    board: str | None = None,
    threads: int = 1,
    per_layer: bool = False,
    against: tuple[str, ...] | list[str] = (),
    model: str | Path | None = None,
    calibration: str | Path | None = None,
    runs: int | None = None,
    report: str | Path | None = None,
    work_dir: str | Path = WORK_DIR,
    progress: Progress = silent,
) -> BenchmarkResult:
    """Latency of an artifact, with the machine's peak and, in turns, other runtimes.

    Parameters
    ----------
    against : peers by name, see ``tvmflow.bench.peers``; they need ``model`` and run on this machine only
    calibration : data for a peer's static quantization; seeded random data without it
    runs : timed runs of each contender
    report : HTML file to write

    Raises TvmflowError, see :mod:`tvmflow.errors`.
    """
    from tvmflow.bench.compare import Ours, Rounds, compare
    from tvmflow.bench.layers import layer_times
    from tvmflow.bench.peers import peers
    from tvmflow.build.artifact import Artifact
    from tvmflow.data import load_data

    if against and model is None:
        raise UsageError("a comparison needs the model that the peers run", where="--against", remedy="add --model MODEL.onnx")
    if against and board is not None and board != "local":
        raise UsageError("peers run on this machine only", where="--against", remedy="leave out --board, or --against")
    opened = Artifact.open(artifact)
    manifest = opened.manifest
    inputs = sample_inputs(artifact, manifest)
    data = load_data(calibration, manifest.inputs) if calibration else None
    contenders = peers(against, Path(model), threads=threads, calibration=data, work_dir=Path(work_dir)) if model else ()
    each = max(1, (runs or 200) // ROUNDS)
    with open_session(artifact, board, threads) as (session, remote):
        peak = _peak_meter(manifest, threads, remote)
        ours = Ours(session, threads, _work(manifest), local=remote is None)
        result = compare(ours, contenders, inputs, Rounds(ROUNDS, each), peak=peak, progress=progress)
        layers = layer_times(session.profile(inputs), manifest.layers, result.machine_peak) if per_layer else ()
        result = replace(result, artifact=str(artifact), device=_device(remote), layers=layers)
    if report is not None:
        _write_bench_report(Path(report), result, manifest, opened.bytes)
    return result


def evaluate(
    artifact: str | Path,
    data: str | Path,
    *,
    model: str | Path | None = None,
    board: str | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> EvalResult:
    """Accuracy over data, and closeness to the original model in float32 when it is given."""
    from tvmflow.bench.evaluate import evaluate as run_evaluation
    from tvmflow.bench.peers import OnnxRuntime
    from tvmflow.build.artifact import Artifact
    from tvmflow.data import Preprocess, load_data

    manifest = Artifact.open(artifact).manifest
    steps = msgspec.convert(manifest.preprocess, Preprocess) if manifest.preprocess else None
    samples = load_data(data, manifest.inputs, steps)
    reference = OnnxRuntime(Path(model), threads or 1, "fp32") if model is not None else None
    name = f"{reference.name} {reference.version} fp32" if reference else "reference"
    with open_session(artifact, board, threads) as (session, _):
        return run_evaluation(session, samples, reference, progress, reference_name=name)


def verify(artifact: str | Path, *, board: str | None = None, threads: int | None = None) -> VerifyResult:
    """Replays the self-test inside the artifact, here or on a board."""
    from tvmflow.runtime.verify import verify as replay

    with open_session(artifact, board, threads) as (session, _):
        return replay(session)


def inspect(artifact: str | Path) -> Manifest:
    """What a compiled file says about itself. The file is compared with its digest, and not executed. Raises ArtifactError."""
    from tvmflow.build.manifest import read_manifest, verify_digest

    manifest = read_manifest(artifact)
    verify_digest(artifact)
    return manifest


def sample_inputs(artifact: str | Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Inputs to measure with: those of the first self-test vector, a calibration sample where there was one."""
    from tvmflow.build.manifest import read_self_test

    first, _ = read_self_test(artifact)[0]
    return {info.name: array for info, array in zip(manifest.inputs, first, strict=True)}


def _work(manifest: Manifest) -> Work:
    from tvmflow.bench.measure import Work

    integer = sum(layer.gop for layer in manifest.layers if layer.integer)
    return Work(integer, sum(layer.gop for layer in manifest.layers) - integer)


def _device(remote: RemoteBoard | None) -> Device:
    from tvmflow.bench.measure import Device
    from tvmflow.runtime import cpu

    if remote is None:
        return Device("local", cpu.model_name(), tuple(sorted(cpu.features())))
    return Device(remote.name, str(remote.facts["cpu"]), tuple(remote.facts["features"]))


def _peak_meter(manifest: Manifest, threads: int, remote: RemoteBoard | None) -> PeakMeter | None:
    """Kernels that measure the peak of the machine that runs the artifact; None where there are no such kernels (GPUs)."""
    from tvmflow.bench.peak import on_board, peak_meter
    from tvmflow.runtime import cpu

    target = get_target(manifest.target) if remote else get_target("native")
    if manifest.device != "cpu":
        return None
    features = remote.facts["features"] if remote else cpu.features()
    if remote is None:
        return peak_meter(target, threads, features=features)
    return peak_meter(target, threads, features=features, load=on_board(remote, target, threads))


def _write_bench_report(path: Path, result: BenchmarkResult, manifest: Manifest, size: int) -> None:
    from tvmflow.report.data import ReportData, Size
    from tvmflow.report.gather import add_benchmark, add_manifest
    from tvmflow.report.html import write_report

    report = ReportData(manifest.name, created=datetime.datetime.now().isoformat(" ", "minutes"))
    report = add_manifest(report, msgspec.to_builtins(manifest))
    report = replace(report, sizes=(Size("artifact", size), Size("of which weights", manifest.weight_bytes)))
    write_report(path, add_benchmark(report, result.to_json()))
