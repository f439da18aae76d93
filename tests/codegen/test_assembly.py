"""Generated machine code: each named target gets its instruction, and its inner loops keep everything in registers.

Kernels have the tile of the register model, so a model that promises more registers than the processor has shows here as a spill.
"""

from __future__ import annotations

import re
from functools import lru_cache

import pytest
import tvm

from tvmflow.kernels.spec import Conv2d
from tvmflow.schedule.template import template_for
from tvmflow.target import get_target

SHAPES = {
    "conv3x3": {"h": 28, "w": 28, "ic": 64, "oc": 64, "kh": 3, "kw": 3, "pad": (1, 1, 1, 1)},
    "conv1x1": {"h": 28, "w": 28, "ic": 128, "oc": 128},
    "dense": {"h": 1, "w": 1, "ic": 256, "oc": 128},
    "depthwise": {"h": 28, "w": 28, "ic": 64, "oc": 64, "kh": 3, "kw": 3, "pad": (1, 1, 1, 1), "groups": 64},
}
PRODUCTS = ("conv3x3", "conv1x1", "dense")

INTEGER = {
    "zen5": r"^vpdpbusd\b.*%zmm",
    "zen4": r"^vpdpbusd\b.*%zmm",
    "sapphirerapids": r"^vpdpbusd\b.*%zmm",
    "icelake-server": r"^vpdpbusd\b.*%zmm",
    "x86-avx512-vnni": r"^vpdpbusd\b.*%zmm",
    "avx-vnni": r"^\{vex\}\s+vpdpbusd\b.*%ymm",
    "x86-64-v4": r"^vpmaddwd\b.*%zmm",
    "x86-64-v3": r"^vpmaddwd\b.*%ymm",
    "zen3": r"^vpmaddwd\b.*%ymm",
    "x86-64": r"^pmaddwd\b.*%xmm",
    "rpi4": r"^sm(la|ul)l2?\b",
    "rpi5": r"^sdot\b",
    "cortex-a76": r"^sdot\b",
}
FLOAT = {
    "zen5": r"^vfmadd231ps\b.*%zmm",
    "x86-avx512-vnni": r"^vfmadd231ps\b.*%zmm",
    "x86-64-v3": r"^vfmadd231ps\b.*%ymm",
    "avx-vnni": r"^vfmadd231ps\b.*%ymm",
    "x86-64": r"^mulps\b",
    "rpi4": r"^fmla\b",
    "rpi5": r"^fmla\b",
}

SPILLS = {"zen3": 1}
"""For this processor LLVM takes two steps at a time, and lets one accumulator wait in memory between them."""

SPILL = re.compile(r"^v?mov\w*\s+%[xyz]mm\d+,\s*-?\d*\(%r[sb]p|^st[rp]\s+q.*\[(sp|x29)")
RELOAD = re.compile(r"^\S+\s+-?\d*\(%r[sb]p\).*%[xyz]mm|^ld[rp]\s+q.*\[(sp|x29)")
SATURATES = re.compile(r"^v?pmaddubsw\b|^v?paddu?s[bw]\b|^(\{vex\}\s+)?vpdpbusds\b|^u?sqadd\b|^sqdml")
GATHERS = re.compile(r"^vp?(gather|scatter)")
SCALAR_MULTIPLY = re.compile(r"^v?mulss\b|^vfn?madd\d+ss\b|^fn?madd\b|^v?mulsd\b")
JUMP = re.compile(r"^(?:j\w+|b|b\.\w+|cbn?z|tbn?z)\s+(?:.*,\s*)?(\.L\w+)$")


@lru_cache
def instructions(name: str, shape: str, dtype: str) -> tuple[str, ...]:
    """Labels and instructions of the kernel with its default tile, comments and directives left out."""
    target = get_target(name)
    spec = Conv2d(1, **SHAPES[shape], x=dtype, y=dtype)
    template = template_for(spec, target)
    function = template.emit(spec, template.default(spec, target), "main").with_attr("global_symbol", "main")
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
    """The innermost loop with the most multiplies."""
    return max(innermost_loops(code), key=lambda body: count(body, re.compile(instruction)))


def count(code: tuple[str, ...], pattern: re.Pattern[str]) -> int:
    return sum(bool(pattern.search(line)) for line in code)


def storage(name: str) -> str:
    return get_target(name).int8.storage


@pytest.mark.parametrize("shape", PRODUCTS)
@pytest.mark.parametrize("name", INTEGER)
def test_integer_products(name: str, shape: str) -> None:
    body = hottest(instructions(name, shape, storage(name)), INTEGER[name])
    allowed = SPILLS.get(name, 0)
    assert count(body, re.compile(INTEGER[name])) >= 4, body
    assert count(body, SPILL) <= allowed and count(body, RELOAD) <= allowed, body


@pytest.mark.parametrize("shape", ["conv3x3", "conv1x1", "dense"])
@pytest.mark.parametrize("name", FLOAT)
def test_float_products(name: str, shape: str) -> None:
    body = hottest(instructions(name, shape, "float32"), FLOAT[name])
    assert count(body, re.compile(FLOAT[name])) >= 4, body
    assert count(body, SPILL) == 0 and count(body, RELOAD) == 0, body


@pytest.mark.parametrize("name", INTEGER)
def test_depthwise(name: str) -> None:
    """Nine taps of a channel are three four-byte dot products, or five of two, or nine multiplies."""
    body = hottest(instructions(name, "depthwise", storage(name)), INTEGER[name])
    assert count(body, re.compile(INTEGER[name])) >= 9, body


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", INTEGER)
def test_nothing_saturates_gathers_or_is_left_over(name: str, shape: str) -> None:
    """Exact on every target, and no scalar loop for the pixels and channels that a tile leaves."""
    code = instructions(name, shape, storage(name))
    assert count(code, SATURATES) == 0 and count(code, GATHERS) == 0
    for body in innermost_loops(code):
        assert count(body, SCALAR_MULTIPLY) == 0, body


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
