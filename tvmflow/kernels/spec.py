"""Kernel signatures: the shapes and types that decide the generated code, nothing else.

A signature holds no scale and no zero point. Those are arguments, so that layers of one shape share one kernel, one tuning
record and one piece of machine code. ``ARGS`` of each class names its arguments in order; the arithmetic is in ``reference``.

Activations are NHWC. ``x``, ``a``, ``b`` and ``y`` are dtypes: ``int8``, ``uint8`` (storage type ``q + 128`` of targets whose
dot product wants unsigned operands) or ``float32``. Every value in a ``quant`` argument is in the storage domain. ``quant`` is
int32, ``multiplier``, ``scale`` and ``bounds`` are float32.
"""

from __future__ import annotations

from typing import ClassVar, TypeAlias

import msgspec


class Spec(msgspec.Struct, frozen=True, tag_field="op"):
    """Base of all kernel signatures."""

    ARGS: ClassVar[tuple[str, ...]]

    @property
    def out_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    @property
    def out_dtype(self) -> str:
        return str(getattr(self, "y"))  # noqa: B009  every concrete class has the field

    @property
    def outputs(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        """Shape and dtype of each result; the first is ``out_shape``, ``out_dtype``, and the only one of most kernels."""
        return ((self.out_shape, self.out_dtype),)

    @property
    def ops(self) -> int:
        """Arithmetic operations, a multiply-add counted as two; 0 where data only moves."""
        return 0

    @property
    def is_integer(self) -> bool:
        return True


class Conv2d(Spec, frozen=True, tag="conv2d"):
    """Convolution with bias, requantize, clamp and an optional residual add; also dense layers (``h = 1, w = rows``).

    Integer (``x`` int8/uint8), arguments ``x, weight, bias, multiplier, quant[, residual]``:
      weight int8 ``[oc, kh, kw, ic/groups]``, zero point 0; bias int32 ``[oc]``, scale ``s_x * s_w[c]``; multiplier ``[oc]``.
      ``quant = [x_zero, y_zero, lo, hi]``; with ``residual`` eight more values: those of the ``Binary`` add that
      follows, ``[a_zero, b_zero, z_zero, z_lo, z_hi, ma, mb, shift]``, where a is the convolution and b the residual tensor.
      ``y == "float32"``: the result is dequantized, ``float32(acc) * multiplier[c]``; ``y_zero, lo, hi`` are ignored.
    Float (``x == "float32"``), arguments ``x, weight, bias, bounds[, residual]``:
      ``clip(conv + bias (+ residual), bounds[0], bounds[1])``; infinite bounds mean no clamp. With ``activation``, that function
      of the sum in place of the clamp. With ``nchw``, x is ``[n, ic, h, w]``.
    """

    n: int
    h: int
    w: int
    ic: int
    oc: int
    kh: int = 1
    kw: int = 1
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    """top, left, bottom, right"""
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    x: str = "uint8"
    y: str = "uint8"
    residual: bool = False
    nchw: bool = False
    activation: str = ""
    """One of :data:`UNARY`, or none; float only."""

    ARGS = ("x", "weight", "bias", "multiplier", "quant", "residual")

    @property
    def in_shape(self) -> tuple[int, ...]:
        return (self.n, self.ic, self.h, self.w) if self.nchw else (self.n, self.h, self.w, self.ic)

    @property
    def oh(self) -> int:
        return (self.h + self.pad[0] + self.pad[2] - (self.kh - 1) * self.dilation[0] - 1) // self.stride[0] + 1

    @property
    def ow(self) -> int:
        return (self.w + self.pad[1] + self.pad[3] - (self.kw - 1) * self.dilation[1] - 1) // self.stride[1] + 1

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.n, self.oh, self.ow, self.oc)

    @property
    def ops(self) -> int:
        return 2 * self.n * self.oh * self.ow * self.oc * self.kh * self.kw * (self.ic // self.groups)

    @property
    def is_integer(self) -> bool:
        return self.x != "float32"

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.ic == self.oc and self.groups > 1


class Chain(Spec, frozen=True, tag="chain"):
    """Convolutions of which each reads the one before it, row by row, so that what is between them never leaves the cache.

    Arguments: those of the first stage without its residual; of every other stage without ``x`` and residual; the last stage's
    residual.
    """

    stages: tuple[Conv2d, ...]

    ARGS = ("x", "stages", "residual")
    CONSTANTS: ClassVar[int] = 3
    """Of a float stage: weight, bias, bounds."""

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.stages[-1].out_shape

    @property
    def out_dtype(self) -> str:
        return self.stages[-1].y

    @property
    def ops(self) -> int:
        return sum(stage.ops for stage in self.stages)

    @property
    def is_integer(self) -> bool:
        return self.stages[0].is_integer


class MatMul(Spec, frozen=True, tag="matmul"):
    """Batched product of two activations, ``[batch, m, k] x [batch, k, n]`` (``[batch, n, k]`` when ``transpose_b``).

    Integer, arguments ``a, b, multiplier [1], quant = [a_zero, b_zero, y_zero, lo, hi]``; ``y == "float32"`` dequantizes.
    Float, arguments ``a, b``.
    """

    batch: int
    m: int
    k: int
    n: int
    transpose_b: bool = False
    x: str = "uint8"
    y: str = "uint8"

    ARGS = ("a", "b", "multiplier", "quant")

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.batch, self.m, self.n)

    @property
    def ops(self) -> int:
        return 2 * self.batch * self.m * self.n * self.k

    @property
    def is_integer(self) -> bool:
        return self.x != "float32"


class Attention(Spec, frozen=True, tag="attention"):
    """Softmax attention of all heads: ``q [batch, m, heads, d]``, ``k [batch, n, heads, d]``, ``v [batch, n, heads, dv]`` in,
    ``[batch, m, heads, dv]`` out, as dense layers write and read them.

    Float, arguments ``q, k, v, multiplier [1][, mask]``: ``softmax(q k^T * multiplier + mask) v``.
    Integer throughout, arguments ``q, k, v, multiplier [3], quant[, mask]``:
      ``quant = [q_zero, p_zero, v_zero, y_zero, lo, hi]``, where p are the probabilities. ``multiplier`` takes products of
      queries and keys to steps of a score (kernels/exp2.py), is ``1 / scale`` of the probabilities, and takes weighted values to
      the output's scale. The zero point of k adds the same to all scores of a query, which no softmax notices: there is none.
    ``mask`` float32 ``mask_shape`` is added to the scores before the softmax.
    """

    batch: int
    heads: int
    m: int
    n: int
    d: int
    dv: int
    mask: tuple[int, int] | None = None
    """Batches and queries of the mask, each 1 or as many as there are."""
    x: str = "uint8"
    y: str = "uint8"

    ARGS = ("q", "k", "v", "multiplier", "quant", "mask")

    @property
    def mask_shape(self) -> tuple[int, int, int]:
        """Shape of the mask of a kernel that has one."""
        return (*(self.mask or (0, 0)), self.n)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.batch, self.m, self.heads, self.dv)

    @property
    def ops(self) -> int:
        return 2 * self.batch * self.heads * self.m * self.n * (self.d + self.dv)

    @property
    def is_integer(self) -> bool:
        return self.x != "float32"


class Binary(Spec, frozen=True, tag="binary"):
    """Elementwise ``add`` or ``mul`` of two quantized tensors with numpy broadcasting of equal ranks.

    add, arguments ``a, b, quant = [a_zero, b_zero, y_zero, lo, hi, ma, mb, shift]``: int32 fixed point,
    ``((a - a_zero) * ma + (b - b_zero) * mb + 2**(shift-1)) >> shift`` with ``|ma|, |mb| < 2**15`` and ``1 <= shift <= 22``.
    mul, arguments ``a, b, multiplier [1], quant = [a_zero, b_zero, y_zero, lo, hi]``.
    """

    fn: str
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    x: str = "uint8"
    y: str = "uint8"

    ARGS = ("a", "b", "multiplier", "quant")

    @property
    def out_shape(self) -> tuple[int, ...]:
        return tuple(max(p, q) for p, q in zip(self.a_shape, self.b_shape, strict=True))


class Pool2d(Spec, frozen=True, tag="pool2d"):
    """Max or average pooling over windows of an NHWC tensor; a global mean is a window of the whole plane.

    max: argument ``x`` only; padding never wins; output parameters equal input parameters.
    avg, arguments ``x, multiplier [kh*kw + 1], quant = [x_zero, y_zero, lo, hi]``: the int32 sum of ``x - x_zero`` over the
    elements of the window that lie inside the image, times ``multiplier[count]``, where count is the number of such elements;
    ``count_include_pad`` is expressed by equal entries in ``multiplier``.
    """

    fn: str
    n: int
    h: int
    w: int
    c: int
    kh: int
    kw: int
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    x: str = "uint8"
    y: str = "uint8"

    ARGS = ("x", "multiplier", "quant")

    @property
    def oh(self) -> int:
        return (self.h + self.pad[0] + self.pad[2] - self.kh) // self.stride[0] + 1

    @property
    def ow(self) -> int:
        return (self.w + self.pad[1] + self.pad[3] - self.kw) // self.stride[1] + 1

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.n, self.oh, self.ow, self.c)


class Lookup(Spec, frozen=True, tag="lookup"):
    """256-entry table applied to each element: every elementwise function of one quantized tensor, and requantize.

    Arguments ``x, table [256]`` of dtype ``y``. Entry i belongs to the storage byte i of uint8, i - 128 of int8.
    """

    shape: tuple[int, ...]
    x: str = "uint8"
    y: str = "uint8"

    ARGS = ("x", "table")

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.shape


class Quantize(Spec, frozen=True, tag="quantize"):
    """float32 to integers: ``clip(rint(x / scale) + zero, lo, hi)``, half to even, with a fused transpose of NCHW input.

    Arguments ``x, scale [1], quant = [y_zero]``. ``shape`` is the output's. With ``nchw`` the input is ``[n, c, h, w]`` and the
    output ``[n, h, w, c]``.
    """

    shape: tuple[int, ...]
    nchw: bool = False
    y: str = "uint8"

    ARGS = ("x", "scale", "quant")

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def in_shape(self) -> tuple[int, ...]:
        if not self.nchw:
            return self.shape
        n, h, w, c = self.shape
        return (n, c, h, w)


class Dequantize(Spec, frozen=True, tag="dequantize"):
    """Integers to float32: ``(q - zero) * scale``. Arguments ``x, scale [1], quant = [x_zero]``."""

    shape: tuple[int, ...]
    x: str = "uint8"

    ARGS = ("x", "scale", "quant")

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def out_dtype(self) -> str:
        return "float32"


class Unary(Spec, frozen=True, tag="unary"):
    """Elementwise float32 function of :data:`UNARY`. Argument ``x``."""

    fn: str
    shape: tuple[int, ...]

    ARGS = ("x",)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.shape

    @property
    def out_dtype(self) -> str:
        return "float32"

    @property
    def is_integer(self) -> bool:
        return False


UNARY = ("exp", "sigmoid", "tanh", "erf", "gelu", "silu")


class Softmax(Spec, frozen=True, tag="softmax"):
    """float32 softmax of each row of ``x [rows, n]``."""

    rows: int
    n: int

    ARGS = ("x",)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.rows, self.n)

    @property
    def out_dtype(self) -> str:
        return "float32"

    @property
    def is_integer(self) -> bool:
        return False


class LayerNorm(Spec, frozen=True, tag="layer_norm"):
    """float32 layer normalization of each row: arguments ``x [rows, n], gamma [n], beta [n], epsilon [1]``.

    With ``residual`` that tensor ``[rows, n]`` follows and is added to x first. With ``quantized``, a storage type,
    ``multiplier [1]`` (``1 / scale``) and ``quant = [zero]`` follow, and the result is written twice: as float32 y, and as
    ``clip(rint(y * multiplier) + zero)``.
    Ba, Kiros, Hinton, Layer Normalization, 2016; ONNX LayerNormalization over the last axis.
    """

    rows: int
    n: int
    residual: bool = False
    quantized: str = ""

    ARGS = ("x", "gamma", "beta", "epsilon", "residual", "multiplier", "quant")

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.rows, self.n)

    @property
    def out_dtype(self) -> str:
        return "float32"

    @property
    def outputs(self) -> tuple[tuple[tuple[int, ...], str], ...]:
        codes = ((self.out_shape, self.quantized),) if self.quantized else ()
        return ((self.out_shape, self.out_dtype), *codes)

    @property
    def is_integer(self) -> bool:
        return False


Kernel: TypeAlias = (
    Conv2d | Chain | MatMul | Attention | Binary | Pool2d | Lookup | Quantize | Dequantize | Unary | Softmax | LayerNorm
)

_DECODER = msgspec.json.Decoder(Kernel)


def encode(spec: Kernel) -> str:
    """The signature as canonical JSON: the key of tuning records and the name of the call in Relax."""
    return msgspec.json.encode(spec, order="deterministic").decode()


def decode(text: str) -> Kernel:
    """Inverse of :func:`encode`; raises ``msgspec.ValidationError`` on anything else."""
    return _DECODER.decode(text)
