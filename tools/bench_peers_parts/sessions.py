"""Throughput of several sessions in one process, each with one thread, in a thread of its own; runtimes in turns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from bench_peers_parts.environments import Unavailable, python
from bench_peers_parts.process import Worker

Record = dict[str, Any]


class Prepared(Protocol):
    """One runtime's files for one model and precision."""

    @property
    def peer(self) -> Any: ...
    @property
    def precision(self) -> str: ...
    @property
    def folder(self) -> Path | None: ...
    @property
    def reason(self) -> str: ...


def measure(
    model: str, batch: int, made: Sequence[Prepared], counts: Sequence[int], calibration: Path, rounds: int, seconds: float
) -> list[Record]:
    """Runs a second of each runtime with each number of sessions, the best of ``rounds`` turns.

    A session that gives anything but what it gives alone has mixed up its data with another's: that row is an error.
    """
    found: list[Record] = []
    for count in counts:
        with ExitStack() as stack:
            rows = []
            for item in made:
                row: Record = {"model": model, "batch": batch, "sessions": count, "name": item.peer.name, "turns": []}
                row |= {"precision": item.precision, "reason": item.reason}
                rows.append(row)
                if item.folder is None:
                    continue
                command = ("sessions", item.peer.name, item.folder, item.precision, count, calibration)
                try:
                    worker = Worker(python(item.peer), command)
                except Unavailable as problem:
                    row["reason"] = str(problem)
                    continue
                stack.callback(worker.close)
                row |= {"worker": worker, "resident_bytes": worker.ready["resident_bytes"]}
            for _ in range(rounds):
                for row in rows:
                    _turn(row, seconds)
        found += [{k: v for k, v in row.items() if k != "worker"} for row in rows]
    return found


def _turn(row: Record, seconds: float) -> None:
    if row["reason"] or "worker" not in row:
        return
    try:
        reply = row["worker"].ask(seconds=seconds)
    except Unavailable as problem:
        row["reason"] = str(problem)
        return
    if reply["wrong"]:
        row["reason"] = f"error: {reply['wrong']} of {sum(reply['runs'])} results are another session's"
    row["turns"].append(reply)


def rate(row: Record) -> float:
    """Runs a second of all sessions together in the best turn."""
    return max(sum(turn["runs"]) / turn["wall"] for turn in row["turns"])


def cost(row: Record) -> float:
    """CPU milliseconds of a run in the best turn: what waits for a core, on a busy machine, costs nothing here."""
    return min(1e3 * turn["cpu"] / sum(turn["runs"]) for turn in row["turns"])


def table(records: Sequence[Record]) -> str:
    lines = [f"{'':44} sessions  runs/s   against 1  CPU ms/run  resident MB"]
    alone = {_key(r): rate(r) for r in records if r["sessions"] == 1 and r["turns"]}
    for r in sorted(records, key=lambda r: (*_key(r), r["sessions"])):
        head = f"{r['model']:20} {r['name']:12} {r['precision']:12} {r['sessions']:6}"
        if r["reason"] or not r["turns"]:
            lines.append(f"{head}  {r['reason']}")
            continue
        times = f"{rate(r) / alone[_key(r)]:8.2f}x" if _key(r) in alone else ""
        lines.append(f"{head} {rate(r):10.1f} {times:>10} {cost(r):10.2f} {r['resident_bytes'] / 1e6:10.0f}")
    return "\n".join(lines)


def _key(row: Record) -> tuple[str, int, str, str]:
    return row["model"], row["batch"], row["precision"], row["name"]
