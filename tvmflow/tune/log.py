"""Tuning records: one JSON line each, keyed by kernel signature and target, usable wherever the template exists.

Shipped records lie in ``tuning_logs/<target>/<model>.jsonl``, those of this machine in ``<work dir>/tuning/<target>.jsonl``.
Lines are appended and never rewritten while tuning runs, so a killed process loses at most the line that it was writing; a torn
last line is skipped on reading.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tvmflow.build.versions import versions
from tvmflow.errors import ConfigError
from tvmflow.kernels import spec as ks
from tvmflow.schedule.template import Tile, template_for
from tvmflow.target import Target

SCHEMA = 1
KEPT = 3
"""Records of a kernel that :func:`merge` keeps."""
_ROOTS = (Path(__file__).parents[1] / "_data" / "tuning_logs", Path(__file__).parents[2] / "tuning_logs")


class TuningRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured decision. ``seconds`` are all run times of one call, raw.

    A record stays usable when its template gains fields: those have defaults. :func:`fitting` refuses it when the space changed.
    """

    kernel: ks.Kernel
    target: str
    tile: Tile
    seconds: tuple[float, ...]
    date: str
    versions: dict[str, str]
    scale: float = 1.0
    """What ``seconds`` are multiplied with to be comparable with the kernel's other records: the incumbent's first time over
    its time in the same rounds."""
    accepted: bool = True
    """False until it has won a second measurement against the incumbent: the best of many noisy times is a lucky one."""
    settled: int = 0
    """Candidates of the kernel's space when the search ended with this one as the best; 0 while there was more to gain."""
    schema: int = SCHEMA

    @property
    def best(self) -> float:
        """Seconds of one call in the state of the machine in which the kernel's first record was made."""
        return self.scale * min(self.seconds)


_ENCODER = msgspec.json.Encoder(order="deterministic")
_DECODER = msgspec.json.Decoder(TuningRecord)


def record(
    kernel: ks.Kernel, target: Target, tile: Tile, seconds: Iterable[float], *, scale: float = 1.0, accepted: bool = True
) -> TuningRecord:
    """A record of today. Raises ValueError without run times: a failed trial is never a record."""
    times = tuple(seconds)
    if not times or min(times) <= 0:
        raise ValueError("a record needs positive run times")
    today = datetime.date.today().isoformat()
    return TuningRecord(kernel, target.name, tile, times, today, versions(), scale, accepted)


def settle(entry: TuningRecord, candidates: int) -> TuningRecord:
    """The record of a kernel's best decision once nothing is left to gain in its space."""
    return msgspec.structs.replace(entry, settled=candidates)


def append(path: Path, entry: TuningRecord) -> None:
    """Adds one record, on disk before this returns."""
    append_line(path, _ENCODER.encode(entry))


def append_line(path: Path, line: bytes) -> None:
    """Adds one line, on disk before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if file.tell() and not _ends_in_newline(path):
            file.write(b"\n")  # a killed process left a torn line; it stays alone on its line
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_in_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read(path: Path, *, strict: bool = False) -> list[TuningRecord]:
    """Records of a file. A torn line is skipped; with ``strict`` (shipped and given logs) it is a ConfigError with its number."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"can't read the tuning log: {error.strerror}", where=str(path)) from error
    found = []
    for number, line in enumerate(lines, 1):
        try:
            entry = _DECODER.decode(line)
        except (msgspec.ValidationError, msgspec.DecodeError) as error:
            if strict:
                raise ConfigError(f"not a tuning record: {error}", where=f"{path}:{number}", remedy="remove the line") from error
            continue
        if entry.schema <= SCHEMA:
            found.append(entry)
    return found


def merge(records: Iterable[TuningRecord], keep: int = KEPT) -> list[TuningRecord]:
    """The ``keep`` best different decisions of each kernel and target, sorted: equal sets give equal files.

    Accepted ones come first, the fastest before the others.
    """
    groups: dict[tuple[str, str], dict[Tile, TuningRecord]] = {}
    for entry in records:
        tiles = groups.setdefault((entry.target, ks.encode(entry.kernel)), {})
        if entry.tile not in tiles or _rank(entry) < _rank(tiles[entry.tile]):
            tiles[entry.tile] = entry
    return [e for _, tiles in sorted(groups.items()) for e in sorted(tiles.values(), key=_rank)[:keep]]


def _rank(entry: TuningRecord) -> tuple[bool, float, int, bytes]:
    return not entry.accepted, entry.best, -entry.settled, _ENCODER.encode(entry)


def fitting(kernel: ks.Kernel, tile: Tile, target: Target) -> Tile | None:
    """The decision of today's space that a recorded one stands for, None when there is none.

    Whether a kernel runs on several threads follows from its modelled size, not from what was measured on one: where the two
    decisions differ in that only, today's holds.
    """
    template = template_for(kernel, target)
    alike = None
    for candidate in template.space(kernel, target):
        if candidate == tile:
            return tile
        if _but_for_threads(candidate, tile):
            alike = candidate
    return alike


def _but_for_threads(one: Tile, other: Tile) -> bool:
    flag = getattr(one, "threads", None)
    return type(one) is type(other) and isinstance(flag, bool) and msgspec.structs.replace(other, threads=flag) == one


def write(path: Path, records: Iterable[TuningRecord]) -> None:
    """Writes a whole log, or leaves the old one as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(b"".join(_ENCODER.encode(e) + b"\n" for e in records))
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def lint(path: Path, target: Target, build: bool = True) -> list[str]:
    """What is wrong with the records of a log for ``target``, one sentence each: empty for a log that can be shipped.

    Every line is a record of the target, and its tile is in the space that its kernel has today. With ``build`` code
    is generated for each kernel's records: a failure of that is raised, for it is a template's bug and not the log's.
    Raises ConfigError for a line that is no record.
    """
    found = []
    usable: dict[ks.Kernel, list[Tile]] = {}
    for number, entry in enumerate(read(path, strict=True), 1):
        where = f"{path.name}:{number}"
        template = template_for(entry.kernel, target)
        if entry.target != target.name:
            found.append(f"{where}: for {entry.target}, not {target.name}")
        elif (tile := fitting(entry.kernel, entry.tile, target)) is None:
            found.append(f"{where}: {entry.tile} is not in the space of {template.name}")
        else:
            usable.setdefault(entry.kernel, []).append(tile)
    if build:
        from tvmflow.tune.generate import generate

        for kernel, tiles in usable.items():
            generate(kernel, tiles, target)
    return found


@dataclass
class TuningLog:
    """The best few decisions of each kernel for one target."""

    name: str
    """What the manifest says of it: ``none``, or the number of kernels and where they come from."""
    best: Mapping[str, Sequence[TuningRecord]] = field(default_factory=dict)
    """By the kernel's signature, the best first."""
    refused: set[str] = field(default_factory=set)
    """Kernels asked for whose records are all of decisions that the templates no longer have."""

    def lookup(self, kernel: ks.Kernel, target: Target) -> Tile | None:
        """The best recorded decision of a kernel that today's space has, or None. Fits ``schedule``'s ``lookup``."""
        key = ks.encode(kernel)
        entries = [e for e in self.best.get(key, ()) if e.target == target.name]
        for entry in entries:
            tile = fitting(kernel, entry.tile, target)
            if tile is not None:
                return tile
        if entries:
            self.refused.add(key)
        return None


def local_log(target: Target, work_dir: Path) -> Path:
    """Where ``tune`` writes what it measures on this machine's behalf."""
    return work_dir / "tuning" / f"{target.name}.jsonl"


def shipped_logs(target: Target) -> list[Path]:
    """Logs that come with tvmflow for a target."""
    root = next((r for r in _ROOTS if r.is_dir()), None)
    return sorted((root / target.name).glob("*.jsonl")) if root else []


def open_log(choice: str | Path, target: Target, work_dir: Path) -> TuningLog:
    """The log that ``compile`` uses: ``default`` (shipped, then this work directory's), ``none``, or a file.

    Raises ConfigError when a given or shipped file holds anything but records.
    """
    if choice == "none":
        return TuningLog("none")
    if choice == "default":
        local = local_log(target, work_dir)
        records = [e for path in shipped_logs(target) for e in read(path, strict=True)]
        records += read(local) if local.exists() else []
        name = "default"
    else:
        records, name = read(Path(choice), strict=True), Path(choice).name
    best: dict[str, list[TuningRecord]] = {}
    for entry in merge(e for e in records if e.target == target.name and e.accepted):
        best.setdefault(ks.encode(entry.kernel), []).append(entry)
    return TuningLog(f"{name}, {len(best)} kernels", best)
