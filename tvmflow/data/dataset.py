"""A :class:`DataSet`: samples as the model takes them, from whichever kind of data."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from tvmflow.data.function import from_callable
from tvmflow.data.npz import from_npz
from tvmflow.data.pictures import from_folder
from tvmflow.data.preprocess import Preprocess
from tvmflow.data.source import Row
from tvmflow.errors import DataError
from tvmflow.model import TensorInfo

_ROWS = re.compile(r"(?P<base>.+)\[(?P<start>\d*):(?P<stop>\d*)(?::(?P<step>\d*))?\]")


@dataclass(frozen=True)
class DataSet:
    """Samples as the model takes them: iteration reads them one at a time and yields a dictionary ``name -> array``.

    Arrays have the shape and dtype of the model's input, batch axis included. It may be iterated any number of times; errors in
    the values (NaN, undecodable pictures) are DataErrors that name the row, raised when it is reached.
    """

    source: str
    inputs: tuple[TensorInfo, ...]
    rows: int
    batch: int
    """Rows in a sample: the model's batch size."""
    sha256: str
    """Hash of the content: the rows that are selected, and the preprocessing."""
    labels: np.ndarray | None
    """int64 ``[rows]``, -1 for a row without a label; None when there are none at all."""
    preprocess: Preprocess | None
    notes: tuple[str, ...]
    """What was left out, as sentences."""
    read: Callable[[], Iterator[Row]]
    """Starts over at the first row."""

    def __len__(self) -> int:
        return self.rows // self.batch

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        rows = self.read()
        for number in range(len(self)):
            group = list(islice(rows, self.batch))
            if len(group) < self.batch:
                raise DataError(f"only {number * self.batch + len(group)} of {self.rows} rows came", where=self.source)
            yield {i.name: self._sample(i, [row[i.name] for row in group], number * self.batch) for i in self.inputs}

    def _sample(self, info: TensorInfo, values: list[np.ndarray], first: int) -> np.ndarray:
        for offset, value in enumerate(values):
            _check_values(value, info, f"{self.source}, row {first + offset}, input {info.name!r}")
        whole = values[0].shape == info.shape
        return np.ascontiguousarray(values[0] if whole else np.stack(values), dtype=info.dtype)


def load_data(spec: str | Path, inputs: tuple[TensorInfo, ...], preprocess: Preprocess | None = None) -> DataSet:
    """Open data for a model with these inputs. Nothing but names, shapes and labels is read yet (a callable is run once).

    Parameters
    ----------
    spec : see the text of :mod:`tvmflow.data`
    preprocess : an artifact's declaration. Used for raw pixels that bring no declaration of their own

    Raises
    ------
    DataError : no data, or names, shapes or dtypes that don't fit the inputs
    ConfigError : an invalid preprocess declaration, or one that contradicts the artifact's
    """
    base, rows = _split_rows(str(spec))
    if re.fullmatch(r"[\w.]+:[\w.]+", base) and not Path(base).exists():
        source = from_callable(base, rows, inputs)
    elif Path(base).is_dir():
        source = from_folder(Path(base), rows, inputs, preprocess)
    elif Path(base).is_file():
        source = from_npz(Path(base), rows, inputs, preprocess)
    else:
        raise DataError(
            "there is no such file or folder", where=base, remedy="give an .npz, a folder of images, or package.module:callable"
        )
    if source.count == 0:
        raise DataError(
            "no samples", where=str(spec), remedy=f"the rows selected are {_text(rows)}" if rows != slice(None) else ""
        )
    batch = _batch(source.shapes, inputs, str(spec))
    if source.count % batch:
        usable = source.count - source.count % batch
        raise DataError(
            f"{source.count} rows can't be split into the model's batches of {batch}",
            where=str(spec),
            remedy=f"give {usable} rows, for example {base}[0:{usable}]",
        )
    steps = b"" if source.preprocess is None else msgspec.json.encode(source.preprocess)
    sha256 = hashlib.sha256(source.digest.encode() + steps).hexdigest()
    return DataSet(str(spec), inputs, source.count, batch, sha256, source.labels, source.preprocess, source.notes, source.read)


def _split_rows(spec: str) -> tuple[str, slice]:
    match = None if Path(spec).exists() else _ROWS.fullmatch(spec)
    if match is None:
        return spec, slice(None)
    start, stop, step = (int(match[k]) if match[k] else None for k in ("start", "stop", "step"))
    if step == 0:
        raise DataError("a step of 0", where=spec, remedy="write rows as [start:stop] or [start:stop:step]")
    return match["base"], slice(start, stop, step)


def _text(rows: slice) -> str:
    return "[" + ":".join("" if v is None else str(v) for v in (rows.start, rows.stop, rows.step)) + "]"


def _batch(shapes: Mapping[str, tuple[int, ...]], inputs: tuple[TensorInfo, ...], where: str) -> int:
    """Rows in a sample: 1 when a row is a whole input, the first axis of the inputs when it lacks that."""
    sizes = set()
    for info in inputs:
        shape = shapes[info.name]
        if shape == info.shape:
            sizes.add(1)
        elif shape == info.shape[1:]:
            sizes.add(info.shape[0])
        else:
            raise DataError(
                f"a row of {info.name!r} has shape {list(shape)}, the model wants {list(info.shape[1:])} or {list(info.shape)}",
                where=where,
                remedy="the first axis counts samples; reshape or transpose the rest, or declare the preprocessing",
            )
    if len(sizes) > 1:
        raise DataError(
            f"the inputs disagree on rows per sample: {sorted(sizes)}", where=where, remedy="give whole inputs as rows"
        )
    return sizes.pop()


def _check_values(value: np.ndarray, info: TensorInfo, where: str) -> None:
    wanted = np.dtype(info.dtype)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise DataError("NaN or infinity", where=where, remedy="remove the row, or find what produced it")
    if value.dtype.kind in "iu" and value.dtype != wanted and value.size:
        limits = np.iinfo(wanted)
        if int(value.min()) < limits.min or int(value.max()) > limits.max:
            raise DataError(f"values from {value.min()} to {value.max()} don't fit {wanted}", where=where)
