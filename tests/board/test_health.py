"""Findings of ``board check``, from facts and from boards."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tvmflow.board import health, info
from tvmflow.board.registry import Board
from tvmflow.errors import ConfigError

FACTS: dict[str, Any] = {
    "arch": "aarch64",
    "cpu": "Raspberry Pi 4 Model B",
    "cores": 4,
    "features": ["asimd", "crc32", "fp"],
    "load_average": [0.1, 0.1, 0.1],
    "temperature_c": 45.5,
    "governors": ["performance"],
    "memory": {"total": 4 << 30, "available": 3 << 30},
    "disk": {"total": 32 << 30, "free": 20 << 30},
}


def failing(**changes: object) -> list[str]:
    return [check.name for check in health.judge(FACTS | changes) if not check.ok]


def test_healthy() -> None:
    checks = health.judge(FACTS)
    assert all(check.ok and not check.remedy for check in checks)
    assert [check.name for check in checks] == ["cpu", "load", "temperature", "governor", "memory", "disk"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"load_average": [3.5, 1, 1]}, "load"),
        ({"temperature_c": 84.0}, "temperature"),
        ({"governors": ["ondemand", "performance"]}, "governor"),
        ({"memory": {"total": 1 << 30, "available": 50 << 20}}, "memory"),
        ({"disk": {"total": 1 << 30, "free": 0}}, "disk"),
    ],
)
def test_each_trouble_is_found_alone_and_has_a_remedy(changes: dict[str, object], name: str) -> None:
    assert failing(**changes) == [name]
    assert all(check.remedy for check in health.judge(FACTS | changes) if not check.ok)


def test_missing_sensors_are_no_trouble() -> None:
    assert failing(temperature_c=None, governors=[]) == []


def test_features_against_a_target(tmp_path: Path) -> None:
    target = tmp_path / "pi5.toml"
    target.write_text(
        'schema = 1\nname = "pi5"\nfamily = "arm"\ndescription = "d"\nfeatures = ["asimd", "asimddp"]\nfloat32 = []\n'
        '[tvm]\nkind = "llvm"\nmtriple = "aarch64-linux-gnu"\nmcpu = "cortex-a76"\n[int8]\nstorage = "int8"\ndot = []\n'
        "[cpu]\ncores = 4\nl1d_kib = 64\nl2_kib = 512\nl3_kib = 2048\nvector_bits = 128\nregisters = 32\n"
    )
    lacking = health.features(FACTS, str(target))
    assert not lacking.ok and "lacks asimddp" in lacking.detail
    assert health.features(FACTS | {"features": ["asimd", "asimddp", "fp"]}, str(target)).ok
    assert "is for aarch64" in health.features(FACTS | {"arch": "x86_64"}, str(target)).detail


def test_unknown_target_is_a_finding() -> None:
    assert not health.features(FACTS, "no-such-target").ok


def test_live_board(server: Any) -> None:
    checks = {check.name: check for check in health.check(server.board)}
    assert checks["reachable"].ok and checks["versions"].ok and checks["session"].ok
    assert checks["round trip"].detail.endswith("ms")


def test_absent_board_ends_the_list() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    (only,) = health.check(Board(name="gone", port=port), timeout=1)
    assert (only.name, only.ok) == ("reachable", False) and "board serve" in only.remedy


def test_busy_board_is_still_judged(server: Any) -> None:
    from tvmflow.board.rpc import connect

    with connect(server.board):
        checks = {check.name: check for check in health.check(server.board, timeout=0.3)}
    assert checks["reachable"].ok and not checks["session"].ok
    assert "held by" in checks["session"].detail


def test_unknown_board_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown board 'rpi'"):
        health.check("rpi", registry=tmp_path / "none.toml")


# -------- facts


def test_facts_from_proc_and_sys(tmp_path: Path) -> None:
    for name, text in {
        "proc/meminfo": "MemTotal:  1000 kB\nMemFree: 100 kB\nMemAvailable:   400 kB\n",
        "sys/class/thermal/thermal_zone0/temp": "51234\n",
        "sys/class/thermal/thermal_zone1/temp": "nonsense\n",
        "sys/class/thermal/thermal_zone2/temp": "49000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "ondemand\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert info.memory(tmp_path) == {"total": 1000 * 1024, "available": 400 * 1024}
    assert info.temperature(tmp_path) == 51.234
    assert info.governors(tmp_path) == ["ondemand"]


def test_facts_of_a_machine_that_shows_nothing(tmp_path: Path) -> None:
    assert info.memory(tmp_path) == {"total": 0, "available": 0}
    assert info.temperature(tmp_path) is None and info.governors(tmp_path) == []
