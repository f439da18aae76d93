"""Each finding of ``doctor`` is about something real, and its remedy appears when that is missing."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tvmflow import doctor
from tvmflow.doctor import Check


@pytest.mark.parametrize("name", sorted(doctor.PINS))
def test_wrong_pin(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert doctor.check_pin(name, doctor.PINS[name]).ok
    monkeypatch.setattr(doctor, "installed", lambda _: "0.1.15.post2")
    check = doctor.check_pin(name, doctor.PINS[name])
    assert not check.ok and f"{name}=={doctor.PINS[name]}" in check.remedy and "0.1.15.post2" in check.detail


def test_pins_are_those_of_the_project() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name, version in doctor.PINS.items():
        assert f'"{name}=={version}"' in text


def test_absent_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed", lambda _: None)
    assert doctor.check_package("onnx") == Check("onnx", False, "not installed", "pip install onnx")
    assert not doctor.check_xgboost().ok
    optional = doctor.check_optional("torch", "PyTorch models", "torch")
    assert optional.ok and "only for" in optional.detail and "tvmflow[torch]" in optional.remedy


@pytest.mark.parametrize(("code", "words"), [(-11, "signal 11"), (1, "ImportError: no TVM")])
def test_tvm_that_crashes_or_fails(monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    result = subprocess.CompletedProcess([], code, "", "Traceback\nImportError: no TVM")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *_, **__: result)
    check = doctor.check_tvm()
    assert not check.ok and words in check.detail and "apache-tvm-ffi==" in check.remedy


def test_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "linkers", lambda _: [])
    monkeypatch.setattr(doctor.cpu, "arch", lambda: "x86_64")
    assert not doctor.check_linker("x86_64").ok
    other = doctor.check_linker("aarch64")
    assert other.ok and "aarch64 boards" in other.detail and "tvmflow[cross]" in other.remedy


def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.check_disk(tmp_path / "not" / "yet").detail.endswith(str(tmp_path))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**20})())
    check = doctor.check_disk(tmp_path)
    assert not check.ok and "--work-dir" in check.remedy


@pytest.mark.parametrize(("load", "remedy"), [(0.0, False), (99.0, True)])
def test_load(monkeypatch: pytest.MonkeyPatch, load: float, remedy: bool) -> None:
    monkeypatch.setattr(doctor.os, "getloadavg", lambda: (load, 0, 0))
    check = doctor.check_load()
    assert check.ok and bool(check.remedy) is remedy


def test_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_python().ok
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 1))
    assert not doctor.check_python().ok


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "check_tvm", lambda: Check("tvm works", True, ""))
    found: list[dict[str, Any]] = [check.to_json() for check in doctor.checks()]
    assert len({check["name"] for check in found}) == len(found)
    assert all(check.keys() == {"name", "ok", "detail", "remedy"} for check in found)
    assert all(check["ok"] or check["remedy"] for check in found)
