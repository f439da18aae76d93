"""What kernels ask for before the next one needs it: how much, which lines, and that these are the next kernel's weights."""

from __future__ import annotations

from math import ceil

import msgspec
import numpy as np
import pytest

from tvmflow.kernels.spec import Chain, Conv2d, MatMul
from tvmflow.schedule.ahead import Share, bytes_ahead
from tvmflow.target import get_target

CPU = msgspec.structs.replace(get_target("zen4").cpu, l2_kib=1024, l3_kib=8192)
SMALL, LARGE = Conv2d(1, 14, 14, 64, 64), Conv2d(1, 14, 14, 512, 512)
DENSE = Conv2d(1, 1, 1, 1280, 1000)
DEPTHWISE = Conv2d(1, 14, 14, 64, 64, 3, 3, pad=(1, 1, 1, 1), groups=64)


def test_a_kernel_asks_for_the_begin_of_the_next_weights() -> None:
    assert bytes_ahead([LARGE, SMALL], CPU) == [64 * 64, 0]
    assert bytes_ahead([SMALL, LARGE], CPU) == [128 << 10, 0]  # an eighth of L2


def test_what_has_no_weights_is_passed_over_and_small_weights_come_along() -> None:
    products = MatMul(12, 64, 64, 64)
    assert bytes_ahead([SMALL, products, SMALL], CPU)[0] == 64 * 64
    assert bytes_ahead([SMALL, DEPTHWISE, SMALL], CPU)[0] == 64 * 64 + 9 * 64


def test_a_dense_layer_of_few_rows_comes_whole_while_another_kernel_computes() -> None:
    assert bytes_ahead([SMALL, LARGE, DENSE], CPU) == [128 << 10, 1280 * 1000, 0]
    floating = msgspec.structs.replace(DENSE, x="float32", y="float32")
    assert bytes_ahead([LARGE, floating], CPU) == [4096 << 10, 0]  # half of the last cache
    assert bytes_ahead([DENSE, DENSE, DENSE], CPU) == [0, 0, 0]  # each waits for its own


def test_a_chain_has_the_weights_of_its_stages() -> None:
    stage = Conv2d(1, 14, 14, 64, 64, x="float32", y="float32")
    assert bytes_ahead([SMALL, Chain((stage, stage))], CPU)[0] == 2 * 64 * 64 * 4


@pytest.mark.parametrize("count", [1, 7, 64, 500])
@pytest.mark.parametrize("visits", [1, 3, 14])
@pytest.mark.parametrize("steps", [1, 9, 40, 576])
def test_every_line_is_asked_for(count: int, visits: int, steps: int) -> None:
    share = Share(count, visits, steps)
    asked = {line for visit in range(visits) for step in range(steps) for line in share.lines(visit, step)}
    assert asked >= set(range(min(count, visits * steps * Share.MOST)))
    assert max(asked) < (visits + 1) * ceil(count / visits)  # what is shared unevenly is asked for twice


def test_weights_lie_in_the_order_of_their_kernels() -> None:
    """What lies behind a kernel's weights is what the next kernel reads."""
    import tvm
    from tvm import relax

    from tvmflow.build.calls import bindings, calls_kernel
    from tvmflow.build.compile import lower
    from tvmflow.build.constants import place_constants
    from tvmflow.kernels.call import kernel_call
    from tvmflow.model import Model, TensorInfo
    from tvmflow.schedule.apply import schedule

    target = get_target("zen4")
    rng = np.random.default_rng(0)
    spec = Conv2d(1, 14, 14, 64, 64, x="float32", y="float32")
    weights = [rng.normal(size=(64, 1, 1, 64)).astype(np.float32) for _ in range(3)]
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(spec.in_shape, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for weight in weights:
                parameters = [weight, np.zeros(64, np.float32), np.float32([0, 6])]
                y = builder.emit(kernel_call(spec, [y, *map(relax.const, parameters)]))
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    info = TensorInfo("x", spec.in_shape, "float32")
    model, kernels = schedule(Model(builder.get(), (info,), (info,), "net"), target)
    assert [kernel.tile.ahead for kernel in kernels] == [64 * 64 * 4, 64 * 64 * 4, 0]
    assert kernels[0].function == kernels[1].function != kernels[2].function

    with target.device(), tvm.transform.PassContext(opt_level=3):
        placed, section = place_constants(lower(model.module, target)[0])
    begins = [int(b.value.args[1]) for b in bindings(placed["main"]) if calls_kernel(b.value)]
    for weight, begin in zip(weights, begins, strict=True):
        np.testing.assert_array_equal(sorted(weight.ravel()), sorted(np.frombuffer(section, np.float32, 64 * 64, begin)))
    assert begins == sorted(begins)
    assert begins[1] - begins[0] < 64 * 64 * 4 + 1024  # nothing but small tables between them
