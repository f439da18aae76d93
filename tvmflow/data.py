"""Data for calibration, evaluation and runs: one streaming :class:`DataSet`, whatever the samples come from.

- ``digits.npz``: arrays named after the model's inputs, first axis = samples, an optional array ``label``. With a file
  ``digits.preprocess.toml`` beside it the array holds raw pixels, uint8, that are preprocessed as declared there.
- ``pictures/``: a folder of images with a ``preprocess.toml``; classes in ``labels.csv`` (``file,label``) or in the file names.
- ``package.module:callable``: called without arguments, yields a dictionary per sample, with an optional ``label``.

Any of them may end in rows as Python writes them, ``digits.npz[0:512]`` or ``pictures[::10]``.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tvmflow.errors import ConfigError, DataError, nearest
from tvmflow.model import TensorInfo
from tvmflow.preprocess import Declaration, Preprocess, apply, open_picture, read_declaration

LABEL = "label"
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
ENDLESS = 1_000_000
"""A callable that yields more samples than this without a bound on its rows is taken for an endless one."""

Row = Mapping[str, np.ndarray]
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


@dataclass(frozen=True)
class _Source:
    """What a kind of data knows before the model's batch and preprocessing are applied."""

    count: int
    digest: str
    labels: np.ndarray | None
    shapes: dict[str, tuple[int, ...]]
    """Shape of a row of each input, preprocessing done."""
    read: Callable[[], Iterator[Row]]
    preprocess: Preprocess | None = None
    notes: tuple[str, ...] = ()


def load_data(spec: str | Path, inputs: tuple[TensorInfo, ...], preprocess: Preprocess | None = None) -> DataSet:
    """Open data for a model with these inputs. Nothing but names, shapes and labels is read yet (a callable is run once).

    Parameters
    ----------
    spec : see the module's text
    preprocess : an artifact's declaration. Used for raw pixels that bring no declaration of their own

    Raises
    ------
    DataError : no data, or names, shapes or dtypes that don't fit the inputs
    ConfigError : an invalid preprocess declaration, or one that contradicts the artifact's
    """
    base, rows = _split_rows(str(spec))
    if re.fullmatch(r"[\w.]+:[\w.]+", base) and not Path(base).exists():
        source = _from_callable(base, rows, inputs)
    elif Path(base).is_dir():
        source = _from_folder(Path(base), rows, inputs, preprocess)
    elif Path(base).is_file():
        source = _from_npz(Path(base), rows, inputs, preprocess)
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


def _check_dtype(dtype: np.dtype[Any], info: TensorInfo, where: str) -> None:
    """Floating types may stand for each other, and integer types (values are checked to fit); nothing else is converted."""
    wanted = np.dtype(info.dtype)
    if dtype == wanted or (dtype.kind == wanted.kind == "f") or (dtype.kind in "iu" and wanted.kind in "iu"):
        return
    pixels = "declare the preprocessing in a .preprocess.toml beside the file, or store" if dtype == np.uint8 else "store"
    raise DataError(f"{info.name!r} is {dtype}, the model wants {wanted}", where=where, remedy=f"{pixels} it as {wanted}")


def _check_values(value: np.ndarray, info: TensorInfo, where: str) -> None:
    wanted = np.dtype(info.dtype)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise DataError("NaN or infinity", where=where, remedy="remove the row, or find what produced it")
    if value.dtype.kind in "iu" and value.dtype != wanted and value.size:
        limits = np.iinfo(wanted)
        if int(value.min()) < limits.min or int(value.max()) > limits.max:
            raise DataError(f"values from {value.min()} to {value.max()} don't fit {wanted}", where=where)


def _declared(own: Preprocess | None, given: Preprocess | None, where: str) -> Preprocess | None:
    """The data's own declaration, which must not contradict the artifact's, or else the artifact's."""
    if own is not None and given is not None and own != given:
        changed = [k for k in own.__struct_fields__ if getattr(own, k) != getattr(given, k)]
        raise ConfigError(
            f"the declared preprocessing is not the one that the artifact was calibrated with (differs in {', '.join(changed)})",
            where=where,
            remedy="make them equal, or compile again with data that are prepared like these",
        )
    return own or given


def _target(steps: Preprocess, inputs: tuple[TensorInfo, ...], where: str) -> TensorInfo:
    """The input that a declaration is for."""
    names = {i.name: i for i in inputs}
    if steps.input in names:
        return names[steps.input]
    if steps.input:
        raise ConfigError(f"the model has no input {steps.input!r}", where=where, remedy=nearest(steps.input, names))
    if len(inputs) > 1:
        raise ConfigError("the model has several inputs", where=where, remedy=f"set `input` to one of {', '.join(names)}")
    return inputs[0]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# .npz


@dataclass(frozen=True)
class _Array:
    """One array of an .npz: where its rows are in the (maybe compressed) archive member."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int


def _from_npz(path: Path, rows: slice, inputs: tuple[TensorInfo, ...], given: Preprocess | None) -> _Source:
    arrays = _headers(path)
    sidecar = path.with_suffix(".preprocess.toml")
    own = read_declaration(sidecar).preprocess if sidecar.exists() else None
    _check_names(arrays, inputs, str(path))
    steps, target = _declared(own, given, str(sidecar)), None
    if steps is not None:
        target = _target(steps, inputs, str(sidecar if own else path))
        found = arrays[target.name]
        if own is None and found.dtype != np.uint8 and np.dtype(target.dtype).kind == found.dtype.kind:
            steps = target = None  # the values are prepared already: the artifact's declaration is for raw pixels
    for info in inputs:
        if info != target:
            _check_dtype(arrays[info.name].dtype, info, str(path))
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
    return _Source(
        count=len(selected),
        digest=f"{_file_digest(path)} {selected}",
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


# Folders of images


def _from_folder(folder: Path, rows: slice, inputs: tuple[TensorInfo, ...], given: Preprocess | None) -> _Source:
    declaration_file = folder / "preprocess.toml"
    declaration = read_declaration(declaration_file) if declaration_file.exists() else None
    steps = _declared(declaration.preprocess if declaration else None, given, str(declaration_file))
    if steps is None:
        raise DataError(
            "a folder of images needs a preprocess.toml",
            where=str(folder),
            remedy="see the text of tvmflow/preprocess.py for an example",
        )
    target = _target(steps, inputs, str(declaration_file))
    if len(inputs) > 1:
        raise DataError(
            "images feed a single input, the model has several", where=str(folder), remedy="use an .npz or a callable"
        )
    entries = sorted(p for p in folder.iterdir() if p.is_file())
    files = [p for p in entries if p.suffix.lower() in IMAGES][rows]
    ignored = [p.name for p in entries if p.suffix.lower() not in IMAGES and p.name not in ("preprocess.toml", "labels.csv")]
    digest = hashlib.sha256("".join(f"{p.name} {_file_digest(p)}\n" for p in files).encode()).hexdigest()

    def read() -> Iterator[Row]:
        for file in files:
            yield {target.name: apply(steps, open_picture(file), target, str(file))}

    return _Source(
        count=len(files),
        digest=digest,
        labels=_folder_labels(folder, files, declaration),
        shapes={target.name: target.shape[1:]},
        read=read,
        preprocess=steps,
        notes=(f"{folder}: {len(ignored)} files are no images: {', '.join(ignored[:5])}",) if ignored else (),
    )


def _folder_labels(folder: Path, files: list[Path], declaration: Declaration | None) -> np.ndarray | None:
    table = folder / "labels.csv"
    if table.exists():
        labels = _label_table(table)
        absent = sorted(n for n in labels if not (folder / n).is_file())
        if absent:
            raise DataError(
                f"{absent[0]!r} is not in the folder", where=str(table), remedy=nearest(absent[0], [p.name for p in files])
            )
        return np.array([labels.get(p.name, -1) for p in files], np.int64)
    if declaration is None or not declaration.label_pattern:
        return None
    try:
        pattern = re.compile(declaration.label_pattern)
        matches = [pattern.search(p.name) for p in files]
        return np.array([-1 if m is None else int(m[1]) for m in matches], np.int64)
    except (re.error, IndexError, ValueError, TypeError) as error:
        raise ConfigError(
            f"label_pattern {declaration.label_pattern!r}: {error}",
            where=str(folder / "preprocess.toml"),
            remedy=r"write an expression whose group 1 is an integer, such as '_(\d+)\.jpg$'",
        ) from error


def _label_table(table: Path) -> dict[str, int]:
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames is None or not {"file", "label"} <= set(reader.fieldnames):
            raise DataError(
                "the columns `file` and `label` are wanted", where=str(table), remedy="write `file,label` as the first line"
            )
        try:
            return {row["file"]: int(row["label"]) for row in reader}
        except (ValueError, TypeError) as error:
            raise DataError(f"a label is no integer: {error}", where=f"{table}, line {reader.line_num}") from error


# Callables


def _from_callable(spec: str, rows: slice, inputs: tuple[TensorInfo, ...]) -> _Source:
    function = _import(spec)

    def read() -> Iterator[dict[str, np.ndarray]]:
        return islice(_yielded(function, spec), rows.start, rows.stop, rows.step)

    digest, labels, shapes, count = hashlib.sha256(), [], {}, 0
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
            _check_dtype(value.dtype, info, where)
            if shapes.setdefault(info.name, value.shape) != value.shape:
                raise DataError(
                    f"{info.name!r} changes its shape to {list(value.shape)}", where=where, remedy="yield equal shapes"
                )
            digest.update(f"{info.name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        labels.append(int(row.get(LABEL, np.array(-1)).reshape(())))
    known = np.array(labels, np.int64)
    return _Source(count, digest.hexdigest(), known if (known >= 0).any() else None, shapes, read)


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
    return value  # type: ignore[no-any-return]
