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

from tvmflow.build.elf import constant_object, data_object
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
    from tvmflow.build.compile import Built


SelfTests = Callable[[Path], Sequence[Vector]]


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


def link_program(built: Built, target: Target, out: Path) -> None:
    """Link a built program, and nothing about itself, into the shared library ``out``."""
    with tempfile.TemporaryDirectory(prefix="tvmflow-build-") as folder:
        link(_objects(built, target, Path(folder)), out, target)


def _objects(built: Built, target: Target, folder: Path) -> list[Path]:
    """Object files of a program: its code, and the constants that the code reads."""
    from tvmflow.build.constants import PAGE, SECTION, SYMBOL

    made = built.executable.export_library("", fcompile=lambda _out, objects: objects, workspace_dir=str(folder))
    constants = folder / "constants.o"
    constants.write_bytes(constant_object(SECTION, SYMBOL, built.constants, PAGE, target.arch))
    return [*map(Path, made), constants]


def package(built: Built, manifest: Manifest, vectors: Sequence[Vector] | SelfTests, target: Target, out: str | Path) -> Artifact:
    """Link a built Relax program and what it says about itself into one shared library at ``out``.

    Parameters
    ----------
    built : the program for ``target``. It must not have been run: TVM's VM writes an entry into it for each constant of its own,
        which would change the file and make every later load print a warning for each of them.
    manifest : everything known about the model; the linker's name and the digest are filled in here
    vectors : self-test inputs and the outputs they must give, or a function that makes them with the linked program, whose path
        (without manifest) it gets; code is generated only once
    out : the file to write, atomically; equal arguments and linker give equal bytes

    Raises MissingTool without a linker for the target, EnvironmentProblem when the disk is full.
    """
    find_linker(target)
    out = Path(out)

    def build(temporary: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="tvmflow-build-") as name:
            folder = Path(name)
            objects = _objects(built, target, folder)
            found = vectors
            if callable(found):
                link(objects, folder / "plain.so", target)
                found = found(folder / "plain.so")
            extra, linked = folder / "manifest.o", folder / "model.so"
            extra.write_bytes(data_object(sections(manifest, found, target), target.arch))
            link([*objects, extra], linked, target)
            sign(linked)
            shutil.copyfile(linked, temporary)

    write_atomically(out, build)
    return Artifact(out, read_manifest(out))


def sections(manifest: Manifest, vectors: Sequence[Vector], target: Target) -> dict[str, bytes]:
    """What goes into the file beside the program, with the linker's name and the number of vectors in the manifest."""
    versions = {**manifest.provenance.versions, "linker": find_linker(target).name}
    complete = msgspec.structs.replace(
        manifest,
        provenance=msgspec.structs.replace(manifest.provenance, versions=versions),
        self_test=msgspec.structs.replace(manifest.self_test, count=len(vectors)),
    )
    return {MANIFEST: encode_manifest(complete), SELF_TEST: encode_vectors(vectors), DIGEST: bytes(DIGEST_SIZE)}


def sign(path: Path) -> None:
    """Put the digest of the file into its section."""
    _, offset = read_section(path, DIGEST)
    with path.open("r+b") as file:
        digest = file_digest(file, offset)
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
