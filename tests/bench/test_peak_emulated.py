"""Peak kernels on emulated ARM boards: those that a CPU has run there, and no others are tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tvmflow.bench import peak
from tvmflow.bench.peak import on_board, peak_meter
from tvmflow.board.local import local_board
from tvmflow.board.rpc import connect
from tvmflow.target import get_target

TOOL = (sys.executable, str(Path(__file__).parents[2] / "tools" / "emulated_board"))
pytestmark = pytest.mark.qemu


@pytest.mark.parametrize(
    ("cpu", "rows"),
    [("cortex-a72", ["smlal", "fmla"]), ("cortex-a76", ["sdot", "smlal", "fmla"]), ("max", ["smmla", "sdot", "smlal", "fmla"])],
)
def test_rows_run_where_the_cpu_has_them(cpu: str, rows: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    probe = subprocess.run([*TOOL, "run", "--cpu", cpu, "--", "-c", ""], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(probe.stderr.strip())
    monkeypatch.setattr(peak, "STEPS", 1 << 10)
    target = get_target("rpi4")
    server = (*TOOL, "run", "--cpu", cpu, "--", "-m", "tvmflow.board.server")
    with local_board(server, "emulated") as where, connect(where, 30) as board:
        meter = peak_meter(target, 1, features=board.facts["features"], load=on_board(board, target, 1))
        assert [item.row.name for item in meter.meters] == rows
        found = meter.measure(2)
    assert found.int8_gops > 0 and found.fp32_gflops > 0
