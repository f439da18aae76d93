"""tvmflow: a real model in, a measured ``.so`` out.

The public names are looked up when they are first used: ``import tvmflow`` loads neither TVM nor numpy.
"""

from __future__ import annotations

import importlib
import sys
import types
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


def _public(name: str) -> property:
    """A module attribute that is looked up when it is read, and stays itself when a folder of that name is imported.

    ``quantize``, ``tune`` and ``bench`` are stages, so they name folders, and journeys, so they name functions. Importing a
    folder sets it on its parent module, which a property withstands; ``from tvmflow.bench.stats import Latency`` finds it still.
    """

    def read(module: types.ModuleType) -> Any:
        return getattr(importlib.import_module(_PUBLIC[name]), name)

    def keep(module: types.ModuleType, folder: types.ModuleType) -> None:
        pass

    return property(read, keep)


class _Package(types.ModuleType):
    """The class of this module."""

    def __dir__(self) -> list[str]:
        return sorted([*self.__dict__, *_PUBLIC])


for _name in _PUBLIC:
    setattr(_Package, _name, _public(_name))
sys.modules[__name__].__class__ = _Package
