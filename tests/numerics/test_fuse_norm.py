"""Layer normalization with the sum before it and the quantization behind it: what is fused, what stays, what is computed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmflow.flow.lower import host_runner
from tvmflow.kernels.call import kernel_call, kernel_of
from tvmflow.kernels.interpret import interpret
from tvmflow.kernels.spec import LayerNorm, Quantize
from tvmflow.model import Model
from tvmflow.optimize.walk import rewrite
from tvmflow.schedule.apply import schedule
from tvmflow.schedule.fuse_norm import fuse_norm
from tvmflow.target import get_target

ROWS, N = 6, 20
RNG = np.random.default_rng(3)
GAMMA, BETA = RNG.standard_normal((2, N)).astype(np.float32)
EPSILON, SCALE = np.array([1e-5], np.float32), np.array([1 / 64], np.float32)
INVERSE, ZERO = np.array([64.0], np.float32), np.array([120], np.int32)
INPUTS = [RNG.standard_normal((1, ROWS, N)).astype(np.float32), RNG.standard_normal((1, ROWS, N)).astype(np.float32)]


class Program:
    """Writes ``main(x, r)`` line by line."""

    def __init__(self, r_shape: tuple[int, ...] = (1, ROWS, N)) -> None:
        self.builder = relax.BlockBuilder()
        self.x, self.r = (relax.Var(n, relax.TensorType(s, "float32")) for n, s in (("x", (1, ROWS, N)), ("r", r_shape)))

    def view(self, tensor: Any, *shape: int, name: str = "") -> Any:
        return self.line(relax.op.reshape(tensor, shape), name)

    def line(self, expr: Any, name: str = "") -> Any:
        return self.builder.emit(expr, name_hint=name)

    def kernel(self, spec: Any, *args: Any, name: str = "") -> Any:
        return self.line(kernel_call(spec, [relax.const(a) if isinstance(a, np.ndarray) else a for a in args]), name)

    def norm(self, rows: Any, name: str = "norm") -> Any:
        return self.kernel(LayerNorm(ROWS, N), rows, GAMMA, BETA, EPSILON, name=name)

    def codes(self, y: Any, name: str = "codes") -> Any:
        return self.kernel(Quantize((1, ROWS, N)), self.view(y, 1, ROWS, N), SCALE, ZERO, name=name)


def module(write: Any, **options: Any) -> tvm.IRModule:
    p = Program(**options)
    with p.builder.function("main", [p.x, p.r]):
        with p.builder.dataflow():
            results = write(p)
            out = p.builder.emit_output(relax.Tuple(list(results)) if isinstance(results, tuple) else results)
        p.builder.emit_func_output(out)
    return rewrite(p.builder.get(), lambda *_: None)


def residual_and_codes(p: Program) -> Any:
    y = p.norm(p.view(p.line(relax.op.add(p.x, p.r), "sum"), ROWS, N))
    return p.codes(y), p.view(y, 1, ROWS, N)


def expected_of_both(p: Program) -> Any:
    x, r = p.view(p.x, ROWS, N), p.view(p.r, ROWS, N)
    both = p.kernel(LayerNorm(ROWS, N, True, "uint8"), x, GAMMA, BETA, EPSILON, r, INVERSE, ZERO)
    codes = p.line(relax.TupleGetItem(both, 1))
    y = p.line(relax.TupleGetItem(both, 0))
    return p.view(codes, 1, ROWS, N), p.view(y, 1, ROWS, N)


def fused(before: tvm.IRModule) -> tvm.IRModule:
    after = fuse_norm(Model(before, (), (), "test")).module
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(fuse_norm(Model(after, (), (), "test")).module, after)
    return after


def kernels(program: tvm.IRModule) -> list[Any]:
    calls = [binding.value for block in program["main"].body.blocks for binding in block.bindings]
    return [spec for call in calls if (spec := kernel_of(call)) is not None]


def test_sum_and_quantization_go_into_the_kernel() -> None:
    tvm.ir.assert_structural_equal(fused(module(residual_and_codes)), module(expected_of_both))


def test_layers_keep_their_names() -> None:
    named = interpret(fused(module(residual_and_codes)), INPUTS)[1]
    assert named["codes"].dtype == np.uint8 and named["norm"].dtype == np.float32


def test_the_oracle_and_the_program_compute_the_same() -> None:
    before = module(residual_and_codes)
    after = fused(before)
    for program in (interpret(after, INPUTS)[0], host_runner(before)(INPUTS), host_runner(after)(INPUTS)):
        codes, y = interpret(before, INPUTS)[0]
        np.testing.assert_allclose(program[1], y, rtol=1e-4, atol=1e-5)
        assert program[0].shape == codes.shape and np.abs(program[0].astype(int) - codes.astype(int)).max() <= 1


def test_a_kernel_with_two_results_is_one_layer_of_the_schedule() -> None:
    _, scheduled = schedule(Model(fused(module(residual_and_codes)), (), (), "test"), get_target("native"))
    assert [(k.layer, k.template) for k in scheduled] == [("norm/quantized", "layer_norm")]


def sum_alone(p: Program) -> Any:
    return p.norm(p.view(p.line(relax.op.add(p.x, p.r)), ROWS, N))


def test_a_sum_alone() -> None:
    after = fused(module(sum_alone))
    assert kernels(after) == [LayerNorm(ROWS, N, True)] and "R.add" not in after.script()


def test_the_first_of_two_quantizations() -> None:
    def write(p: Program) -> Any:
        y = p.norm(p.view(p.x, ROWS, N))
        return p.codes(y, "first"), p.codes(y, "second")

    after = fused(module(write))
    assert kernels(after) == [LayerNorm(ROWS, N, False, "uint8"), Quantize((1, ROWS, N))]


def read_twice(p: Program) -> Any:
    total = p.line(relax.op.add(p.x, p.r))
    return p.norm(p.view(total, ROWS, N)), total


def difference(p: Program) -> Any:
    return p.norm(p.view(p.line(relax.op.subtract(p.x, p.r)), ROWS, N))


def constant_operand(p: Program) -> Any:
    return p.norm(p.view(p.line(relax.op.add(p.x, relax.const(INPUTS[1]))), ROWS, N))


@pytest.mark.parametrize("write", [read_twice, difference, constant_operand])
def test_what_stays(write: Any) -> None:
    before = module(write)
    tvm.ir.assert_structural_equal(fused(before), before)


def test_a_broadcast_sum_stays() -> None:
    before = module(sum_alone, r_shape=(1, 1, N))
    tvm.ir.assert_structural_equal(fused(before), before)
