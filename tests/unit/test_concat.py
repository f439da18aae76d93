"""Concatenations: who writes into the result, what is copied and why, and that neither values nor memory suffer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmflow.build import compile as build
from tvmflow.build.artifact import link_program
from tvmflow.build.compile import Built, compile_module
from tvmflow.flow.lower import library_runner
from tvmflow.kernels.call import kernel_call
from tvmflow.kernels.interpret import interpret
from tvmflow.kernels.spec import Lookup, Pool2d
from tvmflow.model import Model
from tvmflow.schedule.apply import schedule
from tvmflow.target import get_target

SHAPE = (1, 6, 8, 16)
Graph = Callable[["Net", Any], Any]


class Net:
    """Writes a program on uint8 tensors."""

    def __init__(self) -> None:
        self.builder, self.rng = relax.BlockBuilder(), np.random.default_rng(0)

    def table(self, x: Any, name: str = "table") -> Any:
        table = relax.const(self.rng.integers(0, 256, 256).astype(np.uint8))
        return self.emit(kernel_call(Lookup(shape(x)), [x, table]), name)

    def pool(self, x: Any, name: str = "pool") -> Any:
        spec = Pool2d("max", *shape(x), 3, 3, (1, 1), (1, 1, 1, 1), "uint8", "uint8")
        return self.emit(kernel_call(spec, [x]), name)

    def concat(self, *fields: Any, axis: int = 3, name: str = "concat") -> Any:
        return self.emit(relax.op.concat(list(fields), axis), name)

    def emit(self, expr: Any, name: str = "op") -> Any:
        return self.builder.emit(expr, name_hint=name)


def shape(x: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in x.ty.shape)


def module_of(graph: Graph) -> tvm.IRModule:
    net = Net()
    x = relax.Var("x", relax.TensorType(SHAPE, "uint8"))
    with net.builder.function("main", [x]):
        with net.builder.dataflow():
            result = graph(net, x)
            result = net.builder.emit_output(relax.Tuple(list(result)) if isinstance(result, tuple) else result)
        net.builder.emit_func_output(result)
    return net.builder.get()


def built(module: tvm.IRModule) -> Built:
    target = get_target("native")
    return compile_module(schedule(Model(module, (), (), "test"), target)[0].module, target)


def inception(net: Net, x: Any) -> Any:
    a, b = net.table(x, "a"), net.pool(x, "b")
    return net.pool(net.concat(a, b, net.table(b, "c")))


def several_outputs(net: Net, x: Any) -> Any:
    a, b = net.table(x, "a"), net.pool(x, "b")
    return net.concat(a, b), net.table(a, "c")


def is_output(net: Net, x: Any) -> Any:
    return net.concat(net.table(x, "a"), net.pool(x, "b"))


def operand_is_output(net: Net, x: Any) -> Any:
    a = net.table(x, "a")
    return a, net.concat(a, net.pool(x, "b"))


def operand_twice(net: Net, x: Any) -> Any:
    a = net.table(x, "a")
    return net.concat(a, net.pool(x, "b"), a)


def of_a_concat(net: Net, x: Any) -> Any:
    inner = net.concat(net.table(x, "a"), net.pool(x, "b"), name="inner")
    return net.concat(net.table(x, "c"), inner)


def of_a_concat_on_another_axis(net: Net, x: Any) -> Any:
    inner = net.concat(net.table(x, "a"), net.pool(x, "b"), axis=1, name="inner")
    return net.concat(inner, net.table(net.concat(x, x, axis=1, name="input"), "c"))


def dense(net: Net, x: Any) -> Any:
    """Each layer reads all before it."""
    for i in range(4):
        grown = net.table(net.emit(relax.op.strided_slice(x, [3], [0], [8]), "part"), f"layer{i}")
        x = net.concat(x, net.pool(grown, f"pool{i}"), name=f"concat{i}")
    return x


def of_an_input(net: Net, x: Any) -> Any:
    return net.pool(net.concat(net.table(x, "a"), x, relax.const(np.full(SHAPE, 3, np.uint8))))


def of_loop_nests(net: Net, x: Any) -> Any:
    """A loop nest of TVM's writes into a slice as well as a kernel does."""
    small = net.pool(x, "small")
    flipped = net.emit(relax.op.flip(net.table(small, "t"), 2), "flip")
    return net.pool(net.concat(flipped, net.table(small, "a")))


def of_views(net: Net, x: Any) -> Any:
    rows = [net.emit(relax.op.reshape(y, (6 * 8, 16)), "view") for y in (net.table(x, "a"), net.pool(x, "b"))]
    return net.concat(*rows, axis=0)


def of_an_upsampled(net: Net, x: Any) -> Any:
    """Its writer sees more axes than the concatenation has."""
    spread = net.emit(relax.op.reshape(net.table(x, "a"), (1, 6, 1, 8, 1, 16)))
    spread = net.emit(relax.op.broadcast_to(spread, (1, 6, 2, 8, 2, 16)), "repeat")
    skip = net.table(net.emit(relax.op.tile(x, (1, 2, 2, 1))), "skip")
    return net.concat(net.emit(relax.op.reshape(spread, (1, 12, 16, 16))), net.pool(skip)), net.pool(skip)


def early(net: Net, x: Any) -> Any:
    """A small operand is written long before the large ones: the result would be in memory when most is alive."""
    flat = net.table(net.emit(relax.op.reshape(x, (1, 48, 1, 16))), "a")
    a = net.emit(relax.op.reshape(flat, SHAPE), "view")
    wide = net.emit(relax.op.tile(net.pool(x, "b"), (1, 1, 1, 8)), "wide")
    for i in range(3):
        wide = net.table(wide, f"wide{i}")
    return net.pool(net.concat(a, wide))


CASES: dict[Graph, tuple[list[str], list[str]]] = {
    inception: (["a into [0:16]", "b into [16:32]", "c into [32:48]"], []),
    several_outputs: (["a into [0:16]", "b into [16:32]"], []),
    is_output: (["a into [0:16]", "b into [16:32]"], []),
    operand_is_output: (["b into [16:32]"], ["other readers"]),
    operand_twice: (["a into [0:16]", "b into [16:32]"], ["other readers"]),
    of_a_concat: (["a into [16:32]", "b into [32:48]", "c into [0:16]"], []),
    of_a_concat_on_another_axis: (["a into [0:6]", "b into [6:12]", "c into [16:32]"], ["no kernel writes it alone"]),
    dense: ([f"pool{i} into [{16 + 8 * i}:{24 + 8 * i}]" for i in range(4)], ["no kernel writes it alone"]),
    of_an_input: (["a into [0:16]"], ["no kernel writes it alone", "no kernel writes it alone"]),
    of_loop_nests: (["a into [16:32]", "flip into [0:16]"], []),
    of_views: (["a into [0:48]", "b into [48:96]"], []),
    of_an_upsampled: (["repeat into [0:16]", "pool into [16:32]"], []),
    early: (["wide2 into [16:144]"], ["for too long"]),
}


@pytest.mark.parametrize("graph", CASES, ids=lambda g: g.__name__)
def test_values_writers_and_memory(graph: Graph, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = module_of(graph)
    program = built(module)
    x = np.random.default_rng(1).integers(0, 256, SHAPE).astype(np.uint8)
    link_program(program, get_target("native"), tmp_path / "program.so")
    run = library_runner(tmp_path / "program.so")
    for _ in range(2):  # the second run finds the first one's memory
        for mine, expected in zip(run([x]), interpret(module, [x])[0], strict=True):
            np.testing.assert_array_equal(mine, expected)

    writers, copies = CASES[graph]
    copied = [call.into for call in program.calls if call.is_copy and call.into]
    written = [(call.layers[-1], call.into) for call in program.calls if call.into and not call.is_copy]
    assert [reason for told, reason in zip(copied, copies, strict=True) if reason not in told] == [], copied
    assert sorted(f"{layer} into {into.split()[2]}" for layer, into in written) == sorted(writers)

    monkeypatch.setattr(build, "hold_concats", lambda module: module)
    before = built(module).workspace
    assert program.workspace.tensors_bytes <= before.tensors_bytes
    assert program.workspace.bytes <= before.bytes


def test_what_fuses_into_its_reader_stays() -> None:
    """One pass of TVM's reads an operand that no kernel writes, the others, and writes what follows."""

    def graph(net: Net, x: Any) -> Any:
        return net.emit(relax.op.flip(net.concat(net.table(x, "a"), net.emit(relax.op.flip(x, 1))), 2))

    calls = built(module_of(graph)).calls
    assert [len(call.ops) for call in calls] == [1, 3] and not any(call.into for call in calls)
