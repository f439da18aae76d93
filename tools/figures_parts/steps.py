"""The measurements: ``python steps.py JOB.json OUT.json`` does one of them in a process of its own.

That gives each compile its own peak of memory, each benchmark a clean thread pool, and each crash a place.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import judge
import onnxruntime
from missing import Missing
from models import ENTRIES, ROOT, SHIPPED

import tvmflow
from tvmflow.bench import peer_quantize
from tvmflow.bench.evaluate import evaluate as evaluate_session
from tvmflow.bench.peers import OnnxRuntime
from tvmflow.build.artifact import Artifact
from tvmflow.data import load_data
from tvmflow.errors import TvmflowError
from tvmflow.flow.measure import open_session
from tvmflow.runtime import cpu

Job = dict[str, Any]
"""``step``, ``model``, ``folder``, and what the step takes."""


def prepare(job: Job) -> Job:
    """The model's file and its data."""
    entry = next(e for e in ENTRIES if e.name == job["model"])
    folder = Path(job["folder"])
    # The data first: without it there is no need for the model.
    data = entry.make(folder / "data", Path(job["pictures"]) if job["pictures"] else None)
    model = folder / f"{entry.name}.onnx"
    if entry.zoo:
        command = [sys.executable, ROOT / "tools" / "model_zoo", "get", entry.zoo, "-o", folder]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Missing(f"no model: {done.stderr.strip().splitlines()[-1]}")
        Path(done.stdout.strip()).replace(model)
    else:
        shutil.copy2(SHIPPED / "mobilenetv2_mnist32.onnx", model)
    digest = hashlib.sha256()
    for path in [model, *sorted((folder / "data").rglob("*"))]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return {"path": str(model), "model_bytes": model.stat().st_size, "data": asdict(data), "sha256": digest.hexdigest()}


def compile(job: Job) -> Job:
    """One artifact."""
    recipe = {"quantize": "int8", "calibration": job["data"]["calibration"]} if job["precision"] == "int8" else {}
    result = tvmflow.compile(job["path"], job["target"], **recipe, work_dir=Path(job["folder"]) / job["precision"])
    return result.report.to_json()


def peer(job: Job) -> Job:
    """onnxruntime's own quantization, static with the same calibration data, or dynamic."""
    model, folder, version = Path(job["path"]), Path(job["folder"]), onnxruntime.__version__
    if job["how"] == "dynamic":
        path = peer_quantize.quantize_dynamic(model, folder, version)
        return {"path": str(path), "bytes": path.stat().st_size, "calibration_samples": 0}
    samples = load_data(job["data"]["calibration"], Artifact.open(job["artifact"]).manifest.inputs)
    path = peer_quantize.quantize_static(model, samples, folder, version)
    used = min(len(samples), peer_quantize.SAMPLES)
    return {"path": str(path), "bytes": path.stat().st_size, "calibration_samples": used, "of_samples": len(samples)}


def evaluate(job: Job) -> Job:
    """Accuracy, and closeness to onnxruntime in float32, of an artifact or of a model in onnxruntime, on held-out data."""
    model, threads = Path(job["path"]), cpu.physical_cores()
    samples = load_data(job["data"]["heldout"], Artifact.open(job["artifact"]).manifest.inputs)
    reference = judge.Recorder(OnnxRuntime(model, threads), job["judged"])
    name = f"onnxruntime {onnxruntime.__version__} fp32"
    if job["contender"].startswith("tvmflow"):
        with open_session(job["artifact"], None, threads) as (session, _):
            ours = judge.Recorder(session, job["judged"])
            result = evaluate_session(ours, samples, reference, reference_name=name)
    else:
        ours = judge.Recorder(OnnxRuntime(Path(job["other"]), threads), job["judged"])
        result = evaluate_session(ours, samples, reference, reference_name=name)
    more = judge.verdict(job["judged"], ours.kept, reference.kept, judge.symbols_of(model), job["data"]["texts"])
    return {"samples": len(samples), **result.to_json(), **more}


def bench(job: Job) -> Job:
    """Latency of an artifact in turns with onnxruntime."""
    result = tvmflow.bench(
        job["artifact"],
        threads=job["threads"],
        against=job["against"],
        model=job["path"],
        calibration=job["data"]["calibration"],
        runs=job["runs"],
        work_dir=job["folder"],
    )
    return result.to_json()


STEPS: dict[str, Callable[[Job], Job]] = {f.__name__: f for f in (prepare, compile, peer, evaluate, bench)}


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        found = STEPS[job["step"]](job)
    except Missing as missing:
        found = {"skipped": str(missing)}
    except TvmflowError as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
