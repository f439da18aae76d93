"""A program's kernels are called by one function, with the results of single calls; what it can't do stays with the VM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvmflow.build.artifact import link_program
from tvmflow.build.compile import Built, compile_module
from tvmflow.build.network import LAYERS, NETWORK
from tvmflow.target import get_target

SHAPE = (3, 40)
X = np.arange(120, dtype=np.float32).reshape(SHAPE) - 50
NATIVE = get_target("native")
Graph = Callable[[Any, Any], Any]
"""``graph(builder, x)``: a tensor, or a list of tensors, that the program returns."""


def compiled(graph: Graph) -> Built:
    from tvm import relax

    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType(SHAPE, "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            made = graph(builder, x)
            result = builder.emit_output(relax.Tuple(made) if isinstance(made, list) else made)
        builder.emit_func_output(result)
    return compile_module(builder.get(), NATIVE)


def run(built: Built, folder: Path, function: str) -> tuple[list[np.ndarray], list[str]]:
    """Outputs, and the kernels that the virtual machine called, in order."""
    import tvm
    from tvm.runtime.vm import VirtualMachine

    link_program(built, NATIVE, folder / "program.so")
    machine = VirtualMachine(tvm.runtime.load_module(str(folder / "program.so")), tvm.cpu())
    called: list[str] = []

    def note(_function: Any, symbol: str, before: bool, _result: Any, *_arguments: Any) -> int:
        if before and not symbol.startswith("vm.builtin."):
            called.append(str(symbol))
        return 0

    machine.set_instrument(note)
    result = machine[function](tvm.runtime.tensor(X))
    tensors = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    return [tensor.numpy() for tensor in tensors], called


def reduced(builder: Any, x: Any, axis: int) -> Any:
    """A kernel that TVM does not fuse with those behind it."""
    from tvm import relax

    return builder.emit(relax.op.sum(x, axis=axis, keepdims=True))


def chain(builder: Any, x: Any) -> Any:
    from tvm import relax

    return reduced(builder, builder.emit(relax.op.multiply(x, reduced(builder, x, 1))), 0)


def several(builder: Any, x: Any) -> Any:
    """Outputs that another kernel reads, that views have other shapes, that stand twice; and the input."""
    from tvm import relax

    rows = reduced(builder, x, 1)
    scaled = builder.emit(relax.op.multiply(x, rows))
    flat = builder.emit(relax.op.reshape(scaled, (120,)))
    return [rows, flat, reduced(builder, scaled, 0), rows, x]


def halves(builder: Any, x: Any) -> Any:
    """A kernel with two outputs."""
    from tvm import relax

    left, right = (builder.emit(relax.TupleGetItem(builder.emit(relax.op.split(x, 2, axis=1)), i)) for i in range(2))
    return builder.emit(relax.op.multiply(reduced(builder, left, 1), reduced(builder, right, 1)))


def viewed_input(builder: Any, x: Any) -> Any:
    from tvm import relax

    return reduced(builder, builder.emit(relax.op.reshape(x, (40, 3))), 0)


def only_views(builder: Any, x: Any) -> Any:
    from tvm import relax

    return builder.emit(relax.op.reshape(x, (120,)))


ROWS = X.sum(1, keepdims=True)
WANTED: dict[Graph, list[np.ndarray]] = {
    chain: [(X * ROWS).sum(0, keepdims=True)],
    several: [ROWS, (X * ROWS).ravel(), (X * ROWS).sum(0, keepdims=True), ROWS, X],
    halves: [X[:, :20].sum(1, keepdims=True) * X[:, 20:].sum(1, keepdims=True)],
    viewed_input: [X.reshape(40, 3).sum(0, keepdims=True)],
}


@pytest.mark.parametrize("graph", WANTED, ids=lambda graph: graph.__name__)
def test_one_call_gives_what_single_calls_give(graph: Graph, tmp_path: Path) -> None:
    built = compiled(graph)
    assert built.layered == LAYERS
    got, called = run(built, tmp_path, "main")
    assert called == [NETWORK]
    single, called = run(built, tmp_path, LAYERS)
    assert called == [call.function for call in built.calls]
    for array, other, wanted in zip(got, single, WANTED[graph], strict=True):
        np.testing.assert_array_equal(array, other)
        np.testing.assert_allclose(array, wanted, rtol=1e-5)


def test_program_without_kernels(tmp_path: Path) -> None:
    built = compiled(only_views)
    assert (built.layered, built.calls) == ("main", ())
    (got,), called = run(built, tmp_path, "main")
    np.testing.assert_array_equal(got, X.ravel())
    assert called == []


def test_foreign_call_between_kernels(tmp_path: Path) -> None:
    """The virtual machine makes all calls then, in their order."""

    def graph(builder: Any, x: Any) -> Any:
        from tvm import relax

        copy = relax.call_pure_packed("vm.builtin.copy", reduced(builder, x, 1), ty_args=[relax.TensorType((3, 1), "float32")])
        return reduced(builder, builder.emit(copy), 0)

    built = compiled(graph)
    assert built.layered == "main"
    (got,), called = run(built, tmp_path, "main")
    np.testing.assert_allclose(got, [[X.sum()]])
    assert len(called) == 2


def test_failing_kernel_ends_the_run(tmp_path: Path) -> None:
    """With its own message, and without the kernels behind it."""
    import tvm_ffi
    from tvm import relax, te, tirx

    called = []

    def graph(builder: Any, x: Any) -> Any:
        for name in ("fine", "fail", "late"):
            tensor = te.placeholder(SHAPE, "float32")
            call = lambda ins, outs, name=name: tirx.call_packed(f"tvmflow.test.{name}", ins[0], outs[0])
            kernel = te.create_prim_func([tensor, te.extern(SHAPE, [tensor], call, dtype="float32")])
            symbol = builder.add_func(kernel.with_attr("tirx.is_scheduled", True), name)
            x = builder.emit(relax.call_tir(symbol, [x], relax.TensorType(SHAPE, "float32")))
        return x

    def fail(*_: Any) -> None:
        raise ValueError("out of luck")

    tvm_ffi.register_global_func("tvmflow.test.fine", lambda *_: called.append("fine"), override=True)
    tvm_ffi.register_global_func("tvmflow.test.fail", fail, override=True)
    tvm_ffi.register_global_func("tvmflow.test.late", lambda *_: called.append("late"), override=True)
    built = compiled(graph)
    assert built.layered == LAYERS
    with pytest.raises(ValueError, match="out of luck"):
        run(built, tmp_path, "main")
    assert called == ["fine"]
