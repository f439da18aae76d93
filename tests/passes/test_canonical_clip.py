"""canonical_clip: every clamp by constants is one clip or relu."""

from __future__ import annotations

import numpy as np
from tvm.script import ir as I
from tvm.script import relax as R

from tvmflow.optimize import canonical_clip

bounds = np.arange(7, dtype="float32")


def test_minimum_of_maximum_is_a_clip(becomes) -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 7), "float32")):
            with R.dataflow():
                low = R.maximum(x, R.const(0.0, "float32"))
                y = R.minimum(low, R.const(6.0, "float32"))
                R.output(y)
            return y

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((3, 7), "float32")):
            with R.dataflow():
                y = R.clip(x, 0.0, 6.0)
                R.output(y)
            return y

    becomes(canonical_clip, Before, Expected)


def test_clamp_of_clamp_applies_the_outer_range_to_the_inner_bounds(becomes) -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 7), "float32")):
            with R.dataflow():
                a = R.clip(x, -4, 2)
                b = R.nn.relu(a)
                c = R.maximum(b, R.const(0.0, "float32"))
                d = R.tanh(c)
                e = R.maximum(d, R.const(0.0, "float32"))
                R.output(e)
            return e

    @I.ir_module
    class Expected:
        @R.function
        def main(x: R.Tensor((3, 7), "float32")):
            with R.dataflow():
                c = R.clip(x, 0.0, 2.0)
                d = R.tanh(c)
                e = R.nn.relu(d)
                R.output(e)
            return e

    becomes(canonical_clip, Before, Expected)


def test_stays_for_bounds_per_element_and_a_clamp_with_another_reader(stays) -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 7), "float32")):
            with R.dataflow():
                a = R.maximum(x, R.const(bounds))
                b = R.nn.relu(a)
                c = R.clip(b, 0.0, 1.0)
                y = R.add(b, c)
                R.output(y)
            return y

    stays(canonical_clip, Before)


def test_stays_for_integers(stays) -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(x: R.Tensor((3, 7), "int32")):
            with R.dataflow():
                y = R.maximum(x, R.const(0, "int32"))
                R.output(y)
            return y

    stays(canonical_clip, Before)
