"""canonical_clip: every clamp by constants is one clip or relu."""

from __future__ import annotations

import numpy as np
from tvm.script import relax as R

from tests.passes.program import program
from tvmflow.optimize import canonical_clip

bounds = np.arange(7, dtype="float32")


def test_minimum_of_maximum_is_a_clip(becomes) -> None:
    @program
    def before(x: R.Tensor((3, 7), "float32")):
        low = R.maximum(x, R.const(0.0, "float32"))
        y = R.minimum(low, R.const(6.0, "float32"))
        return y

    @program
    def expected(x: R.Tensor((3, 7), "float32")):
        y = R.clip(x, 0.0, 6.0)
        return y

    becomes(canonical_clip, before, expected)


def test_clamp_of_clamp_applies_the_outer_range_to_the_inner_bounds(becomes) -> None:
    @program
    def before(x: R.Tensor((3, 7), "float32")):
        a = R.clip(x, -4, 2)
        b = R.nn.relu(a)
        c = R.maximum(b, R.const(0.0, "float32"))
        d = R.tanh(c)
        e = R.maximum(d, R.const(0.0, "float32"))
        return e

    @program
    def expected(x: R.Tensor((3, 7), "float32")):
        c = R.clip(x, 0.0, 2.0)
        d = R.tanh(c)
        e = R.nn.relu(d)
        return e

    becomes(canonical_clip, before, expected)


def test_stays_for_bounds_per_element_and_a_clamp_with_another_reader(stays) -> None:
    @program
    def before(x: R.Tensor((3, 7), "float32")):
        a = R.maximum(x, R.const(bounds))
        b = R.nn.relu(a)
        c = R.clip(b, 0.0, 1.0)
        y = R.add(b, c)
        return y

    stays(canonical_clip, before)


def test_stays_for_integers(stays) -> None:
    @program
    def before(x: R.Tensor((3, 7), "int32")):
        y = R.maximum(x, R.const(0, "int32"))
        return y

    stays(canonical_clip, before)
