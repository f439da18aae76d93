"""common_subexpressions and dead_code."""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax, topi
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import common_subexpressions, dead_code

c1, c2 = np.array([1, 2], "float32"), np.array([1, 2], "float32")


def test_equal_calls_are_made_once(becomes, names) -> None:
    @program
    def before(x: R.Tensor((3, 2), "float32")):
        a = R.add(x, R.const(c1))
        b = R.add(x, R.const(c2))
        d = R.nn.relu(a)
        e = R.nn.relu(b)
        y = R.add(d, e)
        return y

    @program
    def expected(x: R.Tensor((3, 2), "float32")):
        a = R.add(x, R.const(c1))
        d = R.nn.relu(a)
        y = R.add(d, d)
        return y

    assert names(becomes(common_subexpressions, before, expected)) == ["a", "d", "y"]


def test_different_attributes_stay(stays) -> None:
    @program
    def before(x: R.Tensor((3, 3), "float32")):
        a = R.nn.softmax(x, axis=0)
        b = R.nn.softmax(x, axis=1)
        c = R.clip(x, 0.0, 1.0)
        d = R.clip(x, 0.0, 2.0)
        y = (a, b, c, d)
        return y

    stays(common_subexpressions, before)


def test_functions_that_main_does_not_reach_leave() -> None:
    x = relax.Var("x", relax.TensorType((3, 2), "float32"))
    build = relax.BlockBuilder()
    with build.function("main", [x]):
        with build.dataflow():
            build.emit_te(topi.tanh, x)
            y = build.emit_output(build.call_te(topi.exp, x))
        build.emit_func_output(y)
    module = build.get()
    assert {v.name_hint for v in module.get_global_vars()} == {"main", "tanh", "exp"}
    after = dead_code.run(module)
    assert {v.name_hint for v in after.get_global_vars()} == {"main", "exp"}
    tvm.ir.assert_structural_equal(dead_code.run(after), after)
