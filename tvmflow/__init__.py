"""tvmflow: a real model in, a measured ``.so`` out.

The public names are looked up when they are first used: ``import tvmflow`` loads neither TVM nor numpy.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "compile": "tvmflow.flow",
    "quantize": "tvmflow.flow",
    "tune": "tvmflow.flow",
    "bench": "tvmflow.flow",
    "evaluate": "tvmflow.flow",
    "verify": "tvmflow.flow",
    "inspect": "tvmflow.flow",
    "load": "tvmflow.runtime.session",
    "Session": "tvmflow.runtime.session",
    "Artifact": "tvmflow.build.artifact",
    "Target": "tvmflow.target",
    "get_target": "tvmflow.target",
    "TvmflowError": "tvmflow.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tvmflow' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
