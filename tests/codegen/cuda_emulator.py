"""Runs CUDA kernels without a GPU: the emitted source, compiled as C++ with the header beside this file.

The host side of each kernel is the real one, compiled by LLVM; only the launch ends in the emulator instead of the driver.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from tvmflow.build.cuda import PASS_CONFIG, cuda_modules
from tvmflow.target import Target

HEADER = Path(__file__).with_suffix(".h")
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\(([^)]*)\) \{')
ERRORS = {1: "threads diverged at a barrier", 2: "access outside of a buffer"}


def guarded(array: np.ndarray) -> np.ndarray:
    """A copy whose last byte is followed by a page that can't be touched."""
    page = mmap.PAGESIZE
    size = -(-max(array.nbytes, 1) // page) * page
    area = mmap.mmap(-1, size + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(start + size), page, 0) == 0
    # tensors are aligned to 64 bytes, so that up to 63 bytes behind the array stay readable
    offset = (size - array.nbytes) // 64 * 64
    copy = np.ndarray(array.shape, array.dtype, area, offset)
    copy[...] = array
    return copy


class Emulated:
    """Kernels of one CUDA source text as functions that TVM's host code finds by name."""

    def __init__(self, source: str) -> None:
        text = source[source.index('extern "C" __global__') :]
        text = text.replace("__shared__ alignas(64)", "alignas(64) static")
        kernels = KERNEL.findall(text)
        assert kernels
        wrappers = []
        for name, parameters in kernels:
            types = [p.replace("__restrict__", "").rsplit(" ", 1)[0].strip() for p in parameters.split(",")]
            arguments = ", ".join(f"({kind})a[{i}]" for i, kind in enumerate(types))
            assert all(kind.endswith("*") for kind in types), types
            wrappers.append(
                f"static void call_{name}(void** a) {{ {name}({arguments}); }}\n"
                f'extern "C" int emulate_{name}(void** a, int blocks, int threads, int backwards) '
                f"{{ return emulator::launch(call_{name}, a, blocks, threads, backwards); }}"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="tvmflow-emulator-")
        folder = Path(self._folder.name)
        (folder / "kernels.cpp").write_text("\n".join([f'#include "{HEADER}"', text, *wrappers]))
        flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-fno-strict-aliasing", "-ffp-contract=off"]
        command = ["g++", *flags, "-o", str(folder / "kernels.so"), str(folder / "kernels.cpp")]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stderr[:4000]
        self._library = ctypes.CDLL(str(folder / "kernels.so"))
        self.backwards = False
        for name, parameters in kernels:
            self._register(name, parameters.count(",") + 1)

    def _register(self, name: str, count: int) -> None:
        entry = getattr(self._library, f"emulate_{name}")

        def launch(*given: Any) -> int:
            pointers = (ctypes.c_void_p * count)(*[p.value if hasattr(p, "value") else int(p) for p in given[:count]])
            blocks, threads = (int(v) for v in given[count:])
            failed = entry(pointers, blocks, threads, int(self.backwards))
            if failed:
                raise AssertionError(f"{name}: {ERRORS[failed]}")
            return 0

        tvm.register_global_func(name, launch, override=True)


def emulate(module: tvm.IRModule, target: Target) -> tuple[Any, Emulated]:
    """Host code of ``module``, and the emulator that its launches run on. Its tensors are to be in CPU memory."""
    device = target.device()
    device = tvm.target.Target(device, host=tvm.target.Target({"kind": "llvm", "mtriple": "x86_64-linux-gnu"}))
    tvm.register_global_func("__tvm_set_device", lambda *_: None, override=True)
    with device, tvm.transform.PassContext(opt_level=3, config={**PASS_CONFIG, "tirx.disable_assert": True}):
        built = tvm.tirx.build(module, target=device)
    (code,) = cuda_modules(built)
    emulated = Emulated(code.inspect_source())
    built.clear_imports()
    return built, emulated
