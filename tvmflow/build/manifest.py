"""The manifest: what a compiled file says about itself, and how to read it without running the file.

An artifact is a shared library with three sections that are never mapped. ``.tvmflow.manifest`` is JSON, ``.tvmflow.selftest`` an
npz with inputs and expected outputs, ``.tvmflow.sha256`` the digest of the whole file with these 32 bytes set to zero.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np
from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from tvmflow.errors import ArtifactError
from tvmflow.model import TensorInfo

SCHEMA = 1
MANIFEST, SELF_TEST, DIGEST = ".tvmflow.manifest", ".tvmflow.selftest", ".tvmflow.sha256"
DIGEST_SIZE = 32
CHUNK = 1 << 18
REBUILD = "copy the file again, or compile it again with `tvmflow compile`"

Vector = tuple[Sequence[np.ndarray], Sequence[np.ndarray]]
"""One self-test vector: inputs and expected outputs, each in the order of the manifest."""


class SelfTest(msgspec.Struct, frozen=True):
    """What the embedded vectors promise. ``tolerance`` is the largest absolute error that passes; 0 with ``bit_exact``."""

    count: int = 0
    tolerance: float = 0.0
    bit_exact: bool = True


class Provenance(msgspec.Struct, frozen=True):
    """Where an artifact comes from. Hashes are hex, ``versions`` maps packages and tools to their versions."""

    model_sha256: str = ""
    calibration_sha256: str = ""
    recipe: str = ""
    tuning_log: str = ""
    versions: dict[str, str] = {}


class Layer(msgspec.Struct, frozen=True):
    """One kernel call of the program, in execution order."""

    name: str
    """Name of the original layer; of several that one kernel computes, with `` + `` between."""
    op: str
    gop: float = 0.0
    """Arithmetic work that the call executes in 1e9 operations, a multiply-add counted as two; Winograd saves some."""
    kernel: str = ""
    """Symbol of the generated function."""
    integer: bool = False
    schedule: str = ""
    """Template and decision in short form, ``conv2d vnni512 1x14x2`` for instance, or ``generic``: a plain loop nest."""
    tuned: bool = False
    """The decision is from a tuning log."""


class Workspace(msgspec.Struct, frozen=True):
    """Memory of the intermediate tensors, planned at compile time. Inputs, outputs and weights are not among them."""

    bytes: int = 0
    """What a run holds at its peak."""
    storages: int = 0
    """Pieces of memory: one that all tensors share, or several where TVM's virtual machine calls the kernels."""
    tensors_bytes: int = 0
    """What the tensors would take if each had a storage of its own."""


class Manifest(msgspec.Struct, frozen=True):
    """Everything that `tvmflow inspect` prints. Keys are only ever added; ``schema`` grows when a reader must know."""

    target: str
    arch: str
    isa_required: tuple[str, ...]
    """CPU features in Linux' spelling; ``load`` refuses on a CPU that lacks one."""
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    precision: str
    """``int8`` or ``fp32``."""
    schema: int = SCHEMA
    name: str = ""
    """Name of the model."""
    os: str = "linux"
    glibc: str = "2.27"
    """Oldest GNU C library that TVM's runtime wheel runs on."""
    device: str = "cpu"
    """``cpu`` or ``cuda``: where the kernels run."""
    device_arch: str = ""
    """CUDA architecture, for example ``sm_90``."""
    preprocess: dict[str, Any] | None = None
    quantization: dict[str, Any] = {}
    provenance: Provenance = Provenance()
    operators: dict[str, Any] = {}
    kernels: dict[str, Any] = {}
    layers: tuple[Layer, ...] = ()
    layered: str = "main"
    """Function of the program in which TVM's virtual machine makes the calls of ``layers``: what a profile runs."""
    weight_bytes: int = 0
    workspace: Workspace = Workspace()
    borrowed: tuple[str, ...] = ()
    """Inputs that are read where the caller has them; the others are copied to memory of ours first."""
    self_test: SelfTest = SelfTest()
    sha256: str = ""
    """Digest of the file. Filled in when the manifest is read; inside the file it has a section of its own."""


class _Version(msgspec.Struct):
    schema: int


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON, without the digest."""
    return msgspec.json.encode(msgspec.structs.replace(manifest, sha256=""), order="deterministic")


def encode_vectors(vectors: Sequence[Vector]) -> bytes:
    """npz with arrays ``<vector>.in.<index>`` and ``<vector>.out.<index>``; equal vectors give equal bytes."""
    arrays = {
        f"{number}.{side}.{index}": np.ascontiguousarray(array)
        for number, pair in enumerate(vectors)
        for side, group in zip(("in", "out"), pair, strict=True)
        for index, array in enumerate(group)
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes the arrays for `allow_pickle`
    return buffer.getvalue()


def read_section(path: Path, name: str) -> tuple[bytes, int]:
    """Content and file offset of one of our sections. Raises ArtifactError when the file is absent, no ELF, cut, or not ours."""
    try:
        with path.open("rb") as file:
            section = ELFFile(file).get_section_by_name(name)
            if section is not None:
                offset, size = int(section["sh_offset"]), int(section["sh_size"])
                if section["sh_type"] != "SHT_PROGBITS" or offset + size > path.stat().st_size:
                    raise ArtifactError("the file is truncated or damaged", where=str(path), remedy=REBUILD)
                file.seek(offset)
                return file.read(size), offset
    except OSError as error:
        raise ArtifactError(f"can't read the file: {error.strerror}", where=str(path)) from error
    except ELFError as error:
        what = "the file is truncated or damaged" if is_elf(path) else "this is not a compiled model (not an ELF shared library)"
        raise ArtifactError(what, where=str(path), remedy=REBUILD) from error
    except (UnicodeDecodeError, ValueError, OverflowError, AttributeError, AssertionError) as error:
        # pyelftools trusts the numbers in a header; nonsense there surfaces as any of these
        raise ArtifactError("the file is truncated or damaged", where=str(path), remedy=REBUILD) from error
    raise ArtifactError(
        "this shared library has no tvmflow manifest",
        where=str(path),
        remedy="it was not made by `tvmflow compile`, or its sections were stripped",
    )


def is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def read_manifest(path: str | Path) -> Manifest:
    """The manifest of a compiled file, which is not executed. Raises ArtifactError.

    Reads the digest but does not check it: see :func:`verify_digest`.
    """
    path = Path(path)
    data, _ = read_section(path, MANIFEST)
    try:
        schema = msgspec.json.decode(data, type=_Version).schema
        if schema > SCHEMA:
            raise ArtifactError(
                f"it was written by a newer tvmflow (schema {schema}, this one reads up to {SCHEMA})",
                where=str(path),
                remedy="upgrade tvmflow, or compile the model again with this version",
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(f"the manifest is damaged: {error}", where=str(path), remedy=REBUILD) from error
    digest, _ = read_section(path, DIGEST)
    return msgspec.structs.replace(manifest, sha256=digest.hex())


def read_self_test(path: str | Path) -> list[Vector]:
    """The embedded self-test vectors, after a check of the digest. Raises ArtifactError."""
    path = Path(path)
    verify_digest(path)
    data, _ = read_section(path, SELF_TEST)
    groups: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        for key in archive.files:
            number, side, _index = key.split(".")
            groups.setdefault(int(number), ([], []))[side == "out"].append(archive[key])
    return [groups[number] for number in sorted(groups)]


def file_digest(file: BinaryIO, offset: int) -> bytes:
    """SHA-256 of an open file, from its start, with the 32 digest bytes at ``offset`` taken as zero."""
    digest = hashlib.sha256()
    chunk = memoryview(bytearray(CHUNK))  # a small buffer that stays in the cache: half the time of reading the file at once
    position = 0
    file.seek(0)
    while count := file.readinto(chunk):  # type: ignore[attr-defined]  # typing's BinaryIO lacks what every binary file has
        start, end = max(offset - position, 0), min(offset - position + DIGEST_SIZE, count)
        if start < end:
            chunk[start:end] = bytes(end - start)
        digest.update(chunk[:count])
        position += count
    return digest.digest()


def verify_digest(path: str | Path) -> str:
    """Check every byte of the file against its digest and return that as hex. Raises ArtifactError."""
    path = Path(path)
    stored, offset = read_section(path, DIGEST)
    with path.open("rb", buffering=0) as file:
        found = file_digest(file, offset)
    if stored != found:
        raise ArtifactError(
            f"the file is damaged: sha256 is {found.hex()[:16]}..., expected {stored.hex()[:16]}...",
            where=str(path),
            remedy=REBUILD,
        )
    return found.hex()
