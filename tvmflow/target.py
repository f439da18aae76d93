"""Targets: what hardware an artifact is for, as one TOML file a target.

Knowledge of an architecture lives in these files first; a new board is one new file, no Python.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tvmflow.config import read_toml
from tvmflow.errors import ConfigError, nearest

if TYPE_CHECKING:
    from tvm.target import Target as TvmTarget

SCHEMA = 1
_ROOTS = (Path(__file__).parent / "_data" / "targets", Path(__file__).parent.parent / "targets")


class Int8(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How integer layers are stored and multiplied."""

    storage: str
    """dtype of activations: ``uint8`` where the dot product wants unsigned operands, else ``int8``."""
    dot: tuple[str, ...]
    """Names of intrinsics (schedule/intrinsics.py) in order of preference; the first one that fits a kernel is used."""


class Cpu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes that the schedule models read. ``vector_bits`` is the register width, ``registers`` how many there are."""

    cores: int
    l1d_kib: int
    l2_kib: int
    l3_kib: int
    vector_bits: int
    registers: int


class Cuda(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Device side of a CUDA target."""

    arch: str
    sms: int
    shared_kib: int
    registers_per_sm: int = 65536
    l2_kib: int = 0


class Board(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Defaults for ``tvmflow board add``."""

    user: str = ""
    threads: int = 0


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One named hardware target, as read from its TOML file."""

    schema: int
    name: str
    family: str
    """``x86``, ``arm`` or ``cuda``."""
    description: str
    tvm: dict[str, Any]
    """Host code: the dictionary that ``tvm.target.Target`` takes (kind, mtriple, mcpu, mattr)."""
    features: tuple[str, ...]
    """CPU features that the code may use, in Linux' spelling (/proc/cpuinfo, HWCAP); checked before an artifact is loaded."""
    int8: Int8
    float32: tuple[str, ...]
    """Names of float32 intrinsics in order of preference."""
    cpu: Cpu
    cuda: Cuda | None = None
    board: Board = Board()
    aliases: tuple[str, ...] = ()

    @property
    def triple(self) -> str:
        return str(self.tvm["mtriple"])

    @property
    def arch(self) -> str:
        """Machine of the host code: ``x86_64``, ``aarch64``, ``armv7``."""
        return self.triple.split("-")[0]

    def host(self) -> TvmTarget:
        """TVM target of the host code. Raises ConfigError when LLVM does not know the CPU or would use more than ``features``."""
        from tvmflow.isa import checked_host

        return checked_host(self.name, msgspec.json.encode(self.tvm, order="deterministic"), self.features)

    def device(self) -> TvmTarget:
        """TVM target of the kernels: the host's, or the CUDA device with that host."""
        import tvm

        if self.cuda is None:
            return self.host()
        return tvm.target.Target(
            {
                "kind": "cuda",
                "arch": self.cuda.arch,
                "max_shared_memory_per_block": 49152,
                "max_threads_per_block": 1024,
                "thread_warp_size": 32,
                "registers_per_block": self.cuda.registers_per_sm,
                "host": dict(self.tvm),
            }
        )


def target_files() -> dict[str, Path]:
    """Shipped target files by name."""
    root = next((r for r in _ROOTS if r.is_dir()), None)
    return {p.stem: p for p in sorted(root.glob("*.toml"))} if root else {}


def read_target(path: Path) -> Target:
    """Parse one target file. Raises ConfigError with the file, the key and the nearest valid key."""
    target = read_toml(path, Target)
    if target.schema > SCHEMA:
        raise ConfigError(
            f"schema {target.schema} is newer than this tvmflow knows ({SCHEMA})", where=str(path), remedy="upgrade tvmflow"
        )
    for key in ("kind", "mtriple", "mcpu"):
        if not isinstance(target.tvm.get(key), str):
            raise ConfigError(f"the table [tvm] needs the key {key!r}", where=str(path), remedy="see targets/x86-64-v3.toml")
    return target


@lru_cache
def get_target(name: str) -> Target:
    """Target by name, alias or TOML file; ``native`` is :func:`detect`. Raises ConfigError with the nearest valid name."""
    if name == "native":
        return detect()
    files = target_files()
    if name in files:
        return read_target(files[name])
    if name.endswith(".toml"):
        return read_target(Path(name))
    for path in files.values():
        target = read_target(path)
        if name in target.aliases:
            return target
    raise ConfigError(f"unknown target {name!r}", remedy=nearest(name, [*files, "native"]))


def detect() -> Target:
    """The named target nearest to this machine: the widest vectors, then the most features, of those that need nothing
    which this CPU lacks.

    It keeps the name, so that shipped tuning records apply, and takes its cores and cache sizes from the machine.
    Raises ConfigError on a machine that no target fits.
    """
    from tvmflow.runtime import cpu

    here = cpu.features()
    fitting = [
        target
        for target in map(read_target, target_files().values())
        if target.cuda is None and target.arch == cpu.arch() and here.issuperset(target.features)
    ]
    if not fitting:
        raise ConfigError(
            f"no named target fits this machine ({cpu.arch()}, {cpu.model_name()})",
            remedy=f"name one with -t; features found: {' '.join(sorted(here)) or 'none'}",
        )
    board = cpu.board_model().lower().replace(" ", "-")
    best = max(
        fitting,
        key=lambda t: (t.cpu.vector_bits, len(t.features), any(alias in board for alias in t.aliases), not t.board.user),
    )
    found = cpu.cache_kib()
    sizes = {field: found[level] for field, level in (("l1d_kib", "1"), ("l2_kib", "2"), ("l3_kib", "3")) if found.get(level)}
    return msgspec.structs.replace(
        best,
        description=f"{best.description}; cores and caches of this machine ({cpu.model_name()})",
        cpu=msgspec.structs.replace(best.cpu, cores=cpu.physical_cores(), **sizes),
    )
