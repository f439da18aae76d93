"""Bit-exactness of a quantized model: every integer tensor of its graph on every target against the numpy oracle.

For each target the model is compiled twice: as it ships, and with a main that returns all integer tensors of the graph. Both run
where the target says: here, or on an emulated processor (`tools/emulated_board setup`, once). What they return is compared with
``kernels/interpret.py``, which shares no schedule, no packing, no fusion and no memory plan with them.

A target is written NAME, or NAME@CPU for an emulated processor: ``x86-64-v3@Haswell``, ``rpi4@cortex-a72``. What this machine
can't run is emulated anyway. Targets store activations as uint8 or int8; oracles of both are compared too, 128 apart.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tvmflow.errors import TvmflowError, UsageError
from tvmflow.flow.compile import runs_here
from tvmflow.flow.lower import Lowered, lower
from tvmflow.model import Model, TensorInfo
from tvmflow.runtime.verify import max_abs_error
from tvmflow.target import Target, get_target
from tvmflow.trace import Trace, silent

ROOT = Path(__file__).resolve().parents[1]
Run = Callable[[Path], Any]
"""Opens an artifact and returns a function from input arrays to one array, or a list of them."""

TARGETS = "native,x86-avx512-vnni,x86-64-v3,x86-64-v3@Haswell,x86-64,x86-64@Nehalem,rpi4,rpi5"


@dataclass(frozen=True)
class Place:
    """A target, and the emulated processor that runs its code; ``cpu`` is empty for this machine."""

    target: Target
    cpu: str

    @classmethod
    def parse(cls, text: str) -> Place:
        name, _, cpu = text.partition("@")
        target = get_target(name)
        if target.cuda is not None:
            raise UsageError("CUDA targets are compared on a machine with a GPU, by tests marked cuda", where=name)
        return cls(target, cpu or ("" if runs_here(target) else str(target.tvm["mcpu"])))

    @property
    def name(self) -> str:
        return self.target.name + (f"@{self.cpu}" if self.cpu else "")

    @contextmanager
    def open(self) -> Iterator[Run]:
        """Something that opens artifacts of this target."""
        if not self.cpu:
            from tvmflow.runtime.session import load

            yield load
            return
        from tvmflow.board.local import local_board
        from tvmflow.board.rpc import connect

        with local_board(self._server(), self.cpu) as where, connect(where, 60) as board:
            yield lambda path: board.session(path, 1)

    def _server(self) -> list[str]:
        tool = [sys.executable, str(ROOT / "tools" / "emulated_board")]
        server = ["-m", "tvmflow.board.server"]
        if self.target.arch == "x86_64":
            return [*tool, "run-x86", "--cpu", self.cpu, "--", sys.executable, *server]
        return [*tool, "run", "--cpu", self.cpu, "--", *server]


@dataclass(frozen=True)
class Comparison:
    """Tensors of one or more runs against the oracle's."""

    tensors: int = 0
    elements: int = 0
    differing: int = 0
    bits: int = 0
    error: float = 0.0
    """Largest absolute difference."""
    worst: str = ""
    """First tensor that differs."""

    def __add__(self, other: Comparison) -> Comparison:
        counts = (self.elements + other.elements, self.differing + other.differing, self.bits + other.bits)
        return Comparison(max(self.tensors, other.tensors), *counts, max(self.error, other.error), self.worst or other.worst)


@dataclass(frozen=True)
class Row:
    """One target's result."""

    target: str
    storage: str
    dot: str
    integers: Comparison
    """All integer tensors of the graph."""
    outputs: Comparison
    """Outputs of the model as it ships."""
    islands: int
    """Float operators: those round differently from compiler to compiler."""
    seconds: float

    @property
    def exact(self) -> bool:
        """All integers equal, and the outputs too where integers alone decide them."""
        return self.integers.bits == 0 and (self.outputs.bits == 0 or self.islands > 0)


@dataclass(frozen=True)
class Reference:
    """A lowered model with what the oracle computes."""

    lowered: Lowered
    inspected: Model
    """The model with a main that returns every integer tensor, and then the outputs."""
    inputs: tuple[list[np.ndarray], ...]
    tensors: tuple[list[np.ndarray], ...]
    """Per input: what ``inspected`` returns."""

    @property
    def integers(self) -> slice:
        """The integer tensors among ``tensors``."""
        return slice(0, len(self.tensors[0]) - len(self.lowered.model.outputs))

    @property
    def outputs(self) -> slice:
        """The outputs among ``tensors``."""
        return slice(self.integers.stop, None)


def compare(names: Sequence[str], got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> Comparison:
    """Differing elements and bits. A wrong dtype or shape counts as all bits."""
    elements = differing = bits = 0
    error, worst = 0.0, ""
    for name, g, w in zip(names, got, want, strict=True):
        elements += w.size
        if g.dtype != w.dtype or g.shape != w.shape:
            wrong, flipped = w.size, 8 * w.nbytes
        else:
            delta = np.bitwise_xor(*(np.ascontiguousarray(a).reshape(-1, 1).view(np.uint8) for a in (g, w)))
            wrong, flipped = int(delta.any(axis=-1).sum()), int(np.unpackbits(delta).sum())
        worst = worst or (name if wrong else "")
        error = max(error, max_abs_error(g, w) if wrong else 0.0)
        differing, bits = differing + wrong, bits + flipped
    return Comparison(len(names), elements, differing, bits, error, worst)


def inspectable(model: Model) -> Model:
    """``model`` with a main that returns every integer tensor that it computes, in program order, and then its outputs."""
    import tvm
    from tvm import relax

    from tvmflow.optimize.expr import dtype_of, shape_of

    main = model.module["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    results = []
    for var in [b.var for b in bindings if isinstance(b.var.ty, relax.TensorType) and "int" in dtype_of(b.var)]:
        results.append(relax.Var(f"{var.name}:seen", var.ty))
        bindings.append(relax.VarBinding(results[-1], var))
    results += list(main.body.body.fields) if isinstance(main.body.body, relax.Tuple) else [main.body.body]
    infos = tuple(TensorInfo(f"{i} {v.name}", shape_of(v), dtype_of(v)) for i, v in enumerate(results))
    body = relax.SeqExpr([relax.DataflowBlock(bindings)], relax.Tuple(results))
    module = tvm.IRModule(dict(model.module.functions_items()), attrs=model.module.attrs)
    module["main"] = relax.Function(main.params, body, relax.TupleType([v.ty for v in results]), attrs=main.attrs)
    return replace(model, module=module, outputs=infos)


def reference(lowered: Lowered, samples: int) -> Reference:
    """The oracle's tensors for the first calibration samples and for one input of seeded noise."""
    from tvmflow.kernels.interpret import interpret

    inputs = []
    data = lowered.quantization.data if lowered.quantization else None
    for _, sample in zip(range(samples), data or (), strict=False):
        inputs.append([sample[i.name] for i in lowered.model.inputs])
    rng = np.random.default_rng(0)
    inputs.append([rng.standard_normal(i.shape).astype(i.dtype) for i in lowered.model.inputs])
    inspected = inspectable(lowered.model)
    tensors = tuple(interpret(inspected.module, arrays)[0] for arrays in inputs)
    return Reference(lowered, inspected, tuple(inputs), tensors)


def compiled(model: Model, target: Target, tuning_log: str, path: Path) -> Path:
    """``model`` (kernel calls, not yet scheduled) as an artifact for ``target``."""
    from tvmflow.build.artifact import package
    from tvmflow.build.compile import compile_module
    from tvmflow.build.manifest import Manifest
    from tvmflow.schedule.apply import schedule
    from tvmflow.tune.log import open_log

    scheduled, _ = schedule(model, target, open_log(tuning_log, target, path.parent).lookup)
    manifest = Manifest(target.name, target.arch, target.features, model.inputs, model.outputs, "int8")
    return package(compile_module(scheduled.module, target), manifest, (), target, path).path


def measure(place: Place, ref: Reference, tuning_log: str, folder: Path) -> Row:
    """Compiles for a place, runs there, compares."""
    started = time.perf_counter()
    target, found = place.target, []
    with place.open() as load:
        for what, model, part in (
            ("tensors", ref.inspected, ref.integers),
            ("shipped", ref.lowered.model, ref.outputs),
        ):
            session = load(compiled(model, target, tuning_log, folder / f"{place.name}-{what}.so"))
            names = [info.name for info in ref.inspected.outputs[part]]
            results = [as_list(session(*arrays))[: len(names)] for arrays in ref.inputs]
            session.close()
            found.append(
                sum((compare(names, got, want[part]) for got, want in zip(results, ref.tensors, strict=True)), Comparison())
            )
    integers, outputs = found
    seconds = time.perf_counter() - started
    islands = ref.lowered.coverage.float
    return Row(place.name, target.int8.storage, target.int8.dot[0], integers, outputs, islands, seconds)


def as_list(result: Any) -> list[np.ndarray]:
    return list(result) if isinstance(result, list | tuple) else [result]


def between_storages(references: Mapping[str, Reference]) -> Comparison | None:
    """Integer tensors of the oracles of both storage types, 128 subtracted from unsigned bytes; None when there is one type."""
    if len(references) < 2:
        return None
    total = Comparison()
    first, second = references["uint8"], references["int8"]
    names = [info.name for info in first.inspected.outputs[first.integers]]
    for unsigned, signed in zip(first.tensors, second.tensors, strict=True):
        shifted = [(v ^ 128).view(np.int8) if v.dtype == np.uint8 else v for v in unsigned[first.integers]]
        total += compare(names, shifted, signed[second.integers])
    return total


def table(rows: Sequence[Row], across: Comparison | None) -> str:
    lines = [
        f"{'target':28}{'storage':9}{'dot':11}{'tensors':>8}{'elements':>12}{'differing':>11}{'bits':>7}"
        f"{'outputs':>9}{'bits':>6}{'error':>10}{'seconds':>9}"
    ]
    for row in rows:
        i, o = row.integers, row.outputs
        lines.append(
            f"{row.target:28}{row.storage:9}{row.dot:11}{i.tensors:8}{i.elements:12,}{i.differing:11,}{i.bits:7,}"
            f"{o.elements:9,}{o.bits:6,}{o.error:10.2g}{row.seconds:9.1f}"
            + (f"  first: {i.worst or o.worst}" if not row.exact else "")
        )
    if across is not None:
        name = "oracle uint8 - 128 = int8"
        lines.append(f"{name:48}{across.tensors:8}{across.elements:12,}{across.differing:11,}{across.bits:7,}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("model", help="what `tvmflow compile` takes")
    made.add_argument("--calibrate", required=True, metavar="DATA", help="calibration data, as for `tvmflow compile`")
    made.add_argument("--quantize", default="int8", metavar="RECIPE")
    made.add_argument("--targets", default=TARGETS, help="comma-separated NAME or NAME@CPU (default: %(default)s)")
    made.add_argument("--samples", type=int, default=1, metavar="N", help="calibration samples to run, beside one of noise")
    made.add_argument("--tuning-log", default="default", help="as for `tvmflow compile`")
    made.add_argument("--work-dir", type=Path, default=Path(".tvmflow"))
    made.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return made


def main() -> int:
    options = parser().parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    places = [Place.parse(text) for text in options.targets.split(",")]
    references: dict[str, Reference] = {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="tvmflow-bits-") as folder:
        for place in places:
            storage = place.target.int8.storage
            if storage not in references:
                print(f"numpy oracle, {storage} ...", file=sys.stderr)
                lowered = lower(
                    options.model, place.target, Trace(None, silent), quantize=options.quantize, calibration=options.calibrate,
                    work_dir=options.work_dir,
                )  # fmt: skip
                references[storage] = reference(lowered, options.samples)
            print(f"{place.name} ...", file=sys.stderr)
            rows.append(measure(place, references[storage], options.tuning_log, Path(folder)))
    across = between_storages(references)
    islands = next(iter(references.values())).lowered.coverage.float
    if options.json:
        found = [{**asdict(row), "exact": row.exact} for row in rows]
        print(
            json.dumps(
                {"model": str(options.model), "float_islands": islands, "targets": found, "storages": across and asdict(across)}
            )
        )
    else:
        print(f"{options.model}: {len(next(iter(references.values())).inputs)} inputs, {islands} float operators")
        print(table(rows, across))
    return 0 if all(row.exact for row in rows) and not (across and across.bits) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except TvmflowError as error:
        sys.exit(f"bit_exact: {error}")
