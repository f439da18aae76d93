"""Real builds and runs through MetaSchedule's builder and runners, a candidate that ends its process among them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tvmflow.kernels.spec import Binary, Conv2d
from tvmflow.schedule.template import template_for
from tvmflow.target import get_target
from tvmflow.tune import log
from tvmflow.tune.measure import Candidate, MetaScheduleMeasurer

REPOSITORY = Path(__file__).parents[2]
POINTWISE = Conv2d(1, 4, 4, 16, 16)


def default(kernel) -> Candidate:
    native = get_target("native")
    return Candidate(kernel, template_for(kernel, native).default(kernel, native))


def crashing() -> Candidate:
    """A tile whose code uses an instruction of another architecture: LLVM ends the builder's process."""
    return Candidate(POINTWISE, msgspec.structs.replace(default(POINTWISE).tile, dot="sdot"))


@pytest.mark.skipif(get_target("native").arch != "x86_64", reason="sdot exists on this machine")
def test_good_candidates_are_timed_and_one_that_ends_its_process_is_reported() -> None:
    native, bad, good = get_target("native"), crashing(), default(POINTWISE)
    second = default(Binary("add", (1, 4, 4, 16), (1, 4, 4, 16)))
    first, crashed, last = MetaScheduleMeasurer(native).measure([good, bad, second])
    assert len(first.seconds) == 5 and min(first.seconds) > 0 and first.error == ""
    assert crashed.seconds == () and crashed.error
    assert last.seconds and 1e-9 < min(last.seconds) < 1.0


@pytest.mark.slow
def test_over_rpc() -> None:
    (outcome,) = MetaScheduleMeasurer(get_target("native"), "local").measure([default(POINTWISE)])
    assert outcome.error == "" and len(outcome.seconds) == 5 and min(outcome.seconds) > 0


def tune(folder: Path, trials: int) -> list[str]:
    model, data = (
        REPOSITORY / "tests" / "data" / "mobilenetv2_mnist32.onnx",
        REPOSITORY / "tests" / "data" / "mnist_calibration.npz[0:8]",
    )
    options = ["-q", "int8", "--calibrate", str(data), "--trials", str(trials), "--work-dir", str(folder), "--json"]
    return [sys.executable, "-m", "tvmflow", "tune", str(model), *options]


@pytest.mark.slow
def test_kill_in_mid_run_then_resume(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    path = log.local_log(get_target("native"), tmp_path)
    first = subprocess.Popen(tune(tmp_path, 10_000), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = log.read(path)
    ran = subprocess.run(tune(tmp_path, 8), env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found, after = json.loads(ran.stdout), log.read(path)
    assert found["trials"] == 8 and found["stopped"] == "trials"
    assert after[: len(before)] == before and len(after) == len(before) + 8 - found["failed"]
    assert sum(task["measured"] for task in found["tasks"]) == len({(e.kernel, e.tile) for e in after})
