"""What the processor under us can do, in Linux' spelling, and how many cores we may use."""

from __future__ import annotations

import ctypes
import os
import platform
from functools import lru_cache
from pathlib import Path

AT_HWCAP, AT_HWCAP2 = 16, 26

# Bit positions: arch/arm64/include/uapi/asm/hwcap.h; names: arch/arm64/kernel/cpuinfo.c
HWCAP_ARM64 = (
    *("fp", "asimd", "evtstrm", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "cpuid", "asimdrdm"),
    *("jscvt", "fcma", "lrcpc", "dcpop", "sha3", "sm3", "sm4", "asimddp", "sha512", "sve", "asimdfhm", "dit", "uscat", "ilrcpc"),
    *("flagm", "ssbs", "sb", "paca", "pacg"),
)
HWCAP2_ARM64 = (
    *("dcpodp", "sve2", "sveaes", "svepmull", "svebitperm", "svesha3", "svesm4", "flagm2", "frint", "svei8mm", "svef32mm"),
    *("svef64mm", "svebf16", "i8mm", "bf16", "dgh", "rng", "bti", "mte"),
)


def arch() -> str:
    """``x86_64``, ``aarch64`` or ``armv7``; the kernel's own word for anything else."""
    machine = platform.machine()
    return "armv7" if machine.startswith("armv7") else machine


@lru_cache
def features() -> frozenset[str]:
    """CPU features of this machine; empty where Linux does not tell.

    On 64-bit ARM they come from the auxiliary vector, because an emulator answers there for the CPU it emulates while
    /proc/cpuinfo is often the host's.
    """
    if arch() == "aarch64":
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        words = ((HWCAP_ARM64, getauxval(AT_HWCAP)), (HWCAP2_ARM64, getauxval(AT_HWCAP2)))
        return frozenset(name for names, bits in words for bit, name in enumerate(names) if bits >> bit & 1)
    for line in cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def model_name() -> str:
    """The processor's name as Linux prints it, or the architecture."""
    for line in cpuinfo():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model"):
            return value.strip()
    return platform.processor() or arch()


def board_model() -> str:
    """What the device tree calls this board, for example ``Raspberry Pi 4 Model B Rev 1.4``; empty on a PC."""
    try:
        return Path("/proc/device-tree/model").read_text(errors="replace").strip("\0\n")
    except OSError:
        return ""


def cache_kib() -> dict[str, int]:
    """Cache sizes that our first CPU sees, by level (``"1"`` is the data cache); empty where Linux does not tell."""
    sizes: dict[str, int] = {}
    for index in Path(f"/sys/devices/system/cpu/cpu{allowed_cpus()[0]}/cache").glob("index*"):
        try:
            kind, level, size = ((index / key).read_text().strip() for key in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            sizes[level] = int(size[:-1])
    return sizes


def cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return []


def allowed_cpus() -> list[int]:
    """Numbers of the logical CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Physical cores that this process may use: hyper-threads share one, and give integer kernels nothing."""
    cores = set()
    for cpu in allowed_cpus():
        try:
            cores.add(Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return len(cores)


def glibc_version() -> tuple[int, ...]:
    """Version of the GNU C library, ``()`` with another one."""
    name, version = platform.libc_ver()
    return tuple(int(part) for part in version.split(".") if part.isdigit()) if name == "glibc" else ()
