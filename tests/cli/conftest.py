"""Stands in for the flow behind the command line."""

from __future__ import annotations

import sys
import types

import pytest


@pytest.fixture
def fake_flow(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """An empty ``tvmflow.flow``: what a test doesn't put there must not be called."""
    import tvmflow

    flow = types.ModuleType("tvmflow.flow")
    monkeypatch.setitem(sys.modules, "tvmflow.flow", flow)
    monkeypatch.setattr(tvmflow, "flow", flow, raising=False)
    return flow
