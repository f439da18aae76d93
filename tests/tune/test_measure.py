"""Real builds, and runs on boards; a candidate that crashes, one that hangs and a board that leaves among them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest

from tvmflow.board.local import local_board
from tvmflow.errors import BoardError
from tvmflow.kernels.spec import Binary, Conv2d
from tvmflow.schedule.template import template_for
from tvmflow.target import get_target
from tvmflow.tune import log, measure
from tvmflow.tune.measure import BoardMeasurer, Group, in_turns

REPOSITORY = Path(__file__).parents[2]
POINTWISE = Conv2d(1, 4, 4, 16, 16)
ADD = Binary("add", (1, 4, 4, 16), (1, 4, 4, 16))
NATIVE = get_target("native")


def default(kernel):
    return template_for(kernel, NATIVE).default(kernel, NATIVE)


def group(kernel, *others) -> Group:
    return Group(kernel, (default(kernel), *others))


@pytest.mark.skipif(NATIVE.arch != "x86_64", reason="sdot exists on this machine")
def test_groups_are_timed_and_a_candidate_that_ends_its_builder_is_reported() -> None:
    bad = msgspec.structs.replace(default(POINTWISE), dot="sdot")  # LLVM aborts on another architecture's instruction
    with BoardMeasurer(NATIVE) as measurer:
        found = dict(measurer.measure([group(POINTWISE, bad), group(ADD)]))
    good, crashed = found[group(POINTWISE, bad)]
    assert len(good.seconds) >= 16 and 1e-9 < good.best < 1.0 and good.error == ""
    assert crashed.seconds == () and crashed.error
    assert found[group(ADD)][0].seconds


def test_a_candidate_that_crashes_or_hangs_is_blamed_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries hold what a wrong kernel would do: a write to nowhere, and an endless loop."""
    monkeypatch.setattr(measure, "HANG_SECONDS", 3.0)
    monkeypatch.setattr(measure, "build_group", build_broken)
    tiles = sorted(set(template_for(POINTWISE, NATIVE).space(POINTWISE, NATIVE)), key=lambda t: (t.mw, t.nr, t.channels_outer))
    for how, tile in (("crash", tiles[1]), ("hang", tiles[2])):
        monkeypatch.setenv("BROKEN", f"{how} {tile.mw} {tile.nr} {tile.channels_outer}")
        with BoardMeasurer(NATIVE) as measurer:
            ((_, outcomes),) = measurer.measure([Group(POINTWISE, (tiles[0], tile, tiles[3]))])
        assert [bool(o.seconds) for o in outcomes] == [True, False, True], outcomes
        assert ("SIGSEGV" if how == "crash" else "sign of life") in outcomes[1].error


def build_broken(kernel, tiles, target, library):
    """``build_group`` in the worker, with C code in place of the kernel that ``BROKEN`` names."""
    how, mw, nr, outer = os.environ["BROKEN"].split()
    built = measure.build_group(kernel, tiles, target, library)
    wrong = [i for i, t in enumerate(tiles) if (t.mw, t.nr, t.channels_outer) == (int(mw), int(nr), outer == "True")]
    if wrong:
        body = {"crash": "*(volatile int*)8 = 1;", "hang": "for (volatile int n = 0;; ) n++;"}[how]
        names = "".join(
            f"int __tvm_ffi_c{i}(void* h, const void* a, int n, void* r) {{ {body if i in wrong else ''} return 0; }}\n"
            for i in range(len(tiles))
        )
        subprocess.run(["cc", "-O0", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=names, text=True, check=True)
    return built


def test_boards_share_the_groups_and_a_lost_one_leaves_its_group_to_the_others() -> None:
    kernels = [Conv2d(1, 4, 4, 16, 16 * n) for n in range(1, 7)]
    with ExitStack() as stack:
        boards = [stack.enter_context(local_board(name=f"b{n}")) for n in range(2)]
        names = [f"{b.host}:{b.port}" for b in boards]
        with BoardMeasurer(NATIVE, (*names, "127.0.0.1:1")) as measurer:  # nobody listens there
            found = [g for g, outcomes in measurer.measure([group(k) for k in kernels]) if outcomes[0].seconds]
    assert sorted(g.kernel.oc for g in found) == [k.oc for k in kernels]


def test_a_batch_that_is_given_up_leaves_the_board_to_the_next() -> None:
    with BoardMeasurer(NATIVE) as measurer:
        for _ in measurer.measure([group(Conv2d(1, 4, 4, 16, 16 * n)) for n in range(1, 6)]):
            break
        assert [o.error for _, outcomes in measurer.measure([group(ADD)]) for o in outcomes] == [""]


def test_without_any_board_nothing_is_blamed() -> None:
    with BoardMeasurer(NATIVE, ("127.0.0.1:1",)) as measurer, pytest.raises(BoardError):
        list(measurer.measure([group(POINTWISE)]))


def test_hopeless_candidates_are_timed_once_and_a_disturbed_machine_more_often() -> None:
    calls: list[int] = []

    def steady(index: int) -> list[float]:
        calls.append(index)
        return [(1.0, 2.0, 1.2)[index]] * measure.SAMPLES

    times = in_turns(steady, 3)
    assert [len(t) // measure.SAMPLES for t in times] == [measure.ROUNDS, 1, measure.ROUNDS]
    assert calls[:5] == [0, 1, 2, 0, 2]  # in turns
    noise = iter(range(10_000))
    (disturbed,) = in_turns(lambda index: [1 / (1 + next(noise))] * 1, 1)
    assert len(disturbed) == measure.MOST_ROUNDS


def tune(folder: Path, *options: str) -> list[str]:
    model = REPOSITORY / "tests" / "data" / "mobilenetv2_mnist32.onnx"
    data = REPOSITORY / "tests" / "data" / "mnist_calibration.npz[0:8]"
    common = ["-q", "int8", "--calibrate", str(data), "--again", "--work-dir", str(folder), "--json"]
    return [sys.executable, "-m", "tvmflow", "tune", str(model), *common, *options]


@pytest.mark.slow
def test_kill_at_any_point_then_resume(tmp_path: Path) -> None:
    """Killed three times at other moments; what was on disk stays, and no candidate is tried a second time but to confirm it."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    path = log.local_log(NATIVE, tmp_path)
    kept: list[log.TuningRecord] = []
    for more in (1, 7, 2):
        running = subprocess.Popen(tune(tmp_path), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not (path.exists() and len(log.read(path)) >= len(kept) + more):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        now = log.read(path)
        assert now[: len(kept)] == kept
        kept = now
    ran = subprocess.run(tune(tmp_path, "--trials", "8"), env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    found, after = json.loads(ran.stdout), log.read(path)
    assert found["trials"] == 8 and found["stopped"] == "trials" and after[: len(kept)] == kept
    tried: dict[object, list[log.TuningRecord]] = {}
    for entry in after:
        if not entry.settled:
            tried.setdefault((entry.kernel, entry.tile), []).append(entry)
    # a second record of a candidate exists only because the first was a win that waited for its confirmation
    assert all(len(lines) == 1 or not lines[0].accepted for lines in tried.values())
    assert sum(task["measured"] for task in found["tasks"]) == len(tried)
