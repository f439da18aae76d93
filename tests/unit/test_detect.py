"""``native`` is the named target that uses most of what the CPU has, and nothing that it lacks."""

from __future__ import annotations

import pytest

from tvmflow.errors import ConfigError
from tvmflow.runtime import cpu
from tvmflow.target import detect, get_target, target_files

X86_NAMES = [n for n in sorted(target_files()) if get_target(n).arch == "x86_64" and get_target(n).cuda is None]


def pretend(monkeypatch: pytest.MonkeyPatch, features: set[str], arch: str = "x86_64", board: str = "") -> None:
    monkeypatch.setattr(cpu, "features", lambda: frozenset(features))
    monkeypatch.setattr(cpu, "arch", lambda: arch)
    monkeypatch.setattr(cpu, "board_model", lambda: board)
    monkeypatch.setattr(cpu, "cache_kib", lambda: {"1": 33, "2": 555})


@pytest.mark.parametrize("name", X86_NAMES)
def test_each_cpu_finds_itself(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pretend(monkeypatch, {*get_target(name).features, "rdtscp", "hypervisor"})
    found = detect()
    assert found.name == name
    assert (found.cpu.l1d_kib, found.cpu.l2_kib, found.cpu.l3_kib) == (33, 555, get_target(name).cpu.l3_kib)


def test_one_feature_less_is_an_older_target(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, set(get_target("zen5").features) - {"avx512_vnni"})
    assert detect().name == "x86-64-v4"


def test_boards(monkeypatch: pytest.MonkeyPatch) -> None:
    a76 = set(get_target("cortex-a76").features)
    pretend(monkeypatch, a76, "aarch64", "Raspberry Pi 5 Model B Rev 1.0")
    assert detect().name == "rpi5"
    pretend(monkeypatch, a76 | {"asimdfhm"}, "aarch64")
    assert detect().name == "cortex-a76"
    pretend(monkeypatch, {"fp", "asimd", "crc32", "cpuid"}, "aarch64", "Raspberry Pi 4 Model B Rev 1.4")
    assert detect().name == "rpi4"


def test_unknown_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"fp"}, "riscv64")
    with pytest.raises(ConfigError, match="riscv64"):
        detect()


def test_this_machine() -> None:
    native = get_target("native")
    assert cpu.features() >= set(native.features)
    assert native.cpu.cores == cpu.physical_cores() >= 1


def test_arm_features_come_from_the_auxiliary_vector() -> None:
    assert cpu.HWCAP_ARM64.index("asimddp") == 20 and cpu.HWCAP_ARM64.index("sve") == 22
    assert cpu.HWCAP2_ARM64.index("i8mm") == 13
