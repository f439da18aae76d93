"""Generated machine code: each named target gets its instruction, and its inner loops keep everything in registers.

Kernels have the tile of the register model, so a model that promises more registers than the processor has shows here as a spill.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import product

import msgspec
import pytest
import tvm

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule.intrinsics import BY_NAME
from tvmflow.schedule.template import template_for
from tvmflow.target import get_target, target_files

SHAPES = {
    "conv3x3": {"h": 28, "w": 28, "ic": 64, "oc": 64, "kh": 3, "kw": 3, "stride": (2, 2), "pad": (1, 1, 1, 1)},
    "winograd": {"h": 28, "w": 28, "ic": 64, "oc": 64, "kh": 3, "kw": 3, "pad": (1, 1, 1, 1)},
    "conv1x1": {"h": 28, "w": 28, "ic": 128, "oc": 128},
    "strassen": {"h": 1, "w": 128, "ic": 384, "oc": 384},
    "first": {"h": 56, "w": 56, "ic": 3, "oc": 32, "kh": 3, "kw": 3, "stride": (2, 2), "pad": (1, 1, 1, 1)},
    "dense": {"h": 1, "w": 1, "ic": 256, "oc": 128},
    "depthwise": {"h": 28, "w": 28, "ic": 64, "oc": 64, "kh": 3, "kw": 3, "pad": (1, 1, 1, 1), "groups": 64},
}
PRODUCTS = ("conv3x3", "winograd", "conv1x1", "strassen", "first", "dense")
CPUS = sorted(name for name in target_files() if get_target(name).cuda is None)

INSTRUCTION = {
    "vnni512": r"^vpdpbusd\b.*%zmm",
    "vnni256": r"^\{vex\}\s+vpdpbusd\b.*%ymm",
    "maddwd512": r"^vpmaddwd\b.*%zmm",
    "maddwd256": r"^vpmaddwd\b.*%ymm",
    "maddwd128": r"^pmaddwd\b.*%xmm",
    "sse2": r"^pmaddwd\b.*%xmm",
    "neon": r"^sm(la|ul)l2?\b",
    "sdot": r"^sdot\b",
    "wssd512": r"^vpdpwssd\b.*%zmm",
    "wssd256": r"^\{vex\}\s+vpdpwssd\b.*%ymm",
    "wmadd512": r"^vpmaddwd\b.*%zmm",
    "wmadd256": r"^vpmaddwd\b.*%ymm",
    "wmadd128": r"^pmaddwd\b.*%xmm",
    "wsmlal": r"^sm(la|ul)l2?\b",
    "fma512": r"^vfmadd(213|231)ps\b.*%zmm",
    "fma256": r"^vfmadd(213|231)ps\b.*%ymm",
    "sse": r"^mulps\b",
    "neon_f32": r"^fmla\b",
}
"""What each row of schedule/intrinsics.py must become."""

SPILLS = {
    ("maddwd128", "first"): 40,
    ("maddwd256", "first"): 40,
    ("sdot", "first"): 8,
    ("vnni512", "first"): 10,  # with the constants of the epilogue that a pipeline lays between the multiplies
    ("fma512", "first"): 5,  # of the layer here 1x7x2 spills and takes 6.1 us, 1x5x2 does not and takes 6.4
    ("fma256", "first"): 10,  # 12.2 us; 1x7x1, which does not, 13.3
    ("sse", "first"): 21,
    ("neon_f32", "first"): 1,
    ("maddwd128", "depthwise"): 1,
    ("sse2", "depthwise"): 1,
    ("sdot", "depthwise"): 2,
    ("neon_f32", "depthwise"): 1,
}
"""Vectors that may wait on the stack. LLVM unrolls the few steps of a first layer whole, keeps operands that neighbouring pixels
share, and adds products of two steps before it adds them to the sum: more values than 16 registers hold. Without the unrolling or
the regrouping the same kernels take as long on a Zen 5 (12.6 us either way)."""

SATURATES = re.compile(r"^v?pmaddubsw\b|^(\{vex\}\s+)?vpdpbusds\b|^sqdml")
"""Multiply-adds that saturate. Packs and the zero point's addition do, once the sum is rounded: schedule/packs.py."""
GATHERS = re.compile(r"^vp?(gather|scatter)")
SCALAR_MULTIPLY = re.compile(r"^v?mulss\b|^vfn?madd\d+ss\b|^fn?madd\b|^v?mulsd\b")
STORE = re.compile(r"^v?mov[au]p[sd]\s+%[xyz]mm\d+,\s*-?\w*\((?!%r[sb]p)|^st[rp]\s+q.*\[(?!sp|x29)")
JUMP = re.compile(r"^(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.L\w+)$")


@lru_cache
def instructions(name: str, shape: str, dtype: str, ahead: int = 0) -> tuple[str, ...]:
    """Labels and instructions of the kernel with its default tile, comments and directives left out."""
    target = get_target(name)
    spec = Conv2d(1, **SHAPES[shape], x=dtype, y=dtype)
    template = template_for(spec, target)
    tile = template.default(spec, target)
    tile = msgspec.structs.replace(tile, ahead=ahead) if ahead else tile
    function = template.emit(spec, tile, "main").with_attr("global_symbol", "main")
    text = tvm.tirx.build(tvm.IRModule({"main": function}), target=target.host()).inspect_source("asm")
    lines = (line.split("#" if target.arch == "x86_64" else "//")[0].strip() for line in text.splitlines())
    return tuple(line for line in lines if line and (line.endswith(":") or not line.startswith(".")))


def innermost_loops(code: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Bodies between a label and a jump back to it that hold no other such pair."""
    places = {line[:-1]: i for i, line in enumerate(code) if line.endswith(":")}
    jumps = ((JUMP.match(line), i) for i, line in enumerate(code))
    back = [(places[m[1]], i) for m, i in jumps if m and places.get(m[1], i) < i]
    return [code[a : b + 1] for a, b in back if not any((c, d) != (a, b) and a <= c and d <= b for c, d in back)]


def hottest(code: tuple[str, ...], instruction: str) -> tuple[str, ...]:
    """The innermost loop with the most multiplies, one that stores nothing if there is such: sums grow in registers, and the
    transforms of a Winograd convolution, which multiply too, are none of it."""
    pattern = re.compile(instruction)
    return max(
        innermost_loops(code), key=lambda body: (count(body, pattern) >= 4 and not count(body, STORE), count(body, pattern))
    )


def count(code: tuple[str, ...], pattern: re.Pattern[str]) -> int:
    return sum(bool(pattern.search(line)) for line in code)


def stack(code: tuple[str, ...]) -> str:
    """Registers that point to the stack: %rbp and x29 only in a function that made them the frame pointer."""
    framed = any(re.match(r"movq\s+%rsp, %rbp|(mov|add)\s+x29, sp", line) for line in code)
    return "(?:%r[sb]p|sp|x29)" if framed else "(?:%rsp|sp)"


def spills(body: tuple[str, ...], code: tuple[str, ...]) -> int:
    """Stores of ``body`` to the stack."""
    base = stack(code)
    return count(body, re.compile(rf"^v?mov\w*\s+%\w+,\s*-?\d*\({base}\b|^st[rp]\s.*\[{base}\b"))


def reloads(body: tuple[str, ...], code: tuple[str, ...]) -> int:
    """Vectors that ``body`` reads from the stack."""
    base = stack(code)
    return count(body, re.compile(rf"^\S+\s+-?\d*\({base}\).*%[xyz]mm|^ld[rp]\s+q.*\[{base}\b"))


def rows(name: str, shape: str = "") -> dict[str, str]:
    """Type of the operands -> the row that a target prefers for them."""
    target = get_target(name)
    if shape == "strassen":
        return {"float32": target.float32[0]}
    bytewise = target.int8.dot[0]
    words = BY_NAME[bytewise].words if shape == "winograd" else ""
    return {target.int8.storage: words or bytewise, "float32": target.float32[0]}


@pytest.mark.parametrize("shape", PRODUCTS)
@pytest.mark.parametrize("name", CPUS)
def test_products_keep_their_sums_in_registers(name: str, shape: str) -> None:
    for dtype, row in rows(name, shape).items():
        code = instructions(name, shape, dtype)
        body = hottest(code, INSTRUCTION[row])
        allowed = SPILLS.get((row, shape), 0)
        assert count(body, re.compile(INSTRUCTION[row])) >= 4, body
        assert spills(body, code) <= allowed and reloads(body, code) <= allowed, body


@pytest.mark.parametrize("name", CPUS)
def test_the_weights_of_the_next_kernel_take_no_registers_of_the_sums(name: str) -> None:
    prefetch = re.compile(r"^prefetcht1\b|^prfm\s+pldl2keep")
    for shape, ahead in product(("conv1x1", "winograd", "strassen"), (64 << 10, 4 << 20)):
        for dtype, row in rows(name, shape).items():
            code = instructions(name, shape, dtype, ahead)
            body = hottest(code, INSTRUCTION[row])
            assert count(body, prefetch) > 0, body
            assert spills(body, code) == reloads(body, code) == 0, body


@pytest.mark.parametrize("name", CPUS)
def test_depthwise(name: str) -> None:
    """Nine taps of a channel are three four-byte dot products, or six of two, or nine multiplies; weights that do not fit the
    registers are read where they are used."""
    for dtype, row in rows(name).items():
        code = instructions(name, "depthwise", dtype)
        body = hottest(code, INSTRUCTION[row])
        assert count(body, re.compile(INSTRUCTION[row])) >= 9, body
        assert spills(body, code) <= SPILLS.get((row, "depthwise"), 0), body


@pytest.mark.parametrize("name", [name for name in CPUS if BY_NAME[get_target(name).int8.dot[0]].group > 1])
def test_depthwise_rows_are_unpacked_in_their_lanes(name: str) -> None:
    """Six shuffles for two rows, eight for four, make four vectors of words; nothing is widened a vector at a time."""
    code = instructions(name, "depthwise", get_target(name).int8.storage)
    assert count(code, re.compile(r"^v?punpck[lh]|^zip[12]")) >= 6
    assert count(code, re.compile(r"^v?pmov[zs]xbd|^vpmovdb")) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CPUS)
def test_nothing_saturates_gathers_or_is_left_over(name: str, shape: str) -> None:
    """Exact on every target, and no scalar loop for the pixels and channels that a tile leaves."""
    for dtype in rows(name, shape):
        code = instructions(name, shape, dtype)
        assert count(code, SATURATES) == 0 and count(code, GATHERS) == 0
        for body in innermost_loops(code):
            assert count(body, SCALAR_MULTIPLY) == 0, body


@pytest.mark.parametrize("name", [name for name in CPUS if BY_NAME[get_target(name).int8.dot[0]].words])
def test_arithmetic_modulo_is_that_of_words(name: str) -> None:
    """Sums modulo 2**32 are one addition of 32 bits, not of 64."""
    code = instructions(name, "winograd", get_target(name).int8.storage)
    assert count(code, re.compile(r"^v?p(add|sub)d\b|^(add|sub)\s+v\d+\.4s")) > 50
    assert count(code, re.compile(r"^v?p(add|sub)q\b|^(add|sub)\s+v\d+\.2d")) == 0


def test_awkward_channels_have_no_scalar_remainder() -> None:
    """33 outputs of 7 x 7 pixels: tiles and vectors overlap instead."""
    target = get_target("x86-avx512-vnni")
    spec = Conv2d(1, 7, 7, 12, 33, 3, 3, pad=(1, 1, 1, 1))
    template = template_for(spec, target)
    function = template.emit(spec, template.default(spec, target), "main").with_attr("global_symbol", "main")
    text = tvm.tirx.build(tvm.IRModule({"main": function}), target=target.host()).inspect_source("asm")
    code = tuple(line.strip() for line in text.splitlines())
    assert count(code, re.compile(r"^vpdpbusd\b.*%zmm")) and not count(code, re.compile(r"^vpdpbusd\b.*%[xy]mm"))
    assert count(code, SCALAR_MULTIPLY) == 0
