"""Builds one kernel for this machine and runs it beside its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm

from tvmflow.build.calls import bindings
from tvmflow.kernels import spec as ks
from tvmflow.kernels.call import kernel_of
from tvmflow.kernels.reference import run_kernel
from tvmflow.runtime import cpu
from tvmflow.schedule.template import template_for
from tvmflow.target import Target, get_target

X86_NEEDS = {
    "vnni512": {"avx512_vnni", "avx512vl"},
    "vnni256": {"avx512_vnni", "avx512vl"},
    "vnni128": {"avx512_vnni", "avx512vl"},
    "maddwd512": {"avx512bw"},
    "maddwd256": {"avx2"},
    "maddwd128": {"sse4_1"},
    "sse2": set(),
    "fma512": {"avx512f"},
    "fma256": {"fma"},
    "fma128": {"fma"},
    "sse": set(),
}
"""CPU features by instruction, for those that an x86 machine may run; plain arithmetic runs anywhere."""

PLAIN = ("neon", "neon4", "generic", "generic_f32")


def runnable(names: tuple[str, ...]) -> list[str]:
    """Those of ``names`` that this machine can execute."""
    here = cpu.features()
    return [n for n in names if n in PLAIN or (cpu.arch() == "x86_64" and n in X86_NEEDS and X86_NEEDS[n] <= here)]


def tensors(spec: ks.Kernel, seed: int = 0) -> list[np.ndarray]:
    """Arguments that exercise the whole range of every type, ``quant`` values included."""
    rng = np.random.default_rng(seed)
    make = {
        ks.Conv2d: _conv2d, ks.Chain: _chain, ks.MatMul: _matmul, ks.Attention: _attention, ks.Binary: _binary,
        ks.Pool2d: _pool2d, ks.Lookup: _lookup, ks.Quantize: _quantize, ks.Dequantize: _dequantize,
    }  # fmt: skip
    return make[type(spec)](spec, rng)


def specs(module: tvm.IRModule) -> list[ks.Kernel]:
    """Signatures of the kernel calls of a module, in order."""
    return [spec for binding in bindings(module["main"]) if (spec := kernel_of(binding.value)) is not None]


def check(spec: ks.Kernel, tile: Any, target: Target | None = None, seed: int = 0) -> None:
    """The kernel's output equals the oracle's: to the last bit for integers, to rounding for float32 arithmetic."""
    target = target or get_target("native")
    args = tensors(spec, seed)
    expected = run_kernel(spec, args)
    got = run(spec, tile, args, target)
    if spec.is_integer:
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


def run(spec: ks.Kernel, tile: Any, args: list[np.ndarray], target: Target) -> np.ndarray:
    """First output of the generated code."""
    return run_outputs(spec, tile, args, target)[0]


def run_outputs(spec: ks.Kernel, tile: Any, args: list[np.ndarray], target: Target) -> list[np.ndarray]:
    """Every output of the generated code, with the constants packed as compile packs them."""
    template = template_for(spec, target)
    names = argument_names(spec)
    function = template.emit(spec, tile, "main").with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": function}), target=target.host())
    constant = [i for i, n in enumerate(names) if n not in ("x", "a", "b", "residual")]
    for i, value in zip(constant, template.pack(spec, tile, [args[i] for i in constant]), strict=True):
        args = [*args[:i], value, *args[i + 1 :]]
    arrays = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in [*args, *(np.zeros(*out) for out in spec.outputs)]]
    library["main"](*arrays)
    return [a.numpy() for a in arrays[len(args) :]]


def argument_names(spec: ks.Kernel) -> tuple[str, ...]:
    """Names of the arguments that ``spec`` takes, in order."""
    if isinstance(spec, ks.Conv2d) and not spec.is_integer:
        return ("x", "weight", "bias", "bounds", "residual")[: 5 if spec.residual else 4]
    if isinstance(spec, ks.Chain):
        constants = [f"{name}{i}" for i in range(len(spec.stages)) for name in ("weight", "bias", "bounds")]
        return ("x", *constants, *(["residual"] if spec.stages[-1].residual else []))
    if isinstance(spec, ks.Conv2d):
        return spec.ARGS[: 6 if spec.residual else 5]
    if isinstance(spec, ks.MatMul) and not spec.is_integer:
        return ("a", "b")
    if isinstance(spec, ks.Binary) and spec.fn == "add":
        return ("a", "b", "quant")
    if isinstance(spec, ks.Pool2d) and spec.fn == "max":
        return ("x",)
    if isinstance(spec, ks.Attention):
        present = {"quant": spec.is_integer, "mask": spec.mask is not None}
        return tuple(name for name in spec.ARGS if present.get(name, True))
    if isinstance(spec, ks.LayerNorm):
        present = {"residual": spec.residual, "multiplier": bool(spec.quantized), "quant": bool(spec.quantized)}
        return tuple(name for name in spec.ARGS if present.get(name, True))
    return spec.ARGS


def _bounds(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _bytes(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    lo, hi = _bounds(dtype)
    return rng.integers(lo, hi + 1, shape).astype(dtype)


def _activation(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.standard_normal(shape).astype(dtype) if dtype == "float32" else _bytes(rng, shape, dtype)


def _zero(rng: np.random.Generator, dtype: str) -> int:
    lo, hi = _bounds(dtype)
    return int(rng.integers(lo, hi + 1))


def _clamp(rng: np.random.Generator, dtype: str) -> list[int]:
    lo, hi = _bounds(dtype)
    return [lo, hi] if rng.integers(2) else sorted(int(v) for v in rng.choice(np.arange(lo, hi + 1), 2, replace=False))


def _fixed(rng: np.random.Generator, dtype: str) -> list[int]:
    """``[a_zero, b_zero, y_zero, lo, hi, ma, mb, shift]`` of a fixed-point add."""
    shift = int(rng.integers(1, 23))
    largest = min(1 << shift, 2**15 - 1)
    ma, mb = (int(v) for v in rng.integers(-largest, largest + 1, 2))
    return [_zero(rng, dtype), _zero(rng, dtype), _zero(rng, dtype), *_clamp(rng, dtype), ma, mb, shift]


def _multiplier(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    """Multipliers that bring sums of ``spread`` terms into the range of a byte, a few of them far beyond it."""
    value = rng.uniform(0.2, 3.0, count) / (70 * np.sqrt(spread))
    value[rng.uniform(size=count) < 0.1] *= 1e4
    return value.astype(np.float32)


def _conv2d(spec: ks.Conv2d, rng: np.random.Generator) -> list[np.ndarray]:
    x = _activation(rng, spec.in_shape, spec.x)
    shape = (spec.oc, spec.kh, spec.kw, spec.ic // spec.groups)
    residual = [_activation(rng, spec.out_shape, spec.y)] if spec.residual else []
    if not spec.is_integer:
        weight = rng.standard_normal(shape).astype(np.float32)
        bounds = np.array([[-np.inf, np.inf], [0, 6]][rng.integers(2)], np.float32)
        return [x, weight, rng.standard_normal(spec.oc).astype(np.float32), bounds, *residual]
    weight = rng.integers(-127, 128, shape).astype(np.int8)
    bias = rng.integers(-5000, 5000, spec.oc).astype(np.int32)
    multiplier = _multiplier(rng, spec.oc, 127 * spec.kh * spec.kw * spec.ic / spec.groups)
    stored = spec.y if spec.y != "float32" else spec.x
    quant = [_zero(rng, spec.x), _zero(rng, stored), *_clamp(rng, stored)]
    if spec.residual:
        quant += _fixed(rng, stored)
        quant[4] = quant[1]
    return [x, weight, bias, multiplier, np.array(quant, np.int32), *residual]


def _chain(spec: ks.Chain, rng: np.random.Generator) -> list[np.ndarray]:
    x, *args = _conv2d(spec.stages[0], rng)
    for stage in spec.stages[1:]:
        args += _conv2d(stage, rng)[1:]
    return [x, *args]


def _matmul(spec: ks.MatMul, rng: np.random.Generator) -> list[np.ndarray]:
    b_shape = (spec.batch, spec.n, spec.k) if spec.transpose_b else (spec.batch, spec.k, spec.n)
    a, b = _activation(rng, (spec.batch, spec.m, spec.k), spec.x), _activation(rng, b_shape, spec.x)
    if not spec.is_integer:
        return [a, b]
    stored = spec.y if spec.y != "float32" else spec.x
    quant = [_zero(rng, spec.x), _zero(rng, spec.x), _zero(rng, stored), *_clamp(rng, stored)]
    return [a, b, _multiplier(rng, 1, 70 * spec.k), np.array(quant, np.int32)]


def _attention(spec: ks.Attention, rng: np.random.Generator) -> list[np.ndarray]:
    """Scores that differ by a few powers of 2, probabilities up to what a byte holds or beyond, a mask that hides some."""
    shapes = [(spec.batch, rows, spec.heads, depth) for rows, depth in ((spec.m, spec.d), (spec.n, spec.d), (spec.n, spec.dv))]
    multiplier = [rng.uniform(20, 500) / (70 * np.sqrt(spec.d)), rng.choice([255.0, 400.0]), _multiplier(rng, 1, 70 * spec.n)[0]]
    args = [_activation(rng, s, spec.x) for s in shapes]
    if spec.is_integer:
        lowest = _bounds(spec.x)[0]
        zeros = [_zero(rng, spec.x), int(rng.choice([lowest, _zero(rng, spec.x)])), _zero(rng, spec.x), _zero(rng, spec.y)]
        args += [np.array(multiplier, np.float32), np.array([*zeros, *_clamp(rng, spec.y)], np.int32)]
    else:
        args.append(np.array([rng.uniform(0.2, 2)], np.float32))
    if spec.mask:
        hidden = np.where(rng.uniform(size=spec.mask_shape) < 0.3, -np.inf, rng.standard_normal(spec.mask_shape))
        args.append(hidden.astype(np.float32))
    return args


def _binary(spec: ks.Binary, rng: np.random.Generator) -> list[np.ndarray]:
    a, b = _bytes(rng, spec.a_shape, spec.x), _bytes(rng, spec.b_shape, spec.x)
    if spec.fn == "add":
        return [a, b, np.array(_fixed(rng, spec.y), np.int32)]
    quant = [_zero(rng, spec.x), _zero(rng, spec.x), _zero(rng, spec.y), *_clamp(rng, spec.y)]
    return [a, b, np.array([0.004], np.float32), np.array(quant, np.int32)]


def _pool2d(spec: ks.Pool2d, rng: np.random.Generator) -> list[np.ndarray]:
    x = _activation(rng, (spec.n, spec.h, spec.w, spec.c), spec.x)
    if spec.fn == "max":
        return [x]
    counts = np.arange(spec.kh * spec.kw + 1)
    multiplier = (1.3 / np.maximum(counts, 1)).astype(np.float32)
    return [x, multiplier, np.array([_zero(rng, spec.x), _zero(rng, spec.y), *_clamp(rng, spec.y)], np.int32)]


def _lookup(spec: ks.Lookup, rng: np.random.Generator) -> list[np.ndarray]:
    return [_bytes(rng, spec.shape, spec.x), _bytes(rng, (256,), spec.y)]


def _quantize(spec: ks.Quantize, rng: np.random.Generator) -> list[np.ndarray]:
    x = (rng.standard_normal(spec.in_shape) * 3).astype(np.float32)
    special = np.array([np.inf, -np.inf, 0.5 * 0.03, 1.5 * 0.03, -2.5 * 0.03, -0.0, 1e30], np.float32)
    flat = x.reshape(-1)
    flat[: min(flat.size, special.size)] = special[: flat.size]
    return [x, np.array([0.03], np.float32), np.array([_zero(rng, spec.y)], np.int32)]


def _dequantize(spec: ks.Dequantize, rng: np.random.Generator) -> list[np.ndarray]:
    return [_bytes(rng, spec.shape, spec.x), np.array([0.037], np.float32), np.array([_zero(rng, spec.x)], np.int32)]
