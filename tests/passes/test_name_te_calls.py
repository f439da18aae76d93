"""name_te_calls: loop nests of importers become the operators that they compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm
from tvm import relax, topi
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import name_te_calls


def module_of(function: Callable[..., Any], *args: Any) -> tvm.IRModule:
    """``main(x) = call_te(function, x, *args)``"""
    x = relax.Var("x", relax.TensorType((1, 2, 3, 4), "float32"))
    build = relax.BlockBuilder()
    with build.function("main", [x]):
        with build.dataflow():
            y = build.emit_output(build.call_te(function, x, *args))
        build.emit_func_output(y)
    return build.get()


def ops(module: tvm.IRModule) -> list[str]:
    return [b.value.op.name for b in module["main"].body.blocks[0].bindings]


def test_maximum_and_pad() -> None:
    @program
    def expected(x: R.Tensor((1, 2, 3, 4), "float32")):
        y = R.maximum(x, R.const(1.0, "float32"))
        return y

    named = name_te_calls.run(module_of(topi.maximum, relax.const(1.0, "float32")))
    tvm.ir.assert_structural_equal(named["main"], expected["main"])
    padded = name_te_calls.run(module_of(topi.nn.pad, (0, 0, 1, 0), (0, 0, 2, 3), 1.5))["main"].body.blocks[0].bindings[0].value
    assert padded.op.name == "relax.nn.pad"
    assert list(padded.attrs.pad_width) == [0, 0, 0, 0, 1, 2, 0, 3]
    assert float(padded.attrs.pad_value) == 1.5


def test_other_loop_nests_stay() -> None:
    reflecting = module_of(lambda x: topi.nn.mirror_pad(x, (0, 0, 1, 1), (0, 0, 1, 1), "REFLECT"))
    assert ops(name_te_calls.run(reflecting)) == ["relax.call_tir"]
    swapped = module_of(lambda x: tvm.te.compute((1, 2, 3, 3), lambda n, c, h, w: tvm.te.max(x[n, c, h, w], x[n, c, w, h])))
    assert ops(name_te_calls.run(swapped)) == ["relax.call_tir"]
