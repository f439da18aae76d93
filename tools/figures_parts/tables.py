"""The measurements as text: three tables, the float operators with their reasons, and the floors that have to be met."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Record = dict[str, Any]
DASH = "-"
MNIST = "mobilenetv2_mnist"


def tables(records: Sequence[Record]) -> str:
    parts = [compiled(records), accuracy(records), latency(records), floats(records), troubles(records)]
    return "\n".join(part for part in parts if part)


def of(records: Iterable[Record], step: str) -> list[Record]:
    """The measurements of a step that came to an end."""
    return [r for r in records if r["step"] == step and not {"error", "skipped"} & set(r)]


def layout(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 2) -> str:
    """Aligned columns, the first ``left`` of them to the left; empty without rows."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row: Sequence[str]) -> str:
        cells = [v.ljust(w) if i < left else v.rjust(w) for i, (v, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([title, line(header), rule, *map(line, rows), ""])


def _or_dash(write: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: DASH if value is None else write(value)


megabytes = _or_dash(lambda value: f"{value / 1e6:.2f}")
percent = _or_dash(lambda share: f"{100 * share:.2f}")
decibel = _or_dash(lambda value: f"{value:.1f}")
digits = _or_dash(lambda value: f"{value:.3f}")
ratio = _or_dash(lambda value: f"{value:.2f}x")
small = _or_dash(lambda value: f"{value:.1e}")


def compiled(records: Sequence[Record]) -> str:
    header = (
        "model", "precision", "model MB", "import error", "seconds", "peak MB", ".so MB", "weights MB", "integer", "float",
        "edges", "kernels", "special", "tuned", "longest stages",
    )  # fmt: skip
    before = {r["model"]: r["model_bytes"] for r in of(records, "prepare")}
    rows = []
    for r in of(records, "compile"):
        ops, kernels, check = r["operators"], r["kernels"], r["import_check"] or {}
        stages = sorted(r["stages"], key=lambda s: -s["seconds"])[:3]
        rows.append((
            r["model"], r["precision"], megabytes(before[r["model"]]), small(check.get("max_abs_error")),
            f"{r['seconds']:.1f}", f"{r['peak_memory_bytes'] / 1e6:.0f}", megabytes(r["bytes"]), megabytes(r["weight_bytes"]),
            *(str(ops[k]) for k in ("integer", "float", "boundaries")),
            *(str(kernels[k]) for k in ("total", "specialised", "tuned")),
            ", ".join(f"{s['name']} {s['seconds']:.1f}" for s in stages),
        ))  # fmt: skip
    return layout("Compiled", header, rows)


def accuracy(records: Sequence[Record]) -> str:
    header = ("model", "contender", "samples", "top-1 %", "top-5 %", "fp32 top-1 %", "SQNR dB", "agreement %", "cosine", "task")
    rows = []
    for r in of(records, "evaluate"):
        reference = r["reference"] or {}
        # For masks and embeddings the greatest value of a row means nothing.
        agreement = None if r["judged"] in ("mask", "embedding") else r["agreement"]
        task = [f"{key.replace('_', ' ')} {100 * r[key]:.1f} %" for key in TASKS if key in r]
        task += [f"{r['non_finite']} not finite"] if r["non_finite"] else []
        rows.append((
            r["model"], r["contender"], str(r["samples"]), percent(r["top1"]), percent(r["top5"]), percent(reference.get("top1")),
            decibel(r["sqnr_db"]), percent(agreement), "-" if r["cosine"] is None else f"{r['cosine']:.5f}", "; ".join(task),
        ))  # fmt: skip
    title = "Accuracy on held-out data (SQNR, agreement and cosine against onnxruntime in float32)"
    return layout(title, header, rows)


TASKS = ("texts_as_reference", "texts_right", "reference_texts_right", "mask_overlap")


def latency(records: Sequence[Record]) -> str:
    header = (
        "model",
        "precision",
        "threads",
        "median ms",
        "min ms",
        "of peak %",
        "contender",
        "median ms",
        "min ms",
        "median",
        "min",
    )
    rows = []
    for r in of(records, "bench"):
        ours = r["latency_ms"]
        mine = (
            r["model"], r["precision"], str(r["threads"]), digits(ours["median"]), digits(ours["min"]),
            percent(r["peak_fraction"]),
        )  # fmt: skip
        for index, peer in enumerate(r["against"]):
            theirs = peer["latency_ms"]
            first = mine if not index else ("",) * len(mine)
            ratios = ratio(peer["ratio_median"]), ratio(peer["ratio_min"])
            rows.append((*first, f"{peer['name']} {peer['precision']}", digits(theirs["median"]), digits(theirs["min"]), *ratios))
    return layout("Latency, runs in turns (ratio above 1: ours is faster)", header, rows)


def floats(records: Sequence[Record]) -> str:
    """Reasons with how many operators each holds for; every name is in figures.jsonl."""
    rows = []
    for r in of(records, "compile"):
        if r["precision"] != "int8":
            continue
        found = Counter((f["op"], f["reason"]) for f in r["operators"]["float_list"])
        first = {(f["op"], f["reason"]): f["name"] for f in reversed(r["operators"]["float_list"])}
        rows += [(r["model"], op, str(n), reason, first[op, reason]) for (op, reason), n in found.most_common()]
    return layout("Float operators of int8 artifacts", ("model", "operator", "count", "reason", "first"), rows, left=5)


def troubles(records: Sequence[Record]) -> str:
    rows = []
    for r in records:
        which = " ".join(str(r[k]) for k in ("step", "precision", "contender", "how", "threads") if k in r)
        rows += [(r["model"], which, kind, " ".join(r[kind].split())) for kind in ("skipped", "error") if kind in r]
    return layout("Not measured", ("model", "measurement", "", "reason"), rows, left=4)


def checks(records: Sequence[Record], all_integer: set[str]) -> str:
    """The floors, each met, missed, or not measured."""
    compiled = {(r["model"], r["precision"]): r for r in of(records, "compile")}
    evaluated = {(r["model"], r["contender"]): r for r in of(records, "evaluate")}
    rows = []

    def check(model: str, what: str, bound: str, found: str | None, met: bool) -> None:
        rows.append((model, what, bound, found or DASH, "not measured" if found is None else "met" if met else "MISSED"))

    c = compiled.get((MNIST, "int8"))
    for what, key, most in ((".so", "bytes", 2.6e6), ("weights", "weight_bytes", 2.35e6)):
        check(MNIST, what, f"<= {most / 1e6:.2f} MB", c and f"{c[key] / 1e6:.3f} MB", bool(c) and c[key] <= most)
    e = evaluated.get((MNIST, "tvmflow int8"))
    for what, key, points in (("top-1", "top1", 0.2), ("top-5", "top5", 0.1)):
        change = 100 * (e[key] - e["reference"][key]) if e else 0.0
        check(MNIST, what, f"within {points} points of fp32", e and f"{change:+.2f} points", abs(change) <= points + 1e-9)
    for r in of(records, "bench"):
        if r["model"] == MNIST and r["precision"] == "int8" and r["threads"] == 1:
            for peer in r["against"]:
                if peer["precision"] == "int8":
                    check(
                        MNIST, "1 thread", "faster than onnxruntime int8", ratio(peer["ratio_median"]), peer["ratio_median"] > 1
                    )
    if not any(what == "1 thread" for _, what, *_ in rows):
        check(MNIST, "1 thread", "faster than onnxruntime int8", None, False)
    for model in sorted(all_integer):
        c = compiled.get((model, "int8"))
        ops = c["operators"] if c else {"integer": 0, "float": 0}
        share = f"{ops['integer']} of {ops['integer'] + ops['float']}"
        check(model, "integer operators", "all", c and share, ops["float"] == 0)
    return layout("Floors", ("model", "what", "floor", "found", ""), rows, left=5)
