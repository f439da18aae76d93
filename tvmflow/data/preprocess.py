"""Preprocessing of pictures, declared once as data and used wherever the model gets pictures: calibration, evaluation, devices.

The steps, in this order, each optional: resize, crop, pad, colour, normalise ``(x / divisor - mean) / std`` in float32, layout.
A declaration is the ``[preprocess]`` table of a TOML file::

    schema = 1

    [preprocess]
    short_side = 256
    resample = "bicubic"
    crop = [224, 224]             # of the centre
    color = "rgb"
    divisor = 255.0
    mean = [0.485, 0.456, 0.406]
    std = [0.229, 0.224, 0.225]
    layout = "NCHW"
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from tvmflow.config import read_toml
from tvmflow.errors import ConfigError, DataError, MissingTool
from tvmflow.model import TensorInfo

SCHEMA = 1

Size = Annotated[int, Meta(ge=1)]
Margin = Annotated[int, Meta(ge=0)]


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How pixels, uint8 ``[H, W]`` or ``[H, W, C]``, become one input of the model."""

    input: str = ""
    """Name of the model's input; may stay empty when the model has one."""
    short_side: Size | None = None
    """Resize to this length of the short side, keeping the aspect ratio."""
    resize: tuple[Size, Size] | None = None
    """Resize to ``[height, width]``; instead of ``short_side``."""
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop: tuple[Size, Size] | None = None
    """``[height, width]`` cut from the centre."""
    pad: tuple[Margin, Margin, Margin, Margin] = (0, 0, 0, 0)
    """Pixels added at the top, left, bottom and right."""
    pad_value: Annotated[int, Meta(ge=0, le=255)] = 0
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    """Channels that the model wants. One channel becomes three by repetition, three become one by ITU-R 601 luma."""
    divisor: Annotated[float, Meta(gt=0)] = 1.0
    mean: tuple[float, ...] = (0.0,)
    """After division; one value, or one per channel in the order of ``color``."""
    std: tuple[Annotated[float, Meta(gt=0)], ...] = (1.0,)
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    @property
    def normalises(self) -> bool:
        return (self.divisor, set(self.mean), set(self.std)) != (1.0, {0.0}, {1.0})


class Declaration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a ``preprocess.toml``."""

    schema: int
    preprocess: Preprocess
    label_pattern: str = ""
    """Regular expression that finds a picture's class, an integer, in its file name: group 1."""


def read_declaration(path: Path) -> Declaration:
    """Parse a ``preprocess.toml``. Raises ConfigError with the nearest valid key or value."""
    declaration = read_toml(path, Declaration)
    if declaration.schema > SCHEMA:
        raise ConfigError(
            f"schema {declaration.schema} is newer than this tvmflow knows ({SCHEMA})", where=str(path), remedy="upgrade tvmflow"
        )
    if declaration.preprocess.short_side and declaration.preprocess.resize:
        raise ConfigError("both short_side and resize", where=str(path), remedy="keep one of them")
    return declaration


def apply(steps: Preprocess, pixels: np.ndarray, info: TensorInfo, where: str) -> np.ndarray:
    """Pixels of one picture, uint8 ``[H, W]`` or ``[H, W, 1 or 3]``, as one row of the input: shape ``info.shape[1:]``.

    Raises DataError, about ``where``, when the pixels don't fit the steps, and ConfigError when the steps don't fit the input.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3)):
        raise DataError(
            f"pictures must be uint8 [H, W] or [H, W, 1 or 3], this is {pixels.dtype} {list(pixels.shape)}",
            where=where,
            remedy="store raw pixels, or remove the preprocess declaration if these values are prepared already",
        )
    pixels = pixels if pixels.ndim == 3 else pixels[:, :, None]
    pixels = _crop(_resize(pixels, steps), steps, where)
    top, left, bottom, right = steps.pad
    pixels = np.pad(pixels, ((top, bottom), (left, right), (0, 0)), constant_values=steps.pad_value)
    values = _normalise(_colour(pixels, steps.color), steps, info)
    row = np.ascontiguousarray(values.transpose(2, 0, 1) if steps.layout == "NCHW" else values)
    if row.shape != info.shape[1:]:
        raise ConfigError(
            f"preprocessing gives {list(row.shape)} ({steps.layout[1:]}), input {info.name!r} wants {list(info.shape[1:])}",
            where=where,
            remedy="set short_side, resize, crop, pad, color or layout in the preprocess declaration",
        )
    return row


def open_picture(path: Path) -> np.ndarray:
    """Pixels of an image file, uint8 ``[H, W]`` or ``[H, W, 3]``, alpha dropped. Raises DataError when it can't be decoded."""
    image_module = _pillow()
    try:
        with image_module.open(path) as image:
            return np.asarray(image.convert("L" if image.mode in ("L", "1") else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to say that a file is damaged
        raise DataError(f"can't decode the picture: {error}", where=str(path), remedy="remove or replace the file") from error


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingTool(
            "Pillow is needed to read and resize pictures", where="preprocess", remedy="pip install 'tvmflow[report]'"
        ) from error
    return Image


def _resize(pixels: np.ndarray, steps: Preprocess) -> np.ndarray:
    if steps.resize is not None:
        size = steps.resize
    elif steps.short_side is not None:
        factor = steps.short_side / min(pixels.shape[:2])
        size = (round(pixels.shape[0] * factor), round(pixels.shape[1] * factor))
    else:
        return pixels
    image_module = _pillow()
    image = image_module.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    resized = np.asarray(image.resize((size[1], size[0]), getattr(image_module.Resampling, steps.resample.upper())))
    return resized if resized.ndim == 3 else resized[:, :, None]


def _crop(pixels: np.ndarray, steps: Preprocess, where: str) -> np.ndarray:
    if steps.crop is None:
        return pixels
    height, width = steps.crop
    if pixels.shape[0] < height or pixels.shape[1] < width:
        raise DataError(
            f"can't crop {height}x{width} from a picture of {pixels.shape[0]}x{pixels.shape[1]}",
            where=where,
            remedy="resize first",
        )
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _colour(pixels: np.ndarray, color: str) -> np.ndarray:
    if color == "gray":
        if pixels.shape[2] == 1:
            return pixels
        return np.rint(pixels @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[:, :, None]
    if pixels.shape[2] == 1:
        return np.repeat(pixels, 3, axis=2)
    return pixels[:, :, ::-1] if color == "bgr" else pixels


def _normalise(pixels: np.ndarray, steps: Preprocess, info: TensorInfo) -> np.ndarray:
    if not steps.normalises:
        return pixels.astype(info.dtype)
    if np.dtype(info.dtype).kind != "f":
        raise ConfigError(
            f"normalised pixels don't fit input {info.name!r}, which is {info.dtype}",
            where="preprocess",
            remedy="remove divisor, mean and std",
        )
    channels = pixels.shape[2]
    for key, values in (("mean", steps.mean), ("std", steps.std)):
        if len(values) not in (1, channels):
            raise ConfigError(
                f"{key} has {len(values)} values for {channels} channels", where="preprocess", remedy=f"give 1 or {channels}"
            )
    mean, std = np.array(steps.mean, np.float32), np.array(steps.std, np.float32)
    return ((pixels.astype(np.float32) / np.float32(steps.divisor) - mean) / std).astype(info.dtype)
