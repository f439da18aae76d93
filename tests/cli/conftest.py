"""Runs the command line in this process, and stands in for the flow behind it."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tvmflow.cli.app import main


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
        monkeypatch.setattr(sys, "argv", ["tvmflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return Ran(int(left.value.code or 0), out, err)

    return call


@pytest.fixture
def fake_flow(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An empty ``tvmflow.flow``: what a test doesn't put there must not be called."""
    import tvmflow

    flow = types.ModuleType("tvmflow.flow")
    monkeypatch.setitem(sys.modules, "tvmflow.flow", flow)
    monkeypatch.setattr(tvmflow, "flow", flow, raising=False)
    return flow
