"""Quantization parameters of sites: computed by calibrate, saved as JSON, edited by hand if one likes, used by realize."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from tvmflow.errors import ConfigError, nearest
from tvmflow.quantize.observers import LEVELS, MIN_SCALE, WEIGHT_MAX
from tvmflow.quantize.plan import Plan, Site
from tvmflow.quantize.recipe import Recipe

SCHEMA = 1


@dataclass(frozen=True)
class QParam:
    """Affine parameters of one site: ``real = scale * (q - zero_point)`` with int8 q.

    ``scale`` float32 ``[1]`` or ``[C]`` (along the site's channel axis); ``zero_point`` in [-128, 127], 0 for weights.
    ``low`` and ``high`` are the observed range in real values, ``observer`` says how it was found.
    """

    scale: np.ndarray
    zero_point: int
    low: float
    high: float
    observer: str


QParams = dict[str, QParam]
"""Parameters by site id."""


def activation_param(low: float, high: float, observer: str, symmetric: bool = False) -> QParam:
    """Parameters whose int8 codes cover ``[low, high]`` and zero, which is always exact.

    A range without extent (zero alone) takes scale 1; no scale is below :data:`MIN_SCALE`.
    """
    if symmetric:
        bound = max(-low, high, 0.0)
        return QParam(_scale(bound / WEIGHT_MAX), 0, low, high, observer)
    bottom, top = min(low, 0.0), max(high, 0.0)
    scale = _scale((top - bottom) / LEVELS)
    zero_point = int(np.clip(np.rint(-128 - bottom / float(scale[0])), -128, 127)) if top > bottom else 0
    return QParam(scale, zero_point, low, high, observer)


def _scale(value: float) -> np.ndarray:
    return np.array([max(value, MIN_SCALE) if value > 0 else 1.0], np.float32)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of one site in a file."""

    scale: tuple[float, ...]
    zero_point: Annotated[int, Meta(ge=-128, le=127)]
    low: float
    high: float
    observer: str = "edited"


class Shared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In a file: this site has the parameters of another one. Edit that one."""

    like: str


class Origin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What parameters were computed from."""

    model_sha256: str = ""
    calibration_sha256: str = ""
    samples: int = 0
    versions: dict[str, str] = {}


class ParamsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a parameter file. ``sites`` holds either an entry or the id of the site that is shared.

    ``shifts`` are the channel means that the model must be centred with before these parameters fit it.
    """

    schema: int
    origin: Origin
    recipe: Recipe
    sites: dict[str, dict[str, object]]
    shifts: dict[str, tuple[float, ...]] = {}


def save_qparams(
    path: Path,
    qparams: Mapping[str, QParam],
    plan: Plan,
    recipe: Recipe,
    origin: Origin,
    shifts: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write the parameters with the recipe and the origin they came from. An older file stays intact if writing fails.

    ``shifts`` are those of :func:`tvmflow.quantize.center.channel_means`, when the model was centred with them.
    """
    listed = {name: tuple(float(v) for v in shift) for name, shift in (shifts or {}).items()}
    content = ParamsFile(SCHEMA, origin, recipe, to_entries(qparams, plan), listed)
    write_json(path, content)


def load_qparams(path: Path, plan: Plan) -> QParams:
    """Parameters from a file, checked against the plan's sites.

    Raises ConfigError for a file that can't be read, sites that the plan lacks or the file lacks (with the nearest name), and
    values out of range.
    """
    content = read_params_file(path)
    return from_entries(content.sites, plan, str(path))


def read_params_file(path: Path) -> ParamsFile:
    """The file as it is, without a plan to check it against. Raises ConfigError."""
    try:
        content = msgspec.json.decode(path.read_bytes(), type=ParamsFile)
    except OSError as error:
        raise ConfigError(f"can't read the file: {error.strerror}", where=str(path)) from error
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"not a file of quantization parameters: {error}",
            where=str(path),
            remedy="write one with `tvmflow quantize -o PARAMS.json`",
        ) from error
    if content.schema > SCHEMA:
        raise ConfigError(
            f"schema {content.schema} is newer than this tvmflow knows ({SCHEMA})", where=str(path), remedy="upgrade tvmflow"
        )
    return content


def to_entries(qparams: Mapping[str, QParam], plan: Plan) -> dict[str, dict[str, object]]:
    """Parameters as JSON values in the plan's order; a site that shares another's is a reference to it."""
    return {s.id: {"like": s.like} if s.like else _entry(qparams[s.id]) for s in plan.sites}


def _entry(param: QParam) -> dict[str, object]:
    # the shortest decimal that is this float32 again; its float64 digits would only be noise to an editor
    scale = tuple(float(str(s)) for s in param.scale.astype(np.float32))
    return msgspec.structs.asdict(Entry(scale, param.zero_point, param.low, param.high, param.observer))


def from_entries(entries: Mapping[str, Mapping[str, object]], plan: Plan, where: str) -> QParams:
    """Inverse of :func:`to_entries`; raises ConfigError about ``where``."""
    sites = {s.id: s for s in plan.sites}
    for name in entries:
        if name not in sites:
            raise ConfigError(f"site {name!r} is not in this model's plan", where=where, remedy=_closest(name, list(sites)))
    for name in sites:
        if name not in entries:
            raise ConfigError(f"site {name!r} has no parameters", where=where, remedy=_closest(name, list(entries)))
    own = {n: _param(entries[n], sites[n], f"{where}: {n}") for n in sites if "like" not in entries[n]}
    return {n: own[_root(n, entries, where)] for n in sites}


def _param(entry: Mapping[str, object], site: Site, where: str) -> QParam:
    try:
        found = msgspec.convert(entry, Entry, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(
            str(error), where=where, remedy=f"the keys are {', '.join(Entry.__struct_fields__)}; or `like`"
        ) from error
    channels = 1 if site.channel_axis is None else site.shape[site.channel_axis]
    if len(found.scale) not in (1, channels):
        raise ConfigError(
            f"{len(found.scale)} scales for {channels} channels", where=where, remedy="give one, or one per channel"
        )
    if not all(math.isfinite(s) and s >= MIN_SCALE for s in found.scale):
        raise ConfigError(f"scales must be finite and at least {MIN_SCALE:.2g}", where=where)
    if site.role == "weight" and found.zero_point != 0:
        raise ConfigError(f"zero point {found.zero_point} of a weight", where=where, remedy="weights are symmetric: 0")
    return QParam(np.array(found.scale, np.float32), found.zero_point, found.low, found.high, found.observer)


def _root(name: str, entries: Mapping[str, Mapping[str, object]], where: str) -> str:
    """The site at the end of a chain of references."""
    seen = [name]
    while "like" in entries[seen[-1]]:
        target = str(entries[seen[-1]]["like"])
        if target not in entries or target in seen:
            what = "which is not in the file" if target not in entries else "in a circle"
            raise ConfigError(
                f"it refers to {target!r}, {what}", where=f"{where}: {seen[-1]}", remedy=_closest(target, list(entries))
            )
        seen.append(target)
    return seen[-1]


def _closest(name: str, names: list[str]) -> str:
    """The nearest name only: a model has hundreds."""
    hint = nearest(name, names)
    return (
        hint.split("? ")[0] + "?" if hint.startswith("did you mean") else "calibrate again: the model or the recipe has changed"
    )


def write_json(path: Path, content: msgspec.Struct) -> None:
    """Indented JSON, in one step: readers see the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1) + b"\n")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
