"""Makes ``tuning_logs/<target>/<model>.jsonl``: models of the zoo times targets that this machine can run.

What is measured is appended to ``<folder>/<target>/<model>.jsonl``, so that a killed run goes on where it stopped. A kernel that
has settled in a shipped log is not tuned again, be it another model's. Calibration data are noise: a kernel's signature does not
depend on scales.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx

from tvmflow.kernels import spec as ks
from tvmflow.target import Target, detect, get_target
from tvmflow.tune import log

ROOT = Path(__file__).resolve().parents[1]
TARGETS = "zen5,x86-avx512-vnni,x86-64-v4,avx-vnni,x86-64-v3,x86-64"
SAMPLES = 4
SEQUENCE = 128
"""Length where a model leaves it open."""


def noise(model: Path, to: Path) -> Path:
    """Calibration data for every input of a model."""
    rng = np.random.default_rng(0)
    arrays = {}
    for value in onnx.load(model, load_external_data=False).graph.input:
        tensor = value.type.tensor_type
        shape = [SAMPLES, *(d.dim_value or SEQUENCE for d in list(tensor.shape.dim)[1:])]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        arrays[value.name] = rng.normal(size=shape).astype(dtype) if dtype.kind == "f" else np.ones(shape, dtype)
    np.savez(to, allow_pickle=False, **arrays)
    return to


def tune(model: Path, data: Path, target: Target, precision: str, budget: str, path: Path) -> None:
    options = ["-q", "int8", "--calibrate", data] if precision == "int8" else []
    command = [sys.executable, "-m", "tvmflow", "tune", model, "-t", target.name, *options]
    command += ["--budget", budget, "--tuning-log", path]
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True)


def ship(measured: Path, shipped: Path, target: Target) -> str:
    """Merges what was measured into a shipped log, less the records of kernels measured anew or that no longer fit."""
    new = log.read(measured) if measured.exists() else []
    again = {ks.encode(e.kernel) for e in new}
    old = log.read(shipped, strict=True) if shipped.exists() else []
    kept = [e for e in old if ks.encode(e.kernel) not in again]
    merged = [e for e in log.merge([*new, *kept]) if e.accepted and log.fitting(e.kernel, e.tile, target)]
    if merged:
        log.write(shipped, merged)
    return f"{shipped.relative_to(ROOT)}: {len(merged)} records of {len({ks.encode(e.kernel) for e in merged})} kernels"


def main() -> int:
    parser = argparse.ArgumentParser(prog="tools/tune_shipped", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="names of tools/zoo, or .onnx files")
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--precisions", default="int8,fp32")
    parser.add_argument("--budget", default="20m", help="of one model on one target in one precision")
    parser.add_argument("-o", "--out", type=Path, default=ROOT / ".tvmflow" / "shipping")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    here = set(detect().features)
    for name in asked.models:
        model = Path(name)
        if model.suffix != ".onnx":
            found = subprocess.run([ROOT / "tools" / "zoo", "get", name], check=True, capture_output=True, text=True)
            model = Path(found.stdout.split()[-1])
        data = noise(model, asked.out / f"{model.stem}.npz")
        for target in map(get_target, asked.targets.split(",")):
            if missing := set(target.features) - here:
                print(f"{target.name}: left out, this machine lacks {', '.join(sorted(missing))}")
                continue
            measured = asked.out / target.name / f"{model.stem}.jsonl"
            for precision in asked.precisions.split(","):
                tune(model.resolve(), data.resolve(), target, precision, asked.budget, measured.resolve())
                print(ship(measured, ROOT / "tuning_logs" / target.name / f"{model.stem}.jsonl", target), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
