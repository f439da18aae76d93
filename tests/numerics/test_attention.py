"""Integer attention: generated code equals the oracle to the last bit, the oracle is near softmax attention in float64, and
chains of kernels become one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from tests.numerics.kernels import check, run, runnable, specs, tensors
from tests.numerics.test_products import offering
from tvmflow.kernels.call import kernel_call
from tvmflow.kernels.exp2 import FRACTION_BITS, VALUE_BITS, exp2_below
from tvmflow.kernels.interpret import interpret
from tvmflow.kernels.reference import run_kernel
from tvmflow.kernels.spec import Attention, MatMul, Quantize
from tvmflow.model import Model
from tvmflow.schedule.attention import AttentionTile
from tvmflow.schedule.fuse_attention import fuse_attention
from tvmflow.schedule.fuse_float_attention import fuse_float_attention

INSTRUCTIONS = runnable(("vnni512", "vnni256", "maddwd512", "maddwd256", "maddwd128", "sse2", "neon", "generic"))
FLOAT = runnable(("fma512", "fma256", "fma128", "sse", "generic_f32"))
DEPTHS = st.sampled_from((4, 8, 12, 20, 36))
ROWS = st.sampled_from((1, 2, 5, 16, 17, 33))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    instruction=st.sampled_from(INSTRUCTIONS), batch=st.sampled_from((1, 2)), m=ROWS, n=ROWS, d=DEPTHS, dv=DEPTHS,
    masked=st.sampled_from((None, "keys", "queries", "batches")), mr=st.integers(1, 5), nr=st.integers(1, 2),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_equals_the_oracle(
    instruction: str, batch: int, m: int, n: int, d: int, dv: int, masked: str | None, mr: int, nr: int, seed: int
) -> None:
    mask = {None: None, "keys": (1, 1), "queries": (1, m), "batches": (batch, m)}[masked]
    x = "uint8" if instruction.startswith("vnni") else "int8"
    spec = Attention(batch, 3, m, n, d, dv, mask, x, x)
    check(spec, AttentionTile(instruction, min(mr, m), nr), offering(instruction), seed)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    instruction=st.sampled_from(FLOAT), batch=st.sampled_from((1, 2)), m=ROWS, n=ROWS, d=st.sampled_from((1, 4, 7, 36)),
    dv=DEPTHS, masked=st.sampled_from((None, "keys", "queries", "batches")), mr=st.integers(1, 5), nr=st.integers(1, 2),
)  # fmt: skip
def test_float_is_near_the_oracle(
    instruction: str, batch: int, m: int, n: int, d: int, dv: int, masked: str | None, mr: int, nr: int
) -> None:
    mask = {None: None, "keys": (1, 1), "queries": (1, m), "batches": (batch, m)}[masked]
    spec = Attention(batch, 3, m, n, d, dv, mask, "float32", "float32")
    args = tensors(spec)
    if mask:
        args[-1][:, :, 0] = 0  # where a row is hidden as a whole, the oracle has no answer
    got = run(spec, AttentionTile(instruction, min(mr, m), nr), args, offering(instruction))
    np.testing.assert_allclose(got, run_kernel(spec, args), rtol=1e-4, atol=1e-5)


def test_powers() -> None:
    below = np.arange(0, 40 << FRACTION_BITS, 7)
    exact = 2.0 ** (-below / 2**FRACTION_BITS)
    error = exp2_below(below) / 2**VALUE_BITS - exact
    assert np.all(np.abs(error) <= 1e-4 * exact + 2.0**-VALUE_BITS)
    assert exp2_below(np.array([1 << 30])) == 0


@pytest.mark.parametrize("storage", ("uint8", "int8"))
def test_oracle_is_near_float64(storage: str) -> None:
    spec = Attention(1, 2, 6, 9, 8, 4, (1, 1), storage, storage)
    q, k, v, _, _, mask = tensors(spec)
    zero = 128 if storage == "uint8" else 0
    score, output = 1e-4, 0.7
    quant = np.array([zero + 3, zero - 128, zero - 5, zero, zero - 128, zero + 127], np.int32)
    multiplier = np.array([score * np.log2(np.e) * 2**FRACTION_BITS, 255.0, 1 / 255 / output], np.float32)
    got = run_kernel(spec, [q, k, v, multiplier, quant, mask]).astype(float) - zero
    queries, keys, values = (t.astype(float) - z for t, z in ((q, zero + 3), (k, zero), (v, zero - 5)))
    scores = np.einsum("bmhd,bnhd->bhmn", queries, keys) * score + mask[:, None]
    e = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhmn,bnhd->bmhd", e / e.sum(-1, keepdims=True), values) / output
    # each of nine probabilities is rounded to 1/255, and the result to a whole step
    assert np.abs(got - np.clip(expected, -128, 127)).max() < 0.5 + 9 * 0.5 / 255 * 133 / output


def test_zero_points_of_both_storages_agree() -> None:
    spec = Attention(1, 1, 5, 7, 8, 8, None, "int8", "int8")
    q, k, v, multiplier, quant = tensors(spec)
    shifted = [(t.astype(np.int32) + 128).astype(np.uint8) for t in (q, k, v)]
    signed = run_kernel(spec, [q, k, v, multiplier, quant])
    unsigned = run_kernel(Attention(1, 1, 5, 7, 8, 8, None), [*shifted, multiplier, quant + 128])
    np.testing.assert_array_equal(signed.astype(np.int32) + 128, unsigned)


def chain(operands_permuted: bool = True, mask_shape: tuple[int, ...] | None = (1, 1, 1, 6), second_reader: bool = False) -> Any:
    """Attention of 2 heads over 6 tokens as realize writes it: dense layers' results in, ``[1, 6, 2, 4]`` out."""
    b = relax.BlockBuilder()
    shape = (1, 6, 2, 4) if operands_permuted else (1, 2, 6, 4)
    params = [relax.Var(n, relax.TensorType(shape, "uint8")) for n in "qkv"]
    if mask_shape:
        params.append(relax.Var("mask", relax.TensorType(mask_shape, "float32")))
    one = [relax.const(np.array([0.01], np.float32)), relax.const(np.array([120, 130, 0, 0, 0], np.int32))]
    two = [relax.const(np.array([0.02], np.float32)), relax.const(np.array([0, 125, 128, 0, 255], np.int32))]
    with b.function("main", params):
        with b.dataflow():
            q, k, v = params[:3]
            if operands_permuted:
                q, v = (b.emit(relax.op.permute_dims(t, (0, 2, 1, 3))) for t in (q, v))
            k = b.emit(relax.op.permute_dims(k, (0, 2, 3, 1) if operands_permuted else (0, 1, 3, 2)))
            q, k, v = (b.emit(relax.op.reshape(t, s)) for t, s in ((q, (2, 6, 4)), (k, (2, 4, 6)), (v, (2, 6, 4))))
            scores = b.emit(kernel_call(MatMul(2, 6, 4, 6, y="float32"), [q, k, *one]))
            scores = b.emit(relax.op.reshape(scores, (1, 2, 6, 6)))
            if mask_shape:
                scores = b.emit(relax.op.add(scores, params[3]))
            p = b.emit(relax.op.nn.softmax(scores, axis=-1), name_hint="softmax")
            scale, zero = relax.const(np.array([1 / 255], np.float32)), relax.const(np.array([0], np.int32))
            codes = b.emit(kernel_call(Quantize((1, 2, 6, 6)), [p, scale, zero]))
            codes = b.emit(relax.op.reshape(codes, (2, 6, 6)))
            y = b.emit(kernel_call(MatMul(2, 6, 6, 4), [codes, v, *two]), name_hint="values")
            y = b.emit(relax.op.permute_dims(b.emit(relax.op.reshape(y, (1, 2, 6, 4))), (0, 2, 1, 3)))
            out = b.emit_output(relax.Tuple([y, p]) if second_reader else y)
        b.emit_func_output(out)
    return b.get()


@pytest.mark.parametrize(("permuted", "mask"), [(True, (1, 1, 1, 6)), (True, None), (False, (6, 6)), (False, (1, 1, 6, 6))])
def test_chain_becomes_a_kernel(permuted: bool, mask: tuple[int, ...] | None) -> None:
    module = chain(permuted, mask)
    fused, absorbed = fuse_attention(Model(module, (), (), "test"))
    rows = None if mask is None else (1, 1) if mask == (1, 1, 1, 6) else (1, 6)
    assert specs(fused.module) == [Attention(1, 2, 6, 6, 4, 4, rows)]
    assert ("permute_dims" in fused.module.script()) == (not permuted)
    assert "softmax" in absorbed and len(absorbed) == (1 if mask is None else 2)
    rng = np.random.default_rng(1)
    inputs = [rng.integers(0, 256, [int(d) for d in p.ty.shape]).astype(np.uint8) for p in module["main"].params[:3]]
    if mask:
        inputs.append(rng.choice([0.0, -10000.0], mask).astype(np.float32))
    before, after = interpret(module, inputs)[0][0], interpret(fused.module, inputs)[0][0]
    # the float softmax rounds some probabilities to the step beside
    assert np.abs(before.astype(int) - after.astype(int)).max() <= 6


def test_probabilities_that_others_read_stay() -> None:
    module = chain(second_reader=True)
    fused, absorbed = fuse_attention(Model(module, (), (), "test"))
    assert not absorbed and not any(isinstance(s, Attention) for s in specs(fused.module))


def test_mask_that_differs_between_heads_stays() -> None:
    _, absorbed = fuse_attention(Model(chain(mask_shape=(1, 2, 6, 6)), (), (), "test"))
    assert not absorbed


def float_chain(
    mask_shape: tuple[int, ...] | None = (1, 1, 1, 6), scale: Any = 0.5, depth: int = 4, axis: int = -1, reader: str = ""
) -> Any:
    """Attention of 2 heads over 6 tokens as importers write it, read by nobody else or also at the tensor ``reader``."""
    b = relax.BlockBuilder()
    params = [relax.Var(n, relax.TensorType((1, 6, 2, depth), "float32")) for n in "qkv"]
    if mask_shape:
        params.append(relax.Var("mask", relax.TensorType(mask_shape, "float32")))
    with b.function("main", params):
        with b.dataflow():
            q, v = (b.emit(relax.op.permute_dims(t, (0, 2, 1, 3))) for t in (params[0], params[2]))
            k = b.emit(relax.op.permute_dims(params[1], (0, 2, 3, 1)))
            named = {"scores": b.emit(relax.op.matmul(q, k))}
            if scale is not None:
                named["scores"] = b.emit(relax.op.multiply(named["scores"], relax.const(np.asarray(scale, np.float32))))
            named["masked"] = b.emit(relax.op.add(named["scores"], params[3])) if mask_shape else named["scores"]
            named["softmax"] = b.emit(relax.op.nn.softmax(named["masked"], axis=axis))
            y = b.emit(relax.op.matmul(named["softmax"], v), name_hint="context")
            y = b.emit(relax.op.reshape(b.emit(relax.op.permute_dims(y, (0, 2, 1, 3))), (1, 6, 2 * depth)))
            out = b.emit_output(relax.Tuple([y, named[reader]]) if reader else y)
        b.emit_func_output(out)
    return b.get()


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize(("mask", "rows"), [(None, None), ((1, 1, 1, 6), (1, 1)), ((6, 6), (1, 6))])
def test_float_chain_becomes_a_kernel(mask: tuple[int, ...] | None, rows: tuple[int, int] | None, scale: float | None) -> None:
    module = float_chain(mask, scale)
    fused = fuse_float_attention(Model(module, (), (), "test")).module
    assert specs(fused) == [Attention(1, 2, 6, 6, 4, 4, rows, "float32", "float32")]
    assert not any(name in fused.script() for name in ("permute_dims", "softmax", "matmul", "R.add"))
    rng = np.random.default_rng(1)
    inputs = [rng.standard_normal([int(d) for d in p.ty.shape]).astype(np.float32) for p in module["main"].params]
    before, (after, named) = interpret(module, inputs)[0][0], interpret(fused, inputs)
    np.testing.assert_allclose(after[0], before, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(named["context/attention"].reshape(1, 6, 8), after[0])


@pytest.mark.parametrize(
    "options",
    [
        {"reader": "scores"}, {"reader": "masked"}, {"reader": "softmax"}, {"mask_shape": (1, 2, 6, 6)}, {"axis": 1},
        {"scale": [[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]]}, {"depth": 3},
    ],
)  # fmt: skip
def test_float_chains_that_stay(options: dict[str, Any]) -> None:
    fused = fuse_float_attention(Model(float_chain(**options), (), (), "test")).module
    assert not specs(fused) and fused.script().count("R.matmul") == 2
