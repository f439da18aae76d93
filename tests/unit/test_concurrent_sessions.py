"""Several sessions in several threads of one process: right results, no cross-talk, no lock around a run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.conftest import COLUMNS, ROWS, Compiled, by_stock_tvm, expected
from tvmflow.build.artifact import Artifact
from tvmflow.runtime.session import load
from tvmflow.target import get_target

MEET = "tvmflow.tests.meet"


def integers(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-9, 9, (ROWS, COLUMNS)).astype("float32") for _ in "xy"]


def test_each_session_gives_its_own_results(artifact: Artifact) -> None:
    """Loaded in its thread or in another, with one thread or two, and fed other numbers at every call."""
    handed_over = [load(artifact.path, threads=1) for _ in range(2)]

    def work(worker: int) -> int:
        session = handed_over[worker] if worker < 2 else load(artifact.path, threads=1 + worker % 2)
        for turn in range(60):
            inputs = integers(1000 * worker + turn)
            for got, want in zip(session(*inputs), expected(*inputs), strict=True):
                np.testing.assert_array_equal(got, want)
        return turn + 1

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [60] * 4


def test_two_runs_are_under_way_at_the_same_time(tmp_path: Path) -> None:
    """Each run waits in its middle until the other has come as far, which a lock around runs would never let happen."""
    import tvm_ffi
    from tvm import relax

    meeting = threading.Barrier(2)

    def meet(x: Any) -> Any:
        meeting.wait(30)
        return x

    tvm_ffi.register_global_func(MEET, meet, override=True)
    builder = relax.BlockBuilder()
    x, y = (relax.Var(name, relax.TensorType((ROWS, COLUMNS), "float32")) for name in "xy")
    with builder.function("main", [x, y]):
        with builder.dataflow():
            total = builder.emit(relax.op.add(x, y))
            met = builder.emit(relax.call_pure_packed(MEET, total, ty_args=total.ty))
            outputs = builder.emit_output(relax.Tuple([relax.op.multiply(met, y), met]))
        builder.emit_func_output(outputs)
    target = get_target("native")
    native = Compiled(target, by_stock_tvm(builder.get(), target))
    path = native.package(tmp_path / "meeting.so").path
    run: Callable[[int], Any] = lambda seed: load(path, threads=1)(*integers(seed))
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, (1, 2)))
    for seed, (product, total) in zip((1, 2), results, strict=True):
        a, b = integers(seed)
        np.testing.assert_array_equal(total, a + b)
        np.testing.assert_array_equal(product, (a + b) * b)
