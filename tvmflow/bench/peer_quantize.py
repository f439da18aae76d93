"""Quantizing a model with onnxruntime's own tools, as its documentation says, and keeping the result by content."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvmflow.errors import DataError, ModelError

if TYPE_CHECKING:
    import onnx

SAMPLES = 64
"""Calibration samples that are used at most: the quantizer keeps every activation of every sample in memory."""
PER_CHANNEL_OPSET = 13

Samples = Iterable[Mapping[str, np.ndarray]]


def quantize_static(model: Path, calibration: Samples, work_dir: Path, version: str) -> Path:
    """QDQ model with uint8 activations and int8 weights per channel, calibrated by min-max; the path inside ``work_dir``.

    Kept by the content of model and samples and by ``version`` of onnxruntime. Raises DataError without samples.
    """
    import onnxruntime.quantization as quantization

    samples = [dict(sample) for sample in itertools.islice(calibration, SAMPLES)]
    if not samples:
        raise DataError("no calibration samples for the peer", where="onnxruntime")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest: Iterator[dict[str, np.ndarray]] = iter(samples)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rest, None)

    def perform(prepared: Path, out: Path) -> None:
        quantization.quantize_static(
            prepared,
            out,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=False,
        )

    return _kept(work_dir, f"static-u8s8-{version}", model, samples, perform)


def quantize_dynamic(model: Path, work_dir: Path, version: str) -> Path:
    """Int8 weights per channel, activations quantized at run time: what onnxruntime recommends for transformers.

    Convolutions stay float: onnxruntime before 1.24, the newest for Python 3.10, can't run what its own tool makes of them.
    """
    import onnxruntime.quantization as quantization

    def perform(prepared: Path, out: Path) -> None:
        kinds = ["MatMul", "Attention", "LSTM", "Gather", "EmbedLayerNormalization", "Transpose"]
        quantization.quantize_dynamic(
            prepared, out, op_types_to_quantize=kinds, per_channel=True, weight_type=quantization.QuantType.QInt8
        )

    return _kept(work_dir, f"dynamic-{version}", model, [], perform)


def _kept(
    work_dir: Path, how: str, model: Path, samples: Sequence[Mapping[str, np.ndarray]], perform: Callable[[Path, Path], None]
) -> Path:
    """``perform`` on the pre-processed model, or what it gave the last time."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folder = work_dir / "peers"
    path = folder / f"{model.stem}-{how}-{_digest(model, samples)[:16]}.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        recent, prepared, out = (Path(scratch) / name for name in ("recent.onnx", "prepared.onnx", "out.onnx"))
        onnx.save(_recent(onnx.load(model)), recent)
        # ONNX's own inference suffices for static shapes, and the symbolic one fails on some valid models.
        quant_pre_process(str(recent), str(prepared), skip_symbolic_shape=True)
        perform(prepared, out)
        os.replace(out, path)
    return path


def _recent(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in an opset that has quantization per channel; onnxruntime's quantizer writes invalid models of older ones.

    Raises ModelError when ONNX can't convert it.
    """
    from onnx import version_converter

    opset = next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx"))
    if opset >= PER_CHANNEL_OPSET:
        return model
    try:
        return version_converter.convert_version(model, PER_CHANNEL_OPSET)
    except version_converter.ConvertError as error:
        raise ModelError(
            f"onnx can't convert it from opset {opset} to {PER_CHANNEL_OPSET}, which onnxruntime's quantizer needs: {error}",
            where=model.graph.name,
            remedy="leave out onnxruntime's int8, or export the model again with a newer opset",
        ) from error


def _digest(model: Path, samples: Sequence[Mapping[str, np.ndarray]]) -> str:
    """SHA-256 of the model, its external tensors and the samples."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    digest = hashlib.sha256(model.read_bytes())
    graph = onnx.load(model, load_external_data=False).graph
    external = {
        item.value for t in graph.initializer if uses_external_data(t) for item in t.external_data if item.key == "location"
    }
    for name in sorted(external):
        digest.update((model.parent / name).read_bytes())
    for sample in samples:
        for name, value in sorted(sample.items()):
            digest.update(f"{name} {value.dtype} {value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
