"""Peak kernels: that they compute what they count, on this machine and, as code, on the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tvmflow.bench import peak
from tvmflow.bench.peak import ROWS, Row, build, emit, measure_peak, on_board, operands, usable
from tvmflow.build.link import linkers
from tvmflow.errors import UserError
from tvmflow.runtime import cpu
from tvmflow.target import Target, get_target

ARM = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "generic"}
IDS = [row.name for row in ROWS]


@pytest.fixture(scope="module")
def host() -> Target:
    """A plain target of this machine's family."""
    import msgspec

    triple = f"{cpu.arch()}-linux-gnu"
    family = "x86" if cpu.arch() == "x86_64" else "arm"
    generic = {"kind": "llvm", "mtriple": triple, "mcpu": "x86-64" if family == "x86" else "generic"}
    return msgspec.structs.replace(get_target("zen5"), family=family, tvm=generic, features=())


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_row_counts_the_operations_it_does(row: Row, host: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """All operands are ones: after STEPS steps each lane has grown by STEPS times the products of one lane."""
    if row not in usable(host.family, cpu.features()):
        pytest.skip(f"this machine has no {row.name}")
    monkeypatch.setattr(peak, "STEPS", 24)
    import tvm

    module = build(row, host, 2)
    lanes = int(row.acc.split("x")[1])
    tensors = [tvm.runtime.tensor(value) for value in operands(row, 2)]
    module["main"](*tensors)
    assert (tensors[2].numpy() == 1 + 24 * row.ops / 2 / lanes).all()


@pytest.mark.parametrize("row", [row for row in ROWS if row.family == "arm"], ids=[r.name for r in ROWS if r.family == "arm"])
def test_arm_rows_become_their_instruction(row: Row, host: Target) -> None:
    import msgspec

    module = build(row, msgspec.structs.replace(host, family="arm", tvm=ARM), 1)
    chains = row.tile[0] * row.tile[1]
    lines = [line.split("\t")[1] for line in module.inspect_source("asm").splitlines() if line.startswith("\t")]
    used = [name for name in lines if name.startswith(row.name)]
    assert len(used) >= chains, f"{row.name} occurs {len(used)} times for {chains} chains"


def test_every_family_has_a_row_for_plain_cpus() -> None:
    for family in ("x86", "arm"):
        plain = usable(family, ())
        assert {row.integer for row in plain} == {True, False}


def test_usable_asks_for_all_features() -> None:
    assert "vpdpbusd zmm" not in [row.name for row in usable("x86", ["avx512_vnni"])]
    assert "fma ymm" in [row.name for row in usable("x86", ["avx2", "fma"])]


def test_one_thread_has_no_parallel_loop() -> None:
    assert "T.parallel" not in emit(ROWS[0], 1).script()
    assert "T.parallel(3)" in emit(ROWS[0], 3).script()


def test_measured_peak_is_that_of_the_best_row(host: Target) -> None:
    found = measure_peak(host, 1, features=cpu.features(), repeat=2)
    assert found.int8_gops > 0 and found.fp32_gflops > 0


def test_fastest_keeps_one_row_of_each_precision() -> None:
    def meter(name: str, seconds: float) -> peak.Meter:
        row = next(row for row in ROWS if row.name == name)
        return peak.Meter(row, 1, lambda repeat: [seconds] * repeat)

    kept = peak.PeakMeter((meter("vpmaddwd ymm", 1.0), meter("pmaddwd xmm", 0.1), meter("fma ymm", 1.0))).fastest()
    assert [item.row.name for item in kept.meters] == ["pmaddwd xmm", "fma ymm"]
    assert kept.measure().int8_gops == kept.meters[0].gop / 0.1


def test_a_moment_s_disturbance_makes_no_row_the_slower_one() -> None:
    def meter(name: str, seconds: list[float]) -> peak.Meter:
        turns = iter(seconds)
        return peak.Meter(next(row for row in ROWS if row.name == name), 1, lambda repeat: [next(turns)] * repeat)

    disturbed = meter("vpmaddwd ymm", [9.0] + [0.1] * 9)
    kept = peak.PeakMeter((disturbed, meter("pmaddwd xmm", [1.0] * 10), meter("fma ymm", [1.0] * 10))).fastest()
    assert kept.meters[0] is disturbed


def test_a_board_gets_a_library_for_its_machine(host: Target) -> None:
    """The peak of a board is measured through ``time_function`` with all arguments; its library is ELF for its machine."""
    import msgspec

    board = msgspec.structs.replace(host, family="arm", tvm=ARM)
    if not linkers("aarch64"):
        pytest.skip("no linker for aarch64")
    calls: list[tuple[bytes, str, int, int, int]] = []
    names: set[str] = set()

    class Board:
        def time_function(
            self, library: Path, function: str, arguments: Sequence[np.ndarray], repeat: int, number: int = 1, threads: int = 1
        ) -> list[float]:
            calls.append((library.read_bytes()[:20], function, len(arguments), repeat, threads))
            names.add(library.name)
            return [1e-3, 2e-3]

    found = measure_peak(board, 4, features=["asimd"], load=on_board(Board(), board, 4), repeat=2)
    assert found.fp32_gflops == pytest.approx(4 * peak.STEPS * 16 * 8 / 1e9 / 1e-3)
    assert {call[1:] for call in calls} == {("main", 3, 2, 4)} and len(calls) == 2
    assert all(int.from_bytes(call[0][18:20], "little") == 183 for call in calls), "EM_AARCH64"
    assert len(names) == len(calls), "a library in use is never overwritten"


def test_a_family_without_rows_is_refused(host: Target) -> None:
    import msgspec

    with pytest.raises(UserError, match="no peak is known"):
        measure_peak(msgspec.structs.replace(host, family="cuda"), 1)
