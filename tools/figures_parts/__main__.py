"""Every figure of every model: what compiling gave, how exact and how fast the result is, beside onnxruntime's own int8.

Each measurement runs in a process of its own and is kept in the work folder under a hash of the code and of what it was asked:
a run that was interrupted goes on where it stopped. ``figures.jsonl`` holds them all, one a line; ``figures.txt`` is the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from models import ENTRIES, Entry
from runner import Record, Runner, code_digest
from tables import checks, tables

PRECISIONS = ("fp32", "int8")


def measure(entry: Entry, runner: Runner, target: str, pictures: Path | None, runs: int) -> Iterator[Record]:
    """All measurements of one model, in an order in which each has what it needs."""
    name = entry.name
    stat = pictures.stat() if pictures and pictures.exists() else None
    changed = (stat.st_size, stat.st_mtime) if stat else ()
    prepared = runner.run(name, "prepare", pictures=str(pictures or ""), changed=changed)
    yield prepared
    if "path" not in prepared:
        return
    common: Record = {"path": prepared["path"], "data": prepared["data"], "sha256": prepared["sha256"]}
    compiled = {p: runner.run(name, "compile", precision=p, target=target, **common) for p in PRECISIONS}
    yield from compiled.values()
    artifacts = {p: c["artifact"] for p, c in compiled.items() if "artifact" in c}
    if not artifacts:
        return
    some = next(iter(artifacts.values()))
    peers = {how: runner.run(name, "peer", how=how, artifact=some, **common) for how in ("static", *["dynamic"] * entry.dynamic)}
    yield from peers.values()
    contenders = [(f"tvmflow {p}", artifact, "") for p, artifact in artifacts.items()]
    contenders += [(f"onnxruntime int8 {how}", some, p["path"]) for how, p in peers.items() if "path" in p]
    for contender, artifact, other in contenders:
        yield runner.run(name, "evaluate", contender=contender, artifact=artifact, other=other, judged=entry.judged, **common)
    for threads in (1, 2) if runs else ():
        for precision, artifact in artifacts.items():
            against = ["onnxruntime-fp32"]
            if precision == "int8":
                against += [
                    {"static": "onnxruntime-int8", "dynamic": "onnxruntime-dynamic"}[h] for h, p in peers.items() if "path" in p
                ]
            asked = {"precision": precision, "threads": threads, "artifact": artifact, "against": against, "runs": runs}
            found = runner.run(name, "bench", **asked, **common)
            # A benchmark refuses figures that can't be true, as on a machine that is busy for a moment: it has a second chance.
            yield runner.run(name, "bench", **asked, **common) if "error" in found else found


def main() -> int:
    names = [entry.name for entry in ENTRIES]
    parser = argparse.ArgumentParser(prog="tools/figures", description="Measure every model: compile, accuracy, latency.")
    parser.add_argument("--pictures", type=Path, help="zip of natural pictures, those of ImageNet named imagenet_NN_CLASS_0.jpg")
    parser.add_argument("-o", "--out", type=Path, default=Path("out/figures"), help="folder of figures.jsonl and figures.txt")
    parser.add_argument("--work-dir", type=Path, help="models, artifacts and finished measurements (default: OUT/work)")
    parser.add_argument("--models", default=",".join(names), help=f"some of {', '.join(names)}")
    parser.add_argument("--target", default="native")
    parser.add_argument("--runs", type=int, default=100, help="timed runs of each contender; 0: no latency")
    asked = parser.parse_args()
    chosen = asked.models.split(",")
    if unknown := sorted(set(chosen) - set(names)):
        parser.error(f"unknown model {unknown[0]!r}: there are {', '.join(names)}")
    out: Path = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    started = time.time()
    runner = Runner((asked.work_dir or out / "work").resolve(), code_digest(), started)
    pictures = asked.pictures.resolve() if asked.pictures else None
    records: list[Record] = []
    with (out / "figures.jsonl").open("w") as lines:
        for entry in ENTRIES:
            if entry.name not in chosen:
                continue
            for record in measure(entry, runner, asked.target, pictures, asked.runs):
                records.append(record)
                lines.write(json.dumps(record) + "\n")
                lines.flush()
    verdicts = checks(records, {e.name for e in ENTRIES if e.all_integer})
    text = f"{tables(records)}\n{verdicts}\n{time.time() - started:.0f} s; every figure: {out / 'figures.jsonl'}\n"
    (out / "figures.txt").write_text(text)
    print(text, end="")
    return 1 if any("error" in record for record in records) else 0


if __name__ == "__main__":
    sys.exit(main())
