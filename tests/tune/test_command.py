"""``tvmflow tune`` at the command line: merging logs, and a dry run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule.template import template_for
from tvmflow.target import Target
from tvmflow.tune import log

REPOSITORY = Path(__file__).parents[2]


def tvmflow(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "tvmflow", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_merge(target: Target, tmp_path: Path) -> None:
    kernel = Conv2d(1, 4, 4, 16, 16)
    tiles = list(template_for(kernel, target).space(kernel, target))[:5]
    logs = [tmp_path / f"{n}.jsonl" for n in range(5)]
    for seconds, (path, tile) in enumerate(zip(logs, tiles, strict=True), 1):
        log.append(path, log.record(kernel, target, tile, [float(seconds)]))
    out = tmp_path / "all.jsonl"
    ran = tvmflow("tune", "--merge", out, *logs, "--json")
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {"log": str(out), "read": 5, "kept": 3, "kernels": 1, "targets": [target.name]}
    assert [e.best for e in log.read(out, strict=True)] == [1.0, 2.0, 3.0]

    logs[0].write_text("not a record\n")
    ran = tvmflow("tune", "--merge", out, *logs)
    assert ran.returncode == 1 and "0.jsonl:1" in ran.stderr and "Traceback" not in ran.stderr
    assert len(log.read(out, strict=True)) == 3
    assert tvmflow("tune", logs[0], logs[1]).returncode == 2


def test_dry_run_measures_nothing(tmp_path: Path) -> None:
    model, data = (
        REPOSITORY / "tests" / "data" / "mobilenetv2_mnist32.onnx",
        REPOSITORY / "tests" / "data" / "mnist_calibration.npz[0:4]",
    )
    ran = tvmflow(
        "tune", model, "-t", "x86-64-v3", "-q", "int8", "--calibrate", data, "--dry-run", "--work-dir", tmp_path, "--json"
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["kernels"] == len(found["tasks"]) > 20 and found["candidates"] > 100
    assert not any(task["measured"] for task in found["tasks"]) and not (tmp_path / "tuning").exists()
