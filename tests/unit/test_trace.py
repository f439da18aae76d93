"""Stage times, progress and numbered dumps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tvmflow.trace import Trace


def test_stages_are_timed_in_order_and_announced() -> None:
    seen: list[tuple[str, int, int]] = []
    trace = Trace(None, lambda *step: seen.append(step))
    for name in ("import", "build"):
        with trace.stage(name):
            pass
    assert [name for name, _ in trace.stages] == ["import", "build"] and all(seconds >= 0 for _, seconds in trace.stages)
    assert seen == [("import", 0, 0), ("build", 0, 0)]


def test_stage_that_fails_is_not_counted() -> None:
    trace = Trace()
    with pytest.raises(ValueError), trace.stage("build"):
        raise ValueError
    assert trace.stages == []


def test_dumps_are_numbered_and_only_written_when_asked_for(tmp_path: Path) -> None:
    module = SimpleNamespace(script=lambda: "text of the module")
    trace = Trace(tmp_path / "deep" / "dump")
    for name in ("import", "optimize"):
        trace.show(name, module)
    assert sorted(p.name for p in (tmp_path / "deep" / "dump").iterdir()) == ["00_import.py", "01_optimize.py"]
    assert (tmp_path / "deep" / "dump" / "00_import.py").read_text() == "text of the module\n"
    Trace().show("import", SimpleNamespace())  # asks nothing of the module
