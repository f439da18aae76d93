"""Single kernels of awkward shapes, compiled for every family of processors, equal the oracle: here or on emulated ones.

On ARM, LLVM contracts products and sums of floats to FMLA where it may: our epilogues leave it nothing to contract.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm

from tests.numerics.kernels import argument_names, tensors
from tvmflow.board.local import local_board
from tvmflow.board.rpc import RemoteBoard, connect
from tvmflow.build.link import link
from tvmflow.flow.compile import runs_here
from tvmflow.kernels import spec as ks
from tvmflow.kernels.reference import run_kernel
from tvmflow.schedule import winograd
from tvmflow.schedule.intrinsics import BY_NAME
from tvmflow.schedule.template import template_for
from tvmflow.schedule.winograd_transforms import WHOLE_POINTS
from tvmflow.target import Target, get_target, target_files

TOOL = (sys.executable, str(Path(__file__).parents[2] / "tools" / "emulated_board"))
PROCESSORS = {
    "rpi4": "cortex-a72",
    "rpi5": "cortex-a76",
    "x86-64": "Nehalem",
    "x86-64-v2": "Nehalem",
    "x86-64-v3": "Haswell",
    "zen3": "EPYC-Rome",
}
"""Targets that qemu's TCG can run, and the processor on which it runs them; none has AVX-512 or AVX-VNNI there."""

NATIVE = ("x86-64", "x86-64-v2", "x86-64-v3", "avx-vnni", "x86-64-v4", "x86-avx512-vnni", "native")
"""One target of each instruction set that an x86 machine may run as it is."""


def awkward(x: str) -> list[ks.Kernel]:
    """One of every kind and every edge: ragged channels, groups, strides, dilation, one-sided padding, tiny extents."""
    conv = ks.Conv2d
    return [
        conv(1, 7, 9, 3, 13, 3, 3, (2, 2), (0, 1, 1, 0), x=x, y=x),
        conv(2, 5, 5, 17, 33, x=x, y=x),
        conv(1, 8, 8, 16, 16, 3, 3, pad=(1, 1, 1, 1), x=x, y=x, residual=True),
        conv(1, 9, 8, 10, 6, 3, 2, (1, 2), (2, 0, 2, 1), (2, 1), 2, x, x),
        conv(1, 28, 27, 66, 70, 3, 3, pad=(1, 0, 1, 2), x=x, y=x, residual=True),
        conv(1, 22, 21, 230, 33, 3, 3, pad=(1, 1, 1, 1), x=x, y=x),
        conv(1, 1, 3, 31, 7, x=x, y="float32"),
        conv(1, 7, 7, 3, 2, 5, 5, pad=(2, 2, 2, 2), x=x, y=x),
        conv(1, 9, 7, 33, 33, 3, 3, (2, 1), (1, 0, 1, 1), groups=33, x=x, y=x),
        conv(1, 6, 6, 16, 16, 5, 5, pad=(2, 2, 2, 2), groups=16, x=x, y=x, residual=True),
        conv(1, 5, 5, 3, 3, 3, 3, groups=3, x=x, y=x),
        ks.MatMul(2, 5, 33, 17, False, x, x),
        ks.MatMul(1, 7, 9, 3, True, x, "float32"),
        ks.Binary("add", (1, 5, 1, 13), (1, 5, 7, 13), x, x),
        ks.Binary("mul", (1, 5, 7, 13), (1, 1, 1, 13), x, x),
        ks.Pool2d("max", 1, 7, 9, 13, 3, 3, (2, 2), (1, 0, 1, 1), x, x),
        ks.Pool2d("avg", 1, 7, 9, 17, 3, 2, (2, 1), (1, 1, 0, 0), x, x),
        ks.Pool2d("avg", 1, 7, 7, 33, 7, 7, x=x, y=x),
        ks.Lookup((3, 41), x, x),
        ks.Quantize((1, 5, 7, 3), True, x),
        ks.Quantize((517,), False, x),
        ks.Dequantize((3, 41), x),
        conv(1, 7, 9, 3, 13, 3, 3, (2, 2), (0, 1, 1, 0), x="float32", y="float32"),
        conv(1, 9, 8, 10, 6, 3, 2, (1, 2), (2, 0, 2, 1), (2, 1), 2, "float32", "float32"),
        conv(1, 9, 7, 33, 33, 3, 3, (2, 1), (1, 0, 1, 1), groups=33, x="float32", y="float32"),
        conv(1, 5, 5, 3, 3, 3, 3, groups=3, x="float32", y="float32"),
        conv(1, 9, 7, 3, 13, 3, 3, (2, 1), (0, 1, 1, 0), x="float32", y="float32", nchw=True),
        ks.Chain(
            (
                conv(1, 9, 7, 3, 17, 3, 3, (2, 1), (1, 1, 0, 0), x="float32", y="float32", nchw=True),
                conv(1, 4, 6, 17, 17, 3, 3, (1, 2), (1, 0, 2, 1), groups=17, x="float32", y="float32"),
                conv(1, 5, 3, 17, 5, x="float32", y="float32", residual=True),
            )
        ),
        ks.MatMul(2, 5, 33, 17, False, "float32", "float32"),
    ]


@pytest.fixture(scope="module")
def boards() -> Iterator[Any]:
    """A session on an emulated processor by target name; servers live until the module ends."""
    with ExitStack() as stack:
        opened: dict[str, RemoteBoard] = {}

        def board(name: str) -> RemoteBoard:
            if name not in opened:
                arm = get_target(name).arch == "aarch64"
                verb, python = ("run", ()) if arm else ("run-x86", (sys.executable,))
                tool = [*TOOL, verb, "--cpu", PROCESSORS[name], "--", *(python or ())]
                probe = subprocess.run([*tool, "-c", ""], capture_output=True, text=True)
                if probe.returncode:
                    pytest.skip(probe.stderr.strip())
                where = stack.enter_context(local_board((*tool, "-m", "tvmflow.board.server"), name))
                opened[name] = stack.enter_context(connect(where, 60))
            return opened[name]

        yield board


def library(specs: Sequence[ks.Kernel], target: Target, path: Path) -> Path:
    """All kernels with their default tiles as ``kernel0``, ``kernel1``, ..."""
    functions = {}
    for i, spec in enumerate(specs):
        template = template_for(spec, target)
        function = template.emit(spec, template.default(spec, target), f"kernel{i}")
        functions[f"kernel{i}"] = function.with_attr("global_symbol", f"kernel{i}")
    module = tvm.tirx.build(tvm.IRModule(functions), target=target.host())
    module.export_library(str(path), fcompile=lambda out, objects, **_: link([Path(o) for o in objects], Path(out), target))
    return path


def packed(spec: ks.Kernel, target: Target, args: list[np.ndarray]) -> list[np.ndarray]:
    """Arguments with the constants as the kernel takes them."""
    template = template_for(spec, target)
    constant = [i for i, n in enumerate(argument_names(spec)) if n not in ("x", "a", "b", "residual")]
    result = list(args)
    for i, value in zip(constant, template.pack(spec, template.default(spec, target), [args[i] for i in constant]), strict=True):
        result[i] = value
    return result


def test_every_instruction_is_run_somewhere() -> None:
    """A new row or target without a machine that executes it fails here."""
    run = {row for name in (*PROCESSORS, *NATIVE) for row in (*get_target(name).int8.dot, *get_target(name).float32)}
    run |= {"generic", "generic_f32"}  # depthwise layers of fewer than four channels, everywhere
    run |= {BY_NAME[row].words for row in run if BY_NAME[row].words}  # test_words_are_multiplied
    while narrower := {BY_NAME[row].narrower for row in run} - run - {""}:
        run |= narrower
    assert run == set(BY_NAME)
    cpus = [get_target(name) for name in target_files() if get_target(name).cuda is None]
    assert {row for target in cpus for row in (*target.int8.dot, *target.float32)} <= run


@pytest.mark.parametrize("name", [*PROCESSORS, *NATIVE])
def test_words_are_multiplied(name: str) -> None:
    """Where a target has an instruction for them, Winograd's kernels are among these, with either set of points for 4x4."""
    target = get_target(name)
    tiles = [(spec, template_for(spec, target).default(spec, target)) for spec in awkward(target.int8.storage)]
    found = [winograd.Geometry(spec, tile) for spec, tile in tiles if spec.is_integer and isinstance(tile, winograd.WinogradTile)]
    words = BY_NAME[target.int8.dot[0]].words
    assert {geo.dot.name for geo in found} == ({words} if words else set())
    assert {geo.transforms.points for geo in found} >= ({tuple(points) for points in WHOLE_POINTS[4]} if words else set())


@pytest.mark.parametrize("name", NATIVE)
def test_kernels_here_equal_the_oracle(name: str, tmp_path: Path) -> None:
    target = get_target(name)
    if not runs_here(target):
        pytest.skip(f"this machine can't run {name}")
    specs = awkward(target.int8.storage)
    module = tvm.runtime.load_module(str(library(specs, target, tmp_path / "kernels.so")))

    def run(i: int, args: list[np.ndarray]) -> np.ndarray:
        arrays = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in args]
        module[f"kernel{i}"](*arrays)
        return arrays[-1].numpy()

    assert_exact(specs, target, run)


@pytest.mark.qemu
@pytest.mark.parametrize("name", PROCESSORS)
def test_emulated_kernels_equal_the_oracle(name: str, boards: Any, tmp_path: Path) -> None:
    board, target = boards(name), get_target(name)
    specs = awkward(target.int8.storage)
    file = library(specs, target, tmp_path / "kernels.so")
    with board.call("run kernels", 120):
        board.rpc.upload(bytearray(file.read_bytes()), "kernels.so")
        remote = board.rpc.load_module("kernels.so")

        def run(i: int, args: list[np.ndarray]) -> np.ndarray:
            arrays = [board.tensor(a, board.device()) for a in args]
            remote[f"kernel{i}"](*arrays)
            return arrays[-1].numpy()

        assert_exact(specs, target, run)


def assert_exact(specs: Sequence[ks.Kernel], target: Target, run: Callable[[int, list[np.ndarray]], np.ndarray]) -> None:
    """``run(i, arguments)`` of every kernel, three times with other numbers, equals the oracle: integers to the last bit."""
    for i, spec in enumerate(specs):
        for seed in range(3):
            args = tensors(spec, seed)
            out = np.zeros(spec.out_shape, spec.out_dtype)
            got, want = run(i, [*packed(spec, target, args), out]), run_kernel(spec, args)
            if spec.is_integer:
                np.testing.assert_array_equal(got, want, err_msg=f"{spec}, seed {seed}")
            else:
                np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(want).max())))
