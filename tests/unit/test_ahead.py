"""What kernels ask for before the next one needs it: how much, which lines, and that these are the next kernel's weights."""

from __future__ import annotations

from math import ceil

import msgspec
import numpy as np
import pytest

from tvmflow.kernels.spec import Chain, Conv2d, MatMul
from tvmflow.schedule.ahead import Share, bytes_ahead, weight_bytes
from tvmflow.schedule.conv2d_geometry import ConvTile
from tvmflow.schedule.strassen import StrassenTile
from tvmflow.schedule.template import template_for
from tvmflow.schedule.template import weight_bytes as packed_bytes
from tvmflow.schedule.winograd_geometry import WinogradTile
from tvmflow.target import Cpu, get_target

CPU = msgspec.structs.replace(get_target("zen4").cpu, l2_kib=1024, l3_kib=8192)
SMALL, LARGE = Conv2d(1, 14, 14, 64, 64), Conv2d(1, 14, 14, 512, 512)
DENSE = Conv2d(1, 1, 1, 1280, 1000)
DEPTHWISE = Conv2d(1, 14, 14, 64, 64, 3, 3, pad=(1, 1, 1, 1), groups=64)


def asked(*kernels: Conv2d | Chain | MatMul, cpu: Cpu = CPU) -> list[int]:
    return bytes_ahead(kernels, [weight_bytes(spec) for spec in kernels], cpu)


def test_a_kernel_asks_for_the_next_weights() -> None:
    assert asked(LARGE, SMALL) == [64 * 64, 0]
    assert asked(SMALL, LARGE) == [512 * 512, 0]
    assert bytes_ahead([SMALL, LARGE], [0, 2 << 20], CPU) == [1024 << 10, 0]  # what L2 holds
    assert asked(SMALL, LARGE, cpu=msgspec.structs.replace(CPU, l3_kib=0)) == [128 << 10, 0]  # an eighth where it is the last


def test_what_has_no_weights_is_passed_over_and_small_weights_come_along() -> None:
    products = MatMul(12, 64, 64, 64)
    assert asked(SMALL, products, SMALL)[0] == 64 * 64
    assert asked(SMALL, DEPTHWISE, SMALL)[0] == 64 * 64 + 9 * 64


def test_a_dense_layer_of_few_rows_comes_whole_while_another_kernel_computes() -> None:
    assert asked(SMALL, LARGE, DENSE) == [512 * 512, 1280 * 1000, 0]
    floating = msgspec.structs.replace(DENSE, x="float32", y="float32")
    assert asked(LARGE, floating) == [4096 << 10, 0]  # half of the last cache
    assert asked(DENSE, DENSE, DENSE) == [0, 0, 0]  # each waits for its own


def test_a_chain_has_the_weights_of_its_stages() -> None:
    stage = Conv2d(1, 14, 14, 64, 64, x="float32", y="float32")
    assert asked(SMALL, Chain((stage, stage)))[0] == 2 * 64 * 64 * 4


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (ConvTile, Conv2d(1, 28, 28, 128, 128, 3, 3, pad=(1, 1, 1, 1))),
        (WinogradTile, Conv2d(1, 28, 28, 128, 128, 3, 3, pad=(1, 1, 1, 1))),
        (StrassenTile, Conv2d(1, 1, 128, 256, 256, x="float32", y="float32")),
    ],
)
def test_kernels_ask_for_what_they_are_told_to(kind: type, spec: Conv2d) -> None:
    target = get_target("x86-avx512-vnni")
    template = template_for(spec, target)
    tile = next(tile for tile in template.space(spec, target) if type(tile) is kind)

    def asked(ahead: int) -> int:
        function = template.emit(spec, msgspec.structs.replace(tile, ahead=ahead), "main")
        return str(function.script()).count("prefetch")

    assert asked(64 << 10) > asked(0)


def test_packed_weights_count_for_what_they_are() -> None:
    """Winograd's F(4x4) has 36 words for nine bytes."""
    spec = Conv2d(1, 28, 28, 128, 128, 3, 3, pad=(1, 1, 1, 1), x="uint8", y="uint8")
    tiles = {type(tile): tile for tile in template_for(spec, get_target("zen4")).space(spec, get_target("zen4"))}
    assert packed_bytes(spec, tiles[ConvTile]) == weight_bytes(spec) == 9 * 128 * 128
    assert packed_bytes(spec, tiles[WinogradTile]) == 36 * 2 * 128 * 128


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
