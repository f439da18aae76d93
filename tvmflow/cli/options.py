"""Arguments and options that several verbs share, and how their text is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tvmflow.errors import UsageError, UserError, nearest

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="An .onnx file, a torch.export .pt2 file, or package.module:callable.")
]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A .so file that `tvmflow compile` wrote.")]
TargetName = Annotated[
    str, typer.Option("--target", "-t", metavar="TARGET", help="A name of `tvmflow targets list`, or a TOML file.")
]
Quantize = Annotated[
    str | None,
    typer.Option("--quantize", "-q", metavar="RECIPE", help="Quantize with this recipe: a name (int8) or a TOML file."),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        "--calibrate", metavar="DATA", help="Calibration data: an .npz, a folder of images, or package.module:callable."
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1x3x224x224", help="Fix the shape of an input that has dynamic dimensions."),
]
BoardName = Annotated[str | None, typer.Option("--board", metavar="BOARD", help="Run on this board (`tvmflow board list`).")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Threads to run with; without it, one a core.")]
WorkDir = Annotated[Path, typer.Option("--work-dir", metavar="DIR", help="Where work state is kept.")]
WORK_DIR = Path(".tvmflow")

_UNITS = {"h": 3600, "m": 60, "s": 1}


def existing(path: str | Path) -> Path:
    """The path of a file that is there. Raises UserError with the nearest name in the same folder."""
    path = Path(path)
    if path.exists():
        return path
    folder = path.parent
    if not folder.is_dir():
        raise UserError("no such folder", where=str(folder))
    beside = [p.name for p in folder.iterdir() if p.suffix == path.suffix]
    raise UserError("no such file", where=str(path), remedy=nearest(path.name, beside) if beside else "")


def existing_or_callable(text: str) -> str:
    """A path that is there, or ``package.module:callable``, which is looked up later."""
    if re.fullmatch(r"[\w.]+:[\w.]+", text) and not Path(text).exists():
        return text
    return str(existing(text))


def existing_data(text: str) -> str:
    """Like `existing_or_callable`, for data, which may end in the rows to take: ``digits.npz[0:512]``."""
    if not Path(text).exists():
        existing_or_callable(re.sub(r"\[[\d:-]*\]$", "", text))
    return text


def parse_shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]] | None:
    """``["input=1x3x224x224"]`` -> ``{"input": (1, 3, 224, 224)}``; a scalar is ``name=``. Raises UsageError."""
    if not texts:
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, dims = text.rpartition("=")
        if not equals or not name or not re.fullmatch(r"(\d+([xX,]\d+)*)?", dims):
            raise UsageError(f"can't read the shape {text!r}", where="--shape", remedy="write NAME=1x3x224x224")
        if name in shapes:
            raise UsageError(f"input {name!r} is given twice", where="--shape")
        shape = tuple(int(d) for d in re.split("[xX,]", dims) if d)
        if 0 in shape:
            raise UsageError(f"a dimension of {text!r} is 0", where="--shape", remedy="every dimension is at least 1")
        shapes[name] = shape
    return shapes


def parse_budget(text: str | None) -> float | None:
    """``"20m"``, ``"90s"``, ``"1h30m"`` -> seconds. Raises UsageError."""
    if text is None:
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    if not parts or "".join(n + u for n, u in parts) != text:
        raise UsageError(f"can't read the time {text!r}", where="--budget", remedy="write it like 20m, 90s or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds <= 0:
        raise UsageError("the time is 0", where="--budget", remedy="write it like 20m, 90s or 1h30m")
    return seconds
