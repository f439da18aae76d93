"""The file: read back without running it, equal bytes for equal inputs, damage of every kind in plain words, atomic writes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import tvmflow.build.manifest as manifest_module
from tvmflow.build.artifact import Artifact, sign, write_atomically
from tvmflow.build.manifest import (
    DIGEST_SIZE,
    MANIFEST,
    SCHEMA,
    SELF_TEST,
    read_manifest,
    read_section,
    read_self_test,
    verify_digest,
)
from tvmflow.errors import ArtifactError, EnvironmentProblem


@pytest.fixture
def copy(artifact: Artifact, tmp_path: Path) -> Path:
    return Path(shutil.copy(artifact.path, tmp_path / "copy.so"))


def replace(path: Path, before: bytes, after: bytes) -> None:
    content = path.read_bytes()
    assert content.count(before) == 1 and len(before) == len(after)
    path.write_bytes(content.replace(before, after))


def test_manifest_is_read_back(artifact: Artifact, compiled: Callable[[str], Any]) -> None:
    found, meant = read_manifest(artifact.path), compiled("native").manifest()
    for field in ("target", "arch", "isa_required", "inputs", "outputs", "precision", "layers", "weight_bytes"):
        assert getattr(found, field) == getattr(meant, field)
    assert found.self_test.count == 2
    assert found.provenance.versions.keys() == {"tvm", "linker"}
    assert found.sha256 == verify_digest(artifact.path) and len(found.sha256) == 64
    assert Artifact.open(artifact.path) == artifact
    assert artifact.bytes == artifact.path.stat().st_size and artifact.weight_bytes == 40 * 7 * 4


def test_keys_of_inspect(artifact: Artifact) -> None:
    keys = msgspec.to_builtins(artifact.manifest).keys()
    contract = "schema target isa_required inputs outputs preprocess precision quantization provenance self_test sha256"
    assert set(contract.split()) <= set(keys)


def test_vectors_keep_their_order(compiled: Callable[[str], Any], tmp_path: Path) -> None:
    vectors = [compiled("native").vector(seed) for seed in range(12)]
    found = read_self_test(compiled("native").package(tmp_path / "twelve.so", vectors).path)
    assert len(found) == 12
    for got, meant in zip(found, vectors, strict=True):
        for side in (0, 1):
            for a, b in zip(got[side], meant[side], strict=True):
                np.testing.assert_array_equal(a, b, strict=True)


def test_equal_inputs_give_equal_bytes(artifact: Artifact, compiled: Callable[[str], Any], tmp_path: Path) -> None:
    again = compiled("native").package(tmp_path / "elsewhere" / "other_name.so")
    assert again.path.read_bytes() == artifact.path.read_bytes()


def test_another_process_gives_the_same_bytes(artifact: Artifact, tmp_path: Path) -> None:
    program = f"""
        import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
        from pathlib import Path
        from tests.unit.conftest import Compiled, by_stock_tvm, module
        from tvmflow.target import get_target
        target = get_target("native")
        Compiled(target, by_stock_tvm(module(), target)).package(Path("again.so"))
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "again.so").read_bytes() == artifact.path.read_bytes()


def test_vectors_made_with_the_program_itself(artifact: Artifact, compiled: Callable[[str], Any], tmp_path: Path) -> None:
    """Running the linked copy leaves the executable as it was, so the bytes are those of vectors made elsewhere."""
    import tvm
    from tvm.runtime.vm import VirtualMachine

    native = compiled("native")

    def run(program: Path) -> list[Any]:
        machine = VirtualMachine(tvm.runtime.load_module(str(program)), tvm.cpu())
        inputs = [native.vector(seed)[0] for seed in (1, 2)]
        return [(x, [y.numpy() for y in machine["main"](*map(tvm.runtime.tensor, x))]) for x in inputs]

    assert native.package(tmp_path / "made.so", run).path.read_bytes() == artifact.path.read_bytes()
    assert native.package(tmp_path / "again.so").path.read_bytes() == artifact.path.read_bytes()


def test_no_path_of_this_machine_inside(artifact: Artifact) -> None:
    content = artifact.path.read_bytes()
    for path in ("/tmp", str(artifact.path.parent), str(Path.home()) + "/", str(Path.cwd())):
        assert path.encode() not in content


def test_save(artifact: Artifact, tmp_path: Path) -> None:
    saved = artifact.save(tmp_path / "deep" / "model.so")
    assert saved.path.read_bytes() == artifact.path.read_bytes()
    assert saved.save(saved.path).path == saved.path
    assert [p.name for p in saved.path.parent.iterdir()] == ["model.so"]


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="No such file"):
        read_manifest(tmp_path / "absent.so")


@pytest.mark.parametrize("content", [b"", b"\x7fEL", b"hello", b"\0" * 5000])
def test_not_an_elf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.so"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not a compiled model"):
        read_manifest(path)


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="directory"):
        read_manifest(tmp_path)


def test_other_library() -> None:
    import msgspec._core as other

    with pytest.raises(ArtifactError, match="no tvmflow manifest"):
        read_manifest(other.__file__)


def test_truncated_anywhere(artifact: Artifact, tmp_path: Path) -> None:
    whole = artifact.path.read_bytes()
    path = tmp_path / "cut.so"
    for size in [4, 16, 63, 64, 100, *range(len(whole) // 9, len(whole), len(whole) // 9), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError):
            verify_digest(path)
            read_manifest(path)


def test_bit_flipped_anywhere(artifact: Artifact, tmp_path: Path) -> None:
    whole = artifact.path.read_bytes()
    path = tmp_path / "flipped.so"
    rng = random.Random(0)
    places = [*range(64), *range(len(whole) - 17 * 64, len(whole), 7), *(rng.randrange(len(whole)) for _ in range(300))]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError):
            read_manifest(path)
            read_self_test(path)


def test_flipped_weight_is_called_damage(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[len(content) // 3] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged: sha256"):
        verify_digest(copy)


def test_newer_schema(copy: Path) -> None:
    replace(copy, b'"schema":%d' % SCHEMA, b'"schema":9')
    sign(copy)
    with pytest.raises(ArtifactError, match="newer tvmflow") as caught:
        read_manifest(copy)
    assert "upgrade" in caught.value.remedy


def test_newer_keys_of_the_same_schema_are_ignored(copy: Path) -> None:
    replace(copy, b'"weight_bytes"', b'"weight_bytez"')
    assert read_manifest(copy).weight_bytes == 0


def test_manifest_that_is_no_json(copy: Path) -> None:
    _, offset = read_section(copy, MANIFEST)
    content = bytearray(copy.read_bytes())
    content[offset] = ord("[")
    copy.write_bytes(content)
    with pytest.raises(ArtifactError, match="manifest is damaged"):
        read_manifest(copy)


def test_damaged_vectors(copy: Path) -> None:
    data, offset = read_section(copy, SELF_TEST)
    content = bytearray(copy.read_bytes())
    content[offset : offset + len(data)] = bytes(len(data))
    copy.write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged: sha256"):
        read_self_test(copy)


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "model.so"
    out.write_bytes(b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(EnvironmentProblem, match="No space left") as caught:
        write_atomically(out, fail)
    assert "unchanged" in caught.value.remedy
    assert out.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["model.so"]


def test_interrupted_write_keeps_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "model.so"
    out.write_bytes(b"old")

    def interrupt(_temporary: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(out, interrupt)
    assert out.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["model.so"]


def test_file_size_limit_keeps_the_old_file(artifact: Artifact, tmp_path: Path) -> None:
    """The kernel itself refuses the write in the middle of the file, as it does on a full disk."""
    out = tmp_path / "model.so"
    out.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (artifact.bytes // 2, hard))
    try:
        with pytest.raises(EnvironmentProblem, match="can't write"):
            artifact.save(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert out.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["model.so"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_can_not_be_written(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(EnvironmentProblem, match="can't write here"):
        artifact.save(tmp_path / "locked" / "model.so")


def test_folder_that_is_a_file(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="can't write here"):
        artifact.save(tmp_path / "file" / "model.so")


def test_full_disk_while_packaging(compiled: Callable[[str], Any], tmp_path: Path) -> None:
    """A tmpfs of 16 KiB at the place of the output, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user can't mount a tmpfs")
    try:
        out = disk / "model.so"
        out.write_bytes(b"old")
        with pytest.raises(EnvironmentProblem, match="No space left"):
            compiled("native").package(out)
        assert out.read_bytes() == b"old" and [p.name for p in disk.iterdir()] == ["model.so"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_artifact_is_a_value(artifact: Artifact) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        artifact.path = Path()  # type: ignore[misc]


@pytest.mark.parametrize("size", [32, 100, 64, 131])
@pytest.mark.parametrize("offset", [0, 1, 31, 40, 60])
def test_digest_in_chunks(size: int, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest's own bytes count as zero, also where they lie in two chunks, or in three."""
    monkeypatch.setattr(manifest_module, "CHUNK", 13)
    content = bytearray(random.Random(size).randbytes(size + offset))
    found = manifest_module.file_digest(io.BytesIO(content), offset)
    content[offset : offset + DIGEST_SIZE] = bytes(DIGEST_SIZE)
    assert found == hashlib.sha256(content).digest()
