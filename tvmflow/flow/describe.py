"""What an artifact carries beside its program: the manifest, and the vectors of its self-test."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tvmflow.flow.lower import Lowered, host_runner, library_runner, operators
from tvmflow.target import Target

if TYPE_CHECKING:
    import tvm

    from tvmflow.build.compile import Built
    from tvmflow.build.manifest import Layer, Manifest, Vector
    from tvmflow.model import TensorInfo
    from tvmflow.schedule.apply import ScheduledKernel

SELF_TESTS = 2
NOISE_PERIOD = 1021
FLOAT_TOLERANCE = 1e-3
"""Largest difference of a self-test's output, relative to the largest expected value, where float islands round differently."""


def runs_here(target: Target) -> bool:
    """Whether this machine can execute code for ``target``."""
    from tvmflow.runtime import cpu

    return target.cuda is None and target.arch == cpu.arch() and cpu.features() >= set(target.features)


def self_tests(lowered: Lowered, library: Path | None = None) -> list[Vector]:
    """Inputs (a calibration sample first, then seeded noise) with their outputs.

    ``library`` is the compiled program where this machine can run it; without one the same kernels are compiled for this machine.
    """
    run = host_runner(lowered.model.module) if library is None else library_runner(library)
    data = lowered.quantization.data if lowered.quantization else None
    rng = np.random.default_rng(0)
    inputs = [[noise(i, rng) for i in lowered.model.inputs] for _ in range(SELF_TESTS)]
    if data is not None:
        sample = next(iter(data))
        inputs[0] = [sample[i.name] for i in lowered.model.inputs]
    return [(arrays, run(arrays)) for arrays in inputs]


def noise(info: TensorInfo, rng: np.random.Generator) -> np.ndarray:
    """Values from -2 to 2 in steps of 1/64 (0 and 1 for integers) that compress well, for the artifact carries them.

    They repeat after NOISE_PERIOD elements: a prime, so that no row, channel or tile of a tensor equals the one beside it.
    """
    if info.dtype.startswith(("int", "uint", "bool")):
        return np.resize(rng.integers(0, 2, NOISE_PERIOD), info.shape).astype(info.dtype)
    return np.resize(rng.integers(-128, 129, NOISE_PERIOD) / 64, info.shape).astype(info.dtype)


def constant_bytes(module: tvm.IRModule) -> int:
    """Bytes of all weights, biases, multipliers and tables of a module."""
    from tvmflow.optimize.expr import array, is_constant

    seen: dict[Any, int] = {}

    def visit(expr: Any) -> None:
        if is_constant(expr):
            seen[expr] = array(expr).nbytes

    from tvm import relax

    relax.analysis.post_order_visit(module["main"], visit)
    return sum(seen.values())


def _bit_exact(lowered: Lowered) -> bool:
    """Whether every operator is integer, so that every target gives the same bits."""
    return lowered.precision == "int8" and lowered.coverage.float == 0


def layers(built: Built, kernels: Sequence[ScheduledKernel]) -> tuple[Layer, ...]:
    """Every kernel call of the program with the schedule that it got."""
    from tvmflow.build.manifest import Layer
    from tvmflow.schedule.template import executed_ops

    waiting: dict[str, deque[ScheduledKernel]] = defaultdict(deque)
    for kernel in kernels:
        waiting[kernel.function].append(kernel)
    found = []
    for call in built.calls:
        if waiting[call.kernel]:
            k = waiting[call.kernel].popleft()
            schedule = f"{schedule_text(k.tile)} {call.into}".rstrip()
            gop = executed_ops(k.spec, k.tile) / 1e9
            found.append(Layer(k.layer, k.template, gop, call.function, k.spec.is_integer, schedule, k.tuned))
        else:
            schedule = f"generic {call.into}".rstrip()
            found.append(Layer(" + ".join(call.layers), "+".join(call.ops), kernel=call.function, schedule=schedule))
    return tuple(found)


def schedule_text(tile: Any) -> str:
    """Kind of decision and its values in short form, those of a chain's stages behind: ``conv2d vnni512 1x14x2 threads``.

    Without ``ahead``: what a kernel asks for on behalf of the next one decides nothing about itself.
    """
    kind = str(tile.__struct_config__.tag)
    values = {key: value for key, value in msgspec.structs.asdict(tile).items() if key != "ahead"}
    names = [value for value in values.values() if isinstance(value, str)]
    sizes = "x".join(str(value) for value in values.values() if type(value) is int)
    flags = [key for key, value in values.items() if value is True]
    stages = [f"({schedule_text(stage)})" for value in values.values() if isinstance(value, tuple) for stage in value]
    return " ".join([kind, *names, sizes, *flags, *stages])


def kernel_counts(built: Built, kernels: Sequence[ScheduledKernel]) -> dict[str, int]:
    """How many kernel calls there are, how many of them a template made, and how many of those a tuning log decided.

    Of concatenations: how many operands are written in place, and how many calls copy some. ``one_by_one``: how many calls TVM's
    virtual machine makes, where not one function makes all.
    """
    copies = sum(call.is_copy for call in built.calls)
    return {
        "total": len(built.calls),
        "specialised": len(kernels),
        "tuned": sum(k.tuned for k in kernels),
        "in_place": sum(bool(call.into) and not call.is_copy for call in built.calls),
        "copies": copies,
        "one_by_one": len(built.calls) if built.layered == "main" else 0,
    }


def describe(
    lowered: Lowered, target: Target, kernels: Sequence[ScheduledKernel], built: Built, weights: int, log: str
) -> Manifest:
    """The manifest of an artifact."""
    from tvmflow.build import manifest as mf
    from tvmflow.build.versions import versions

    model, quantization, bit_exact = lowered.model, lowered.quantization, _bit_exact(lowered)
    summary: dict[str, Any] = {}
    preprocess = None
    if quantization:
        summary = {
            "recipe": quantization.recipe.name,
            "origin": quantization.origin,
            "storage": target.int8.storage,
            "sites": len(quantization.params),
        }
        if quantization.data is not None and quantization.data.preprocess is not None:
            preprocess = msgspec.to_builtins(quantization.data.preprocess)
    return mf.Manifest(
        target=target.name,
        arch=target.arch,
        isa_required=target.features,
        inputs=model.inputs,
        outputs=model.outputs,
        precision=lowered.precision,
        name=model.name,
        device="cuda" if target.cuda else "cpu",
        device_arch=target.cuda.arch if target.cuda else "",
        preprocess=preprocess,
        quantization=summary,
        provenance=mf.Provenance(
            model_sha256=model.sha256,
            calibration_sha256=quantization.data.sha256 if quantization and quantization.data else "",
            recipe=quantization.recipe.name if quantization else "",
            tuning_log=log,
            versions=versions(),
        ),
        operators=operators(lowered),
        kernels=kernel_counts(built, kernels),
        layers=layers(built, kernels),
        layered=built.layered,
        weight_bytes=weights,
        workspace=built.workspace,
        borrowed=tuple(model.inputs[i].name for i in built.borrowed),
        self_test=mf.SelfTest(tolerance=0.0 if bit_exact else FLOAT_TOLERANCE, bit_exact=bit_exact),
    )
