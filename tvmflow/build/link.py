"""Linking: object files of one architecture into one shared library, with whatever linker this machine has.

TVM's kernels need nothing but ``memcpy``, libm and ``TVMFFI*``, and a process that loads an artifact has all of them already,
so we link without any system library. That makes every linker equal: the host's, a cross one, or the LLD inside ``ziglang`` from
pip, which needs no system root and is enough for all architectures.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvmflow.build.elf import machine_of
from tvmflow.errors import EnvironmentProblem, MissingTool
from tvmflow.target import Target

EXPORTS = "{ global: __tvm_*; __TVM*; local: *; };\n"
"""Everything but TVM's entry points stays private, so that two artifacts in one process can't see each other's helpers."""

GNU_PREFIX = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf"}
LLD_EMULATION = {"x86_64": "elf_x86_64", "aarch64": "aarch64linux", "armv7": "armelf_linux_eabi"}
TIMEOUT_S = 300


@dataclass(frozen=True)
class Linker:
    """A way to link: ``command`` is the program; ``driver`` tells a compiler driver (``-Wl,``) from a bare linker."""

    name: str
    command: tuple[str, ...]
    driver: bool


def linkers(arch: str) -> list[Linker]:
    """Linkers of this machine that can produce code for ``arch``, the preferred one first."""
    candidates: list[tuple[str, str, bool]] = []
    if arch == platform.machine():
        candidates += [(name, name, True) for name in ("cc", "gcc", "clang")]
    candidates.append((f"{GNU_PREFIX[arch]}-gcc", f"{GNU_PREFIX[arch]}-gcc", True))
    candidates.append(("ld.lld", "ld.lld", False))
    found = [Linker(name, (path,), driver) for name, program, driver in candidates if (path := shutil.which(program))]
    if importlib.util.find_spec("ziglang"):
        found.append(Linker("ziglang", (sys.executable, "-m", "ziglang", "ld.lld"), driver=False))
    return found


def find_linker(target: Target) -> Linker:
    """The linker that :func:`link` uses for ``target``. Raises MissingTool when there is none."""
    machine_of(target.arch)
    found = linkers(target.arch)
    if not found:
        raise MissingTool(
            f"no linker for {target.arch}",
            where=f"target {target.name}",
            remedy="pip install 'tvmflow[cross]' (ziglang, needs no root), or install gcc or lld from the system",
        )
    return found[0]


def link(objects: Sequence[Path], out: Path, target: Target) -> str:
    """Link ``objects`` into the shared library ``out`` for ``target`` and return the linker's name.

    The result depends on the objects and the linker only: no build id, no path, no time stamp. Symbols of TVM's runtime and of
    libm stay undefined. Raises MissingTool when no linker for the architecture is installed, EnvironmentProblem when it fails.
    """
    linker = find_linker(target)
    with tempfile.TemporaryDirectory(prefix="tvmflow-link-") as folder:
        script = Path(folder) / "exports.map"
        script.write_text(EXPORTS)
        options = [f"--version-script={script}", "--build-id=none", "--strip-all", "-znoexecstack"]
        if linker.driver:
            flags = ["-shared", "-fPIC", "-nostdlib", *(f"-Wl,{option}" for option in options)]
        else:
            flags = ["-m", LLD_EMULATION[target.arch], "-shared", "--eh-frame-hdr", *options]
        run_linker([*linker.command, *flags, "-o", str(out), *map(str, objects)], linker.name)
    expect_machine(out, target, linker.name)
    return linker.name


def run_linker(command: Sequence[str], name: str) -> None:
    """Run one linker command; its own words become the error."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentProblem(f"the linker could not be run: {error}", where=name, remedy="see `tvmflow doctor`") from error
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip()[-2000:]
        raise EnvironmentProblem(f"linking failed (exit {result.returncode}): {said}", where=name, remedy="see `tvmflow doctor`")


def expect_machine(path: Path, target: Target, linker: str) -> None:
    """Raise MissingTool when the linked file is for another machine than the target: a linker that ignores its options."""
    with path.open("rb") as file:
        head = file.read(20)
    found = struct.unpack_from("<H", head, 18)[0] if len(head) == 20 and head[:4] == b"\x7fELF" else None
    if found != machine_of(target.arch).e_machine:
        raise MissingTool(
            f"it produced machine {found} instead of {target.arch}",
            where=linker,
            remedy="pip install 'tvmflow[cross]' and remove the linker from PATH",
        )
