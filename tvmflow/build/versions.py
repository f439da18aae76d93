"""Versions of everything that decides the bytes of an artifact."""

from __future__ import annotations

from functools import lru_cache
from importlib import metadata

_PACKAGES = ("tvmflow", "apache-tvm", "apache-tvm-ffi", "onnx", "numpy")


@lru_cache
def versions() -> dict[str, str]:
    """Installed version by package; packages that are absent are left out."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
