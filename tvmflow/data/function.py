"""Samples that a callable of the user's yields."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from tvmflow.data.source import LABEL, Source, check_dtype
from tvmflow.errors import DataError, nearest
from tvmflow.model import TensorInfo

ENDLESS = 1_000_000
"""A callable that yields more samples than this without a bound on its rows is taken for an endless one."""


def from_callable(spec: str, rows: slice, inputs: tuple[TensorInfo, ...]) -> Source:
    function = _import(spec)

    def read() -> Iterator[dict[str, np.ndarray]]:
        return islice(_yielded(function, spec), rows.start, rows.stop, rows.step)

    digest, labels, count = hashlib.sha256(), [], 0
    shapes: dict[str, tuple[int, ...]] = {}
    for count, row in enumerate(read(), start=1):
        where = f"{spec}, sample {count - 1}"
        if count > ENDLESS and rows.stop is None:
            raise DataError(f"more than {ENDLESS} samples", where=spec, remedy=f"bound them: {spec}[0:512]")
        for info in inputs:
            if info.name not in row:
                raise DataError(
                    f"no key {info.name!r}, which is an input of the model", where=where, remedy=f"it has {', '.join(row)}"
                )
            value = row[info.name]
            check_dtype(value.dtype, info, where)
            if shapes.setdefault(info.name, value.shape) != value.shape:
                raise DataError(
                    f"{info.name!r} changes its shape to {list(value.shape)}", where=where, remedy="yield equal shapes"
                )
            digest.update(f"{info.name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        labels.append(int(row.get(LABEL, np.array(-1)).reshape(())))
    known = np.array(labels, np.int64)
    return Source(count, digest.hexdigest(), known if (known >= 0).any() else None, shapes, read)


def _yielded(function: Callable[[], Any], spec: str) -> Iterator[dict[str, np.ndarray]]:
    try:
        for sample in function():
            if not isinstance(sample, Mapping):
                raise DataError(f"it yields {type(sample).__name__}, not a dictionary `input name -> array`", where=spec)
            yield {name: np.asarray(value) for name, value in sample.items()}
    except DataError:
        raise
    except Exception as error:  # the user's own code: whatever it raises is the user's to see, as a sentence
        raise DataError(f"the callable failed: {type(error).__name__}: {error}", where=spec) from error


def _import(spec: str) -> Callable[[], Any]:
    module_name, _, name = spec.partition(":")
    folder = os.getcwd()
    sys.path.insert(0, folder)  # as `python -m` does: the user's module is usually where the command is typed
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(
            f"can't import {module_name!r}: {error}", where=spec, remedy="run where the module is, or set PYTHONPATH"
        ) from error
    finally:
        sys.path.remove(folder)
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            raise DataError(
                f"{module_name!r} has no {part!r}", where=spec, remedy=nearest(part, [n for n in dir(value) if n[0] != "_"])
            )
        value = getattr(value, part)
    if not callable(value):
        raise DataError(f"{name!r} is not callable", where=spec, remedy="give a function that yields dictionaries")
    return value
