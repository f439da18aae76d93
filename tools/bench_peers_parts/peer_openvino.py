"""OpenVINO's CPU plugin, latency mode, one stream; int8 by NNCF's post-training quantization.

On a CPU with bfloat16 OpenVINO computes float layers in bfloat16 unless told: ``fp32`` and ``int8`` tell it, ``bf16`` and
``int8-bf16`` do not.
"""

from __future__ import annotations

from pathlib import Path

import openvino
from bench_peers_parts.worker import Run, samples
from openvino import properties


def version() -> str:
    return openvino.__version__.split("-")[0]


def prepare(model: Path, precision: str, calibration: Path, folder: Path) -> None:
    converted = openvino.convert_model(model)
    if precision.startswith("int8"):
        import nncf

        transformer = any(op.get_type_name() == "MVN" for op in converted.get_ops())  # layer norm
        converted = nncf.quantize(
            converted,
            nncf.Dataset(samples(calibration)),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        )
    openvino.save_model(converted, folder / "model.xml", compress_to_fp16=False)


def serve(folder: Path, precision: str, threads: int) -> Run:
    hint = openvino.Type.bf16 if precision.endswith("bf16") else openvino.Type.f32
    settings = {
        properties.hint.performance_mode: properties.hint.PerformanceMode.LATENCY,
        properties.hint.inference_precision: hint,
        properties.inference_num_threads: threads,
        properties.num_streams: 1,
    }
    request = openvino.Core().compile_model(folder / "model.xml", "CPU", settings).create_infer_request()
    return lambda inputs: request.infer(inputs, share_inputs=True, share_outputs=True)[0]
