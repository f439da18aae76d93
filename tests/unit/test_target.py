"""Target files say the truth about what LLVM does with them; names, keys and CPUs that do not exist are answered in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from tvmflow.build.elf import MACHINES
from tvmflow.errors import ConfigError
from tvmflow.isa import LINUX, linux_features
from tvmflow.target import Target, get_target, read_target, target_files

NAMES = sorted(target_files())
REQUIRED = (
    *("x86-64", "x86-64-v2", "x86-64-v3", "x86-avx512-vnni", "avx-vnni", "cascadelake", "icelake-server", "sapphirerapids"),
    *("zen3", "zen4", "zen5", "rpi4", "rpi5", "cortex-a76", "jetson-orin-nano", "rtx-3090", "a100", "h100", "h200"),
)


def changed(name: str, **options: Any) -> Target:
    target = get_target(name)
    return msgspec.structs.replace(target, tvm={**target.tvm, **options})


def test_all_targets_are_there() -> None:
    assert set(REQUIRED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_exactly_what_llvm_may_use(name: str) -> None:
    target = get_target(name)
    assert target.name == name
    assert set(linux_features(target.host())) == set(target.features)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_fit_together(name: str) -> None:
    target = get_target(name)
    assert target.arch in MACHINES
    assert target.tvm["kind"] == "llvm" and "linux" in target.triple
    assert target.cpu.l1d_kib < target.cpu.l2_kib
    assert target.cpu.registers == (32 if "avx512f" in target.features or target.arch == "aarch64" else 16)
    assert target.cpu.vector_bits == (512 if "avx512f" in target.features else 256 if "avx2" in target.features else 128)
    assert target.int8.storage == ("uint8" if target.family == "x86" else "int8")
    assert (target.family == "cuda") == (target.cuda is not None)
    assert target.device().kind.name == ("cuda" if target.cuda else "llvm")


@pytest.mark.parametrize("name", NAMES)
def test_instructions_exist_and_the_cpu_has_them(name: str) -> None:
    from tvmflow.schedule.intrinsics import BY_NAME

    target = get_target(name)
    needs = {
        "vnni512": {"avx512_vnni"},
        "vnni256": {"avx512_vnni", "avx_vnni"},
        "maddwd512": {"avx512bw"},
        "maddwd256": {"avx2"},
        "maddwd128": {"sse4_1"},
        "fma512": {"avx512f"},
        "fma256": {"fma"},
        "sdot": {"asimddp"},
        "neon": {"asimd"},
        "neon_f32": {"asimd"},
    }
    if target.cuda is None:
        for dot in (*target.int8.dot, *target.float32):
            assert dot in BY_NAME
            assert needs.get(dot, set(target.features)) & set(target.features) or dot in ("sse2", "sse")


def test_rpi4_has_no_dot_product_and_no_cryptography() -> None:
    features = get_target("rpi4").features
    assert not {"asimddp", "aes", "sha2"} & set(features)
    assert {"asimddp", "aes"} <= set(get_target("rpi5").features)


def test_alias() -> None:
    assert get_target("znver5") == get_target("zen5")
    names = [alias for name in NAMES for alias in get_target(name).aliases]
    assert len(set(names)) == len(names) and not set(names) & set(NAMES)


@pytest.mark.parametrize(("wrong", "right"), [("zen55", "zen5"), ("rpi-4", "rpi4"), ("hopper100", "h100")])
def test_unknown_name_offers_the_nearest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_target(wrong)
    assert f"did you mean '{right}'?" in str(caught.value) and "native" in str(caught.value)


def test_misspelt_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="zen99"):
        changed("zen5", mcpu="zen99").host()


def test_cpu_of_another_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="cortex-a72"):
        changed("zen5", mcpu="cortex-a72").host()


def test_misspelt_attribute_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\+avx512vmni") as caught:
        changed("zen5", mattr=["+avx512vmni"]).host()
    assert "avx512vnni" in caught.value.remedy


def test_cpu_that_implies_more_than_declared_is_refused() -> None:
    with pytest.raises(ConfigError, match="asimddp"):
        changed("rpi4", mcpu="cortex-a76").host()


def test_unknown_tvm_option_is_refused() -> None:
    with pytest.raises(ConfigError, match="foo"):
        changed("zen5", foo=1).host()


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_own_file(tmp_path: Path) -> None:
    text = target_files()["rpi4"].read_text()
    path = written(tmp_path / "mine.toml", text.replace('name = "rpi4"', 'name = "mine"'))
    assert get_target(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("l1d_kib", "l1d_kb", "l1d_kib"),
        ('storage = "int8"', "storage = 8", "storage"),
        ("schema = 1", "schema = 99", "newer"),
        ("[cpu]", "[cpu", "TOML"),
        ('mtriple = "aarch64-linux-gnu"\n', "", "mtriple"),
        ('name = "rpi4"\n', "", "name"),
    ],
)
def test_damaged_file_names_the_file_and_the_key(tmp_path: Path, before: str, after: str, words: str) -> None:
    text = target_files()["rpi4"].read_text()
    assert before in text
    path = written(tmp_path / "mine.toml", text.replace(before, after, 1))
    with pytest.raises(ConfigError) as caught:
        read_target(path)
    assert words in str(caught.value) and "mine.toml" in str(caught.value)


def test_absent_file() -> None:
    with pytest.raises(ConfigError, match="No such file"):
        get_target("/nowhere/mine.toml")


def test_linux_names_belong_to_one_llvm_feature() -> None:
    for names in LINUX.values():
        flat = [linux for group in names.values() for linux in group]
        assert len(set(flat)) == len(flat)
