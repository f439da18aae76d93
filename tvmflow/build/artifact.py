"""Artifact: the one file that comes out. Kernels, weights, program, manifest and self-test in a shared library."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tvmflow.build.elf import data_object
from tvmflow.build.link import find_linker, link
from tvmflow.build.manifest import (
    DIGEST,
    DIGEST_SIZE,
    MANIFEST,
    SELF_TEST,
    Manifest,
    Vector,
    encode_manifest,
    encode_vectors,
    file_digest,
    read_manifest,
    read_section,
)
from tvmflow.errors import EnvironmentProblem
from tvmflow.target import Target

if TYPE_CHECKING:
    from tvm.relax import VMExecutable


@dataclass(frozen=True)
class Artifact:
    """A compiled model on disk."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path) -> Artifact:
        """Read the manifest of an existing file. Raises ArtifactError."""
        return cls(Path(path), read_manifest(path))

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    @property
    def weight_bytes(self) -> int:
        """Bytes of weights, biases and tables inside."""
        return self.manifest.weight_bytes

    def save(self, path: str | Path) -> Artifact:
        """Copy to ``path``, atomically: a full disk leaves an older file there as it was."""
        out = Path(path)
        if not (out.exists() and out.samefile(self.path)):
            write_atomically(out, lambda temporary: shutil.copyfile(self.path, temporary))
        return Artifact(out, self.manifest)


def package(executable: VMExecutable, manifest: Manifest, vectors: Sequence[Vector], target: Target, out: str | Path) -> Artifact:
    """Link a built Relax program and what it says about itself into one shared library at ``out``.

    Parameters
    ----------
    executable : what ``relax.build`` returned for ``target``
    manifest : everything known about the model; the linker's name and the digest are filled in here
    vectors : self-test inputs and the outputs they must give
    out : the file to write, atomically; equal arguments and linker give equal bytes

    Raises MissingTool without a linker for the target, EnvironmentProblem when the disk is full.
    """
    versions = {**manifest.provenance.versions, "linker": find_linker(target).name}
    manifest = msgspec.structs.replace(
        manifest,
        provenance=msgspec.structs.replace(manifest.provenance, versions=versions),
        self_test=msgspec.structs.replace(manifest.self_test, count=len(vectors)),
    )
    sections = {MANIFEST: encode_manifest(manifest), SELF_TEST: encode_vectors(vectors), DIGEST: bytes(DIGEST_SIZE)}
    out = Path(out)

    def build(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="tvmflow-build-") as folder:
            extra, linked = Path(folder) / "manifest.o", Path(folder) / "model.so"
            extra.write_bytes(data_object(sections, target.arch))
            executable.export_library(
                str(linked),
                fcompile=lambda _out, objects: link([*map(Path, objects), extra], linked, target),
                workspace_dir=folder,
            )
            sign(linked)
            shutil.copyfile(linked, temporary)

    write_atomically(out, build)
    return Artifact(out, read_manifest(out))


def sign(path: Path) -> None:
    """Put the digest of the file into its section."""
    _, offset = read_section(path, DIGEST)
    with path.open("r+b") as file:
        digest = file_digest(file.read(), offset)
        file.seek(offset)
        file.write(digest)


def write_atomically(out: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``out``, then rename: ``out`` is either the old file or the whole new one."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent)
    except OSError as error:
        raise EnvironmentProblem(f"can't write here: {error.strerror}", where=str(out.parent)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o755)
        temporary.replace(out)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise EnvironmentProblem(
            f"can't write the file: {error.strerror}",
            where=str(out),
            remedy="free some disk space; a file of that name from before is unchanged" if full else "",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
