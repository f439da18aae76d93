"""Shared by all tests: one thread for TVM, a fixed hypothesis profile, and the command line in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TVM_NUM_THREADS", "1")
# else TVM's pool pins this process, and all that it starts, to one core when a test calls a kernel without a session
os.environ.setdefault("TVM_BIND_THREADS", "0")

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
