"""What a report shows, as plain data: it can be saved as JSON beside the HTML, and the HTML made again from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tvmflow.errors import DataError

SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """One contender in the one table. Shares are 0 to 1, latencies milliseconds by the label of their column."""

    name: str
    top1: float | None = None
    top5: float | None = None
    bytes: int | None = None
    latency_ms: dict[str, float | None] = field(default_factory=dict)
    best: bool = False
    """Shown in bold."""


@dataclass(frozen=True)
class Accuracy:
    """One model's quality on the evaluation data. Shares are 0 to 1; None is what isn't known."""

    name: str
    top1: float | None = None
    top5: float | None = None
    agreement: float | None = None
    """Share of rows with the best class of the float model."""
    sqnr_db: float | None = None
    cosine: float | None = None
    max_abs_error: float | None = None


@dataclass(frozen=True)
class Size:
    name: str
    bytes: int


@dataclass(frozen=True)
class Runs:
    """All timed runs of one contender in milliseconds, in the order in which they were measured."""

    name: str
    runs_ms: tuple[float, ...]
    precision: str = ""
    ours: bool = False


@dataclass(frozen=True)
class LayerCost:
    name: str
    op: str
    ms: float
    gop: float = 0.0
    peak_fraction: float | None = None


@dataclass(frozen=True)
class LayerError:
    """Error that quantization leaves in one layer's output."""

    name: str
    op: str
    sqnr_db: float | None
    """None when there is no such ratio: an exact output, or one that is always zero."""


@dataclass(frozen=True)
class Island:
    """An operator left in float."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    integer: int
    float: int
    boundaries: int = 0
    """Quantize and dequantize operators in between."""
    islands: tuple[Island, ...] = ()


@dataclass(frozen=True)
class TensorRange:
    """Observed values of one tensor and the grid that was chosen for them."""

    name: str
    role: str
    low: float
    high: float
    scale: float
    """Of a tensor with one scale for each channel: the largest."""
    zero_point: int = 0
    """Of int8 codes, -128 to 127."""
    channels: int = 1
    counts: tuple[int, ...] = ()
    """Histogram over ``[low, high]`` in equal bins."""
    observer: str = ""

    @property
    def inside(self) -> tuple[bool, ...]:
        """For each bin: its middle lies on the grid of int8 codes, or within half a step of it."""
        if not self.counts:
            return ()
        step = (self.high - self.low) / len(self.counts)
        bottom, top = self.scale * (-128.5 - self.zero_point), self.scale * (127.5 - self.zero_point)
        return tuple(bottom <= self.low + (i + 0.5) * step <= top for i in range(len(self.counts)))

    @property
    def clipped(self) -> float | None:
        """Share of the observed values that saturate, 0 to 1, as exactly as the bins tell; None without a histogram."""
        total = sum(self.counts)
        if not total:
            return None
        return sum(count for count, kept in zip(self.counts, self.inside, strict=True) if not kept) / total


@dataclass(frozen=True)
class Advice:
    """What to change in the recipe for one layer."""

    layer: str
    finding: str
    remedy: str


@dataclass(frozen=True)
class Device:
    name: str = ""
    cpu: str = ""
    isa: tuple[str, ...] = ()
    threads: int = 1
    load_average: tuple[float, ...] = ()
    int8_gops: float | None = None
    fp32_gflops: float | None = None


@dataclass(frozen=True)
class ReportData:
    """Everything in a report. A part that is empty is left out of the page."""

    title: str
    target: str = ""
    precision: str = ""
    created: str = ""
    """Date and time as text."""
    device: Device | None = None
    peak_fraction: float | None = None
    summary: tuple[Entry, ...] = ()
    """The one table: every contender with all that was measured of it."""
    accuracy: tuple[Accuracy, ...] = ()
    sizes: tuple[Size, ...] = ()
    latency: tuple[Runs, ...] = ()
    layers: tuple[LayerCost, ...] = ()
    errors: tuple[LayerError, ...] = ()
    advice: tuple[Advice, ...] = ()
    coverage: Coverage | None = None
    ranges: tuple[TensorRange, ...] = ()
    stages: tuple[tuple[str, float], ...] = ()
    """Names of the compile's stages and their seconds."""
    provenance: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA


def encode(data: ReportData) -> bytes:
    """JSON of a report."""
    return msgspec.json.format(msgspec.json.encode(data), indent=1)


def decode(text: bytes, where: str = "report") -> ReportData:
    """A report from its JSON. Raises DataError for text that isn't one, or is of a newer schema."""
    try:
        data = msgspec.json.decode(text, type=ReportData)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise DataError(f"this is not a report: {error}", where=where) from error
    if data.schema > SCHEMA:
        raise DataError(
            f"schema {data.schema} is newer than this tvmflow knows ({SCHEMA})", where=where, remedy="upgrade tvmflow"
        )
    return data


def read(path: Path) -> ReportData:
    """A saved report. Raises DataError."""
    try:
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise DataError(f"can't read the report: {error.strerror}", where=str(path)) from error
