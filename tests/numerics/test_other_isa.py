"""Single kernels of awkward shapes for ARM cores and older x86 processors, run on emulated ones, equal the oracle.

On ARM, LLVM contracts products and sums of floats to FMLA where it may: our epilogues leave it nothing to contract.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
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
from tvmflow.kernels import spec as ks
from tvmflow.kernels.reference import run_kernel
from tvmflow.schedule.template import template_for
from tvmflow.target import Target, get_target

TOOL = (sys.executable, str(Path(__file__).parents[2] / "tools" / "emulated_board"))
PROCESSORS = {"rpi4": "cortex-a72", "rpi5": "cortex-a76", "x86-64-v3": "Haswell", "x86-64": "Nehalem"}
pytestmark = pytest.mark.qemu


def awkward(x: str) -> list[ks.Kernel]:
    """One of every kind and every edge: ragged channels, groups, strides, dilation, one-sided padding, tiny extents."""
    conv = ks.Conv2d
    return [
        conv(1, 7, 9, 3, 13, 3, 3, (2, 2), (0, 1, 1, 0), x=x, y=x),
        conv(2, 5, 5, 17, 33, x=x, y=x),
        conv(1, 8, 8, 16, 16, 3, 3, pad=(1, 1, 1, 1), x=x, y=x, residual=True),
        conv(1, 9, 8, 10, 6, 3, 2, (1, 2), (2, 0, 2, 1), (2, 1), 2, x, x),
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


@pytest.mark.parametrize("name", PROCESSORS)
def test_kernels_equal_the_oracle(name: str, boards: Any, tmp_path: Path) -> None:
    board, target = boards(name), get_target(name)
    specs = awkward(target.int8.storage)
    file = library(specs, target, tmp_path / "kernels.so")
    runs = [(i, seed, tensors(spec, seed)) for i, spec in enumerate(specs) for seed in range(3)]
    results = []
    with board.call("run kernels", 120):
        board.rpc.upload(bytearray(file.read_bytes()), "kernels.so")
        remote = board.rpc.load_module("kernels.so")
        for i, _, args in runs:
            out = np.zeros(specs[i].out_shape, specs[i].out_dtype)
            arrays = [board.tensor(a, board.device()) for a in [*packed(specs[i], target, args), out]]
            remote[f"kernel{i}"](*arrays)
            results.append(arrays[-1].numpy())
    for (i, seed, args), got in zip(runs, results, strict=True):
        np.testing.assert_array_equal(got, run_kernel(specs[i], args), err_msg=f"{specs[i]}, seed {seed}")
