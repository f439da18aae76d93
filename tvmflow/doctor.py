"""``tvmflow doctor``: what this machine has, what it lacks, and what to do about it.

Things that only some users need (torch, a GPU, an emulator) do not fail when absent: their detail says what they are for.
Nothing here imports TVM: a wrong pairing of its two packages ends in a segmentation fault, which no check could report.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec

from tvmflow.build.elf import MACHINES
from tvmflow.build.link import linkers
from tvmflow.errors import ConfigError
from tvmflow.runtime import cpu

PINS = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
REQUIRED = ("numpy", "msgspec", "pyelftools", "onnx", "onnxruntime", "cloudpickle", "psutil", "tornado")
PYTHONS = ((3, 10), (3, 13))
DISK_GIB = 1.0
LOAD_PER_CORE = 0.5
TRY_TVM = """
import tvm
from tvm import relax
from tvm.target import codegen
builder = relax.BlockBuilder()
x = relax.Var("x", relax.TensorType((4,), "float32"))
with builder.function("main", [x]):
    builder.emit_func_output(builder.emit(relax.op.add(x, x)))
relax.build(builder.get(), tvm.target.Target("llvm"))
print("LLVM", codegen.llvm_version_major())
"""


class Check(msgspec.Struct, frozen=True):
    """One finding. ``remedy`` is empty when there is nothing to do."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, object]:
        return msgspec.structs.asdict(self)


def checks(work_dir: Path = Path(".tvmflow")) -> list[Check]:
    """All findings about this machine, the ones that matter to everybody first."""
    return [
        check_python(),
        *(check_pin(name, version) for name, version in PINS.items()),
        *(check_package(name) for name in REQUIRED),
        check_xgboost(),
        check_tvm(),
        check_cpu(),
        check_threads(),
        check_disk(work_dir),
        check_load(),
        *(check_linker(arch) for arch in MACHINES if arch != "armv7"),
        check_optional("torch", "importing PyTorch models", "torch"),
        check_optional("matplotlib", "plots in reports", "report"),
        check_emulator(),
        check_cuda_compiler(),
        check_nvidia_driver(),
    ]


def check_python() -> Check:
    here = sys.version_info[:2]
    ok = PYTHONS[0] <= here <= PYTHONS[1]
    wanted = " to ".join(f"{major}.{minor}" for major, minor in PYTHONS)
    return Check("python", ok, f"{sys.version.split()[0]} at {sys.executable}", "" if ok else f"use Python {wanted}")


def installed(package: str) -> str | None:
    """Version of an installed package, None when absent. Does not import it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_pin(package: str, version: str) -> Check:
    found = installed(package)
    if found == version:
        return Check(package, True, version)
    detail = f"{found or 'not installed'}; tvmflow needs exactly {version} (other pairings of TVM and its FFI crash)"
    return Check(package, False, detail, f"pip install '{package}=={version}'")


def check_package(package: str) -> Check:
    found = installed(package)
    return Check(package, found is not None, found or "not installed", "" if found else f"pip install {package}")


def check_xgboost() -> Check:
    for package in ("xgboost-cpu", "xgboost"):
        if found := installed(package):
            return Check("xgboost", True, f"{package} {found}")
    return Check("xgboost", False, "not installed; the tuner ranks candidates with it", "pip install xgboost-cpu")


def check_optional(package: str, purpose: str, extra: str) -> Check:
    if found := installed(package):
        return Check(package, True, found)
    return Check(package, True, f"not installed; only for {purpose}", f"pip install 'tvmflow[{extra}]'")


def check_tvm() -> Check:
    """Import TVM and compile a loop, in a process of its own that may crash."""
    try:
        result = subprocess.run([sys.executable, "-c", TRY_TVM], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return Check("tvm works", False, "it did not compile an addition within 120 s", "look at the machine's load and memory")
    if result.returncode == 0:
        return Check("tvm works", True, f"imports and compiles, {result.stdout.strip()}")
    said = (result.stderr.strip().splitlines() or ["no message"])[-1]
    detail = f"it died of signal {-result.returncode}" if result.returncode < 0 else said
    remedy = "pip install --force-reinstall " + " ".join(f"'{name}=={version}'" for name, version in PINS.items())
    return Check("tvm works", False, detail, remedy)


def check_cpu() -> Check:
    from tvmflow.target import detect

    try:
        target = detect()
    except ConfigError as error:
        return Check("cpu", False, error.what, error.remedy)
    sizes = f"L1d {target.cpu.l1d_kib} KiB, L2 {target.cpu.l2_kib} KiB, L3 {target.cpu.l3_kib} KiB"
    return Check("cpu", True, f"{cpu.model_name()}; `-t native` is {target.name} ({', '.join(target.int8.dot)}); {sizes}")


def check_threads() -> Check:
    logical, physical = len(cpu.allowed_cpus()), cpu.physical_cores()
    detail = f"{physical} physical cores, {logical} logical CPUs for this process"
    variable = os.environ.get("TVM_NUM_THREADS")
    if variable and int(variable or 0) < physical:
        detail += f"; TVM_NUM_THREADS={variable} is raised to what `--threads` asks for"
    return Check("threads", True, detail)


def check_disk(work_dir: Path) -> Check:
    folder = next(p for p in (work_dir.absolute(), *work_dir.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free / 2**30
    writable = os.access(folder, os.W_OK)
    remedy = "" if writable else f"choose another folder with --work-dir; {folder} can't be written"
    if free < DISK_GIB:
        remedy = "free some space, or choose another folder with --work-dir"
    return Check("disk", not remedy, f"{free:.1f} GiB free at {folder}", remedy)


def check_load() -> Check:
    """A busy machine measures wrongly; it is said, but it is no failure."""
    load, cores = os.getloadavg()[0], cpu.physical_cores()
    busy = load > LOAD_PER_CORE * cores
    detail = f"load average {load:.2f} on {cores} cores" + ("; latencies measured now are not to be trusted" if busy else "")
    return Check("load", True, detail, "wait until the machine is idle before you measure or tune" if busy else "")


def check_linker(arch: str) -> Check:
    """Without a linker for this machine nothing can be compiled; one for another is needed for boards of that kind."""
    found = [linker.name for linker in linkers(arch)]
    if found:
        return Check(f"linker {arch}", True, ", ".join(found))
    needed = arch == cpu.arch()
    detail = "none" if needed else f"none; only for compiling for {arch} boards"
    return Check(f"linker {arch}", not needed, detail, "pip install 'tvmflow[cross]'")


def check_emulator() -> Check:
    for program in ("qemu-aarch64", "qemu-aarch64-static"):
        if path := shutil.which(program):
            return Check("emulator", True, path)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    board = Path(os.environ.get("TVMFLOW_EMULATED_BOARD") or cache / "tvmflow" / "board-aarch64")
    if board.is_dir():
        return Check("emulator", True, f"emulated board at {board}")
    return Check("emulator", True, "none; only for running ARM artifacts without a board", "tools/emulated_board setup")


def check_cuda_compiler() -> Check:
    nvcc = shutil.which("nvcc")
    if nvcc:
        said = run_quietly([nvcc, "--version"])
        version = re.search(r"release ([\d.]+)", said)
        return Check("cuda compiler", True, f"nvcc {version[1] if version else ''} at {nvcc}".replace("  ", " "))
    if importlib.util.find_spec("cuda") and (found := installed("cuda-bindings")):
        return Check("cuda compiler", True, f"NVRTC through cuda-bindings {found}")
    return Check(
        "cuda compiler",
        True,
        "none; only for CUDA targets",
        "install NVIDIA's CUDA toolkit, or pip install cuda-bindings nvidia-cuda-nvrtc",
    )


def check_nvidia_driver() -> Check:
    version = Path("/proc/driver/nvidia/version")
    if shutil.which("nvidia-smi"):
        said = run_quietly(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
        if said:
            return Check("nvidia driver", True, "; ".join(said.splitlines()))
    if version.exists():
        return Check("nvidia driver", True, version.read_text().splitlines()[0])
    return Check("nvidia driver", True, "none; only for running CUDA artifacts on this machine")


def run_quietly(command: list[str]) -> str:
    """Standard output of a command, empty when it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
