"""Shared by all tests: TVM's pool as sessions want it, a fixed hypothesis profile, and the command line in this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tvmflow.runtime import cpu
from tvmflow.runtime.threads import prepare_thread_pool

# a kernel that a test calls without a session may make the pool, for all tests of this process: too small, pinned to one core
prepare_thread_pool(cpu.physical_cores())

settings.register_profile("tvmflow", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tvmflow")


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output; fails when there is anything else."""
        return json.loads(self.out)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """``cli("compile", "x.onnx")`` -> exit code and what was printed, by native code too."""

    def call(*arguments: object) -> Ran:
        from tvmflow.cli.app import main

        monkeypatch.setattr(sys, "argv", ["tvmflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return Ran(int(left.value.code or 0), out, err)

    return call
