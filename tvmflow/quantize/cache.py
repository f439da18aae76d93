"""Calibration cache: results under ``<work dir>/calibration/<key>.json``, by the content of everything that they depend on.

A calibration is stored when it is complete. One that was interrupted starts over.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np

from tvmflow import __version__
from tvmflow.data import DataSet
from tvmflow.errors import ConfigError
from tvmflow.model import Model
from tvmflow.quantize.calibrate import Calibration, Run, SiteStats, calibrate
from tvmflow.quantize.center import Shifts, centerable, channel_means
from tvmflow.quantize.graph import view
from tvmflow.quantize.plan import Plan
from tvmflow.quantize.qparams import from_entries, to_entries, write_json
from tvmflow.quantize.recipe import Recipe
from tvmflow.trace import Progress, silent

SCHEMA = 1


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    version: str
    samples: int
    convergence: tuple[tuple[int, float], ...]
    notes: tuple[str, ...]
    stats: dict[str, SiteStats]
    sites: dict[str, dict[str, object]]


def cache_key(model: Model, data_sha256: str, recipe: Recipe, plan: Plan) -> str:
    """Hex key of a calibration: content of model and prepared data, stages run, recipe, plan, version."""
    parts = (
        SCHEMA,
        __version__,
        model.sha256,
        model.history,
        data_sha256,
        msgspec.to_builtins(recipe),
        msgspec.to_builtins(plan),
    )
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def cache_path(work_dir: Path, key: str) -> Path:
    return work_dir / "calibration" / f"{key}.json"


def read_cache(work_dir: Path, key: str, plan: Plan) -> Calibration | None:
    """A stored calibration, None when there is none. Raises ConfigError when the file is damaged."""
    path = cache_path(work_dir, key)
    if not path.exists():
        return None
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_File)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"a damaged calibration cache: {error}", where=str(path), remedy="delete this file") from error
    qparams = from_entries(found.sites, plan, str(path))
    return Calibration(qparams, found.stats, found.samples, found.convergence, found.notes)


def write_cache(work_dir: Path, key: str, calibration: Calibration, plan: Plan) -> Path:
    """Store a calibration; returns its file."""
    c = calibration
    path = cache_path(work_dir, key)
    sites = to_entries(c.qparams, plan)
    write_json(path, _File(SCHEMA, __version__, c.samples, c.convergence, c.notes, c.stats, sites))
    return path


class _Shifts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    shifts: dict[str, tuple[float, ...]]


def channel_means_cached(model: Model, data: DataSet, run: Run, work_dir: Path) -> Shifts:
    """:func:`tvmflow.quantize.center.channel_means`, or its result from the cache. Raises ConfigError for a damaged file."""
    if not model.sha256:
        return channel_means(model, data, run)
    tensors = centerable(view(model.module))
    parts = (SCHEMA, __version__, model.sha256, data.sha256, tensors)
    path = cache_path(work_dir, hashlib.sha256(msgspec.json.encode(parts)).hexdigest()).with_suffix(".center.json")
    if not path.exists():
        found = channel_means(model, data, run)
        write_json(path, _Shifts(SCHEMA, {t: tuple(m.tolist()) for t, m in found.items()}))
        return found
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Shifts)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"a damaged calibration cache: {error}", where=str(path), remedy="delete this file") from error
    return {t: np.array(m, np.float64) for t, m in stored.shifts.items()}


def calibrate_cached(
    model: Model, plan: Plan, recipe: Recipe, data: DataSet, run: Run, work_dir: Path, progress: Progress = silent
) -> Calibration:
    """:func:`calibrate`, or its result from the cache when nothing it depends on has changed. Raises what calibrate raises."""
    if not model.sha256:  # built in memory without a hash: nothing to recognise it by
        return calibrate(model, plan, recipe, data, run, progress)
    key = cache_key(model, data.sha256, recipe, plan)
    found = read_cache(work_dir, key, plan)
    if found is None:
        found = calibrate(model, plan, recipe, data, run, progress)
        write_cache(work_dir, key, found, plan)
    return found
