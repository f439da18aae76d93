"""What a person watching sees while a verb runs: a bar with the time left on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 10.0


class Screen:
    """Draws progress on standard error; standard output belongs to the result. ``report`` is a ``trace.Progress``."""

    def __enter__(self) -> Screen:
        self._bars: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._printed = 0.0
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def report(self, what: str, done: int, total: int) -> None:
        """Shows step ``done`` of ``total`` of ``what``; ``total`` is 0 where the number of steps isn't known."""
        if sys.stderr.isatty():
            self._draw(what, done, total)
        else:
            self._print(what, done, total)

    def _draw(self, what: str, done: int, total: int) -> None:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            left = (TextColumn("left"), TimeRemainingColumn())
            self._bars = Progress(*columns, *left, console=Console(stderr=True), transient=True, redirect_stdout=False)
            self._bars.start()
        if self._task is None or what != self._what:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task, self._what = self._bars.add_task(what, total=total or None), what
        self._bars.update(self._task, completed=done, total=total or None)

    def _print(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what == self._what and now - self._printed < _SECONDS_BETWEEN_LINES:
            return
        if what != self._what:
            self._what, self._started, self._first = what, now, done
        steps = done - self._first
        left = f", {(total - done) * (now - self._started) / steps:.0f} s left" if total and steps > 0 else ""
        print(f"{what} {done}/{total}{left}" if total else what, file=sys.stderr, flush=True)
        self._printed = now
