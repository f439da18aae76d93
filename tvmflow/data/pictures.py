"""Pictures of a folder, decoded and preprocessed one at a time."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tvmflow.data.preprocess import Declaration, Preprocess, apply, open_picture, read_declaration
from tvmflow.data.source import Row, Source, declared, file_digest, target_input
from tvmflow.errors import ConfigError, DataError, nearest
from tvmflow.model import TensorInfo

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff")


def from_folder(folder: Path, rows: slice, inputs: tuple[TensorInfo, ...], given: Preprocess | None) -> Source:
    declaration_file = folder / "preprocess.toml"
    declaration = read_declaration(declaration_file) if declaration_file.exists() else None
    steps = declared(declaration.preprocess if declaration else None, given, str(declaration_file))
    if steps is None:
        raise DataError(
            "a folder of images needs a preprocess.toml",
            where=str(folder),
            remedy="see the text of tvmflow/data/preprocess.py for an example",
        )
    target = target_input(steps, inputs, str(declaration_file))
    if len(inputs) > 1:
        raise DataError(
            "images feed a single input, the model has several", where=str(folder), remedy="use an .npz or a callable"
        )
    entries = sorted(p for p in folder.iterdir() if p.is_file())
    files = [p for p in entries if p.suffix.lower() in IMAGES][rows]
    ignored = [p.name for p in entries if p.suffix.lower() not in IMAGES and p.name not in ("preprocess.toml", "labels.csv")]
    digest = hashlib.sha256("".join(f"{p.name} {file_digest(p)}\n" for p in files).encode()).hexdigest()

    def read() -> Iterator[Row]:
        for file in files:
            yield {target.name: apply(steps, open_picture(file), target, str(file))}

    return Source(
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
