"""What a person reads after a verb has run. Each function turns the verb's JSON object into lines and tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tvmflow.cli.verb import Output

Shown = tuple[Any, ...]
_WORST = 8
"""Layers that `quantize` lists."""


def _table(*columns: str, title: str = "") -> Any:
    """A table whose first column is text and whose other columns are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column.endswith(" ") else "right", overflow="fold")
    return table


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count:.0f} B"


def compile_report(data: dict[str, Any]) -> Shown:
    operators, kernels, check = data["operators"], data["kernels"], data["import_check"]
    lines: list[Any] = [
        f"{data['artifact']}: {data['precision']} for {data['target']}",
        f"size: {_size(data['bytes'])}, of which weights {_size(data['weight_bytes'])}",
        f"operators: {operators['integer']} integer, {operators['float']} float, {operators['boundaries']} boundaries between",
        f"kernels: {kernels['total']}, of which {kernels['specialised']} with a specialised schedule, {kernels['tuned']} tuned",
    ]
    if kernels["one_by_one"]:
        lines.append(f"calls: TVM's virtual machine makes {kernels['one_by_one']} one by one")
    if kernels["in_place"] or kernels["copies"]:
        lines.append(f"concatenations: {kernels['in_place']} operands written in place, {kernels['copies']} calls that copy")
    if check:
        lines.append(f"import check: largest difference {check['max_abs_error']:.3g} against {check['against']}")
    else:
        lines.append("import check: left out")
    if operators["integer"]:
        lines += _floats(operators)
    lines += data["notes"]
    stages = ", ".join(f"{stage['name']} {stage['seconds']:.1f} s" for stage in data["stages"] if stage["seconds"] >= 0.05)
    lines.append(f"{data['seconds']:.1f} s ({stages}), peak memory {_size(data['peak_rss_bytes'])}")
    return tuple(lines)


def quantize_report(data: dict[str, Any]) -> Shown:
    operators, sqnr = data["operators"], data["output_sqnr_db"]
    table = _table("layers that lose most", "SQNR dB")
    known = [layer for layer in data["layers"] if layer["sqnr_db"] is not None]
    for layer in sorted(known, key=lambda layer: layer["sqnr_db"])[:_WORST]:
        table.add_row(layer["layer"], f"{layer['sqnr_db']:.1f}")
    return (
        f"{data['out']}: recipe {data['recipe']}, calibrated on {data['samples']} samples",
        f"operators: {operators['integer']} integer, {operators['float']} float",
        f"output: {'exact' if sqnr is None else f'SQNR {sqnr:.1f} dB'}",
        table,
        *_floats(operators),
        *(f"{advice['layer']}: {advice['finding']} -> {advice['remedy']}" for advice in data["advice"]),
        *data["notes"],
    )


def _floats(operators: dict[str, Any]) -> Shown:
    """The operators that stayed float in a quantized model, each with its reason."""
    if not operators["float_list"]:
        return ()
    table = _table("float operator", "kind ", "reason ")
    for item in operators["float_list"]:
        table.add_row(item["name"], item["op"], item["reason"])
    return (table,)


def tune_report(data: dict[str, Any]) -> Shown:
    table = _table("kernel", "times", "candidates", "measured", "default ms", "best ms", "gain")
    for task in data["tasks"]:
        default, best = task["default_ms"], task["best_ms"]
        gain = f"{default / best:.2f}x" if default and best else "tuned before" if task["tuned_before"] else ""
        times = (f"{ms:.4f}" if ms is not None else "" for ms in (default, best))
        table.add_row(task["kernel"], str(task["count"]), str(task["candidates"]), str(task["measured"]), *times, gain)
    before = f", {data['tuned_before']} tuned before" if data["tuned_before"] else ""
    lines: list[Any] = [f"{data['kernels']} kernels for {data['target']}{before}, {data['candidates']} candidates", table]
    if "trials" in data:
        lines.append(f"{data['trials']} measured, {data['failed']} failed, {data['seconds']:.0f} s; ended: {data['stopped']}")
        lines += [f"lost board {board}: {why}" for board, why in data["lost_boards"].items()]
        if data["drifts"]:
            lines.append(f"the machine's state changed {data['drifts']} times: times were scaled to what it was at first")
        lines.append(f"all kernels: {data['default_ms']:.3f} ms -> {data['tuned_ms']:.3f} ms; kept in {data['log']}")
        if data["gain_left"] >= 0.001:
            lines.append(f"the model expects {data['gain_left']:.1%} more of going on")
    elif data["expected_trials"]:
        lines.append(f"a search takes about {data['expected_trials']} measurements, {data['expected_seconds'] / 60:.1f} minutes")
    else:
        lines.append("nothing is left to tune; --again searches once more")
    return tuple(lines)


def bench_report(data: dict[str, Any]) -> Shown:
    device, peak = data["device"], data["peak_fraction"]
    table = _table("", "min ms", "median", "p90", "p99", "runs", "ratio", "of median", title=f"{data['threads']} threads")
    table.add_row(data["artifact"], *_latency(data["latency_ms"]))
    for peer in data.get("against") or ():
        ratios = (f"{peer['ratio_min']:.2f}x", f"{peer['ratio_median']:.2f}x")
        table.add_row(f"{peer['name']} {peer['version']} {peer['precision']}", *_latency(peer["latency_ms"]), *ratios)
    load = ", ".join(f"{value:.2f}" for value in data["load_average"])
    lines: list[Any] = [f"{device['name']}: {device['cpu']}" + (f", load {load}" if load else ""), table]
    if data.get("against"):
        lines.append("ratio = theirs / ours: above 1, ours is faster")
    if peak is not None:
        peaks = ", ".join(f"{value:.0f} {key.replace('_', ' ')}" for key, value in data["machine_peak"].items() if value)
        lines.append(f"{100 * peak:.0f} % of the machine's peak, measured in this run ({peaks})")
    if data.get("layers"):
        lines += _layers(data["layers"])
    return tuple(lines)


def _layers(rows: list[dict[str, Any]]) -> Shown:
    table = _table("layer", "operator ", "schedule ", "ms", "Gop", "of peak")
    for row in rows:
        fraction = row["peak_fraction"]
        share = "" if fraction is None else f"{100 * fraction:.0f} %"
        schedule = f"{row['schedule']}, tuned" if row["tuned"] else row["schedule"]
        table.add_row(row["name"], row["op"], schedule, f"{row['ms']:.4f}", f"{row['gop']:.4f}", share)
    return (table, f"all rows: {sum(row['ms'] for row in rows):.4f} ms, of quiet runs")


def _latency(latency: dict[str, Any]) -> tuple[str, ...]:
    return (*(f"{latency[key]:.3f}" for key in ("min", "median", "p90", "p99")), str(len(latency["runs"])))


def evaluate_report(data: dict[str, Any]) -> Shown:
    reference = data.get("reference") or {}
    table = _table("", "top-1", "top-5")
    for name, row in (("artifact", data), (reference.get("name", "reference"), reference)):
        if row.get("top1") is not None:
            table.add_row(name, f"{100 * row['top1']:.2f} %", f"{100 * row['top5']:.2f} %")
    lines: list[Any] = [f"{data['count']} samples"]
    if table.row_count:
        lines.append(table)
    for key, text in (
        ("agreement", "equal top-1: {:.2%}"),
        ("sqnr_db", "SQNR: {:.1f} dB"),
        ("max_abs_error", "largest error: {:.3g}"),
    ):
        if data.get(key) is not None:
            lines.append(text.format(data[key]))
    return tuple(lines)


def inspect_report(data: dict[str, Any]) -> Shown:
    return tuple(_indented(data, 0))


def _indented(value: dict[str, Any], depth: int) -> list[str]:
    """A nested object as indented ``key: value`` lines."""
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            lines += ["  " * depth + f"{key}:", *_indented(item, depth + 1)]
        elif isinstance(item, list | tuple) and item and isinstance(item[0], dict):
            lines.append("  " * depth + f"{key}:")
            lines += ["  " * (depth + 1) + ", ".join(f"{k} {v}" for k, v in row.items()) for row in item]
        else:
            lines.append("  " * depth + f"{key}: {item}")
    return lines


def run_report(data: dict[str, Any]) -> Shown:
    table = _table("output", "shape ", "dtype ", "min", "max")
    for y in data["outputs"]:
        table.add_row(y["name"], "x".join(map(str, y["shape"])), y["dtype"], f"{y['min']:.6g}", f"{y['max']:.6g}")
    return (table, f"written to {data['output']}") if data["output"] else (table,)


def target_table(targets: list[dict[str, Any]]) -> Shown:
    table = _table("name", "family ", "machine ", "also called ", "description ")
    for t in targets:
        table.add_row(t["name"], t["family"], t["arch"], ", ".join(t["aliases"]), t["description"])
    return (table,)


def board_table(boards: list[dict[str, Any]]) -> Shown:
    table = _table("name", "address ", "target ", "by way of ")
    for b in boards:
        table.add_row(b["name"], f"{b['host']}:{b['port']}", b["target"], b["ssh"] and f"ssh {b['ssh']}")
    return (table,)


def checks_output(found: Iterable[Any]) -> Output:
    """Findings about this machine or a board: structs of name, ok, detail and remedy. Exit code 3 when one failed."""
    import msgspec

    checks = [msgspec.to_builtins(check) for check in found]
    lines = []
    for check in checks:
        lines.append(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['detail']}")
        if check["remedy"]:
            lines.append(f"      -> {check['remedy']}")
    return Output({"checks": checks}, tuple(lines), exit_code=0 if all(check["ok"] for check in checks) else 3)
