"""Facts about the machine that this runs on, as plain JSON values: what a board tells of itself. Standard library only."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from tvmflow import __version__
from tvmflow.board.cpuid import denied_features
from tvmflow.board.wire import PROTOCOL
from tvmflow.build.versions import versions as installed
from tvmflow.runtime import cpu


def board_info(workdir: str = "/tmp", root: Path = Path("/")) -> dict[str, Any]:
    """Everything about this machine that decides whether a job can run on it, and whether its timing can be trusted.

    ``memory`` and ``disk`` are bytes; ``temperature_c`` is the hottest sensor, None without sensors; ``governors`` are the
    frequency governors in use, empty where the kernel shows none. ``root`` is where /proc and /sys are looked for.
    """
    disk = shutil.disk_usage(workdir)
    return {
        "protocol": PROTOCOL,
        "versions": versions(),
        "arch": cpu.arch(),
        "hostname": platform.node(),
        "cpu": cpu.board_model() or cpu.model_name(),
        "cores": len(cpu.allowed_cpus()),
        "physical_cores": cpu.physical_cores(),
        "features": sorted(cpu.features() - denied_features()),
        "glibc": list(cpu.glibc_version()),
        "load_average": list(os.getloadavg()),
        "memory": memory(root),
        "disk": {"total": disk.total, "free": disk.free},
        "temperature_c": temperature(root),
        "governors": governors(root),
    }


def versions() -> dict[str, str]:
    """Versions of what must fit together on both sides."""
    return {
        "python": platform.python_version(),
        "tvm": _version("apache-tvm", "tvm"),
        "tvm_ffi": _version("apache-tvm-ffi", "tvm_ffi"),
        "tvmflow": __version__,
    }


def _version(package: str, module: str) -> str:
    """Of an installed package, or of the module where it was not installed by pip: importing takes a board seconds."""
    return installed().get(package) or str(importlib.import_module(module).__version__)


def memory(root: Path = Path("/")) -> dict[str, int]:
    """Total and available memory in bytes."""
    kib = {}
    for line in _lines(root / "proc/meminfo"):
        key, _, value = line.partition(":")
        kib[key] = int(value.split()[0])
    return {"total": kib.get("MemTotal", 0) * 1024, "available": kib.get("MemAvailable", kib.get("MemFree", 0)) * 1024}


def temperature(root: Path = Path("/")) -> float | None:
    """Hottest thermal zone in degrees Celsius."""
    found = []
    for sensor in sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")):
        try:
            found.append(int(sensor.read_text()) / 1000)
        except (OSError, ValueError):
            continue  # a sensor that is powered down answers with an error; the others still tell
    return max(found, default=None)


def governors(root: Path = Path("/")) -> list[str]:
    """Distinct frequency governors of all cores."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    return sorted({line for file in files for line in _lines(file)})


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
