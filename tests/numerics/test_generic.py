"""What has no template: the schedule computes what the graph says, whether or not vectors divide the channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmflow.build.artifact import link_program
from tvmflow.build.compile import compile_module
from tvmflow.flow.lower import library_runner
from tvmflow.schedule.generic import _schedule
from tvmflow.target import get_target

Graph = Callable[[Any, Any], Any]


def mean_of_planes(x: Any, _row: Any) -> Any:
    return relax.op.mean(x, axis=[1, 2], keepdims=True)


def mean_of_rows(x: Any, _row: Any) -> Any:
    return relax.op.mean(x, axis=[3], keepdims=True)


def maximum_of_everything(x: Any, _row: Any) -> Any:
    return relax.op.max(x)


def hard_swish_scaled(x: Any, row: Any) -> Any:
    gate = relax.op.clip(relax.op.add(relax.op.multiply(x, relax.const(1 / 6)), relax.const(0.5)), 0, 1)
    return relax.op.multiply(relax.op.multiply(x, gate), row)


def normalised(x: Any, _row: Any) -> Any:
    centred = relax.op.subtract(x, relax.op.mean(x, axis=[1, 2], keepdims=True))
    return relax.op.divide(centred, relax.op.sqrt(relax.op.mean(relax.op.multiply(centred, centred), axis=[1, 2], keepdims=True)))


def turned(x: Any, _row: Any) -> Any:
    return relax.op.permute_dims(x, [0, 3, 1, 2])


def joined(x: Any, row: Any) -> Any:
    return relax.op.concat([x, relax.op.multiply(x, row)], axis=3)


GRAPHS: tuple[tuple[Graph, Callable[[np.ndarray, np.ndarray], np.ndarray]], ...] = (
    (mean_of_planes, lambda x, r: x.mean((1, 2), keepdims=True)),
    (mean_of_rows, lambda x, r: x.mean(3, keepdims=True)),
    (maximum_of_everything, lambda x, r: x.max()),
    (hard_swish_scaled, lambda x, r: x * np.clip(x / 6 + 0.5, 0, 1) * r),
    (normalised, lambda x, r: (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)),
    (turned, lambda x, r: x.transpose(0, 3, 1, 2)),
    (joined, lambda x, r: np.concatenate([x, x * r], 3)),
)


def module_of(graph: Graph, shape: tuple[int, ...]) -> tvm.IRModule:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    row = relax.Var("row", relax.TensorType((1, 1, 1, shape[-1]), "float32"))
    with builder.function("main", [x, row]):
        with builder.dataflow():
            result = builder.emit_output(builder.normalize(graph(x, row)))
        builder.emit_func_output(result)
    return builder.get()


def computed(graph: Graph, folder: Path, x: np.ndarray, row: np.ndarray) -> np.ndarray:
    native = get_target("native")
    link_program(compile_module(module_of(graph, x.shape), native), native, folder / f"{graph.__name__}.so")
    return library_runner(folder / f"{graph.__name__}.so")([x, row])[0]


@pytest.mark.parametrize("channels", [1, 3, 7, 16, 40, 64])
@pytest.mark.parametrize(("graph", "expected"), GRAPHS, ids=[g.__name__ for g, _ in GRAPHS])
def test_equals_numpy(graph: Graph, expected: Callable[..., np.ndarray], channels: int, tmp_path: Path) -> None:
    shape = (2, 13, 17, channels)
    rng = np.random.default_rng(channels)
    x, row = rng.standard_normal(shape, np.float32), rng.standard_normal((1, 1, 1, channels), np.float32)
    got = computed(graph, tmp_path, x, row)
    np.testing.assert_allclose(got, expected(x, row), rtol=2e-4, atol=2e-5)


def test_shared_among_threads_gives_the_same(tmp_path: Path) -> None:
    """A tensor large enough for several threads."""
    shape = (1, 64, 96, 40)
    x, row = np.random.default_rng(0).standard_normal(shape, np.float32), np.ones((1, 1, 1, 40), np.float32)
    for graph, expected in GRAPHS[:4]:
        got = computed(graph, tmp_path, x, row)
        np.testing.assert_allclose(got, expected(x, row), rtol=2e-4, atol=2e-5)


def test_elementwise_chain_is_one_pass_of_vectors() -> None:
    text = scheduled(hard_swish_scaled, (1, 8, 8, 40))
    assert text.count("T.sblock(") == 2  # the root and one loop nest
    assert "T.vectorized(T.int64(8))" in text
    assert "alloc_buffer" not in text


def test_reduction_runs_around_the_vectors() -> None:
    """The contiguous channels are innermost; they are not read one by one with a stride."""
    text = scheduled(mean_of_planes, (1, 8, 8, 48))
    update = text[text.index("_init") : text.index("_update")]
    assert update.index("k1, k2") < update.rindex("T.vectorized(T.int64(16))")


def test_reduction_along_the_row_keeps_a_partial_sum_per_lane() -> None:
    assert "_rf" in scheduled(mean_of_rows, (1, 8, 8, 64))


def scheduled(graph: Graph, shape: tuple[int, ...]) -> str:
    passes = (
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    )
    module = tvm.transform.Sequential(passes)(module_of(graph, shape))
    (function,) = [f for _, f in module.functions_items() if isinstance(f, tvm.tirx.PrimFunc)]
    return str(_schedule(function, 16).script())
