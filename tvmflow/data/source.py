"""What all kinds of data have in common: rows, labels, a digest, and the checks of dtype and declaration."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.data.preprocess import Preprocess
from tvmflow.errors import ConfigError, DataError, nearest
from tvmflow.model import TensorInfo

LABEL = "label"
Row = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """What a kind of data knows before the model's batch and preprocessing are applied."""

    count: int
    digest: str
    labels: np.ndarray | None
    shapes: dict[str, tuple[int, ...]]
    """Shape of a row of each input, preprocessing done."""
    read: Callable[[], Iterator[Row]]
    preprocess: Preprocess | None = None
    notes: tuple[str, ...] = ()


def check_dtype(dtype: np.dtype[Any], info: TensorInfo, where: str) -> None:
    """Floating types may stand for each other, and integer types (values are checked to fit); nothing else is converted."""
    wanted = np.dtype(info.dtype)
    if dtype == wanted or (dtype.kind == wanted.kind == "f") or (dtype.kind in "iu" and wanted.kind in "iu"):
        return
    pixels = "declare the preprocessing in a .preprocess.toml beside the file, or store" if dtype == np.uint8 else "store"
    raise DataError(f"{info.name!r} is {dtype}, the model wants {wanted}", where=where, remedy=f"{pixels} it as {wanted}")


def declared(own: Preprocess | None, given: Preprocess | None, where: str) -> Preprocess | None:
    """The data's own declaration, which must not contradict the artifact's, or else the artifact's."""
    if own is not None and given is not None and own != given:
        changed = [k for k in own.__struct_fields__ if getattr(own, k) != getattr(given, k)]
        raise ConfigError(
            f"the declared preprocessing is not the one that the artifact was calibrated with (differs in {', '.join(changed)})",
            where=where,
            remedy="make them equal, or compile again with data that are prepared like these",
        )
    return own or given


def target_input(steps: Preprocess, inputs: tuple[TensorInfo, ...], where: str) -> TensorInfo:
    """The input that a declaration is for."""
    names = {i.name: i for i in inputs}
    if steps.input in names:
        return names[steps.input]
    if steps.input:
        raise ConfigError(f"the model has no input {steps.input!r}", where=where, remedy=nearest(steps.input, names))
    if len(inputs) > 1:
        raise ConfigError("the model has several inputs", where=where, remedy=f"set `input` to one of {', '.join(names)}")
    return inputs[0]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
