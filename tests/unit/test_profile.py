"""Kernel times by a clock of the test's own: what the instrument costs is not counted, nor are disturbed runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tvmflow.runtime import profile as module

ENTRY = {"small": 0.5, "vm.builtin.alloc_tensor": 0.75, "large": 2.0}
"""What it takes to enter the instrument for each call: more for more arguments."""
TAKES = {"small": 0.25, "vm.builtin.alloc_tensor": 0.125, "large": 8.0}


class Machine:
    """A virtual machine of three calls, and the clock that it runs on. ``slow`` runs take three times as long."""

    def __init__(self, slow: set[int]) -> None:
        self.clock, self.run, self.slow, self.instrument = 0.0, 0, slow, None

    def set_instrument(self, instrument: Callable[..., int] | None) -> None:
        self.instrument = instrument

    def call(self) -> None:
        self.run += 1
        for symbol in ("vm.builtin.alloc_tensor", "small", "large", "small"):
            self._tell(symbol, True)
            self.clock += TAKES[symbol] * (3 if self.run in self.slow else 1)
            self._tell(symbol, False)

    def _tell(self, symbol: str, before: bool) -> None:
        if self.instrument is not None:
            self.clock += ENTRY[symbol]
            self.instrument(None, symbol, before, None)


@pytest.mark.parametrize("slow", [set(), {4, 7, 10}, {3, 6, 9}])
def test_kernels_without_the_cost_of_timing_them(monkeypatch: pytest.MonkeyPatch, slow: set[int]) -> None:
    machine = Machine(slow)
    monkeypatch.setattr(module.time, "perf_counter", lambda: machine.clock)
    found = module.profile(machine.call, machine.call, lambda: None, machine.set_instrument, runs=8)
    assert [name for name, _ in found.kernels] == ["small", "large", "small"]
    assert [ms for _, ms in found.kernels] == pytest.approx([250.0, 8000.0, 250.0])
    assert found.whole == pytest.approx(8625.0)
    assert machine.instrument is None


def test_slow_devices_are_not_run_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(set())
    monkeypatch.setattr(module.time, "perf_counter", lambda: machine.clock)
    module.profile(machine.call, machine.call, lambda: None, machine.set_instrument, runs=40)
    assert machine.run <= 3 * module.QUIET + 1


def test_the_instrument_is_taken_off_when_a_run_fails() -> None:
    machine = Machine(set())

    def fail(*_: Any) -> None:
        if machine.instrument is not None:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        module.profile(fail, fail, lambda: None, machine.set_instrument)
    assert machine.instrument is None
