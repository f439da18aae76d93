"""Ours beside every runtime that a user would pick instead: the same models, precisions and threads, in one run, in turns.

Each runtime lives in an environment of its own (``~/.cache/tvmflow/peers`` or ``$TVMFLOW_PEERS``), made the first time, and runs
in a process of its own. A runtime that can't be installed or can't run a model stays in the table with its reason.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench_peers_parts import depth, sessions, tables
from bench_peers_parts.environments import OURS, PEERS, Peer, Unavailable, folder, python
from bench_peers_parts.models import MODELS, TRANSFORMERS, get
from bench_peers_parts.prepare import prepared
from bench_peers_parts.process import Worker
from bench_peers_parts.rounds import Cell, Row, judge, measure, to_json

from tvmflow.bench.measure import load_average
from tvmflow.build.manifest import read_manifest
from tvmflow.runtime import cpu


@dataclass(frozen=True)
class Prepared:
    """What one runtime loads for one model and precision, or why there is nothing."""

    peer: Peer
    precision: str
    folder: Path | None = None
    reason: str = ""


def prepare_all(peers: list[Peer], precisions: list[str], name: str, model: Path, calibration: Path) -> list[Prepared]:
    made = []
    for peer in peers:
        for precision in peer.precisions:
            if precision not in precisions or (precision in peer.transformers_only and name not in TRANSFORMERS):
                continue
            try:
                made.append(Prepared(peer, precision, prepared(peer, precision, model, calibration)))
            except Unavailable as problem:
                made.append(Prepared(peer, precision, reason=str(problem)))
                say(f"{name}: {peer.name} {precision}: {problem}")
    return made


def one_cell(
    name: str, batch: int, threads: int, made: list[Prepared], calibration: Path, rounds: int, seconds: float
) -> tuple[Cell, str]:
    """Measured and judged; and what became of the priority."""
    with ExitStack() as stack:

        def start(interpreter: Path, *arguments: object) -> Worker:
            worker = Worker(interpreter, arguments)
            stack.callback(worker.close)
            return worker

        peak = start(Path(sys.executable), "peak", threads)
        rows = []
        for item in made:
            row = Row(item.peer.name, item.precision, reason=item.reason, gop=operations(item))
            rows.append(row)
            if item.folder is None:
                continue
            try:
                row.worker = start(python(item.peer), "serve", item.peer.name, item.folder, item.precision, threads, calibration)
                row.facts = {key: value for key, value in row.worker.ready.items() if key != "output"}
            except Unavailable as problem:
                row.reason = str(problem)
        most = max((row.gop for row in rows if row.gop), default=None)
        cell = Cell(name, batch, threads, most, tuple(rows), *measure(rows, peak, rounds, seconds))
        judge(cell)
        return cell, peak.priority


def operations(item: Prepared) -> float | None:
    """1e9 operations of one run of an artifact of ours; None for others."""
    if item.peer is not OURS or item.folder is None:
        return None
    return sum(layer.gop for layer in read_manifest(item.folder / "model.so").layers)


def save(report: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(report))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def listed(text: str) -> list[str]:
    return [item for item in text.split(",") if item]


def arguments() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    every = list(dict.fromkeys(p for peer in PEERS for p in peer.precisions))
    parser = argparse.ArgumentParser(prog="tools/bench_peers", description="Measure ours beside other runtimes.")
    parser.add_argument("--models", type=listed, default=list(MODELS), help=f"some of {','.join(MODELS)}")
    parser.add_argument("--precisions", type=listed, default=every, help=f"some of {','.join(every)}")
    parser.add_argument("--threads", type=listed, default=["1", "2"], help="numbers of threads (default: 1,2)")
    parser.add_argument("--batch", type=listed, default=["1"], help="batch sizes, for example 1,4,16 (default: 1)")
    parser.add_argument("--only-peer", type=listed, default=[p.name for p in PEERS], help="some of the runtimes")
    parser.add_argument("--data", action="append", default=[], metavar="MODEL=DATA", help="calibration data (default: synthetic)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of everybody; 0: install and prepare only")
    parser.add_argument("--seconds", type=float, default=0.25, help="timed runs in each turn")
    parser.add_argument("--depth", action="store_true", help="instead: what compiling ResNets of 18 to 152 layers costs")
    parser.add_argument("--sessions", type=listed, help="instead: so many sessions at once in one process, for example 1,2,4")
    parser.add_argument("--json", type=Path, help="write every raw run here")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    return parser, parser.parse_args()


def check(parser: argparse.ArgumentParser, what: str, asked: list[str], known: list[str]) -> None:
    if unknown := [item for item in asked if item not in known]:
        parser.error(f"unknown {what} {unknown[0]!r}: there are {', '.join(known)}")


def main() -> int:
    parser, asked = arguments()
    check(parser, "model", asked.models, list(MODELS))
    check(parser, "runtime", asked.only_peer, [p.name for p in PEERS])
    data = dict(item.partition("=")[::2] for item in asked.data)
    check(parser, "model", list(data), list(MODELS))
    peers = [OURS, *(p for p in PEERS if p.name in asked.only_peer)]
    report: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "cpu": cpu.model_name(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "command": shlex.join(["tools/bench_peers", *sys.argv[1:]]),
        "cells": [],
        "sessions": [],
    }
    if asked.depth:
        report["depth"] = depth.measure()
        print(depth.table(report["depth"]))
        save(report, asked.json)
        return 0
    for name in asked.models:
        for batch in map(int, asked.batch):
            model, calibration = get(name, batch, folder() / "models", data.get(name))
            made = prepare_all(peers, asked.precisions, name, model, calibration)
            if asked.sessions:
                counts = [int(count) for count in asked.sessions]
                report["sessions"] += sessions.measure(name, batch, made, counts, calibration, asked.rounds, asked.seconds)
                save(report, asked.json)
                continue
            for threads in map(int, asked.threads) if asked.rounds else ():
                load = load_average()
                cell, priority = one_cell(name, batch, threads, made, calibration, asked.rounds, asked.seconds)
                report["cells"].append({**to_json(cell), "load_average": load, "priority": priority})
                say(tables.table(report["cells"][-1:]))
                save(report, asked.json)
    if report["sessions"]:
        print(sessions.table(report["sessions"]))
    if report["cells"]:
        cells = report["cells"]
        print(tables.markdown(report) if asked.markdown else f"{tables.table(cells)}\n\n{tables.costs(cells)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
