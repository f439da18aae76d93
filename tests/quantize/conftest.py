"""Small graphs through annotate, calibrate and realize, with the numpy interpreter as the machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import tvm
from tvm import relax

from tvmflow.kernels.call import kernel_of
from tvmflow.kernels.interpret import interpret
from tvmflow.kernels.spec import Kernel
from tvmflow.model import Model, TensorInfo
from tvmflow.quantize.annotate import annotate
from tvmflow.quantize.calibrate import Calibration, calibrate
from tvmflow.quantize.plan import Plan
from tvmflow.quantize.realize import Coverage, realize
from tvmflow.quantize.recipe import Recipe, load_recipe

Emit = Callable[[str, relax.Expr], relax.Var]
Body = Callable[..., relax.Expr]
"""``body(emit, *inputs)`` emits layers under names and returns the result."""


@dataclass(frozen=True)
class Quantized:
    """A graph on its way, and what it computes."""

    floating: Model
    plan: Plan
    calibration: Calibration
    integer: Model
    coverage: Coverage
    outputs: list[np.ndarray]
    expected: list[np.ndarray]

    @property
    def kernels(self) -> dict[str, Kernel]:
        """Kernel signatures by variable name."""
        bindings = self.integer.module["main"].body.blocks[0].bindings
        return {b.var.name: spec for b in bindings if (spec := kernel_of(b.value)) is not None}

    @property
    def ops(self) -> list[str]:
        """Kernels in program order, by tag."""
        return [spec.__struct_config__.tag for spec in self.kernels.values()]

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise ratio of the worst output, dB."""
        return min(
            10 * np.log10(np.square(want).sum() / max(np.square(want - got).sum(), 1e-30))
            for want, got in zip(self.expected, self.outputs, strict=True)
        )


def run(module: tvm.IRModule) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    machine = relax.VirtualMachine(tvm.compile(module, "llvm"), tvm.cpu())

    def call(arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        result = machine["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arguments])
        return [result.numpy()] if hasattr(result, "numpy") else [r.numpy() for r in result]

    return call


def make(body: Body, shapes: Sequence[tuple[int, ...]]) -> Model:
    """A model of ``body`` on float32 inputs ``x0``, ``x1``, ... in the form that optimize leaves; the result is ``y``."""
    inputs = [relax.Var(f"x{i}", relax.TensorType(shape, "float32")) for i, shape in enumerate(shapes)]
    builder = relax.BlockBuilder()
    with builder.function("main", inputs):
        with builder.dataflow():
            result = body(lambda name, expr: builder.emit(expr, name_hint=name), *inputs)
            returned = relax.Tuple(result) if isinstance(result, list) else result
            out = builder.emit_output(returned, name_hint="y")
        builder.emit_func_output(out)
    module = relax.transform.CanonicalizeBindings()(builder.get())
    infos = tuple(TensorInfo(v.name, shape, "float32") for v, shape in zip(inputs, shapes, strict=True))
    return Model(module, infos, (TensorInfo("y", (), "float32"),), "small")


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return load_recipe("int8")


@pytest.fixture(scope="session")
def model() -> Callable[[Body, Sequence[tuple[int, ...]]], Model]:
    return make


@pytest.fixture(scope="session")
def quantized(recipe: Recipe) -> Callable[..., Quantized]:
    """``quantized(body, shapes, storage="uint8", recipe=int8)``: annotated, calibrated on 4 samples, realized, run."""

    def through(body: Body, shapes: Sequence[tuple[int, ...]], storage: str = "uint8", recipe: Recipe = recipe) -> Quantized:
        floating = make(body, shapes)
        plan = annotate(floating, recipe)
        random = np.random.default_rng(0)
        samples = [{f"x{i}": random.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)} for _ in range(4)]
        calibration = calibrate(floating, plan, recipe, samples, run)
        integer, coverage = realize(floating, plan, calibration.qparams, storage)
        relax.analysis.well_formed(integer.module)
        arguments = list(samples[0].values())
        outputs, _ = interpret(integer.module, arguments)
        return Quantized(floating, plan, calibration, integer, coverage, outputs, run(floating.module)(arguments))

    return through
