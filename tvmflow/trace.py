"""What a run shows of itself: stage times, progress with ETA, and numbered dumps of the module after each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``; called at every step of long work. The CLI draws it, libraries ignore it."""


def silent(what: str, done: int, total: int) -> None:
    """The progress of those who do not watch."""


@dataclass
class Trace:
    """Collects stage times and writes dumps. One per compile."""

    dump: Path | None = None
    progress: Progress = silent
    stages: list[tuple[str, float]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage under its name."""
        self.progress(name, 0, 0)
        start = time.perf_counter()
        yield
        self.stages.append((name, time.perf_counter() - start))

    def show(self, name: str, module: Any) -> None:
        """Writes ``NN_name.py``, the TVMScript of ``module``, when dumps are asked for."""
        if self.dump is None:
            return
        self.dump.mkdir(parents=True, exist_ok=True)
        number = len(list(self.dump.glob("*.py")))
        (self.dump / f"{number:02d}_{name}.py").write_text(module.script() + "\n")
