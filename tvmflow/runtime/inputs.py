"""What a caller hands in: checked against the model's inputs, and lent to the program where it can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tvmflow.errors import DataError, nearest
from tvmflow.model import TensorInfo
from tvmflow.runtime import library


class Port:
    """One input of a loaded model.

    While a network runs the caches become its own, and every Python object touched afterwards is a wait for memory: what can be
    looked up once is looked up here.
    """

    __slots__ = ("_dtype", "_fill", "_info", "_lend", "_shape", "_where", "buffer")

    def __init__(self, info: TensorInfo, device: Any, lend: Callable[..., Any] | None, where: str) -> None:
        """``buffer`` is the program's tensor; ``lend`` makes one of a caller's array where the program reads at any address."""
        self.buffer = library.empty(info.shape, info.dtype, device)
        self._fill = library.function("runtime.TVMTensorCopyFromBytes")
        self._info, self._lend, self._where = info, lend, where
        self._shape, self._dtype = info.shape, np.dtype(info.dtype)

    def tensor(self, value: Any) -> Any:
        """The caller's own memory, where the program takes it and NumPy lends it; else a copy. Raises DataError."""
        if self._lend is None:
            return self.copy(value)
        array = self._array(value)
        return self._lend(array, require_alignment=self._dtype.itemsize) if array.flags.writeable else self.copy(array)

    def copy(self, value: Any) -> Any:
        """The program's tensor with a copy of ``value`` in it. Raises DataError."""
        array = self._array(value)
        self._fill(self.buffer, library.address(array), array.nbytes)
        return self.buffer

    def _array(self, value: Any) -> np.ndarray:
        if type(value) is np.ndarray and value.shape == self._shape and value.dtype == self._dtype and value.flags.c_contiguous:
            return value
        return as_input(value, self._info, self._where)


def ordered(inputs: Mapping[str, Any], names: Sequence[str], where: str) -> list[Any]:
    """Values by input name in the model's order. Raises DataError on a name too many or too few."""
    found = [inputs[name] for name in names if name in inputs]
    if len(found) == len(names) == len(inputs):
        return found
    for name in inputs:
        if name not in names:
            raise DataError(f"the model has no input {name!r}", where=where, remedy=nearest(name, names))
    raise DataError(f"missing inputs: {', '.join(name for name in names if name not in inputs)}", where=where)


def as_input(value: Any, info: TensorInfo, where: str) -> np.ndarray:
    """``value`` as a contiguous numpy array of exactly the declared shape and dtype. Raises DataError."""
    try:
        array = np.from_dlpack(value) if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray) else np.asarray(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(
            f"input {info.name!r} can't be read: {error}", where=where, remedy="pass a numpy array, or a tensor in CPU memory"
        ) from error
    if array.shape != info.shape:
        raise DataError(
            f"input {info.name!r} has shape {shape_text(array.shape)}, the model takes {shape_text(info.shape)}", where=where
        )
    if array.dtype != np.dtype(info.dtype):
        raise DataError(
            f"input {info.name!r} is {array.dtype}, the model takes {info.dtype}",
            where=where,
            remedy=f"convert it: x.astype({info.dtype!r})",
        )
    return np.ascontiguousarray(array)


def shape_text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
