"""How much each layer loses by quantization, and what to do about it.

Errors are measured where both the float model and the quantized model have a tensor (:func:`counterparts`), as sums over all
samples: constant memory. They accumulate from layer to layer; a layer's own share is the drop against the layers that it reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvmflow.kernels.call import kernel_of
from tvmflow.kernels.spec import Conv2d
from tvmflow.quantize.calibrate import Calibration, SiteStats
from tvmflow.quantize.graph import Graph
from tvmflow.quantize.plan import Group, Plan
from tvmflow.quantize.qparams import QParam

OUTLIER_RATIO = 4.0
"""A range this many times wider than the one that holds 99.98 % of the values wastes two of eight bits."""
LOW_SQNR_DB = 15.0
DROP_DB = 6.0
"""A loss of one bit."""

Values = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class LayerError:
    """Error of one tensor of the quantized model against the float model, over all samples."""

    layer: str
    sqnr_db: float
    """Signal power over error power in decibels; infinite without error, -inf for a signal of zeros with an error."""
    cosine: float
    max_abs_error: float
    mean_abs_error: float
    signal_rms: float


class ErrorMeter:
    """Sums of one tensor's errors over samples, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._signal = self._other = self._product = self._noise = self._absolute = self._largest = 0.0

    def update(self, reference: np.ndarray, quantized: np.ndarray) -> None:
        """Add a pair of equally many values. Raises ValueError when there are not."""
        a, b = reference.astype(np.float64).ravel(), quantized.astype(np.float64).ravel()
        if a.size != b.size:
            raise ValueError(f"{a.size} values against {b.size}")
        difference = b - a
        self._count += a.size
        self._signal += float(a @ a)
        self._other += float(b @ b)
        self._product += float(a @ b)
        self._noise += float(difference @ difference)
        self._absolute += float(np.abs(difference).sum())
        self._largest = max(self._largest, float(np.abs(difference).max(initial=0.0)))

    def result(self, layer: str) -> LayerError:
        norms = math.sqrt(self._signal * self._other)
        equal_zeros = self._signal == self._other == 0.0
        return LayerError(
            layer=layer,
            sqnr_db=_decibel(self._signal, self._noise),
            cosine=self._product / norms if norms > 0 else float(equal_zeros),
            max_abs_error=self._largest,
            mean_abs_error=self._absolute / max(self._count, 1),
            signal_rms=math.sqrt(self._signal / max(self._count, 1)),
        )


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def sqnr_db(reference: np.ndarray, quantized: np.ndarray) -> float:
    """Signal-to-quantization-noise ratio of two equally large arrays in decibels."""
    meter = ErrorMeter()
    meter.update(reference, quantized)
    return meter.result("").sqnr_db


def dequantized(values: np.ndarray, param: QParam) -> np.ndarray:
    """float32 values of an integer tensor in storage uint8 (``q + 128``) or int8; a float tensor is returned as it is.

    Activations only: one scale.
    """
    if values.dtype.kind == "f":
        return values
    zero = param.zero_point + (128 if values.dtype == np.uint8 else 0)
    return ((values.astype(np.int32) - zero) * param.scale[0]).astype(np.float32)


def layer_errors(
    float_values: Callable[[Values], Values],
    quantized_values: Callable[[Values], Values],
    samples: Iterable[Values],
    qparams: Mapping[str, QParam],
) -> tuple[LayerError, ...]:
    """Error of every tensor that both models have, in the float model's order.

    ``float_values`` and ``quantized_values`` map a sample to tensors by name (:func:`tensors_of`); integers are dequantized with
    ``qparams``.
    """
    meters: dict[str, ErrorMeter] = {}
    for sample in samples:
        reference, quantized = float_values(sample), quantized_values(sample)
        for name, value in reference.items():
            if name in quantized:
                found = quantized[name]
                meters.setdefault(name, ErrorMeter()).update(
                    value, dequantized(found, qparams[name]) if name in qparams else found
                )
    return tuple(meter.result(name) for name, meter in meters.items())


def tensors_of(
    execute: Callable[[Sequence[np.ndarray]], list[np.ndarray]], inputs: Sequence[str], names: Sequence[str]
) -> Callable[[Values], Values]:
    """From a compiled ``calibrate.with_outputs(module, names)`` to a function from a sample to its tensors by name."""

    def values(sample: Values) -> Values:
        return dict(zip(names, execute([sample[i] for i in inputs]), strict=True))

    return values


def counterparts(plan: Plan, realized: Graph) -> dict[str, str]:
    """Which variable of the realized module holds a tensor of the float model: site id -> variable name.

    A kernel has the name of its layer and holds the tensor at the end of its group, or, where it adds a residual, the sum.
    Tensors that exist inside a kernel only are left out.
    """
    readers: dict[str, list[Group]] = {}
    for group in plan.groups:
        for source in group.inputs:
            readers.setdefault(source, []).append(group)
    found = {}
    for group in plan.groups:
        spec = kernel_of(realized.exprs[group.layer]) if group.layer in realized.exprs else None
        if isinstance(spec, Conv2d) and spec.residual:
            found[readers[group.output][0].output] = group.layer
        elif group.layer in realized.exprs:
            found.setdefault(group.output, group.layer)
    return found


@dataclass(frozen=True)
class Advice:
    """What to change in the recipe for one layer."""

    layer: str
    finding: str
    remedy: str


def advise(errors: Sequence[LayerError], calibration: Calibration, plan: Plan) -> tuple[Advice, ...]:
    """Findings in the plan's order: outliers in ranges, and layers that lose more than a bit against everything they read."""
    return (*_outliers(calibration), *_drops(errors, plan))


def _outliers(calibration: Calibration) -> list[Advice]:
    found = []
    for site, stats in calibration.stats.items():
        ratio = outlier_ratio(stats)
        if ratio > OUTLIER_RATIO and calibration.qparams[site].observer == "minmax":
            text = f"range [{stats.low:.3g}, {stats.high:.3g}] is {ratio:.1f} times wider than 99.98 % of its values need"
            remedy = f'use a percentile: [[rules]] layer = "{site}", activation = {{ observer = "percentile" }}'
            found.append(Advice(site, text, remedy))
    return found


def outlier_ratio(stats: SiteStats) -> float:
    """Width of the observed range over that of 99.98 % of the values, zero included in both; 1 without outliers."""
    wide = max(stats.high, 0.0) - min(stats.low, 0.0)
    core = max(stats.tail_high, 0.0) - min(stats.tail_low, 0.0)
    if core == 0.0:
        return math.inf if wide > 0 else 1.0
    return wide / core


def _drops(errors: Sequence[LayerError], plan: Plan) -> list[Advice]:
    by_name = {e.layer: e for e in errors}
    found = []
    for group in plan.groups:
        inputs = [by_name[i].sqnr_db for i in group.inputs if i in by_name]
        if not group.integer or group.output not in by_name or not inputs:
            continue
        sqnr, drop = by_name[group.output].sqnr_db, min(inputs) - by_name[group.output].sqnr_db
        if sqnr < LOW_SQNR_DB and drop > DROP_DB:
            text = f"SQNR falls by {drop:.1f} dB to {sqnr:.1f} dB in this {group.op}"
            remedy = f'leave it in float: [[rules]] layer = "{group.layer}", skip = true'
            found.append(Advice(group.layer, text, remedy))
    return found
