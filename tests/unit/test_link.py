"""Every linker that is here gives a loadable, bare library for the architecture it was asked for."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from elftools.elf.elffile import ELFFile

from tvmflow.build import link as linking
from tvmflow.build.elf import MACHINES, data_object
from tvmflow.build.link import Linker, find_linker, link, linkers
from tvmflow.errors import ConfigError, EnvironmentProblem, MissingTool
from tvmflow.target import Target, get_target

HOST = linkers(platform.machine())


def sections(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return {s.name: s.data() for s in ELFFile(file).iter_sections() if not s.is_null()}


def undefined(path: Path) -> set[str]:
    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".dynsym")
        return {s.name for s in table.iter_symbols() if s["st_shndx"] == "SHN_UNDEF" and s.name}


@pytest.mark.parametrize("arch", sorted(MACHINES))
def test_data_object_is_read_back(tmp_path: Path, arch: str) -> None:
    content = {".one": b"abc", ".empty": b"", ".two": bytes(range(256))}
    path = tmp_path / "data.o"
    path.write_bytes(data_object(content, arch))
    found = sections(path)
    assert {name: found[name] for name in content} == content
    with path.open("rb") as file:
        elf = ELFFile(file)
        assert elf.header["e_type"] == "ET_REL"
        assert elf.get_machine_arch() == {"x86_64": "x64", "aarch64": "AArch64", "armv7": "ARM"}[arch]


def test_unknown_architecture() -> None:
    with pytest.raises(ConfigError, match="riscv64"):
        data_object({}, "riscv64")


@pytest.mark.parametrize("linker", HOST, ids=lambda linker: linker.name)
def test_each_host_linker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: Callable[[str], Any], linker: Linker
) -> None:
    monkeypatch.setattr(linking, "linkers", lambda _arch: [linker])
    one = compiled("native").package(tmp_path / "one.so")
    two = compiled("native").package(tmp_path / "two.so")
    assert one.path.read_bytes() == two.path.read_bytes()
    assert one.manifest.provenance.versions["linker"] == linker.name
    assert undefined(one.path) <= {"TVMFFIErrorSetRaisedFromCStrParts", "memcpy", "memset"}
    found = sections(one.path)
    assert not {".symtab", ".debug_info", ".note.gnu.build-id"} & set(found)
    from tvmflow.runtime.verify import verify

    assert verify(one.path).passed


@pytest.mark.skipif(not linkers("aarch64"), reason="no linker for aarch64")
def test_cross(tmp_path: Path, compiled: Callable[[str], Any]) -> None:
    artifact = compiled("rpi4").package(tmp_path / "arm.so")
    with artifact.path.open("rb") as file:
        assert ELFFile(file).get_machine_arch() == "AArch64"
    assert artifact.manifest.isa_required == ("fp", "asimd", "crc32")


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="ziglang is not installed")
def test_pip_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking.shutil, "which", lambda _program: None)
    assert [linker.name for linker in linkers(platform.machine())] == ["ziglang"]


def test_no_linker_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "linkers", lambda _arch: [])
    with pytest.raises(MissingTool, match="aarch64") as caught:
        find_linker(get_target("rpi4"))
    assert "tvmflow[cross]" in caught.value.remedy and caught.value.exit_code == 3


def test_linker_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "broken.o"
    broken.write_bytes(b"not an object")
    with pytest.raises(EnvironmentProblem, match="broken.o"):
        link([broken], tmp_path / "out.so", get_target("native"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="links x86-64 code")
def test_linker_for_another_machine_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linking, "linkers", lambda _arch: [Linker("wrong", HOST[0].command, HOST[0].driver)])
    data = tmp_path / "data.o"
    data.write_bytes(data_object({".one": b"abc"}, "x86_64"))
    arm: Target = msgspec.structs.replace(get_target("rpi4"))
    with pytest.raises(MissingTool, match="machine 62 instead of aarch64"):
        link([data], tmp_path / "out.so", arm)
