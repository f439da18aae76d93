"""Rows of an .npz file, read one at a time from the archive, compressed or not."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.data.preprocess import Preprocess, apply, read_declaration
from tvmflow.data.source import LABEL, Row, Source, check_dtype, declared, file_digest, target_input
from tvmflow.errors import DataError
from tvmflow.model import TensorInfo


@dataclass(frozen=True)
class _Array:
    """One array of an .npz: where its rows are in the (maybe compressed) archive member."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int


def from_npz(path: Path, rows: slice, inputs: tuple[TensorInfo, ...], given: Preprocess | None) -> Source:
    arrays = _headers(path)
    sidecar = path.with_suffix(".preprocess.toml")
    own = read_declaration(sidecar).preprocess if sidecar.exists() else None
    _check_names(arrays, inputs, str(path))
    steps, target = declared(own, given, str(sidecar)), None
    if steps is not None:
        target = target_input(steps, inputs, str(sidecar if own else path))
        found = arrays[target.name]
        if own is None and found.dtype != np.uint8 and np.dtype(target.dtype).kind == found.dtype.kind:
            steps = target = None  # the values are prepared already: the artifact's declaration is for raw pixels
    for info in inputs:
        if info != target:
            check_dtype(arrays[info.name].dtype, info, str(path))
    lengths = {n: arrays[n].shape[0] if arrays[n].shape else 0 for n in [i.name for i in inputs] + [LABEL] * (LABEL in arrays)}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{n} has {k}" for n, k in lengths.items())
        raise DataError(
            f"the arrays have different numbers of samples: {text}", where=str(path), remedy="the first axis counts samples"
        )
    selected = range(next(iter(lengths.values())))[rows]
    labels = np.fromiter(_stream(path, arrays[LABEL], selected), np.int64, len(selected)) if LABEL in arrays else None

    def read() -> Iterator[Row]:
        streams = [_stream(path, arrays[i.name], selected) for i in inputs]
        for number, values in zip(selected, zip(*streams, strict=True), strict=True):
            yield {i.name: _prepared(i, v, number) for i, v in zip(inputs, values, strict=True)}

    def _prepared(info: TensorInfo, value: np.ndarray, number: int) -> np.ndarray:
        if steps is None or info != target:
            return value
        return apply(steps, value, info, f"{path}, row {number}")

    extra = sorted(set(arrays) - {i.name for i in inputs} - {LABEL})
    return Source(
        count=len(selected),
        digest=f"{file_digest(path)} {selected}",
        labels=labels,
        shapes={i.name: i.shape[1:] if i == target else arrays[i.name].shape[1:] for i in inputs},
        read=read,
        preprocess=steps,
        notes=(f"{path}: arrays that are not used: {', '.join(extra)}",) if extra else (),
    )


def _check_names(arrays: Mapping[str, _Array], inputs: tuple[TensorInfo, ...], where: str) -> None:
    missing = [i.name for i in inputs if i.name not in arrays]
    if not missing:
        return
    found = [n for n in arrays if n != LABEL]
    if len(inputs) == len(found) == 1:
        remedy = f"rename the array {found[0]!r}: np.savez(file, **{{{missing[0]!r}: array}})"
    else:
        remedy = f"the file has {', '.join(found) or 'no arrays'}; the model wants {', '.join(i.name for i in inputs)}"
    raise DataError(f"no array named {missing[0]!r}, which is an input of the model", where=where, remedy=remedy)


def _headers(path: Path) -> dict[str, _Array]:
    """Shape, dtype and place of every array, without reading any."""
    found: dict[str, _Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                with archive.open(member) as file:
                    version = np.lib.format.read_magic(file)
                    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shape, fortran, dtype = header(file)
                    found[member.removesuffix(".npy")] = _Array(member, shape, dtype, fortran, file.tell())
    except OSError as error:
        raise DataError(f"can't read the file: {error.strerror}", where=str(path)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise DataError("this is not an .npz file, or it is damaged", where=str(path), remedy="write it with np.savez") from error
    for name, array in found.items():
        if array.dtype.hasobject:
            raise DataError(f"{name!r} holds Python objects", where=str(path), remedy="store numbers")
    return found


def _stream(path: Path, array: _Array, rows: range) -> Iterator[np.ndarray]:
    """Rows of an array in order, one in memory at a time (all of them when the array is in Fortran order)."""
    shape = array.shape[1:]
    size = array.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    try:
        with zipfile.ZipFile(path) as archive, archive.open(array.member) as file:
            if array.fortran:
                yield from np.lib.format.read_array(file, allow_pickle=False)[rows.start : rows.stop : rows.step]
                return
            for row in rows:
                file.seek(array.offset + row * size)
                yield np.frombuffer(file.read(size), array.dtype).reshape(shape)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError) as error:
        raise DataError(
            f"the array {array.member!r} is damaged: {error}", where=str(path), remedy="write the file again"
        ) from error
