"""CUDA code generation on machines with and without a GPU: the compiler, its environment, and proof that it was used.

TVM compiles kernels with nvcc or NVRTC, but embeds the result only where its CUDA runtime library could be loaded, which needs
NVIDIA's driver; elsewhere it embeds source text without a word. On a machine with no driver a stand-in for it (cuda_stub.c) is
loaded into this process, and :func:`expect_machine_code` looks at what came out.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvmflow.errors import EnvironmentProblem, InternalError, MissingTool

STUB = Path(__file__).with_name("cuda_stub.c")
INSTALL = "install NVIDIA's CUDA toolkit 13, or pip install cuda-bindings nvidia-cuda-{nvrtc,runtime,crt,cccl}"
PASS_CONFIG = {"tirx.UnrollLoop": {"explicit_unroll": False}}
"""Loops are unrolled by the CUDA compiler, not by TVM: a hundredth of the source."""


@dataclass(frozen=True)
class Compiler:
    """What turns CUDA source into machine code, and the environment variables that TVM reads for it.

    Fast math is off everywhere: requantize is exact only with IEEE division, denormals and conversions.
    """

    name: str
    root: Path
    environment: Mapping[str, str]


def find_compiler() -> Compiler:
    """nvcc where it is installed, else NVRTC from pip. Raises MissingTool without either."""
    nvcc = shutil.which("nvcc")
    if nvcc:
        return Compiler("nvcc", _toolkit(nvcc), {"TVM_CUDA_COMPILE_MODE": "nvcc", "TVM_CUDA_NVCC_NO_FAST_MATH": "1"})
    root = _pip_toolkit()
    if root is not None and _has_module("cuda.bindings"):
        slow = "--ftz=false --prec-div=true --prec-sqrt=true"  # takes back what TVM's --use_fast_math implies
        return Compiler(
            "nvrtc", root, {"TVM_CUDA_COMPILE_MODE": "nvrtc", "TVM_CUDA_NVRTC_EXTRA_OPTS": slow, "CUDA_HOME": str(root)}
        )
    raise MissingTool("no CUDA compiler: neither nvcc nor NVRTC is installed", remedy=INSTALL)


def _toolkit(nvcc: str) -> Path:
    """Root of the toolkit of an nvcc; what is on PATH may be a wrapper script."""
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    roots += [Path(nvcc).resolve().parent.parent, Path("/usr/local/cuda")]
    return next((root for root in roots if (root / "include" / "cuda_runtime.h").exists()), roots[0])


def _pip_toolkit() -> Path | None:
    """Where pip's packages of the CUDA toolkit put their files."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(place) / "cu13" for place in (spec.submodule_search_locations or ())] if spec else []
    return next((root for root in roots if (root / "include" / "cuda_runtime.h").exists()), None)


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@contextmanager
def compiler_environment() -> Iterator[Compiler]:
    """TVM's CUDA code generator made to work, for the time of the block. Raises MissingTool or EnvironmentProblem."""
    compiler = find_compiler()
    load_cuda_runtime(compiler)
    before = {name: os.environ.get(name) for name in compiler.environment}
    os.environ.update(compiler.environment)
    try:
        yield compiler
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def load_cuda_runtime(compiler: Compiler) -> None:
    """Load TVM's CUDA runtime into this process, with a stand-in where there is no driver."""
    import tvm

    if tvm.get_global_func("device_api.cuda", allow_missing=True) is not None:
        return
    _load_driver()
    _load_first(
        ["libcudart.so.13", *(str(compiler.root / folder / "libcudart.so.13") for folder in ("lib64", "lib"))], "CUDA's runtime"
    )
    _load_first([str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so")], "TVM's CUDA runtime")


def _load_first(names: list[str], what: str) -> None:
    """Load the first library that can be, so that those after it find its symbols."""
    errors = []
    for name in names:
        try:
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
            return
        except OSError as error:
            errors.append(str(error))
    raise EnvironmentProblem(f"{what} can't be loaded: {errors[-1]}", where=names[-1], remedy=INSTALL)


def _load_driver() -> None:
    """The driver, or the stand-in under the driver's name: libraries that are loaded later take what has that name already."""
    if _loads("libcuda.so.1"):
        return
    with tempfile.TemporaryDirectory(prefix="tvmflow-cuda-") as folder:
        library = Path(folder) / "libcuda.so.1"
        command = [*_c_compiler(), "-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(STUB)]
        made = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if made.returncode != 0 or not _loads(str(library)):
            said = made.stderr.strip()[-500:]
            raise EnvironmentProblem(f"the driver's stand-in can't be made: {said}", where=command[0], remedy=INSTALL)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True


def _c_compiler() -> list[str]:
    for name in ("cc", "gcc", "clang"):
        if path := shutil.which(name):
            return [path]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc"]
    raise MissingTool("no C compiler", remedy="pip install 'tvmflow[cross]' (ziglang), or install gcc from the system")


def cuda_modules(module: Any) -> list[Any]:
    """The CUDA modules that a built module imports, at any depth."""
    found = [module] if module.kind == "cuda" else []
    for imported in module.imports:
        found += cuda_modules(imported)
    return found


def expect_machine_code(module: Any) -> None:
    """Raise when a built module carries CUDA source instead of machine code: it would be compiled, or fail, on the device."""
    modules = cuda_modules(module)
    if not modules:
        raise InternalError("the compiled program has no CUDA kernels")
    if not all(m.is_runnable() for m in modules):
        raise EnvironmentProblem("TVM embedded CUDA source instead of machine code", remedy="see `tvmflow doctor`; " + INSTALL)
