"""Every kernel call of a compiled program with the layers that it computes, and the memory plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tvmflow.build.calls import Call, whole_layers
from tvmflow.build.compile import lower
from tvmflow.target import get_target


def network(blocks: int, constant_first: bool = False) -> Any:
    """``blocks`` times ``scale, shift, sum`` of a [64, 64] tensor (twins, but for their constants), then a transpose."""
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((64, 64), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for i in range(blocks):
                factor = relax.const(np.full((64, 64), i + 2.0, "float32"))
                operands = (factor, y) if constant_first else (y, factor)
                scaled = builder.emit(relax.op.multiply(*operands), name_hint=f"/block{i}/scale")
                shifted = builder.emit(relax.op.add(scaled, relax.const(1.0)), name_hint=f"/block{i}/shift")
                both = builder.emit(relax.op.add(shifted, y), name_hint=f"/block{i}/Add")
                y = builder.emit(relax.op.permute_dims(both), name_hint=f"/block{i}/turn")
                y = builder.emit(relax.op.sum(y, axis=1, keepdims=True), name_hint=f"/block{i}/sum")
                y = builder.emit(relax.op.broadcast_to(y, (64, 64)), name_hint=f"/block{i}/wide")
            out = builder.emit_output(relax.op.permute_dims(y))
        builder.emit_func_output(out)
    return builder.get()


def lowered(module: Any, target: str = "native") -> Any:
    import tvm

    chosen = get_target(target)
    with chosen.device(), tvm.transform.PassContext(opt_level=3):
        return lower(module, chosen)


@pytest.mark.parametrize("target", ["native", "h100"])
@pytest.mark.parametrize("constant_first", [False, True])
def test_fused_layers_keep_their_names(target: str, constant_first: bool) -> None:
    _, calls, _, _ = lowered(network(3, constant_first), target)
    assert isinstance(calls[0], Call)
    names = [name for call in calls for name in call.layers]
    for i in range(3):
        mine = [name for name in names if name.startswith(f"/block{i}/")]
        assert sorted(mine) == sorted(f"/block{i}/{part}" for part in ("scale", "shift", "Add", "turn", "sum", "wide"))
    assert names == sorted(names, key=lambda name: next((i for i in range(3) if f"/block{i}/" in name), 3))
    fused = [call for call in calls if len(call.layers) > 1]
    assert len(fused) >= 3, "the test needs groups"
    assert len({call.function for call in fused}) < len(fused), "the test needs groups that share a function"
    assert {"multiply", "add"} <= set(fused[0].ops)


def test_parts_of_a_layer_are_not_told_beside_it() -> None:
    assert whole_layers(("Div.slope", "Div.shift", "Div")) == ("Div",)
    assert whole_layers(("Div.slope", "Div.shift", "Divide")) == ("Div.slope", "Div.shift", "Divide")


def test_calls_are_those_of_the_program() -> None:
    """What the VM calls, in that order, is what is told of it."""
    from tvm import relax

    module, calls, _, _ = lowered(network(2))
    called = [
        binding.value.op.name_hint
        for block in module["main"].body.blocks
        for binding in block.bindings
        if isinstance(binding.value, relax.Call) and hasattr(binding.value.op, "name_hint")
    ]
    assert called == [call.function for call in calls]


def test_memory_plan_reuses_storage() -> None:
    small, large = lowered(network(2))[2], lowered(network(12))[2]
    assert large.tensors_bytes > 5 * small.tensors_bytes
    assert large.bytes == small.bytes <= 3 * 64 * 64 * 4
    assert 0 < large.storages <= 4


def test_inputs_are_borrowed_when_all_that_reads_them_takes_any_address() -> None:
    """What only a quantization reads; not what a plain loop nest reads too, or what is an output."""
    from tvm import relax

    from tvmflow.kernels.call import kernel_call
    from tvmflow.kernels.spec import Quantize
    from tvmflow.model import Model, TensorInfo
    from tvmflow.schedule.apply import schedule

    names = ("borrowed", "read", "passed")
    builder = relax.BlockBuilder()
    inputs = [relax.Var(name, relax.TensorType((4, 64), "float32")) for name in names]
    parameters = [relax.const(np.full(1, value)) for value in (np.float32(0.1), np.int32(128))]
    with builder.function("main", inputs):
        with builder.dataflow():
            codes = [builder.emit(kernel_call(Quantize((4, 64)), [x, *parameters])) for x in inputs]
            read = builder.emit(relax.op.exp(inputs[1]))
            outputs = builder.emit_output(relax.Tuple([*codes, read, inputs[2]]))
        builder.emit_func_output(outputs)
    infos = tuple(TensorInfo(name, (4, 64), "float32") for name in names)
    model, _ = schedule(Model(builder.get(), infos, (), "test"), get_target("x86-64-v3"))
    assert lowered(model.module, "x86-64-v3")[3] == (0,)
